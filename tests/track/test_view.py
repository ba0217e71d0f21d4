"""What reports say of a run, against brute force and closed forms."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trials import BASE, HALF, trial, view
from rich.console import Console

from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.report.html import distillation_pairs, rung_forecasts
from autocompress.report.tables import summary_json, verdict_table, write_summary
from autocompress.report.verdict import verdict
from autocompress.results.metric import Measurement
from autocompress.results.trial import Phase, Trial, TrialState
from autocompress.run.recipes import pick_trial
from autocompress.track.folder import RunFolder
from autocompress.track.forms import StudyForm
from autocompress.track.view import RunView, latency_ratio, natural, policy_summary

MakeRun = Callable[..., RunFolder]

FIXTURES = Path(__file__).parent.parent / "fixtures" / "run_0_1" / "run"


def staircase(points: list[tuple[float, float]]) -> float:
    """Area dominated by (accuracy, ms) points against accuracy 0.8 and 2 ms, step by step."""
    area, best = 0.0, 0.8
    # from the cheapest on, each gain in accuracy counts over all higher costs
    for ms, accuracy in sorted((ms, -a) for a, ms in points if a > 0.8 and ms < 2.0):
        area += max(0.0, -accuracy - best) * (2.0 - ms)
        best = max(best, -accuracy)
    return area


def test_what_is_over_the_budget_when_measured_again_is_no_answer_and_the_report_says_so() -> None:
    lucky, sound = trial(1, 0.89, 0.99), trial(2, 0.87, 0.8)
    again = [
        replace(trial(3, 0.88, 1.02, phase=Phase("verify"), parent=1), policy=lucky.policy),
        replace(trial(4, 0.86, 0.82, phase=Phase("verify"), parent=2), policy=sound.policy),
    ]
    once, twice = view([lucky, sound]), view([lucky, sound, *again])
    assert once.best is lucky
    assert twice.best is sound
    assert [t.number for t in twice.front] == [2]
    said = [s for s in verdict(twice).sentences if "measured again" in s]
    assert said == [
        "Trial 1 (89.00%) was within the budget at first, and 2.0% over its limit when measured "
        "again."
    ]
    assert not [s for s in verdict(once).sentences if "measured again" in s]
    looser = twice.under(Budget("latency<=0.52x")).best
    assert looser is not None
    assert looser.number == 1
    assert view([lucky, again[0]]).best is None


def waited(number: int, waited_s: float, seconds: float) -> Trial:
    found = trial(number, 0.85, 0.9)
    assert found.measurement is not None
    measured = replace(found.measurement, context={"waited_s": waited_s})
    return replace(found, measurement=measured, seconds=seconds)


@pytest.mark.parametrize("budget", [HALF, Budget("latency<=0.1x")], ids=["met", "not met"])
def test_the_verdict_says_how_long_timing_waited_for_a_quiet_machine(budget: Budget) -> None:
    failed = replace(trial(3, 0.8, 1.0), measurement=None, state=TrialState.FAILED)
    repeat = replace(waited(4, 3.0, 0.0), state=TrialState.DUPLICATE, parent=0)  # waits only once
    trials = [waited(0, 3.0, 5.0), waited(1, 0.0, 6.0), trial(2, 0.8, 0.5), failed, repeat]
    loud = view(trials).under(budget)
    assert [s for s in verdict(loud).sentences if "25% of the evaluations' time" in s]
    quiet = view([waited(0, 0.5, 5.0), waited(1, 0.5, 6.0)]).under(budget)
    assert not [s for s in verdict(quiet).sentences if "waited" in s]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.7, 0.95), st.floats(0.1, 2.5)), max_size=25))
def test_growth_equals_the_front_computed_anew_after_every_trial(
    points: list[tuple[float, float]],
) -> None:
    found = view([trial(i, a, ms) for i, (a, ms) in enumerate(points)])
    assert len(found.history) == len(points)
    for i, point in enumerate(found.history):
        within = [(a, ms) for a, ms in points[: i + 1] if ms <= 1.0]
        assert point.hypervolume == pytest.approx(staircase(within), abs=1e-9)
        assert point.best_quality == (max(a for a, _ in within) if within else None)
    assert found.hypervolume == pytest.approx(staircase([p for p in points if p[1] <= 1.0]))
    assert found.seconds == len(points)


def test_only_what_was_scored_on_val_is_compared() -> None:
    search, better = (
        trial(0, 0.80, 0.9),
        trial(1, 0.85, 0.9, phase=Phase("recover", 2, 1), parent=0),
    )
    check = trial(2, 0.95, 0.9, phase=Phase("verify", 2), parent=1)
    rejected = trial(3, 0.99, 0.1, state=TrialState.REJECTED)
    found = view([search, better, check, rejected])
    assert [t.number for t in found.front] == [1]
    assert found.best is better
    assert found.verified(better) is check
    assert found.verified(search) is None
    assert found.origins() == {"switch": (1, 1)}


def test_another_budget_is_answered_from_the_same_trials() -> None:
    fast, slow = trial(0, 0.80, 0.4), trial(1, 0.88, 1.8)
    found = view([fast, slow])
    assert found.best is fast
    loose = found.under(Budget("latency<=0.95x"))
    assert loose.best is not None
    assert loose.best.number == 1
    tight = found.under(Budget("latency<=0.1x"))
    assert tight.best is None
    assert tight.nearest is not None
    assert tight.nearest.number == 0


def test_the_cheapest_that_keeps_to_the_drop_is_the_answer() -> None:
    """0.9 less two points is kept to by the trials of 0.88 and 0.89; the first is the cheaper."""
    trials = [trial(0, 0.85, 0.4), trial(1, 0.88, 0.7), trial(2, 0.89, 0.9)]
    found = view(trials, max_accuracy_drop=2.0)
    assert found.best is trials[1]
    assert found.nearest is None
    assert view(trials).best is trials[2]


def test_a_drop_that_nothing_keeps_to_has_no_answer_and_the_report_says_so() -> None:
    """A baseline of 90 %, and one trial of 70 %."""
    poor, poorer = trial(0, 0.70, 0.9), trial(1, 0.60, 0.4)
    found = view([poor, poorer], max_accuracy_drop=1.0)
    assert found.best is None
    assert found.nearest is poor, "the feasible trial that loses least"
    judged = verdict(found)
    assert judged.tone == "bad"
    assert "keeps to an accuracy drop of 1 points" in judged.headline
    assert "20.00" in judged.headline
    assert "trial 0: it loses 20.00 points" in judged.sentences[0]
    summary = summary_json(found)
    assert (summary["feasible"], summary["answered"]) == (True, False), "both are within the budget"
    assert (summary["best"], summary["nearest"]) == (None, 0)
    assert summary["reason"] == judged.headline
    assert summary["front"] == [1, 0], "the front stays to be chosen from"
    with pytest.raises(InputError, match="keeps to an accuracy drop"):
        found.decision.answer()


def test_a_run_from_its_folder_keeps_to_its_drop(tmp_path: Path, make_run: MakeRun) -> None:
    kept = RunView.load(make_run(tmp_path / "kept", 40, max_accuracy_drop=5.0))
    assert kept.best is not None
    least = min(
        (t for t in kept.compared if t.feasible and t.measurement["accuracy"] >= 0.83),  # type: ignore[index]  # measured: complete trials only
        key=lambda t: t.measurement["latency_ms"],  # type: ignore[index]  # the same
    )
    assert kept.best is least
    folder = make_run(tmp_path / "strict", 40, max_accuracy_drop=0.1)
    write_summary(folder, RunView.load(folder))
    strict = RunView.load(folder)
    assert strict.best is None
    assert strict.nearest is not None
    assert strict.nearest.feasible
    with pytest.raises(InputError, match=r"0\.1 points"):
        pick_trial(strict, "best")
    assert pick_trial(strict, "most-accurate") is strict.nearest


def test_the_drop_on_test_is_said_and_decides_nothing() -> None:
    first = trial(0, 0.895, 0.9)
    check = replace(trial(1, 0.85, 0.9, phase=Phase("verify"), parent=0), policy=first.policy)
    found = view([first, check], max_accuracy_drop=1.0, baseline_test=BASE)
    assert found.best is first
    assert "On the test split it loses 5.00 points" in verdict(found).sentences[1]


def test_the_ratio_timed_side_by_side_comes_first() -> None:
    plain = Measurement({"accuracy": 0.5, "latency_ms": 1.0})
    assert latency_ratio(plain, BASE) == 0.5
    timed = Measurement(plain.values, {}, {"timing": {"ratio": 0.4}})
    assert latency_ratio(timed, BASE) == 0.4
    elsewhere = {**timed.context, "target": {"table": {"machine": "a phone"}}}
    assert latency_ratio(Measurement(plain.values, {}, elsewhere), BASE) == 0.5
    assert latency_ratio(None, BASE) is None


def test_a_policy_is_summed_up_over_all_layers() -> None:
    policy = Policy(
        {
            "a": LayerPolicy(prune_ratio=0.5, weight_bits=8, activation_bits=8),
            "b": LayerPolicy(rank_ratio=0.5, weight_bits=4),
        },
        Distill(),
    )
    assert policy_summary(policy, ["a", "b", "c", "d"]) == {
        "method": "prune + low-rank + int8 + weight-only + distill",
        "mean_prune_ratio": 0.125,
        "blocks_share": 0.0,
        "mean_sparsity": 0.0,
        "mean_weight_bits": (8 + 4 + 32 + 32) / 4,
        "int8_share": 0.25,
        "factorized_share": 0.25,
    }
    assert policy_summary(Policy(), [])["method"] == "unchanged"
    assert sorted(["l10.a", "l2.a", "l2"], key=natural) == ["l2", "l2.a", "l10.a"]


@pytest.mark.parametrize(
    ("simple", "found", "outcome", "words"),
    [
        ((0.80, 0.9), (0.85, 0.9), "won", "beat every reference policy"),
        ((0.80, 0.9), (0.803, 0.9), "unclear", "within the noise"),
        ((0.85, 0.9), (0.80, 0.9), "lost", "did not beat uniform"),
        ((0.85, 1.5), (0.80, 0.9), "not in budget", "none of the reference policies"),
    ],
)
def test_the_verdict_says_who_won(
    simple: tuple[float, float], found: tuple[float, float], outcome: str, words: str
) -> None:
    trials = [trial(0, *simple, origin="uniform"), trial(1, *found)]
    judged = verdict(view(trials, reference_policies={"uniform": 0}))
    assert judged.comparisons[0].outcome == outcome
    assert words in judged.headline
    if outcome in ("won", "unclear"):
        gap = judged.comparisons[0].gap
        assert gap is not None
        assert gap.points == pytest.approx(100 * (found[0] - simple[0]))
        assert gap.stderr == pytest.approx(100 * math.sqrt(2) * 0.003)


def test_a_reference_policy_is_not_set_against_another_trial_of_its_kind() -> None:
    trials = [
        trial(0, 0.85, 0.9, origin="uniform"),
        trial(1, 0.85, 0.9, origin="uniform"),
        trial(2, 0.84, 0.9, origin="solver"),
    ]
    run = view(trials, reference_policies={"uniform": 0})
    judged = verdict(run)
    assert judged.comparisons[0].found is trials[2]
    assert "trial 2, its best with the same training" in judged.sentences[1]
    table = Console(width=200, record=True, file=io.StringIO())
    table.print(verdict_table(run))
    text = table.export_text()
    for number in re.findall(r"trial (\d+)", judged.sentences[1]):
        assert f"(trial {number})" in text


def test_a_random_search_is_set_against_random_policies() -> None:
    trials = [trial(0, 0.80, 0.9, origin="random"), trial(1, 0.85, 0.9, origin="random")]
    study = StudyForm.read({"search": {"sampler": "random"}})
    run = view(trials, reference_policies={"random": 0}, study=study)
    assert verdict(run).comparisons[0].found is trials[1]


def test_a_trained_answer_is_not_set_against_an_untrained_reference_policy() -> None:
    trials = [
        trial(0, 0.80, 0.9, origin="uniform"),
        trial(1, 0.79, 0.9),
        trial(2, 0.89, 0.9, phase=Phase("recover", 5, 1), parent=1),
    ]
    judged = verdict(view(trials, reference_policies={"uniform": 0}))
    assert judged.comparisons[0].outcome == "lost"
    assert judged.comparisons[0].found is trials[1]
    assert "did not beat uniform (trial 0): -1.00 ± 0.42 points" in judged.sentences[1]
    assert "Trial 2" in judged.sentences[0]


def test_where_nothing_fits_the_nearest_is_shown() -> None:
    judged = verdict(view([trial(0, 0.85, 1.5), trial(1, 0.80, 1.1), trial(2, 0.7, 4.0)]))
    assert "No policy met the budget" in judged.headline
    assert "trial 1: latency 1.1 ms, 10.0% over its limit" in judged.sentences[0]
    assert verdict(view([])).tone == "bad"


def test_distillation_is_judged_on_pairs_alone() -> None:
    shared = {"a": LayerPolicy(prune_ratio=0.5)}

    def recovered(number: int, accuracy: float, distill: Distill | None, seed: int) -> Trial:
        found = Measurement({"accuracy": accuracy, "latency_ms": 0.9}, {"accuracy": 0.003})
        policy, phase = Policy(shared, distill), Phase("recover", 2, 1)
        return Trial(number, policy, phase, measurement=found, seed=seed)

    trials = [
        recovered(0, 0.80, None, 0),
        recovered(1, 0.82, Distill(), 0),
        recovered(2, 0.99, Distill(), 1),
    ]
    (pair,) = distillation_pairs(view(trials))
    assert (pair.without.number, pair.with_teacher.number) == (0, 1)
    assert pair.gain.points == pytest.approx(2)
    assert pair.gain.high - pair.gain.low == pytest.approx(2 * 1.96 * 100 * math.sqrt(2) * 0.003)


def test_the_report_tells_how_well_training_was_foretold() -> None:
    """Four policies, trained; the first and the second change places: 1 - 6 * 2 / (4 * 15)."""
    untrained, trained = (0.5, 0.6, 0.7, 0.8), (0.86, 0.85, 0.87, 0.88)
    trials = [trial(n, a, 0.9) for n, a in enumerate(untrained)]
    for number, accuracy in enumerate(trained, 4):
        found = Measurement({"accuracy": accuracy, "latency_ms": 0.9}, {"accuracy": 0.003})
        policy = trials[number - 4].policy
        trials.append(
            Trial(number, policy, Phase("recover", 2, 1), measurement=found, parent=number - 4)
        )
    ((rung, rho, count),) = rung_forecasts(view(trials))
    assert (rung, count) == (1, 4)
    assert rho == pytest.approx(0.8)


def test_the_json_of_a_run_has_the_keys_that_are_documented(
    tmp_path: Path, make_run: MakeRun
) -> None:
    folder = make_run(tmp_path / "resnet20", 40)
    found = RunView.load(folder)
    summary = write_summary(folder, found)
    assert list(summary) == [
        "run", "baseline", "budget", "max_accuracy_drop", "feasible", "answered", "reason",
        "failed_phases", "best", "nearest", "front", "trials", "baselines", "hypervolume",
        "seconds",
    ]  # fmt: skip
    assert list(summary["baseline"]) == [
        "accuracy", "latency_ms", "macs", "params", "size_bytes",
    ]  # fmt: skip
    keys = [
        "number", "phase", "origin", "parent", "state", "reason", "accuracy", "accuracy_stderr",
        "latency_ms", "latency_ratio", "macs", "size_bytes", "feasible", "policy",
    ]  # fmt: skip
    assert all(list(t) == keys for t in (*summary["trials"], *summary["baselines"].values()))
    assert [t["number"] for t in summary["trials"]] == sorted(t.number for t in found.trials)
    states = {t.number: str(t.state) for t in found.trials}
    assert {t["number"]: t["state"] for t in summary["trials"]} == states
    assert summary["front"] == [t.number for t in found.front]
    assert summary["best"] in summary["front"]
    # the folder's own holds what the journal does not say, and the front for those who open it
    written = json.loads((folder.root / "front.json").read_text())["trials"]
    assert [t["number"] for t in written[: len(found.front)]] == summary["front"]
    assert {t["phase"] for t in written[len(found.front) :]} <= {"verify"}
    again = RunView.load(folder)
    assert json.dumps(summary_json(again)) == json.dumps(summary)
    assert again.layer_names == found.layer_names
    assert set(again.reference_policies) == {"uniform", "int8", "random"}


def test_the_json_of_an_infeasible_run_shows_the_nearest(tmp_path: Path, make_run: MakeRun) -> None:
    summary = summary_json(RunView.load(make_run(tmp_path / "r", 20, feasible=False)))
    assert summary["feasible"] is summary["answered"] is False
    assert summary["best"] is None
    assert summary["front"] == [summary["nearest"]]
    assert not any(t["feasible"] for t in summary["trials"])


def test_a_run_without_its_baseline_says_so(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "r").write_study({"name": "r"})
    with pytest.raises(InputError, match=r"baseline\.json"):
        RunView.load(tmp_path / "r")


def test_a_run_of_an_early_version_tells_its_study_by_name() -> None:
    study = RunView.load(RunFolder(FIXTURES)).study
    assert (study.name, study.model.factory) == (
        "small",
        "autocompress.workloads.models:digits_resnet",
    )
    written = RunFolder(FIXTURES).read_study()
    assert study.search.said() == {
        k: tuple(v) if isinstance(v, list) else v for k, v in written["search"].items()
    }
    assert study.tracking.register_best is written["tracking"]["register_best"]


def test_a_study_of_which_little_is_said_has_all_names() -> None:
    for little in ({}, {"search": None, "tracking": None, "model": None}):
        study = StudyForm.read(little)
        assert (study.model.factory, study.search.sampler, study.tracking.uri) == (None,) * 3
        assert study.search.said() == {}
        assert study.tracking.register_best
