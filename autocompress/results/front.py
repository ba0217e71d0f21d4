"""The Pareto front: feasible, non-dominated, complete trials; and its hypervolume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from autocompress.errors import InputError
from autocompress.results.metric import SIZE, Measurement, Metric
from autocompress.results.trial import Trial, TrialState

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pick = Literal["best", "knee", "fastest", "smallest", "most-accurate"]


def non_dominated(points: Sequence[Sequence[float]]) -> list[bool]:
    """Mark the points that no other point dominates, every coordinate minimized.

    Of equal points, the first is kept.
    """
    import moocore
    import numpy as np

    if not points:
        return []
    mask = moocore.is_nondominated(np.asarray(points, dtype=float), keep_weakly=False)
    return [bool(m) for m in mask]


def as_losses(values: Sequence[float], objectives: Sequence[Metric]) -> NDArray[np.float64]:
    """One value per objective, in the metrics' own signs, as losses to be minimized."""
    import numpy as np

    return np.array([m.loss(v) for m, v in zip(objectives, values, strict=True)], dtype=float)


def dominated_volume(points: NDArray[np.float64], limit: NDArray[np.float64]) -> float:
    """Hypervolume of points, every coordinate minimized; those not under the limit add nothing."""
    import moocore

    inside = points[(points < limit).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=limit)) if len(inside) else 0.0


_SHOWN = 20
"""Members in the text of a front."""


@dataclass(frozen=True, repr=False)
class ParetoFront:
    """Trials that are feasible and that no other feasible trial beats in every objective.

    Args:
        trials: front members, from the cheapest to the most expensive.
        objectives: the metrics compared; the second is the cost that orders the members.
    """

    trials: tuple[Trial, ...]
    objectives: tuple[Metric, ...]

    @classmethod
    def of(
        cls, trials: Iterable[Trial], objectives: Sequence[Metric], *, feasible_only: bool = True
    ) -> ParetoFront:
        """The front of any trials; incomplete ones are left out.

        Args:
            trials: any trials, of phases that can be compared (one phase, or one split).
            objectives: at least one metric; the first is the quality by convention.
            feasible_only: leave out trials that are over the budget.
        """
        usable = [
            t for t in trials if _complete(t, objectives) and (t.feasible or not feasible_only)
        ]
        points = [_losses(t, objectives) for t in usable]
        members = [t for t, keep in zip(usable, non_dominated(points), strict=True) if keep]
        cost = objectives[min(1, len(objectives) - 1)]
        members.sort(key=lambda t: (cost.loss(_value(t, cost)), t.number))
        return cls(tuple(members), tuple(objectives))

    def with_trial(self, trial: Trial) -> ParetoFront:
        """The front of its members and one more trial, itself where that one changes nothing."""
        if not (_complete(trial, self.objectives) and trial.feasible):
            return self
        if self.trials and (self.losses <= _losses(trial, self.objectives)).all(axis=1).any():
            return self
        return ParetoFront.of([*self.trials, trial], self.objectives)

    def __len__(self) -> int:
        return len(self.trials)

    def __repr__(self) -> str:
        names = ", ".join(m.name for m in self.objectives)
        return f"<ParetoFront of {len(self)} trials by {names}>"

    def __str__(self) -> str:
        if not self.trials:
            return "Pareto front: no trial within the budget"
        lines = [f"Pareto front: {len(self)} trial{'s' if len(self) > 1 else ''}"]
        for trial in self.trials[:_SHOWN]:
            parts = [f"{m.name} {m.text(_value(trial, m))}" for m in self.objectives]
            parts += [trial.origin] if trial.origin else []
            lines.append(f"  trial {trial.number}: {', '.join(parts)}")
        left = len(self) - _SHOWN
        return "\n".join([*lines, *([f"  and {left} more"] if left > 0 else [])])

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    def pick(self, which: Pick | int) -> Trial:
        """One member.

        Args:
            which: ``best`` and ``most-accurate``: the best quality; ``fastest``: least of the
                cost objective; ``smallest``: least size; ``knee``: farthest from the line between
                the ends, on normalized axes; or a trial's number.
        """
        if not self.trials:
            raise InputError(
                "The front is empty: no feasible trial. Loosen the budget, or search "
                "longer with --resume."
            )
        if isinstance(which, int):
            for trial in self.trials:
                if trial.number == which:
                    return trial
            raise InputError(
                f"Trial {which} is not on the front; its members are "
                f"{', '.join(str(t.number) for t in self.trials)}."
            )
        if which in ("best", "most-accurate"):
            return min(self.trials, key=lambda t: (_quality_loss(t), t.number))
        if which == "smallest":
            return min(self.trials, key=lambda t: _value(t, SIZE))
        if which == "fastest":
            return self.trials[0]
        if which == "knee":
            return self._knee()
        raise InputError(
            f"`--pick` must be best, knee, fastest, smallest, most-accurate or a "
            f"trial number, got {which!r}."
        )

    def _knee(self) -> Trial:
        import numpy as np

        points = np.array([_losses(t, self.objectives[:2]) for t in self.trials])
        if len(points) < 3:
            return self.pick("best")
        span = np.ptp(points, axis=0)
        unit = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
        return self.trials[int(np.argmin(unit.sum(axis=1)))]

    def hypervolume(self, reference: Sequence[float]) -> float:
        """Volume dominated by the front.

        Args:
            reference: one value per objective, in the metric's own sign; members that do not
                beat it in every objective add nothing.
        """
        return dominated_volume(self.losses, as_losses(reference, self.objectives))

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """``(members, objectives)``, all to be minimized."""
        import numpy as np

        found = [_losses(t, self.objectives) for t in self.trials]
        return np.array(found, dtype=float).reshape(len(found), len(self.objectives))


def reference_point(baseline: Measurement, objectives: Sequence[Metric]) -> list[float]:
    """The fixed reference: a quality that is of no use (``Metric.useless``), the baseline's cost.

    For accuracy that is ten points under the baseline's.
    """
    values = [(m, baseline[m.name]) for m in objectives]
    return [m.useless(value) if m in baseline.metrics else value for m, value in values]


def _complete(trial: Trial, objectives: Sequence[Metric]) -> bool:
    """Whether a trial has a value of every objective."""
    found = trial.measurement if trial.state is TrialState.COMPLETE else None
    return found is not None and all(m.name in found for m in objectives)


def _quality_loss(trial: Trial) -> float:
    assert trial.measurement is not None
    return trial.measurement.quality.loss(trial.measurement.score)


def _value(trial: Trial, metric: Metric) -> float:
    assert trial.measurement is not None
    return trial.measurement[metric.name]


def _losses(trial: Trial, objectives: Sequence[Metric]) -> list[float]:
    return [m.loss(_value(trial, m)) for m in objectives]
