"""Estimates of small changes against those of whole policies."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from block_networks import memories, vision
from known_times import kernel_ms, known_model
from small_networks import NETWORKS, example, make
from torch import Tensor, nn

from autocompress.controller.near import estimates_near
from autocompress.estimate.estimator import Estimator
from autocompress.estimate.kernel_table import KernelTable
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import LatencyModel
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Assignment, Space
from autocompress.policy.space_config import SpaceConfig
from autocompress.results.metric import Measurement
from autocompress.run.evaluator import StudyEvaluator

RULE = {
    "prune_ratio": [0, 0.3, 0.6],
    "block": ["keep", "gone"],
    "weight_bits": [32, 8, 4],
    "activation_bits": [32, 8],
    "rank_ratio": [None, 0.5],
    "factorization": "auto",
}
STARTS = 3
"""Assignments per network, around each of which every single change is compared."""


class Tied(nn.Module):
    """A table of words that is the output layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.hidden = nn.Linear(8, 8)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.words(x)).relu())


def made(name: str) -> tuple[nn.Module, Tensor]:
    if name == "tied":
        return Tied().eval(), torch.randint(20, (2, 5))
    if name in ("vision", "memories"):
        model, inputs, _ = vision() if name == "vision" else memories()
        return model, inputs
    return make(name), example(name)


class Estimates:
    """The evaluator's part that estimates, on a machine whose kernel times are known."""

    def __init__(self, space: Space, *, fitted: bool) -> None:
        settings = CompressionSettings(channel_multiple=1)
        plan = LayerPlan(space.inventory, settings)
        if fitted:
            model = known_model(plan, space)
        else:  # everything is interpolated, and every weight is far away
            kernels = plan.kernels([Policy(), space.decode(space.hardest)])
            table = KernelTable({k.key: kernel_ms(k) for k in kernels}, {"footprint": 8})
            model = LatencyModel(plan, table, 1.0, 1.0)
        self.asked = 0
        self.estimator = Estimator(space.inventory, settings, lambda name: None, {}, model)

    estimate = StudyEvaluator.estimate

    def estimate_changes(self, policy: Policy) -> Any:
        self.asked += 1
        return self.estimator.changes(policy)

    @property
    def baseline(self) -> Measurement:
        raise AssertionError("measuring it takes the machine's lock")


def close(found: Measurement, wanted: Measurement) -> bool:
    """Integers are equal; what is summed in another order differs in the last digits."""
    return (
        {n: v for n, v in found.values.items() if n != "latency_ms"}
        == {n: v for n, v in wanted.values.items() if n != "latency_ms"}
        and found["latency_ms"] == pytest.approx(wanted["latency_ms"], rel=1e-9)
        and found.spread["latency_ms"] == pytest.approx(wanted.spread["latency_ms"], rel=1e-5)
    )


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize("name", [*NETWORKS, "tied", "vision", "memories"])
def test_a_small_change_is_estimated_as_the_whole_policy_is(name: str, fitted: bool) -> None:
    inventory = take_inventory(*made(name))
    config = {"rules": [RULE], "prune_residual": True, "distill": [False, True]}
    space = SpaceConfig.read(config).bind(inventory)
    evaluator, draw = Estimates(space, fitted=fitted), random.Random(0)
    changes = 0
    for _ in range(STARTS):
        start: Assignment = tuple(draw.randrange(len(c.levels)) for c in space.choices)
        near = estimates_near(space, evaluator, start)  # type: ignore[arg-type]  # a part of one
        for i, choice in enumerate(space.choices):
            for level in range(len(choice.levels)):
                policy = space.decode((*start[:i], level, *start[i + 1 :]))
                whole = evaluator.estimate(policy)
                assert close(near(i, level), whole), (start, choice.name, level)
                changes += whole != evaluator.estimate(space.decode(start))
    assert changes > 10
    assert evaluator.asked == STARTS
