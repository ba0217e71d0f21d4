"""A study that repairs without labels refines each policy once, and keeps what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_study import STUDY, call, study_of

from autocompress.run.study import read_study

REFINED = {
    "settings": {"finish": "refine", "refine": {"images": 128, "block_steps": 2, "steps": 4}}
}


@pytest.mark.timeout(900)
def test_its_recipe_holds_the_weights_that_were_measured(tmp_path: Path) -> None:
    study = study_of(4, **REFINED, space="prune")
    study["recovery"] = {"epochs": 0, "candidates": 1}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    found = json.loads(call(tmp_path, "search tiny.yaml --json --out run").stdout)
    best = next(t for t in found["trials"] if t["number"] == found["best"])
    journal = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").open()]
    verified = {t["parent"] for t in journal if t["phase"]["kind"] == "verify"}
    assert best["number"] in verified
    kept = {path.name for path in (tmp_path / "run" / "models" / "trained").iterdir()}
    assert any("-e0-" in name for name in kept)
    assert (tmp_path / "run" / "recipes" / "best.safetensors").is_file()
    told = json.loads(call(tmp_path, "verify run/recipes/best.yaml --json", check=None).stdout)
    assert told["accuracy"] == told["claimed_accuracy"]


@pytest.mark.parametrize(("epochs", "asked", "seconds"), [(0, None, 150), (2, None, 75), (0, 9, 9)])
def test_a_time_for_the_study_limits_it(epochs: int, asked: float | None, seconds: float) -> None:
    """Half of ten minutes for a candidate and one more; a quarter where labels train as well."""
    refine = {"settings": {"finish": "refine", "refine": {"seconds": asked}}}
    plain = {**STUDY, **refine, "recovery": {"epochs": epochs, "candidates": 1}, "timeout_s": 600}
    assert read_study(plain).timed_refine().seconds == seconds
    assert read_study({**plain, "timeout_s": None}).timed_refine().seconds == asked
    assert read_study({**plain, "settings": {}}).timed_refine().seconds is None
