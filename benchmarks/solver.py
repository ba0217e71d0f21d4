"""How good the solver's answers are, and how long they take, from 18 layers to a thousand.

A chain of convolutions whose kernels take times of a closed form, all pruned and in 8 bits at will;
losses are drawn. Compared at four latency targets each: the solver, and the same knapsack merely
linearized again around its own answers four times. Printed: loss as a multiple of the better one's
(mean and worst), share of the target that is used, seconds for an answer and for a whole estimate.

    python benchmarks/solver.py --json [--layers 18 100 300] [--draws 3]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.guided.costs import EstimatedCosts
from autocompress.controller.knapsack import knapsack
from autocompress.controller.solver import solve
from autocompress.estimate.estimator import Estimator
from autocompress.estimate.kernel_table import KernelTable
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import LatencyModel, choose_variants
from autocompress.execute.local import InProcessExecutor
from autocompress.model.kernels import Kernel
from autocompress.policy.budget import Budget
from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Assignment, Space
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.evaluator import StudyEvaluator
from autocompress.testing.sampler import ChainEvaluator

RULE = {
    "prune_ratio": [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75],
    "weight_bits": [32, 8],
    "activation_bits": [32, 8],
}
SHARES = (1.0, 0.85, 0.7, 0.55)
"""Targets between the least latency and 0.6 of the uncompressed one."""


def chain(layers: int) -> Inventory:
    """Convolutions of 64 channels on 8 by 8 pixels, and a classifier."""
    names = [f"l{i}" for i in range(layers)]
    macs = 64 * 64 * 64 * 9
    specs = [
        LayerSpec(
            *(n, "conv", 64, 64, (3, 3), (1, 1)),
            positions=64,
            macs=macs,
            params=macs // 64,
            out_group=n,
            sizes=(((8, 8), (8, 8)),),
        )
        for n in names
    ]
    specs.append(LayerSpec("head", "linear", 64, 10, macs=640, params=650))
    readers = [*names[1:], "head"]
    groups = [
        ChannelGroup(n, (n,), (r,), 64, spans=((r, 1.0),))
        for n, r in zip(names, readers, strict=True)
    ]
    return Inventory(tuple(specs), tuple(groups), ((3, 8, 8),), "architecture", "weights")


def kernel_ms(kernel: Kernel) -> float:
    """A fixed start, and so much per multiply-add."""
    return 0.002 + {"fp32": 3e-6, "int8": 1e-6}[kernel.precision] * kernel.macs


class Estimates(ChainEvaluator):
    """The study's estimator on the chain."""

    def __init__(self, space: Space) -> None:
        super().__init__(len(space.inventory.layers) - 1)
        settings = CompressionSettings()
        plan = LayerPlan(space.inventory, settings)
        table = KernelTable({k.key: kernel_ms(k) for k in plan.space_kernels(space)})
        model = LatencyModel(plan, table, 1.0, 1.0)
        base = sum(kernel_ms(k) for k in plan.kernels([Policy()])) * self.layers
        for policy in choose_variants(space, 24):
            found = sum(kernel_ms(k) for layer in plan.layers(policy) for k in layer.kernels)
            model.observe(policy, 1.1 * found / base)
        self.estimator = Estimator(space.inventory, settings, self._no_student, {}, model)

    @staticmethod
    def _no_student(name: str) -> object:
        raise NotImplementedError(name)

    estimate = StudyEvaluator.estimate
    estimate_changes = StudyEvaluator.estimate_changes


def linearized(
    losses: Sequence[np.ndarray], costs: EstimatedCosts, limit: float, start: Assignment
) -> Assignment | None:
    """The knapsack around its own answers; the best of those within the limit."""
    best, slack = None, 0.0
    for _ in range(4):
        left = limit - costs.main(start) - slack
        found = knapsack(losses, costs.marginals(start, (costs.metric,)), np.array([left]))
        if found is None:
            break
        over = costs.main(found) - limit
        slack += max(0.0, over)
        if over <= 0 and (best is None or total(losses, found) < total(losses, best)):
            best = found
        start = found
    return best


def total(losses: Sequence[np.ndarray], assignment: Assignment) -> float:
    return float(sum(t[level] for t, level in zip(losses, assignment, strict=True)))


def compared(layers: int, draws: int) -> dict[str, object]:
    space = SpaceConfig.read({"rules": [RULE]}).bind(chain(layers))
    evaluator = Estimates(space)
    context = Context(
        space, evaluator, InProcessExecutor(evaluator), Budget("latency<=0.6x"), SearchConfig(), []
    )
    costs = EstimatedCosts(context)
    begin = time.perf_counter()
    top = 0.6 * costs.main(space.mildest)
    estimate_s = time.perf_counter() - begin
    least = costs.least(top, [])
    ratios: dict[str, list[float]] = {"solver": [], "linearized": []}
    used, seconds, unmet = [], [], 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        losses = [
            2 ** rng.uniform(-3, 3)
            * np.cumsum([0.0, *(rng.uniform(1, 20) * n for n in range(1, len(c.levels)))])
            for c in space.choices
        ]
        for share in SHARES:
            limit = least + share * (top - least)
            begin = time.perf_counter()
            found = solve(space, losses, costs, {costs.metric: limit}, marginals=costs.marginals)
            seconds.append(time.perf_counter() - begin)
            assert found is not None
            used.append(costs.main(found) / limit)
            other = linearized(losses, costs, limit, space.hardest)
            both = {"solver": total(losses, found)}
            if other is None:
                unmet += 1
            else:
                both["linearized"] = total(losses, other)
            for name, loss in both.items():
                ratios[name].append(loss / min(both.values()))
    return {
        "layers": layers,
        "choices": len(space.choices),
        "levels": sum(len(c.levels) for c in space.choices),
        **{f"{n}_mean": float(np.mean(r)) if r else None for n, r in ratios.items()},
        **{f"{n}_worst": max(r, default=None) for n, r in ratios.items()},
        "linearized_found_nothing": unmet,
        "of": len(used),
        "least_used": min(used),
        "solve_s": float(np.median(seconds)),
        "slowest_s": max(seconds),
        "estimate_ms": 1e3 * estimate_s,
    }


def main() -> None:
    """One row per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--layers", type=int, nargs="*", default=[18, 100, 300])
    parser.add_argument("--draws", type=int, default=3)
    given = parser.parse_args()
    rows = [compared(layers, given.draws) for layers in given.layers]
    print(json.dumps(rows) if given.json else json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
