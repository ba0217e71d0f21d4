"""The Python surface beside ``search``, on one small trained network and recipes made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tiny_study import call
from torch import Tensor, nn
from torch.nn import functional as F

import autocompress as ac
from autocompress.errors import ExportError, InputError
from autocompress.results.trial import Phase, Trial
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.given import as_module, given_study
from autocompress.run.recipes import make_recipe
from autocompress.run.resuming import differences, known_baseline
from autocompress.track.folder import RunFolder

pytestmark = pytest.mark.timeout(900)
NETWORK = '''
"""A user's own module."""
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 10),
    )


def trained():
    model = network()
    model.load_state_dict(torch.load("weights.pt"))
    return model.eval()


def splits():
    from autocompress.workloads.data import digits
    return digits()
'''


@pytest.fixture(scope="module")
def data() -> ac.Data:
    from autocompress.workloads.data import digits

    return digits()


def step(model: nn.Module, data: ac.Data, epochs: int, lr: float = 0.05) -> None:
    """A user's own training loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(epoch)
        for inputs, targets in data.train.batches(64, generator=generator):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data: ac.Data) -> Path:
    """A folder with the user's module and its trained weights."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(NETWORK)
    names: dict[str, Any] = {}
    exec(NETWORK, names)
    model = names["network"]()
    step(model, data, 5)
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> nn.Module:
    names: dict[str, Any] = {}
    exec(NETWORK, names)
    network: nn.Module = names["network"]()
    network.load_state_dict(torch.load(place / "weights.pt"))
    return network.eval()


POLICIES = {
    "pruned": {"0": {"prune_ratio": 0.25}},
    "integer": {
        "0": {"prune_ratio": 0.25, "weight_bits": 8, "activation_bits": 8},
        "4": {"weight_bits": 8, "activation_bits": 8},
        "8": {"weight_bits": 4},
    },
}


@pytest.fixture(scope="module")
def recipes(place: Path, model: nn.Module, data: ac.Data) -> dict[str, Path]:
    """A recipe of each policy, with what was really measured."""
    study = given_study("own", None)
    found = {}
    parts = assemble(study, place / "models", model=model, data=data)
    for name, layers in POLICIES.items():
        policy = ac.Policy.read({"layers": layers}, where="test")
        measured = parts.evaluator.evaluate(policy, Phase("recover", 0.0, 1), 0)
        trial = Trial(0, policy, phase=Phase("recover", 0.0, 1), measurement=measured)
        recipe = make_recipe(parts.study, trial, parts.evaluator.baseline, parts.identity)
        found[name] = recipe.save(place / f"{name}.yaml")
    return found


def run(path: Path, inputs: Tensor) -> Tensor:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(str(path)).graph.node}


@pytest.mark.parametrize("name", POLICIES)
def test_what_apply_gave_is_exported_also_after_more_training(
    name: str, recipes: dict[str, Path], model: nn.Module, data: ac.Data, tmp_path: Path
) -> None:
    module = ac.apply(recipes[name], model, data)
    inputs = data.test.inputs()
    with torch.no_grad():
        before = module(inputs)
    first = ac.export(module, tmp_path / "first.onnx")
    assert agreement(run(first, inputs), before) >= 0.99
    step(module, data, 1)
    with torch.no_grad():
        after = module(inputs)
    second = ac.export(module, tmp_path / "second.onnx")
    assert agreement(run(second, inputs), after) >= 0.99
    # not what it was before: the file holds the weights that were trained
    apart = (run(second, inputs) - before).abs().mean()
    assert apart > 5 * (run(second, inputs) - after).abs().mean()
    if name == "integer":
        assert {"QuantizeLinear", "DequantizeLinear"} <= operators(second)
        assert operators(first) == operators(second)
    else:
        torch.testing.assert_close(run(second, inputs), after, rtol=1e-3, atol=1e-4)
        assert not {"QuantizeLinear"} & operators(second)


def agreement(one: Tensor, other: Tensor) -> float:
    return float((one.argmax(1) == other.argmax(1)).float().mean())


def test_the_file_is_the_one_that_the_command_writes(
    recipes: dict[str, Path], model: nn.Module, data: ac.Data, place: Path, tmp_path: Path
) -> None:
    """In the installed program, the model and the data named by their factories."""
    named = "--model own:trained --data own:splits"
    call(place, f"apply {recipes['integer']} {named} -o {tmp_path}/command.onnx")
    ours = ac.export(ac.apply(recipes["integer"], model, data), tmp_path / "python.onnx")
    inputs = data.test.inputs(100)
    torch.testing.assert_close(run(tmp_path / "command.onnx", inputs), run(ours, inputs))
    done = json.loads(call(place, f"verify {recipes['integer']} {named} --json", check=None).stdout)
    assert done["same_weights"]
    assert not [reason for reason in done["reasons"] if "latency" not in reason]
    refused = call(place, f"verify {recipes['integer']} --model own:trained", check=2)
    assert "--data package.module:factory" in " ".join(refused.stderr.split())
    refused = call(place, f"verify {recipes['integer']}", check=2)
    assert "a model and data handed over in Python" in " ".join(refused.stderr.split())


def test_a_recipe_is_verified_with_objects(
    recipes: dict[str, Path], model: nn.Module, data: ac.Data, tmp_path: Path
) -> None:
    found = ac.verify(recipes["pruned"], model, data)
    assert not [reason for reason in found["reasons"] if "latency" not in reason]
    claimed = ac.Recipe.load(recipes["pruned"])
    values = {**claimed.measurement.values, "accuracy": found["accuracy"] - 0.05}
    wrong = claimed.model_copy(
        update={"measurement": claimed.measurement.model_copy(update={"values": values})}
    ).save(tmp_path / "wrong.yaml")
    assert not ac.verify(wrong, model, data)["ok"]


def test_other_modules_are_exported_in_float(data: ac.Data, tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(InputError, match="needs an example"):
        ac.export(plain, tmp_path / "plain.onnx")
    inputs = torch.randn(4, 1, 8, 8)
    file = ac.export(plain, tmp_path / "plain.onnx", example=inputs)
    torch.testing.assert_close(run(file, inputs), plain(inputs).detach(), rtol=1e-4, atol=1e-5)


def test_a_module_with_exchanged_layers_has_no_ranges(
    recipes: dict[str, Path], model: nn.Module, data: ac.Data, tmp_path: Path
) -> None:
    module = ac.apply(recipes["integer"], model, data)
    module[3] = nn.AvgPool2d(2)  # type: ignore[operator]  # a Sequential
    module[2] = nn.Sequential(nn.Hardswish(), nn.Hardswish())  # type: ignore[operator]  # a Sequential
    with pytest.raises(ExportError, match="changed since"):
        ac.export(module, tmp_path / "changed.onnx")


def test_a_policy_is_measured_and_a_model_profiled(model: nn.Module, data: ac.Data) -> None:
    found = ac.evaluate(model, data, uniform={"prune_ratio": 0.5}, quick=True)
    assert found["trial"]["macs"] < 0.6 * found["baseline"]["macs"]
    assert set(found["trial"]) == {
        *("accuracy", "accuracy_stderr", "latency_ms", "latency_ratio", "latency_p99_ms"),
        *("macs", "params", "size_bytes", "feasible", "violations", "problems", "notes", "policy"),
    }
    alone = ac.evaluate(model, data)
    assert alone["trial"]["accuracy"] == alone["baseline"]["accuracy"]
    with pytest.raises(InputError, match="either"):
        ac.evaluate(model, data, {}, uniform={})
    shown = ac.profile(model, data)
    assert [row["name"] for row in shown["layers"]] == ["0", "4", "8"]


@pytest.fixture(scope="module")
def parts(place: Path, model: nn.Module, data: ac.Data) -> Assembly:
    return assemble(given_study("own", None), place / "models", model=model, data=data)


def test_a_run_goes_on_with_what_began_it(parts: Assembly, tmp_path: Path) -> None:
    """Model, data, target and settings: each alone is named; other budgets are welcome."""
    base = ac.Measurement(
        {"accuracy": 0.9, "latency_ms": 1.0}, context={"identity": parts.identity}
    )
    study = parts.study.model_dump(mode="json")
    assert differences(base, study, parts) == []
    assert differences(base, {**study, "budget": ["macs<=0.1x"], "workers": 3}, parts) == []
    # what an earlier version did not write is not compared
    assert differences(ac.Measurement({"accuracy": 0.9}), {}, parts) == []

    def changed(**sections: Any) -> list[str]:
        return differences(base, {**study, **sections}, parts)

    for key, text in (("architecture", "model"), ("weights", "weights"), ("data", "data")):
        other = replace(base, context={"identity": {**parts.identity, key: "x"}})
        assert [text in said for said in differences(other, study, parts)] == [True]
    assert changed(target={"threads": 4}) == ["another target (threads 4, now 1)"]
    assert changed(settings={**study["settings"], "seed": 9}) == ["other settings (seed 9, now 0)"]

    folder = RunFolder.create(tmp_path / "run")
    folder.write_study({**study, "target": {"threads": 4}})
    folder.write_baseline(base)
    folder.trials.write_text("{}\n")
    with pytest.raises(InputError, match="--new-baseline"):
        known_baseline(folder, parts)
    assert folder.trials.is_file()
    assert known_baseline(folder, parts, new_baseline=True) is None
    assert not folder.is_run
    assert (folder.root / "earlier" / "1" / "trials.jsonl").read_text() == "{}\n"


def test_a_run_that_is_judged_by_other_parameters_does_not_go_on(
    parts: Assembly, tmp_path: Path
) -> None:
    """As 0.1 began one: it did not count parameters outside of layers."""
    folder = RunFolder.create(tmp_path / "run")
    folder.write_study(parts.study.model_dump(mode="json"))
    whole = sum(p.numel() for p in parts.model.parameters())
    judged = replace(parts, study=parts.study.changed(budget=["params<=0.5x"]))
    for counted in (whole - 8, whole):
        base = ac.Measurement(
            {"accuracy": 0.9, "latency_ms": 1.0, "params": float(counted)},
            context={"identity": parts.identity},
        )
        folder.write_baseline(base)
        folder.trials.write_text("{}\n")
        assert known_baseline(folder, parts) == base
        if counted == whole:
            assert known_baseline(folder, judged) == base
            continue
        with pytest.raises(InputError, match=f"parameters .*{counted:,}, now {whole:,}"):
            known_baseline(folder, judged)


def test_an_onnx_file_is_a_model(model: nn.Module, data: ac.Data, tmp_path: Path) -> None:
    file = ac.export(model, tmp_path / "float.onnx", example=data.train.inputs(1))
    again = as_module(file)
    inputs = data.test.inputs(64)
    with torch.no_grad():
        torch.testing.assert_close(again(inputs), model(inputs), rtol=1e-3, atol=1e-4)
    found = ac.evaluate(file, data, uniform={"weight_bits": 8, "prune_ratio": 0.5}, quick=True)
    assert found["trial"]["macs"] < 0.6 * found["baseline"]["macs"]
    assert set(found["trial"]) == {
        *("accuracy", "accuracy_stderr", "latency_ms", "latency_ratio", "latency_p99_ms"),
        *("macs", "params", "size_bytes", "feasible", "violations", "problems", "notes", "policy"),
    }
    kinds = {row["kind"] for row in ac.profile(file, data)["layers"]}
    assert kinds == {"conv", "linear"}


def test_products_with_constants_become_linear_layers(tmp_path: Path) -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:  # of three axes: exported as products, not Gemm
            return x + self.down(F.gelu(self.up(x)))

    net = Products().eval()
    inputs = torch.randn(2, 5, 6)
    path = ac.export(net, tmp_path / "products.onnx", example=inputs)
    again = as_module(path)
    assert sum(isinstance(m, nn.Linear) for m in again.modules()) == 2
    torch.testing.assert_close(again(inputs), net(inputs), rtol=1e-4, atol=1e-5)


def test_files_that_are_no_model_are_refused(
    recipes: dict[str, Path], model: nn.Module, data: ac.Data, tmp_path: Path
) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"\x00\x01junk" * 50)
    for wrong, text in (
        (tmp_path / "none.onnx", "no file"),
        (tmp_path / "junk.onnx", "no ONNX file"),
        (SimpleNamespace(), "must be a torch.nn.Module"),
    ):
        with pytest.raises(InputError, match=text):
            as_module(wrong)  # type: ignore[arg-type]  # what is refused
    integer = ac.export(ac.apply(recipes["integer"], model, data), tmp_path / "integer.onnx")
    with pytest.raises(InputError, match="quantized already"):
        as_module(integer)
    fixed = onnx.load(str(ac.export(model, tmp_path / "f.onnx", example=data.train.inputs(1))))
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, str(tmp_path / "fixed.onnx"))
    with pytest.raises(InputError, match="free batch"):
        as_module(tmp_path / "fixed.onnx")


def test_files_are_judged_beside_the_uncompressed_model(
    place: Path, recipes: dict[str, Path], model: nn.Module, data: ac.Data
) -> None:
    ac.export(ac.apply(recipes["pruned"], model, data), place / "pruned.onnx")
    broken = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    ac.export(broken, place / "broken.onnx", example=data.train.inputs(1))
    (place / "study.yaml").write_text(
        "model: {factory: 'own:trained'}\ndata: {factory: 'own:splits'}\n"
    )
    shown = json.loads(
        call(place, "judge pruned.onnx broken.onnx --study study.yaml --json").stdout
    )
    pruned, guess = shown["files"]
    claimed = ac.Recipe.load(recipes["pruned"]).measurement.values
    assert pruned["accuracy"] == pytest.approx(claimed["accuracy"], abs=0.005)
    assert guess["accuracy"] < 0.5
    assert guess["accuracy_high"] < 0
    assert np.isfinite([pruned["latency_ms"], pruned["ratio_low"], pruned["ratio_high"]]).all()
    call(place, "judge none.onnx --study study.yaml", check=2)


def test_task_and_reading_are_said_here_too(tmp_path: Path) -> None:
    """A model of numbers on batches that do not say what is what; nothing of it is in a file."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    rows = [{"left": torch.randn(4), "right": torch.randn(2)} for _ in range(80)]
    reading: dict[str, Any] = {
        "input_fn": lambda batch: batch["left"],
        "target_fn": lambda batch: batch["right"],
    }
    found = ac.evaluate(
        net, {"train": rows}, uniform={"prune_ratio": 0.5}, task="regression", **reading
    )
    assert found["quality"] == {"name": "mse", "unit": "", "goal": "minimize"}
    assert found["trial"]["mse"] > 0
    task = ac.Task(ac.TaskMetric("gap", "m", "min", lambda o, t: float((o - t).abs().mean())))
    shown = ac.profile(net, {"train": rows}, task=task, **reading)
    assert set(shown["baseline"]) > {"gap", "macs"}
    with pytest.raises(TypeError, match="target_fn"):
        ac.evaluate(net, {"train": rows}, task="regression", targets_fn=len)  # type: ignore[call-arg]  # refused
