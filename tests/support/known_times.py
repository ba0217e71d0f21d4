"""A machine on which kernels and models take times that are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autocompress.estimate.kernel_table import KernelTable
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import LatencyModel, choose_variants
from autocompress.estimate.latency_row import FEATURES
from autocompress.model.kernels import Kernel
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Policy
from autocompress.policy.space import Space

RULES = {
    "match": "*",
    "prune_ratio": [0, 0.25, 0.5, 0.75],
    "weight_bits": [32, 8],
    "activation_bits": [32, 8],
}
_RATE = {"fp32": 3e-6, "int8": 1e-6}


def kernel_ms(kernel: Kernel) -> float:
    """A machine whose kernels cost a fixed start and so much per multiply-add."""
    return 0.002 + _RATE[kernel.precision] * kernel.macs


def true_ms(plan: LayerPlan, policy: Policy, times: Callable[[Kernel], float] = kernel_ms) -> float:
    """A machine whose models cost a start, their kernels and a fee per change of arithmetic."""
    quantity = dict(zip(FEATURES, plan.row(policy, times, 1 << 20).features, strict=True))
    return float(
        0.004
        + 1.1 * (quantity["float_ms"] + quantity["int8_ms"])
        + 0.0015 * (quantity["to_int8"] + quantity["to_float"])
    )


def random_policies(space: Space, count: int, seed: int) -> list[Policy]:
    rng = np.random.default_rng(seed)
    return [
        space.decode([int(rng.integers(len(c.levels))) for c in space.choices])
        for _ in range(count)
    ]


def known_model(plan: LayerPlan, space: Space, variants: int = 24) -> LatencyModel:
    table = KernelTable({k.key: kernel_ms(k) for k in plan.space_kernels(space)})
    base = true_ms(plan, Policy())
    model = LatencyModel(plan, table, base, base)
    for policy in choose_variants(space, variants):
        model.observe(policy, true_ms(plan, policy) / base)
    return model


def device_table(plan: LayerPlan, space: Space, inventory: Inventory) -> dict[str, Any]:
    """What the packed runner would write on that device."""
    policies = choose_variants(space, 12)
    return {
        "version": 1,
        "architecture": inventory.architecture,
        "facts": {"machine": {"cpu": "elsewhere"}},
        "kernels": {k.key: kernel_ms(k) for k in plan.space_kernels(space)},
        "baseline_ms": true_ms(plan, Policy()),
        "models": [{"policy": p.as_dict(), "ms": true_ms(plan, p)} for p in policies],
    }
