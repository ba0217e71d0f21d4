"""The growth figure keeps the points at which something grew; its curves stay the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autocompress.report.course import steps
from autocompress.track.view import Point


def level(points: list[Point], at: int) -> tuple[float, float | None]:
    """What a step curve shows at a time."""
    last = [point for point in points if point.elapsed_s <= at][-1]
    return last.hypervolume, last.best_quality


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_the_curves_are_those_of_all_points(grows: list[tuple[int, int]]) -> None:
    points, volume, best = [], 0, 0
    for number, (more, better) in enumerate(grows):
        volume, best = volume + more // 2, best + better // 2
        points.append(Point(number, float(number), float(volume), best or None))
    kept = steps(points)
    assert len(kept) <= len(points)
    assert all(level(kept, at) == level(points, at) for at in range(len(points)))
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    repeats = [(p.hypervolume, p.best_quality) for p in kept[:-1]]
    assert len(repeats) == len(set(repeats))
