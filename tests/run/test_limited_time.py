"""A study that is given a time ends with a verified answer, and says what it cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_study import STUDY, call


@pytest.mark.slow  # by the machine's clock; the plan itself is tested on a clock of its own
@pytest.mark.timeout(600)
def test_recovery_is_fitted_and_the_answer_verified(tmp_path: Path) -> None:
    """Ninety seconds, of a training that would take hours."""
    training = {**STUDY["recovery"], "epochs": 5000, "compare_distillation": False}
    study = {**STUDY, "recovery": training}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    done = call(tmp_path, "search tiny.yaml --timeout 90s --json --out run", check=None)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["stopped"] == "timeout"
    assert found["time"]["budget_s"] == 90
    (note,) = [text for text in found["time"]["notes"] if text.startswith("Recovery fits")]
    assert "instead of 1 candidate for 5000 epochs" in note
    journal = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").open()]
    verified = [t for t in journal if t["phase"]["kind"] == "verify" and t["state"] == "COMPLETE"]
    assert found["best"] in {t["parent"] for t in verified}


def test_a_time_that_is_over_at_once_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    (tmp_path / "cache").mkdir()  # empty, so that its model is trained first
    done = call(tmp_path, "search tiny.yaml --timeout 1s --json --out run", check=2)
    assert "over before the first trial" in done.stderr
    assert "--timeout" in done.stderr
    assert not (tmp_path / "run").exists()
