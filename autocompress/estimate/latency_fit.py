"""Fits latency = intercept + a non-negative mix of features + a correction per kernel.

The coefficients have sensible values to lean on. A kernel may take longer or shorter between others
than it does in the table; whole models tell, and all that share the kernel profit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.estimate.latency_row import FEATURES, Row

#: what a coefficient is expected to be, and how sure that is: kernel times count once; nodes and
#: values cost a few per cent of an average kernel, per node or per value; a value that changes
#: its precision is read and written by a conversion and by changes of layout
_KERNEL_TIME = (1.0, 0.35)
_PER_NODE = (0.04, 0.15)
_PER_VALUE = (0.04, 0.15)
_PER_CHANGE = (0.3, 0.5)
#: ms per MiB that comes from memory (20 GB/s), and per million multiply-adds of unknown layers
_PER_MIB = (0.05, 0.1)
_PER_MMAC = (0.05, 0.5)
#: noise of one measured model, as fractions of the slowest one's latency and of its own
_NOISE = (0.003, 0.005)
#: a kernel's time within a whole model differs from the table's by so much of itself
_CORRECTION = 0.3
#: a coefficient under this multiple of its standard deviation is held at zero
_ZERO = 1e-4


@dataclass(frozen=True)
class Fit:
    """Coefficients and corrections, and how uncertain they leave a prediction.

    Args:
        coefficients: the intercept, then one per feature; none is negative.
        corrections: per kernel of a measured model, the share of its table time to add.
        spread: standard deviation of each coefficient before anything was measured; 0 where the
            coefficient is held at zero.
        root: ``(coefficients + corrections, models)``: what measuring took off the variance is
            the squared length of a model's quantities, in prior standard deviations, times this.
        places: key of a kernel and its row of ``root``.
        sigma: measured errors at left-out models, as a multiple of the predicted ones; at least 1.
        slowest: latency of the slowest measured model, in ms.
    """

    coefficients: NDArray[np.float64]
    corrections: Mapping[str, float]
    spread: NDArray[np.float64]
    root: NDArray[np.float64]
    places: Mapping[str, int]
    sigma: float
    slowest: float

    def predict(self, row: Row) -> tuple[float, float]:
        """Milliseconds and one standard deviation."""
        return self._judged(*self._start(row))

    def changes(self, start: Row) -> Callable[[Row], tuple[float, float]]:
        """Predictions for rows that differ from one in a few quantities, in time of these alone.

        Returns:
            From a row of differences to milliseconds and one standard deviation.
        """
        before = np.concatenate([[1.0], start.features])
        ms, learned, own = self._start(start)

        def changed(difference: Row) -> tuple[float, float]:
            moved = np.concatenate([[0.0], difference.features])
            sums = self._sums(before, moved, start.kernels, difference.kernels)
            return self._judged(ms + sums[0], learned + sums[1], own + sums[2])

        return changed

    def _start(self, row: Row) -> tuple[float, NDArray[np.float64], float]:
        features = np.concatenate([[1.0], row.features])
        return self._sums(np.zeros_like(features), features, {}, row.kernels)

    def _judged(self, ms: float, learned: NDArray[np.float64], own: float) -> tuple[float, float]:
        left = max(own - float(learned @ learned), 0.0)
        return ms, self.sigma * (left + float(_noise(ms, self.slowest)) ** 2) ** 0.5

    def _sums(
        self,
        features: NDArray[np.float64],
        moved: NDArray[np.float64],
        times: Mapping[str, float],
        times_moved: Mapping[str, float],
    ) -> tuple[float, NDArray[np.float64], float]:
        """What a change of the quantities adds to the latency, and to what its error follows from.

        Args:
            features, times: quantities before.
            moved, times_moved: what is added to them.

        Returns:
            Milliseconds; the quantities, in prior standard deviations, times ``root``; their
            squared length.
        """
        ms = float(moved @ self.coefficients)
        spread = moved * self.spread
        own = float(spread @ ((2 * features + moved) * self.spread))
        places, changes = list(range(len(moved))), []
        for key, time in times_moved.items():
            own += _CORRECTION**2 * time * (2 * times.get(key, 0.0) + time)
            place = self.places.get(key)
            if place is not None:
                ms += time * self.corrections[key]
                places.append(place)
                changes.append(_CORRECTION * time)
        return ms, np.concatenate([spread, changes]) @ self.root[places], own


def fit(rows: Sequence[Row], times: Sequence[float], base: NDArray[np.float64]) -> Fit:
    """Fit on measured models; with none, the expected coefficients are all there is.

    Args:
        rows: of each measured model.
        times: their latencies in ms.
        base: features of the uncompressed model, which set the scale of what is expected.
    """
    expected, spread = _expectation(base)
    y = np.array(times, dtype=float)
    scale = float(np.concatenate([[1.0], base]) @ expected)
    slowest = float(y.max()) if len(y) else scale
    keys = list(dict.fromkeys(key for row in rows for key in row.kernels))
    places = {key: i for i, key in enumerate(keys)}
    x = np.array([np.concatenate([[1.0], row.features]) for row in rows]).reshape(-1, len(expected))
    kernels = np.zeros((len(y), len(keys)))
    for i, row in enumerate(rows):
        for key, time in row.kernels.items():
            kernels[i, places[key]] = time
    problem = Problem(x, kernels, y, expected, spread, _noise(y, slowest))
    coefficients = problem.solve()
    # the solver ends just inside its bounds
    held = np.where(coefficients > _ZERO * spread, spread, 0.0)
    left_out, root = problem.left_out(held)
    return Fit(
        coefficients,
        dict(zip(keys, problem.corrections(coefficients).tolist(), strict=True)),
        held,
        root,
        {key: len(expected) + i for key, i in places.items()},
        max(1.0, float(np.sqrt(np.mean(left_out**2)))) if len(y) else 1.0,
        slowest,
    )


def _noise(ms: Any, slowest: float) -> Any:
    """Standard deviation that a latency is allowed, in ms."""
    return _NOISE[0] * slowest + _NOISE[1] * ms


@dataclass(frozen=True)
class Problem:
    """Measured models, and what is expected of their coefficients and corrections.

    Both are normal around what is expected, corrections around none, so that the models' times
    are normal too: their covariance follows from what they share.

    Args:
        x: ``(models, coefficients)``, a column of ones and the features.
        kernels: ``(models, kernels)``, table times in ms.
        y: measured times in ms.
        expected, spread: of the coefficients.
        noise: of the measured times, one standard deviation in ms.

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), sections 2.7
        (explicit basis functions) and 5.4.2 (leave-one-out).
    """

    x: NDArray[np.float64]
    kernels: NDArray[np.float64]
    y: NDArray[np.float64]
    expected: NDArray[np.float64]
    spread: NDArray[np.float64]
    noise: NDArray[np.float64]

    @cached_property
    def _around(self) -> NDArray[np.float64]:
        """Factor of the covariance of the times around what the coefficients say."""
        scaled = _CORRECTION * self.kernels
        return _lower(scaled @ scaled.T + np.diag(self.noise**2))

    def solve(self) -> NDArray[np.float64]:
        """Coefficients: generalized least squares, each drawn to its expectation, none negative."""
        from scipy.linalg import solve_triangular
        from scipy.optimize import lsq_linear

        whitened = solve_triangular(self._around, np.c_[self.x, self.y], lower=True)
        rows = np.vstack([whitened[:, :-1], np.diag(1 / self.spread)])
        aims = np.concatenate([whitened[:, -1], self.expected / self.spread])
        scaled = lsq_linear(rows * self.spread, aims, bounds=(0, np.inf)).x
        solved: NDArray[np.float64] = scaled * self.spread
        return solved

    def corrections(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the kernels most likely add, as shares of their table times."""
        from scipy.linalg import cho_solve

        rest = cho_solve((self._around, True), self.y - self.x @ coefficients)
        found: NDArray[np.float64] = _CORRECTION**2 * self.kernels.T @ rest
        return found

    def left_out(
        self, spread: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each model's error under the fit without it, in units of its predicted one; ``root``.

        In closed form, exact as long as leaving a model out releases no coefficient from zero and
        holds no other: solving anew for each of hundreds of models takes longer than a trial does.

        Args:
            spread: of the coefficients, 0 for those that are held at zero.
        """
        from scipy.linalg import solve_triangular

        own = np.hstack([self.x * spread, _CORRECTION * self.kernels])
        lower = _lower(own @ own.T + np.diag(self.noise**2))
        inverse = solve_triangular(lower, np.eye(len(self.y)), lower=True)
        expected = np.where(spread > 0, self.expected, 0.0)
        errors = inverse.T @ (inverse @ (self.y - self.x @ expected))
        return errors / np.sqrt(np.sum(inverse**2, axis=0)), (inverse @ own).T


def _lower(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower Cholesky factor."""
    return np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)


def _expectation(base: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected coefficients (the intercept first) and their standard deviations."""
    of = dict(zip(FEATURES, base, strict=True))
    kernels = max(1.0, of["float_kernels"] + of["int8_kernels"])
    total = of["float_ms"] + of["int8_ms"] + of["dynamic_ms"] + of["half_ms"]
    per_node = max(total / kernels, 1e-6)
    per_value = max(total / max(1e-9, of["float_outputs"] + of["int8_outputs"]), 1e-9)
    pairs = {
        "time": _KERNEL_TIME,
        "node": (_PER_NODE[0] * per_node, _PER_NODE[1] * per_node),
        "value": (_PER_VALUE[0] * per_value, _PER_VALUE[1] * per_value),
        "change": (_PER_CHANGE[0] * per_value, _PER_CHANGE[1] * per_value),
        "far": _PER_MIB,
        "macs": _PER_MMAC,
    }
    chosen = [(0.02 * total, 0.1 * total + 1e-6)]
    chosen += [pairs[kind] for kind in FEATURES.values()]
    expected, spread = np.array(chosen).T
    return expected, spread
