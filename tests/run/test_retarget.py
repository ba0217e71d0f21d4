"""A finished run asked about another target: its front there, other budgets there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny_study import call, study_of

import autocompress as ac
from autocompress.errors import InputError
from autocompress.machine.progress import silent
from autocompress.measure.measurer import Measurer
from autocompress.policy.policy import Policy
from autocompress.results.trial import TrialState
from autocompress.run import retarget
from autocompress.run.evaluator import StudyEvaluator
from autocompress.run.study import load_study
from autocompress.targets import get_target
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

pytestmark = pytest.mark.timeout(900)
STUDY = study_of(trials=6, space="prune_int8", budget=["macs<=0.6x", "latency<=3x"])
OTHER = "openvino"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished search on ONNX Runtime."""
    pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp("retarget") / "run"
    ac.run_study(STUDY, out=out, quiet=True)
    return RunFolder.open(out)


def there(run: RunFolder) -> RunView:
    return retarget.retarget(run, RunView.load(run), OTHER, silent)[0]


def test_every_phase_is_judged_by_what_it_takes_there(run: RunFolder) -> None:
    """Verification, too: its figures of the first target say nothing of the second."""
    before, after = RunView.load(run), there(run)
    assert "verify" in {t.phase.kind for t in before.trials}
    assert after.baseline.context["target"]["runtime"] == OTHER
    by_policy: dict[str, set[float]] = {}
    for old, new in zip(before.trials, after.trials, strict=True):
        assert (new.number, new.phase, new.policy) == (old.number, old.phase, old.policy)
        if old.state is TrialState.COMPLETE:
            assert old.measurement is not None
            assert new.measurement is not None
            assert new.measurement.context["target"]["runtime"] == OTHER
            assert new.measurement.timing.ratio is not None
            assert new.measurement.score == old.measurement.score
            by_policy.setdefault(old.policy.untrained_digest, set()).add(
                new.measurement["latency_ms"]
            )
    assert by_policy
    assert all(len(times) == 1 for times in by_policy.values())


def test_what_was_timed_there_is_known_from_then_on(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = there(run)

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("something is assembled or timed again")

    monkeypatch.setattr(retarget, "reopened_there", refuse)
    monkeypatch.setattr(Measurer, "timings", refuse)
    again = there(run)
    assert [t.measurement for t in again.trials] == [t.measurement for t in first.trials]
    assert again.baseline == first.baseline


def test_only_what_is_missing_is_timed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    there(run)
    (kept,) = (run.root / "elsewhere").iterdir()
    told = json.loads(kept.read_text())
    lost = sorted(told["policies"])[0]
    del told["policies"][lost]
    kept.write_text(json.dumps(told))
    exported: list[str] = []
    inner = StudyEvaluator.export_variant

    def counted(self: StudyEvaluator, policy: Policy) -> Path:
        exported.append(policy.digest)
        return inner(self, policy)

    monkeypatch.setattr(StudyEvaluator, "export_variant", counted)
    there(run)
    assert exported == [lost]


def test_a_model_that_cannot_be_timed_there_costs_its_trials_alone(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried once, with a reason that is kept, and again where somebody asks for it."""
    whole = there(run)
    (kept,) = (run.root / "elsewhere").iterdir()
    text = kept.read_text()
    worst = json.loads(text)
    gone = next(iter(whole.front)).policy.untrained_digest
    del worst["policies"][gone]
    del worst["failed"]  # as earlier versions wrote it
    kept.write_text(json.dumps(worst))
    tried: list[str] = []
    inner = StudyEvaluator.export_variant

    def broken(self: StudyEvaluator, policy: Policy) -> Path:
        tried.append(policy.digest)
        raise RuntimeError("the exporter fails")

    monkeypatch.setattr(StudyEvaluator, "export_variant", broken)
    for _ in range(2):
        caplog.clear()
        found = there(run)
        failed = [t for t in found.trials if t.policy.untrained_digest == gone]
        assert {t.state for t in failed} == {TrialState.FAILED}
        assert all("the exporter fails" in t.reason for t in failed)
        assert gone not in {t.policy.untrained_digest for t in found.front}
        assert "--retry" in caplog.text
        assert "the exporter fails" in caplog.text
    assert tried == [gone]
    monkeypatch.setattr(StudyEvaluator, "export_variant", inner)
    again = retarget.retarget(run, RunView.load(run), OTHER, silent, retry=True)[0]
    assert gone in json.loads(kept.read_text())["policies"]
    assert not json.loads(kept.read_text())["failed"]
    assert not [t for t in again.trials if t.reason.startswith(retarget._FAILED)]
    kept.write_text(text)


@pytest.mark.parametrize("beside", ["", "--target table.json"])
def test_there_must_be_something_to_try_again(run: RunFolder, beside: str) -> None:
    told = call(run.root.parent, f"front {run.root} --retry {beside}", check=2)
    assert "--retry" in told.stderr


def test_a_budget_there_is_answered_with_costs_there(run: RunFolder) -> None:
    view = there(run)
    latencies = sorted(view.ratio(t) or 0.0 for t in view.compared)
    budget = f"latency<={latencies[len(latencies) // 2]:.3f}x"
    told = call(run.root.parent, f"front {run.root} --budget '{budget}' --target {OTHER} --json")
    found = json.loads(told.stdout)
    best = view.by_number[found["measured"]["trial"]]
    assert best.measurement is not None
    assert found["measured"]["latency_ms"] == best.measurement["latency_ms"]
    expected = found["expected"]
    assert expected is not None
    assert expected["latency_ms"]["value"] > 0
    assert found["commands"][0].endswith(f"--pick {best.number} --target {OTHER}")
    command = shlex.split(found["commands"][-1])
    study = load_study(run.root.parent / command[2])
    assert get_target(study.target.config()).name == OTHER


def test_the_first_targets_own_fields_do_not_go_along(run: RunFolder) -> None:
    study = retarget.study_there(run, "ssh://board", "python3.12")
    assert study.target.config().model_dump(include={"device", "python", "threads"}) == {
        "device": "ssh://board",
        "python": "python3.12",
        "threads": 1,
    }
    text = run.study.read_text()
    try:
        run.write_study(study.model_dump(mode="json"))
        back = retarget.study_there(run, "onnxruntime").target.config()
        assert back.device == "cpu"
    finally:
        run.study.write_text(text)


def test_options_that_do_not_go_with_a_budget_are_refused(run: RunFolder) -> None:
    told = call(run.root.parent, f"front {run.root} --budget latency<=1x --open", check=2)
    assert "stand alone" in told.stderr


def test_damaged_timings_are_named(run: RunFolder) -> None:
    there(run)
    (kept,) = (run.root / "elsewhere").iterdir()
    text = kept.read_text()
    kept.write_text(text[:50])
    with pytest.raises(InputError, match=kept.name):
        there(run)
    kept.write_text(text)
