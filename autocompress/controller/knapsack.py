"""The multiple-choice knapsack: one level for each choice, the least loss within cost limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autocompress.policy.space import Assignment

_GAP = 1e-3
_NODES = 2000


def knapsack(
    losses: Sequence[NDArray[np.float64]],
    costs: Sequence[NDArray[np.float64]],
    limits: NDArray[np.float64],
    order: Sequence[int] = (),
    *,
    exact: bool = True,
) -> Assignment | None:
    """The multiple-choice knapsack, solved to a tenth of a percent of its optimum.

    The proof of the last tenth can take a hundred times as long as the answer, for losses that are
    known to a few percent.

    Args:
        losses: per choice, ``(levels,)`` loss of each level.
        costs: per choice, ``(metrics, levels)`` cost of each level, of any sign.
        limits: ``(metrics,)`` upper bounds on the summed costs.
        order: positions of choices of which each may only leave its level 0 where the one before
            it does.
        exact: otherwise levels may be mixed, in a fifth of the time; there are never more mixtures
            than limits, and each choice gets the level that has most of it. What is rounded so may
            be over a limit.

    Returns:
        One level per choice, or ``None`` where nothing fits.

    References:
        Sinha and Zoltners, The Multiple-Choice Knapsack Problem, Operations Research 27 (1979).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, lil_array

    sizes = [len(loss) for loss in losses]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    one_each = csr_array((np.ones(starts[-1]), (owner, np.arange(starts[-1]))))
    after = lil_array((max(0, len(order) - 1), starts[-1]))
    for row, (first, second) in enumerate(pairwise(order)):
        after[row, starts[second] + 1 : starts[second + 1]] = 1
        after[row, starts[first] + 1 : starts[first + 1]] = -1
    total = np.concatenate(costs, axis=1)
    # rows of like size keep the solver's tolerances meaningful
    scale = np.maximum(np.abs(total).max(axis=1), 1e-12)
    with _no_stdout():
        found = milp(
            np.concatenate(losses),
            integrality=np.full(starts[-1], int(exact)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(total / scale[:, None], -np.inf, limits / scale),
                *([LinearConstraint(after.tocsr(), -np.inf, 0)] if len(order) > 1 else []),
            ],
            # nodes, not seconds: a limit by the clock would make two runs differ
            options={"mip_rel_gap": _GAP, "node_limit": _NODES, "presolve": False},
        )
    if found.x is None:
        return None
    return tuple(int(np.argmax(found.x[starts[i] : starts[i + 1]])) for i in range(len(sizes)))


@contextmanager
def _no_stdout() -> Iterator[None]:
    """Drop what the solver's C++ prints: lines of its own debugging, now and then.

    They would land in the output of ``--json``, or in the middle of a progress display; how a
    solution ended is in what ``milp`` returns.
    """
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
