"""What every sampler must do behind the controller, and that TPE and NSGA-II learn."""

from __future__ import annotations

import random

import pytest
from analytic import AnalyticEvaluator, make_space

from autocompress.controller.optuna_study import OptunaController
from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.policy.space import Assignment, Space
from autocompress.results.front import ParetoFront, reference_point
from autocompress.results.metric import ACCURACY, LATENCY, Measurement
from autocompress.results.trial import SEARCH, Trial, TrialState

SAMPLERS = ["tpe", "nsga2", "gp", "random"]
OBJECTIVES = (ACCURACY, LATENCY)


def controller(sampler: str, space: Space, seed: int = 0) -> OptunaController:
    return OptunaController(space, OBJECTIVES, sampler, seed, 20)


def measured(
    evaluator: AnalyticEvaluator, space: Space, levels: Assignment, number: int, share: float = 0.6
) -> Trial:
    """A trial as the loop would make it: rejected where the estimate is over the budget."""
    policy = space.decode(levels)
    budget = Budget(f"latency<={share}x")
    estimate = evaluator.estimate(policy)
    over = budget.violations(estimate.values, evaluator.baseline.values)
    if over["latency_ms"] > 0:
        return Trial(number, policy, SEARCH, TrialState.REJECTED, "t", estimate, over)
    return Trial(
        number,
        policy,
        SEARCH,
        TrialState.COMPLETE,
        "t",
        evaluator.evaluate(policy),
        over,
    )


def drive(sampler: str, seed: int, count: int, layers: int = 5) -> list[Trial]:
    space, evaluator = make_space(layers), AnalyticEvaluator(layers, seed=1)
    asked = controller(sampler, space, seed)
    trials = []
    for number in range(count):
        levels = asked.ask()
        trials.append(measured(evaluator, space, levels, number))
        asked.tell(levels, trials[-1])
    return trials


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_asks_within_the_space_and_repeats_itself_under_a_seed(sampler: str) -> None:
    count = 12 if sampler == "gp" else 30
    first, second = drive(sampler, 7, count), drive(sampler, 7, count)
    assert [t.policy.digest for t in first] == [t.policy.digest for t in second]
    other = drive(sampler, 8, count)
    assert [t.policy.digest for t in first] != [t.policy.digest for t in other]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_takes_trials_of_others_and_every_ending(sampler: str) -> None:
    """Complete, rejected, failed, duplicate, outside the space: asked for or not."""
    space, evaluator = make_space(5), AnalyticEvaluator(5)
    one = controller(sampler, space)
    draw = random.Random(0)
    for number in range(6):
        levels = tuple(draw.randrange(8) for _ in space.choices)
        one.tell(levels, measured(evaluator, space, levels, number))
    one.tell(None, measured(evaluator, space, space.mildest, 6))
    for number, state in enumerate(TrialState, start=10):
        levels = one.ask()
        trial = measured(evaluator, space, levels, number)
        found = None if state is TrialState.FAILED else trial.measurement
        one.tell(levels, Trial(number, trial.policy, SEARCH, state, "t", found, trial.violations))
    assert all(0 <= level < 8 for level in one.ask())


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_learns_from_trials_that_others_proposed(sampler: str) -> None:
    """Told that one corner is best, a sampler asks nearer to it than blind draws do."""
    space, evaluator = make_space(6), AnalyticEvaluator(6)
    one = controller(sampler, space)
    draw = random.Random(3)
    base = evaluator.baseline
    for number in range(80):
        levels = tuple(draw.randrange(8) for _ in space.choices)
        good = sum(levels) / (7 * len(levels))
        values = {**base.values, "accuracy": good, "latency_ms": 2.0 - good}
        one.tell(levels, Trial(number, space.decode(levels), measurement=type(base)(values)))
    asked = [one.ask() for _ in range(20)]
    mean = sum(map(sum, asked)) / (20 * len(space.choices))
    # blind draws: mean 3.5, standard error 2.29 / sqrt(120) = 0.21
    assert mean > 3.5 + 4 * 0.21


def test_nsga2_moves_on_from_its_first_generation() -> None:
    """Its 6th generation lies nearer to the corner than its first, which was drawn blindly."""
    space, base = make_space(6), AnalyticEvaluator(6).baseline
    one = controller("nsga2", space)
    sums = []
    for number in range(300):
        levels = one.ask()
        good = sum(levels) / (7 * len(levels))
        values = {**base.values, "accuracy": good, "latency_ms": 2.0 - good}
        one.tell(levels, Trial(number, space.decode(levels), measurement=type(base)(values)))
        sums.append(sum(levels))
    second, last = sum(sums[50:100]) / 50, sum(sums[250:]) / 50
    # a study whose parents never change would show the second generation for ever
    assert last > second + 4 * 6.0 / 50**0.5


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_constraints_are_learned(sampler: str) -> None:
    """Late proposals keep to the budget more often than blind ones: paired, five seeds."""
    rates: dict[str, list[float]] = {"random": [], sampler: []}
    for seed in range(5):
        for name, kept in rates.items():
            late = drive(name, seed, 110, layers=8)[60:]
            kept.append(sum(t.feasible for t in late) / len(late))
    gains = [a - b for a, b in zip(rates[sampler], rates["random"], strict=True)]
    assert all(g > 0 for g in gains)  # by chance alone: 1 in 32


def test_gp_is_refused_where_it_cannot_be_afforded() -> None:
    with pytest.raises(InputError, match="`guided` or `tpe`"):
        OptunaController(make_space(16), OBJECTIVES, "gp", 0, 20)
    with pytest.raises(InputError, match="201 trials"):
        OptunaController(make_space(3), OBJECTIVES, "gp", 0, 201)


def test_a_front_of_everything_is_thinned_and_keeps_its_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no trial beats another, forgetting stays rare and what is remembered bounded."""
    space = make_space(6)
    one = controller("random", space)
    starts = []
    renew = one._new_study
    monkeypatch.setattr(one, "_new_study", lambda s: (starts.append(1), renew(s))[1])
    draw, told = random.Random(2), 3000
    for number in range(told):
        levels = tuple(draw.randrange(8) for _ in space.choices)
        place = number / told
        values = {"accuracy": place, "latency_ms": 0.1 + place}
        trial = Trial(number, space.decode(levels), measurement=Measurement(values))
        one.tell(levels, trial)
        assert len(one._told) <= 800
    assert 1 <= len(starts) <= told // 200
    assert one._sources[0].number == 0


def test_forgetting_keeps_the_front() -> None:
    space, evaluator = make_space(6), AnalyticEvaluator(6)
    one = controller("random", space)
    draw = random.Random(2)
    trials = []
    for number in range(850):
        levels = tuple(draw.randrange(8) for _ in space.choices)
        trials.append(
            Trial(
                number, space.decode(levels), measurement=evaluator.evaluate(space.decode(levels))
            )
        )
        one.tell(levels, trials[-1])
    assert len(one._told) < 800
    reference = reference_point(evaluator.baseline, OBJECTIVES)
    whole = ParetoFront.of(trials, OBJECTIVES).hypervolume(reference)
    assert ParetoFront.of(one._sources, OBJECTIVES).hypervolume(reference) == whole


def test_a_restart_does_not_propose_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 of 8^12 random policies, a dozen restarts: two alike by chance once in 380,000 runs."""
    from autocompress.controller import optuna_study as module

    monkeypatch.setattr(module, "_REMEMBERED", (25, 25))
    trials = drive("random", 0, 600, layers=12)
    assert len({t.policy.digest for t in trials}) == len(trials)
