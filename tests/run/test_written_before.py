"""What version 0.1 wrote opens, exports, verifies, and goes on with this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import call

#: whole studies run in processes of their own, which may have to wait for a quiet machine
pytestmark = pytest.mark.timeout(900)

FIXTURE = Path(__file__).parent.parent / "fixtures" / "run_0_1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to work in: the study names its weights relative to the working directory."""
    folder = tmp_path_factory.mktemp("before") / "work"
    shutil.copytree(FIXTURE, folder)
    return folder


def test_its_front_is_what_it_was(place: Path) -> None:
    found = json.loads(call(place, "front run --json").stdout)
    wanted = json.loads((FIXTURE / "run" / "front.json").read_text())
    for key in ("budget", "feasible", "best", "hypervolume"):
        assert found[key] == wanted[key], key
    # every trial is listed by now, and says more; what was said is as it was
    assert {key: found["baseline"][key] for key in wanted["baseline"]} == wanted["baseline"]
    now = {trial["number"]: trial for trial in found["trials"]}
    for before in [*wanted["trials"], *wanted["baselines"].values()]:
        assert {key: now[before["number"]][key] for key in before} == before
    members = [t["number"] for t in wanted["trials"] if t["phase"] != "verify"]
    assert found["front"] == members
    assert {n: t["number"] for n, t in found["baselines"].items()} == {
        n: t["number"] for n, t in wanted["baselines"].items()
    }


@pytest.mark.parametrize("pick", ["best", "fastest"])
def test_its_recipes_are_exported_again(place: Path, pick: str) -> None:
    made = json.loads(call(place, f"export run --pick {pick} -o out/{pick}.yaml --json").stdout)
    before = FIXTURE / ("recipe.yaml" if pick == "best" else "fastest.yaml")
    wanted = yaml.safe_load(before.read_text())
    found = yaml.safe_load((place / "out" / f"{pick}.yaml").read_text())
    for key in ("policy", "measurement", "baseline", "model", "data", "recovery"):
        assert found[key] == wanted[key], key
    assert (made["weights"] is None) == (wanted["weights"] is None)
    if made["weights"] is not None:
        again = (place / "out" / made["weights"]).read_bytes()
        assert again == (FIXTURE / wanted["weights"]).read_bytes()


@pytest.mark.parametrize("recipe", ["recipe.yaml", "fastest.yaml"])
def test_its_recipes_hold_and_become_files(place: Path, recipe: str) -> None:
    """One with trained weights beside it, one without; how fast they are depends on the machine."""
    found = json.loads(call(place, f"verify {recipe} --json", check=None).stdout)
    assert found["same_weights"]
    assert found["accuracy"] == pytest.approx(found["claimed_accuracy"], abs=0.005)
    assert not [reason for reason in found["reasons"] if "latency" not in reason]
    output = Path(recipe).with_suffix(".onnx")
    call(place, f"apply {recipe} -o out/{output}")
    assert (place / "out" / output).stat().st_size > 10_000


@pytest.mark.timeout(900)
def test_its_run_goes_on(place: Path) -> None:
    before = (place / "run" / "trials.jsonl").read_text()
    searched = [t for t in trials(before) if t["phase"]["kind"] == "search"]
    done = sum(t["state"] in ("COMPLETE", "FAILED") for t in searched)
    ask = f"search study.yaml --out run --resume --trials {done + 2} --json"
    found = json.loads(call(place, ask).stdout)
    after = (place / "run" / "trials.jsonl").read_text()
    assert after.startswith(before), "every old trial is kept as it was"
    fresh = [t for t in trials(after[len(before) :]) if t["phase"]["kind"] == "search"]
    assert sum(t["state"] in ("COMPLETE", "FAILED") for t in fresh) >= 2
    numbers = [t["number"] for t in trials(after)]
    assert len(set(numbers)) == len(numbers)
    assert found["best"] in numbers


def trials(journal: str) -> list[dict[str, Any]]:
    """The lines of a journal."""
    return [json.loads(line) for line in journal.splitlines()]
