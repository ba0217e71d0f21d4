"""Whole studies whose data lie with clients, which answer in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import STUDY

from autocompress.errors import InputError
from autocompress.federated.client import Client
from autocompress.federated.local import InProcess
from autocompress.federated.study import Simulated, run_federated
from autocompress.results.trial import Phase
from autocompress.run.study import StudyConfig, read_study
from autocompress.track.view import RunView


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    """Four unlike clients of a digits classifier, trained on the spot."""
    federation = {"clients": 4, "split": "dirichlet", "alpha": 0.5, "rounds": 2}
    return Simulated(study(federation))


def study(federation: dict[str, Any], trials: int = 3) -> StudyConfig:
    search = {**STUDY["search"], "trials": trials, "random_references": 1}
    more = {"federation": federation, "search": search, "tracking": {"mlflow": False}}
    return read_study({**STUDY, **more, "target": {"runtime": "onnxruntime"}})


class Counted(InProcess):
    """Counts messages; may fail after some."""

    def __init__(self, simulated: Simulated, until: int | None = None) -> None:
        super().__init__(range(4), simulated.client)
        self.asked, self.until = 0, until

    def push(self, client: int, message: bytes) -> None:
        self.asked += 1
        if self.until is not None and self.asked > self.until:
            raise KeyboardInterrupt
        super().push(client, message)


def test_a_study_runs_and_what_was_answered_is_not_asked_again(
    simulated: Simulated, tmp_path: Path
) -> None:
    """Killed while it measures, resumed, and then resumed when all is done."""
    own, model = simulated.study, simulated.parts.model
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_federated(own, Counted(simulated, until=30), out, model=model)
    before = len((out / "federated" / "rounds.jsonl").read_text().splitlines())
    assert before > 3
    going_on = Counted(simulated)
    done = run_federated(own, going_on, out, model=model, resume=out.exists(), simulated=simulated)
    told = done.summary["federated"]
    assert done.summary["answered"]
    assert told["kinds"]["moments"]["rounds"] == told["kinds"]["describe"]["rounds"] == 1
    assert going_on.asked <= 4 * (told["rounds"] - before + 1)
    front = [t for t in done.view.trials if t.phase.kind == "verify"]
    assert front
    measured = front[0].measurement
    assert measured is not None
    own_values = measured.context["clients"]
    assert len(own_values) == 4
    assert measured["worst_client_accuracy"] == pytest.approx(min(own_values.values()))
    assert measured["worst_client_accuracy"] <= measured["accuracy"]
    assert "the client that it serves worst" in (out / "report.html").read_text(encoding="utf-8")
    assert json.loads((out / "federated.json").read_text())["sent_bytes"] == told["sent_bytes"]
    assert told["pooled"] == pooled_by_hand(simulated, done.view)
    assert "gap to pooling is" in (out / "report.html").read_text(encoding="utf-8")
    again = Counted(simulated)
    run_federated(own, again, out, model=model, resume=True)
    assert again.asked == 0
    assert "gap to pooling is not known" in (out / "report.html").read_text(encoding="utf-8")


def pooled_by_hand(simulated: Simulated, view: RunView) -> dict[str, Any]:
    """The answer's policy on all samples, in torch."""
    best, data, pipeline = view.best, simulated.parts.data, simulated.parts.pipeline
    assert best is not None
    check = view.verified(best)
    assert check is not None
    assert check.measurement is not None
    final = Phase("verify", best.phase.epochs, best.phase.rung)
    module = pipeline.build(best.policy, final, best.seed).module
    with torch.no_grad():
        right = module(data.test.inputs()).argmax(1) == data.test.targets
    return {
        "trial": best.number,
        "metric": "accuracy",
        "split": "test",
        "federated": check.measurement["accuracy"],
        "pooled": pytest.approx(float(right.double().mean()), abs=1.5 / len(right)),
    }


def test_a_client_that_fails_costs_its_samples_alone(simulated: Simulated, tmp_path: Path) -> None:
    def some(number: int) -> Client:
        if number != 2:
            return simulated.client(number)
        return _Failing(simulated.client(2))

    done = run_federated(
        study({"clients": 4, "least": 0.7}, trials=1).changed(recovery={"epochs": 0}),
        InProcess(range(4), some),
        tmp_path / "run",
        model=simulated.parts.model,
    )
    told = json.loads((tmp_path / "run" / "federated.json").read_text())
    assert "no disk" in told["left_out"]["2"]["reason"]
    assert done.summary["answered"]


class _Failing(Client):
    """Its data cannot be read."""

    def __init__(self, client: Client) -> None:
        super().__init__(client.parts, client.data, client.folder)

    def sums(self, *args: Any) -> Any:
        raise OSError("no disk")


def test_an_untrained_model_is_refused_where_nobody_can_train_it(tmp_path: Path) -> None:
    def reach(number: int) -> Client:
        pytest.fail("asked")

    with pytest.raises(InputError, match="every client has"):
        run_federated(study({"clients": 4}), InProcess(range(4), reach), tmp_path / "run")
    assert not (tmp_path / "run").exists()
