"""The Pareto front against brute force, and the hypervolume against inclusion-exclusion."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError, MeasurementError
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.results.front import ParetoFront, non_dominated, reference_point
from autocompress.results.metric import ACCURACY, LATENCY, SIZE, Measurement
from autocompress.results.trial import Trial, TrialState

grid = st.tuples(st.integers(0, 6), st.integers(0, 6))


def trial(
    number: int,
    accuracy: float,
    latency: float,
    *,
    feasible: bool = True,
    state: TrialState = TrialState.COMPLETE,
) -> Trial:
    policy = Policy({"a": LayerPolicy(prune_ratio=0.5 + number / 1000)})
    measured = Measurement(
        {"accuracy": accuracy, "latency_ms": latency, "size_bytes": 100.0 - number}
    )
    return Trial(
        number,
        policy,
        state=state,
        measurement=measured,
        violations={"latency_ms": -0.1 if feasible else 0.1},
    )


@given(st.lists(grid, max_size=25))
def test_mask_against_brute_force(points: list[tuple[int, int]]) -> None:
    expected = []
    for i, p in enumerate(points):
        dominated = any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in points)
        expected.append(not dominated and p not in points[:i])
    assert non_dominated(points) == expected


@given(st.lists(grid, max_size=7))
def test_hypervolume_against_counted_cells(points: list[tuple[int, int]]) -> None:
    """On an integer grid the volume is the number of unit cells that some point dominates."""
    trials = [trial(i, 1 - e / 10, float(c)) for i, (e, c) in enumerate(points)]
    front = ParetoFront.of(trials, (ACCURACY, LATENCY))
    cells = sum(
        any(e <= x and c <= y for e, c in points) for x, y in itertools.product(range(5), range(5))
    )
    assert front.hypervolume((0.5, 5.0)) == pytest.approx(cells / 10)


def test_only_feasible_complete_trials_count() -> None:
    trials = [
        trial(0, 0.9, 2.0),
        trial(1, 0.95, 1.0, feasible=False),
        trial(2, 0.99, 0.5, state=TrialState.FAILED),
        trial(3, 0.8, 1.0),
    ]
    assert [t.number for t in ParetoFront.of(trials, (ACCURACY, LATENCY))] == [3, 0]
    loose = ParetoFront.of(trials, (ACCURACY, LATENCY), feasible_only=False)
    assert [t.number for t in loose] == [1]


def test_picks() -> None:
    trials = [trial(0, 0.50, 1.0), trial(1, 0.85, 2.0), trial(2, 0.90, 9.0)]
    front = ParetoFront.of(trials, (ACCURACY, LATENCY))
    picked = {
        p: front.pick(p).number for p in ("best", "most-accurate", "fastest", "smallest", "knee")
    }  # type: ignore[arg-type]  # names are literals
    assert picked == {"best": 2, "most-accurate": 2, "fastest": 0, "smallest": 2, "knee": 1}
    assert front.pick(1).number == 1
    with pytest.raises(InputError, match="0, 1, 2"):
        front.pick(7)
    with pytest.raises(InputError, match="no feasible"):
        ParetoFront.of([], (ACCURACY, LATENCY)).pick("best")


def test_the_reference_is_fixed_in_advance() -> None:
    baseline = Measurement({"accuracy": 0.88, "latency_ms": 3.0, "size_bytes": 9.0})
    assert reference_point(baseline, (ACCURACY, LATENCY, SIZE)) == pytest.approx([0.78, 3.0, 9.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, "0.5", None])
def test_a_measurement_is_finite_or_not_built(bad: object) -> None:
    with pytest.raises(MeasurementError, match="latency_ms"):
        Measurement({"latency_ms": bad})  # type: ignore[dict-item]  # wrong on purpose
    with pytest.raises(InputError, match="latency_ms"):
        Measurement({"latency": 1.0})


@given(st.integers(0, 99), st.floats(0, 1), st.floats(0.1, 9))
def test_trials_survive_plain_data(number: int, accuracy: float, latency: float) -> None:
    import json
    import pickle

    one = trial(number, accuracy, latency)
    assert Trial.from_dict(json.loads(json.dumps(one.as_dict()))) == one
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_front_prints_in_few_lines() -> None:
    trials = [trial(i, 0.5 + i / 100, 1.0 + i) for i in range(40)]
    front = ParetoFront.of(trials, (ACCURACY, LATENCY))
    assert len(repr(front)) < 80
    lines = str(front).splitlines()
    assert lines[0] == "Pareto front: 40 trials"
    assert lines[1] == "  trial 0: accuracy 50.00%, latency_ms 1 ms"
    assert lines[-1] == "  and 20 more"
    assert max(map(len, lines)) < 100
    assert "no trial" in str(ParetoFront((), (ACCURACY, LATENCY)))
