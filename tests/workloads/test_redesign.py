"""Other architectures in the space: costed as they are, tried once each, trained if they fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.controller.starts import ladders
from autocompress.model.cost import count_macs
from autocompress.policy.policy import Policy
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.run.assembly import assemble
from autocompress.run.study import read_study

NAMES = ("resnet8-w0.25", "vgg4-w0.5")


@pytest.fixture
def study() -> dict[str, object]:
    return {
        "name": "redesign",
        "model": {"factory": "autocompress.workloads.models:digits_resnet", "args": {"width": 8}},
        "data": {"factory": "autocompress.workloads.data:digits"},
        "space": {"rules": [{"prune_ratio": [0, 0.5]}], "students": list(NAMES)},
        "settings": {"calibration_images": 16, "sequential_images": 16},
    }


def products(module: nn.Module) -> int:
    """fvcore's count, norms aside: they are folded in the file."""
    counted = count_macs(module, torch.zeros(1, 1, 16, 16)).per_layer
    named = dict(module.named_modules())
    return sum(m for n, m in counted.items() if isinstance(named[n], nn.Conv2d | nn.Linear))


def test_students_are_costed_as_they_are(study: dict[str, object], tmp_path: Path) -> None:
    parts = assemble(read_study(study), tmp_path)
    for name in NAMES:
        cost = parts.evaluator.estimator.cost(Policy(student=name))
        module = parts.students[name]()
        assert cost.macs == products(module)
        weights = sum(p.numel() for n, p in module.named_parameters() if p.dim() > 1)
        assert weights <= cost.params <= sum(p.numel() for p in module.parameters())
        estimate = parts.evaluator.estimate(Policy(student=name))
        assert estimate["macs"] == cost.macs
    own = parts.evaluator.estimator.cost(Policy())
    assert own.macs == products(parts.model)


def test_each_student_is_proposed_once_and_is_not_the_hardest_level(
    study: dict[str, object], tmp_path: Path
) -> None:
    space = assemble(read_study(study), tmp_path).space
    proposed = [space.decode(a) for origin, a in ladders(space) if origin == "student"]
    assert [p.student for p in proposed] == list(NAMES)
    assert all(not p.layers for p in proposed)
    assert space.decode(space.hardest).student is None


def test_an_untrained_student_within_the_budget_is_trained() -> None:
    """It is at chance before training and would never be chosen by its accuracy."""
    from types import SimpleNamespace

    from autocompress.controller.phases import candidates
    from autocompress.policy.policy import LayerPolicy

    def trial(number: int, policy: Policy, accuracy: float, over: float) -> Trial:
        measured = Measurement({"accuracy": accuracy, "macs": 10.0 - number})
        return Trial(number, policy, measurement=measured, violations={"macs": over})

    pruned = [
        trial(i, Policy({"a": LayerPolicy(prune_ratio=i / 10)}), 0.9 - i / 10, -1.0)
        for i in range(1, 5)
    ]
    fits = trial(5, Policy(student="resnet8"), 0.1, -1.0)
    too_slow = trial(6, Policy(student="vgg8"), 0.1, 1.0)
    context = SimpleNamespace(
        ledger=SimpleNamespace(scored=lambda: [*pruned, fits, too_slow]),
        config=SimpleNamespace(objectives=("accuracy", "macs")),
    )
    chosen = candidates(context, 2)  # type: ignore[arg-type]  # stands in for a context
    assert len(chosen) == 3
    assert chosen[0] is pruned[0]
    assert fits in chosen
    assert too_slow not in chosen
