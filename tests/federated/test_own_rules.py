"""A client holds to its own study, whatever the server asks of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import data, example, make
from tiny_study import STUDY as TINY
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.controller.phases import knows_epochs
from autocompress.errors import InputError
from autocompress.federated.client import Client, cuts
from autocompress.federated.evaluator import FederatedEvaluator
from autocompress.federated.local import InProcess
from autocompress.federated.messages import digest_of, pack, unpack
from autocompress.federated.own_rules import first_matrix
from autocompress.federated.study import Simulated, run_federated
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.run import feasibility
from autocompress.run.assembly import Assembly
from autocompress.run.evaluator import StudyEvaluator
from autocompress.run.study import read_study

SETTINGS = CompressionSettings(equalization=False)
MOMENTS: dict[str, Any] = {"share": 1.0, "seed": 0, "without": [], "clip": {}, "noise": 0.0}


def client(folder: Path, runtime: str = "onnxruntime", **federation: Any) -> Client:
    named = {
        "model": {"factory": "small_networks:make"},
        "data": {"factory": "small_networks:data"},
    }
    more = {"target": {"runtime": runtime}, "federation": federation}
    study = read_study({"name": "small", **named, **more})
    model, own = make("plain"), data("plain")
    inventory = take_inventory(model, example("plain"))
    return Client(Assembly(study, model, own, inventory, folder), own, folder / "client")


def asked(one: Client, kind: str, args: dict[str, Any], **more: Any) -> dict[str, Any]:
    head = {"kind": kind, "key": "k", "model": list(one.identity), "args": args, "blobs": []}
    arrays = more.pop("arrays", {})
    return unpack(one.answer(pack({**head, **more}, arrays)))[0]


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "A" * 24, "a" * 23, "a" * 24])
def test_what_is_sent_once_is_kept_under_its_digest_alone(tmp_path: Path, name: str) -> None:
    one = client(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    told = asked(one, "describe", {}, arrays={f"blob.{name}": np.frombuffer(b"bank", np.uint8)})
    assert "digest" in told["problem"]
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_kept_things_do_not_lead_elsewhere(tmp_path: Path) -> None:
    one = client(tmp_path)
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    assert "digest" in asked(one, "describe", {}, blobs=["../secret"])["problem"]
    blob = np.frombuffer(b"bank", np.uint8)
    digest = digest_of(b"bank")
    told = asked(one, "describe", {}, blobs=[digest], arrays={f"blob.{digest}": blob})
    assert "problem" not in told
    assert (one.folder / f"{digest}.safetensors").read_bytes() == b"bank"


def test_a_program_of_the_server_is_not_opened(tmp_path: Path) -> None:
    file = {"file": np.frombuffer(b"no program", np.uint8)}
    told = asked(client(tmp_path, "torch"), "evaluate", {"split": "val"}, arrays=file)
    assert "trust_server" in told["problem"]
    trusting = client(tmp_path, "torch", trust_server=True)
    for other in (trusting, client(tmp_path)):  # it is opened, and is none
        told = asked(other, "evaluate", {"split": "val"}, arrays=file)
        assert told["problem"]
        assert "trust_server" not in told["problem"]


def with_bank(one: Client) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and blobs of a round about a compressed model."""
    parts, path = one.parts, one.folder.parent / "bank.safetensors"
    bank = LayerBank.build(parts.model, parts.inventory, one.data.train, SETTINGS)
    bank.write(path)
    blob = path.read_bytes()
    name = digest_of(blob)
    one.sent.keep({f"blob.{name}": np.frombuffer(blob, np.uint8)})
    told = {"cuts": cuts(parts.inventory), "settings": SETTINGS.model_dump(mode="json")}
    return {**told, "policy": Policy().as_dict(), "share": 1.0, "seed": 0}, {"blobs": [name]}


