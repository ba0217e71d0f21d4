"""A real run asked about other budgets, beside what measuring its answers gives."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import call, study_of

import autocompress as ac
from autocompress.errors import InputError
from autocompress.machine.progress import silent
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.quality.screening import Screening
from autocompress.results.screened import Screened
from autocompress.run.forecast import POINTS, forecast, sweep
from autocompress.track.folder import RunFolder
from autocompress.workloads.data import digits

pytestmark = pytest.mark.timeout(900)
STUDY = study_of(
    trials=14, budget=["macs<=0.6x"], search={"trials": 14, "objectives": ["accuracy", "macs"]}
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search for 0.6 of the multiply-adds."""
    out = tmp_path_factory.mktemp("forecast") / "run"
    ac.run_study(STUDY, out=out, quiet=True)
    return out


def files(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.suffix != ".lock" and "forecasts" not in path.parts
    }


def test_another_budget_is_answered_from_what_is_known(run: Path) -> None:
    before = files(run)
    found = forecast(str(run), ["macs<=0.4x"], silent)
    assert files(run) == before
    expected = found["expected"]
    assert expected["shares"]["macs"] <= 0.4
    assert 0 < expected["accuracy"]["low"] < expected["accuracy"]["value"] <= 1
    told = yaml.safe_load(Path(found["policy_file"]).read_text())
    assert told == expected["policy"]
    assert json.loads(json.dumps(found)) == found


def test_the_command_that_is_named_measures_what_was_expected(run: Path) -> None:
    found = json.loads(call(run.parent, f"front {run} --budget 'macs<=0.4x' --json").stdout)
    command = shlex.split(found["commands"][-1])
    assert command[0] == "autocompress"
    measured = json.loads(call(run.parent, shlex.join([*command[1:], "--quick", "--json"])).stdout)
    assert measured["trial"]["macs"] == found["expected"]["macs"]["value"]
    interval = found["expected"]["accuracy"]
    # nine of ten lie inside; far outside would be another policy, or another build
    wide = interval["high"] - interval["low"]
    assert interval["low"] - wide < measured["trial"]["accuracy"] < interval["high"] + wide


def test_a_sweep_goes_from_the_cheapest_to_the_whole_model(run: Path) -> None:
    found = sweep(str(run), silent)
    assert len(found["sweep"]) == POINTS
    assert found["sweep"][-1]["budget"] == ["macs<=1x"]
    shares = [float(row["budget"][0].removeprefix("macs<=").rstrip("x")) for row in found["sweep"]]
    assert shares == sorted(shares)
    costs = [row["expected"]["shares"]["macs"] for row in found["sweep"] if row["expected"]]
    assert len(costs) >= POINTS - 1
    assert all(cost <= share for cost, share in zip(costs[::-1], shares[::-1], strict=False))
    text = call(run.parent, f"front {run} --sweep").stdout
    assert "macs<=1x" in text


def test_a_budget_below_everything_has_no_expected_policy(run: Path) -> None:
    found = forecast(str(run), ["macs<=0.0001x"], silent)
    assert found["expected"] is None
    assert found["measured"] is None
    assert found["commands"] == []
    assert "No policy" in call(run.parent, f"front {run} --budget 'macs<=0.0001x'").stdout


def test_what_was_looked_at_is_not_looked_at_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor after a setting of refining changed, which has no say in it."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("forecasts", "screened.jsonl"))
    looked: list[list[str]] = []
    whole = Screening.__call__

    def counted(self: Screening, policy: Policy, images: int) -> Screened:
        looked[-1].append(policy.untrained_digest)
        return whole(self, policy, images)

    monkeypatch.setattr(Screening, "__call__", counted)
    for _ in range(2):
        looked.append([])
        forecast(str(copy), ["macs<=0.4x"], silent)
    first, second = looked
    assert first
    assert not set(first) & set(second)
    assert len(second) < len(first)
    before, now = (CompressionSettings(refine=RefineConfig(temperature=t)) for t in (1.0, 9.0))
    assert before.screening_depends_on == now.screening_depends_on


def test_a_file_where_policies_go_is_named(run: Path) -> None:
    copy = run.parent / "blocked"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "forecasts", ignore_errors=True)
    (copy / "forecasts").write_text("")
    told = call(run.parent, f"front {copy} --budget 'macs<=0.4x'", check=2).stderr
    assert "forecasts is no folder" in told


@pytest.mark.parametrize("options", ["--budget 'macs<=0.4x' --sweep", "--sweep --open"])
def test_options_that_do_not_go_together_are_refused(run: Path, options: str) -> None:
    assert "stand alone" in call(run.parent, f"front {run} {options}", check=2).stderr


def test_a_run_made_in_python_says_what_is_missing(tmp_path: Path) -> None:
    from autocompress.workloads.models import digits_resnet

    ac.search(
        digits_resnet(width=4),
        digits(),
        space="prune_int8",
        budget="macs<=0.6x",
        out=tmp_path / "run",
        search={"trials": 1},
        recovery={"epochs": 0},
        quiet=True,
    )
    with pytest.raises(InputError, match="handed over in Python"):
        forecast(str(tmp_path / "run"), ["macs<=0.4x"], silent)


def test_a_run_without_trials_says_so(run: Path, tmp_path: Path) -> None:
    source, empty = RunFolder.open(run), RunFolder.create(tmp_path / "empty")
    empty.write_study(source.read_study())
    baseline = source.read_baseline()
    assert baseline is not None
    empty.write_baseline(baseline)
    with pytest.raises(InputError, match="no policy yet"):
        forecast(str(empty.root), ["macs<=0.4x"], silent)


def test_other_weights_are_refused(run: Path, tmp_path: Path) -> None:
    source, other = RunFolder.open(run), RunFolder.create(tmp_path / "other")
    study: dict[str, Any] = source.read_study()
    study["baseline"]["schedule"]["epochs"] = 1.0
    other.write_study(study)
    baseline = source.read_baseline()
    assert baseline is not None
    other.write_baseline(baseline)
    (other.root / "trials.jsonl").write_bytes((run / "trials.jsonl").read_bytes())
    with pytest.raises(InputError, match="other weights"):
        forecast(str(other.root), ["macs<=0.4x"], silent)
