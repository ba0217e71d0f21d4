"""Fits latency = intercept + a non-negative mix of features, with sensible values to lean on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.measure.latency_features import FEATURES

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
_KINDS = {
    "float_ms": "time",
    "int8_ms": "time",
    "dynamic_ms": "time",
    "half_ms": "time",
    "float_kernels": "node",
    "int8_kernels": "node",
    "to_int8": "node",
    "to_float": "node",
    "to_int8_values": "change",
    "to_int8_far": "change",
    "to_float_values": "change",
    "to_float_far": "change",
    "far_weights": "far",
    "other_macs": "macs",
}
#: noise of one measured model, as fractions of the slowest one's latency and of its own: what a
#: model of kernel times gets wrong grows with the time, and quick models must not be drowned
_NOISE = (0.003, 0.03)
#: a coefficient under this multiple of its standard deviation is held at zero
_ZERO = 1e-4
#: so few models are left out one by one; there the closed form errs by a tenth or more
_FEW = 60


@dataclass(frozen=True)
class Fit:
    """Coefficients and their uncertainty.

    Args:
        coefficients: the intercept, then one per feature; none is negative.
        covariance: of the coefficients.
        sigma: standard deviation of the prediction's error at left-out models, as a multiple of
            the noise that is taken for granted at that latency.
        slowest: latency of the slowest measured model, in ms.
        models: how many measured models it rests on.
    """

    coefficients: NDArray[np.float64]
    covariance: NDArray[np.float64]
    sigma: float
    slowest: float
    models: int

    def predict(self, features: NDArray[np.float64]) -> tuple[float, float]:
        """Milliseconds and one standard deviation."""
        row = np.concatenate([[1.0], features])
        extra = float(row @ self.covariance @ row)
        ms = float(row @ self.coefficients)
        error = self.sigma * float(_noise(ms, self.slowest))
        return ms, (error**2 + max(extra, 0.0)) ** 0.5

    def as_dict(self) -> dict[str, Any]:
        """Plain data; ``from_dict`` inverts it."""
        return {
            "coefficients": self.coefficients.tolist(),
            "covariance": self.covariance.tolist(),
            "sigma": self.sigma,
            "slowest": self.slowest,
            "models": self.models,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fit:
        """Inverse of ``as_dict``."""
        return cls(
            np.array(data["coefficients"]),
            np.array(data["covariance"]),
            data["sigma"],
            data["slowest"],
            data["models"],
        )


def fit(
    features: Sequence[NDArray[np.float64]], times: Sequence[float], base: NDArray[np.float64]
) -> Fit:
    """Fit on measured models; with none, the expected coefficients are all there is.

    Args:
        features: of each measured model.
        times: their latencies in ms.
        base: features of the uncompressed model, which set the scale of what is expected.
    """
    expected, spread = _expectation(base)
    x = np.array([np.concatenate([[1.0], row]) for row in features]).reshape(-1, len(expected))
    y = np.array(times, dtype=float)
    scale = float(np.concatenate([[1.0], base]) @ expected)
    slowest = float(y.max()) if len(y) else scale
    problem = _Problem(x, y, expected, spread, _noise(y, slowest))
    coefficients = problem.solve()
    weighted = x / problem.noise[:, None]
    precision = weighted.T @ weighted + np.diag(1 / spread**2)
    if len(y) < 3:
        # nothing to judge the error by: what is expected may well be a third off
        sigma = 0.3 * scale / float(_noise(scale, slowest))
    else:
        few = len(y) < _FEW
        left_out = problem.solved_without_each() if few else problem.press(coefficients)
        sigma = float(np.sqrt(np.mean(np.square(left_out))))
    return Fit(coefficients, np.linalg.inv(precision), sigma, slowest, len(y))


def _noise(ms: Any, slowest: float) -> Any:
    """Standard deviation that a latency is allowed, in ms."""
    return _NOISE[0] * slowest + _NOISE[1] * ms


@dataclass(frozen=True)
class _Problem:
    """Measured models, what their coefficients are expected to be, and how sure either is."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    expected: NDArray[np.float64]
    spread: NDArray[np.float64]
    noise: NDArray[np.float64]

    def solve(self) -> NDArray[np.float64]:
        """Least squares with every coefficient drawn to its expectation and kept non-negative."""
        from scipy.optimize import lsq_linear

        rows = np.vstack([self.x / self.noise[:, None], np.diag(1 / self.spread)])
        aims = np.concatenate([self.y / self.noise, self.expected / self.spread])
        scaled = lsq_linear(rows * self.spread, aims, bounds=(0, np.inf)).x
        solved: NDArray[np.float64] = scaled * self.spread
        return solved

    def solved_without_each(self) -> NDArray[np.float64]:
        """Each model's error, in units of its noise, under the fit without it."""
        errors = []
        for i in range(len(self.y)):
            x, y, noise = (np.delete(a, i, axis=0) for a in (self.x, self.y, self.noise))
            without = replace(self, x=x, y=y, noise=noise).solve()
            errors.append(self.y[i] - self.x[i] @ without)
        return np.array(errors) / self.noise

    def press(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same in closed form, for many models.

        It is residual / (1 - leverage) over the coefficients that are not held at zero, exact as
        long as leaving a model out releases none and holds no other. Solving anew for each of a
        thousand models takes longer than a trial does.

        References:
            Allen, The Relationship between Variable Selection and Data Augmentation and a Method
            for Prediction, Technometrics 16 (1974): the PRESS statistic.
        """
        # the solver ends just inside its bounds
        free = coefficients > _ZERO * self.spread
        rows = (self.x / self.noise[:, None])[:, free]
        precision = rows.T @ rows + np.diag(1 / self.spread[free] ** 2)
        leverage = np.einsum("ij,ij->i", rows @ np.linalg.inv(precision), rows)
        residual: NDArray[np.float64] = (self.y - self.x @ coefficients) / self.noise
        return residual / (1 - leverage)


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
    chosen += [pairs[_KINDS.get(name, "value")] for name in FEATURES]
    expected, spread = np.array(chosen).T
    return expected, spread