def test_moments_of_the_first_layer_stay_where_they_are(tmp_path: Path) -> None:
    one = client(tmp_path, without_first_layer=True)
    first, second = (layer.name for layer in one.parts.inventory.layers[:2])
    assert "without_first_layer" in asked(one, "moments", MOMENTS)["problem"]
    assert "problem" not in asked(one, "moments", {**MOMENTS, "without": [first]})
    args, blobs = with_bank(one)
    for layers, kept in (([second], False), ([second, first], True)):
        about = {**args, "layers": layers, "means": False}
        told = asked(one, "inputs", about, **blobs)
        assert ("without_first_layer" in told.get("problem", "")) == kept, told
    assert "problem" not in asked(client(tmp_path / "other"), "moments", MOMENTS)


def test_the_first_layer_is_the_one_that_runs_first() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 2)
            self.first = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(self.first(x))
            return found

    assert first_matrix(Backwards(), torch.zeros(2, 4)) == ["first"]


def test_single_samples_are_hidden_as_the_client_says(tmp_path: Path) -> None:
    """The server asks for hardly any noise, and the spread of what comes is measured."""
    one = client(tmp_path, epsilon=0.5, delta=1e-5)
    assert "federation.epsilon" in asked(one, "moments", MOMENTS)["problem"]
    names = [layer.name for layer in one.parts.inventory.layers]
    args = {**MOMENTS, "clip": dict.fromkeys(names, 1e6), "noise": 1e-9}
    for bad in ({names[0]: 1e6}, dict.fromkeys(names, 0.0), dict.fromkeys(names, float("inf"))):
        assert "federation.epsilon" in asked(one, "moments", {**args, "clip": bad})["problem"]
    noisy = one.sums("moments", args, {}, []).arrays
    exact = client(tmp_path / "other").sums("moments", MOMENTS, {}, []).arrays
    assert set(noisy) == {n for n in exact if n.startswith("moments.")}
    off = np.concatenate([(noisy[n] - exact[n]).ravel() for n in noisy]) / 1e6
    # a Gaussian needs about 7.03 for epsilon 0.5 and delta 1e-5, for each of the layers together
    assert off.std() == pytest.approx(7.03 * len(noisy) ** 0.5, rel=0.1)


def test_hidden_moments_are_told_once(tmp_path: Path) -> None:
    one = client(tmp_path, epsilon=3.0)
    names = [layer.name for layer in one.parts.inventory.layers]
    args = {**MOMENTS, "clip": dict.fromkeys(names, 100.0), "noise": 1.0}
    first = one.sums("moments", args, {}, []).arrays
    restarted = replace(one)
    again = restarted.sums("moments", json.loads(json.dumps(args)), {}, []).arrays
    assert all(np.array_equal(again[n], first[n]) for n in first)
    assert "before" in asked(restarted, "moments", {**args, "seed": 1})["problem"]
    about, blobs = with_bank(one)
    told = asked(one, "inputs", {**about, "layers": names[1:2], "means": False}, **blobs)
    assert "federation.epsilon" in told["problem"]


def test_a_study_with_a_cascade_is_refused(tmp_path: Path) -> None:
    study = read_study({**TINY, "dynamic": {"min_accuracy": 0.5}})
    with pytest.raises(InputError, match="Leave out `dynamic`"):
        run_federated(study, InProcess([], client), tmp_path / "run")  # type: ignore[arg-type]  # nobody is asked


def test_a_client_measures_no_space(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(parts: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(feasibility, "advice_for", measured)
    plain = {k: v for k, v in TINY.items() if k != "baseline"}
    study = read_study({**plain, "space": "auto", "target": {"runtime": "onnxruntime"}})
    parts = Simulated(study).parts
    assert parts.advice is None
    assert parts.bind().choices


def test_recovery_is_not_fitted_to_the_epochs_of_the_server() -> None:
    assert knows_epochs(StudyEvaluator.__new__(StudyEvaluator))
    assert not knows_epochs(FederatedEvaluator.__new__(FederatedEvaluator))
