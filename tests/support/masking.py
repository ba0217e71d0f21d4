"""What a pruned network must compute: that of the whole one whose readers see nothing there."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.model.groups import SlicingPlan
from autocompress.model.sides import Removals
from autocompress.model.slicing import remove
from autocompress.model.tracing_stubs import unfuse
from autocompress.task.nested import tensors


def blind(model: nn.Module, removals: Removals) -> nn.Module:
    """A copy in which layers read zeros in place of the channels that go.

    Args:
        model: whole.
        removals: as ``SlicingPlan.removals`` gives them.
    """
    model = copy.deepcopy(model)
    unfuse(model)
    for (name, side), gone in removals.items():
        module = model.get_submodule(name)
        if side == "in":
            module.register_forward_pre_hook(_without(list(gone), _channel_axis(module)))
        elif side == "heads":
            with torch.no_grad():
                module.get_parameter("out_proj.weight")[:, list(gone)] = 0
        elif side == "out" and isinstance(module, nn.LSTM | nn.GRU):
            silence(module, gone)
    return model


def _channel_axis(module: nn.Module) -> int:
    return -1 - len(getattr(module, "kernel_size", ()))


def _without(gone: list[int], axis: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any) -> Any:
        first = args[0].index_fill(axis, torch.tensor(gone), 0)
        return (first, *args[1:])

    return hook


@torch.no_grad()
def silence(cell: nn.LSTM | nn.GRU, units: Sequence[int]) -> None:
    """With zero weights and biases a unit's state stays at its initial zero."""
    gone = [u for u in units if u < cell.hidden_size]
    assert sorted(units) == sorted(
        u + d * cell.hidden_size for u in gone for d in range(1 + cell.bidirectional)
    )
    for parameter in cell.parameters():
        parameter.view(-1, cell.hidden_size, parameter[0].numel())[:, gone] = 0


def drawn(plan: SlicingPlan, ratio: float, seed: int = 0) -> dict[str, list[int]]:
    """Channels of every group to remove: random ones, about a ratio that differs by group."""
    draw = random.Random(seed)
    gone = {}
    for name, units in plan.units.items():
        count = min(len(units) - 1, max(0, round(len(units) * draw.uniform(0, 2) * ratio)))
        gone[name] = [c for unit in draw.sample(units, count) for c in unit]
    return gone


@torch.no_grad()
def same_as_masked(
    model: nn.Module, plan: SlicingPlan, inputs: Any, ratio: float, seed: int = 0
) -> nn.Module:
    """Check a random cut against the blind network, in double precision.

    Returns:
        The cut network.
    """
    model = copy.deepcopy(model).double()
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    args = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
    removals = plan.removals(drawn(plan, ratio, seed))
    small = copy.deepcopy(model)
    unfuse(small)
    remove(small, removals)
    wanted, got = tensors(blind(model, removals)(*args)), tensors(small(*args))
    assert wanted
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    return small
