"""Try every branch once: left out, the model must answer as with zeros in the branch's place.

The zeros are put in while the original runs, where the branch's result comes to its addition; what
is left out is left out as the stitching of a policy does it. Every other branch is left out at
once, then those between them; only where that differs are they tried in parts. Where the model does
something else while it trains, it must run so as well.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import explained
from autocompress.model.absent import leave_out
from autocompress.model.blocks import Branch, Finder, watch
from autocompress.model.cut_check import answers, lively, unlike_samples
from autocompress.model.operator_paths import ForwardPass
from autocompress.model.sources import layer_sources
from autocompress.model.training_run import in_training, to_training
from autocompress.policy.inventory import Block, LayerSpec
from autocompress.task.compared import TOLERANCES, difference
from autocompress.task.nested import map_tensors

MAX_SECONDS = 60.0
"""Branches that were not reached after that stay."""
_IDLE = "no answer depends on it"
_CONSTANT = "it reads nothing of the model's inputs, so that it gives the same at every run"


@dataclass(frozen=True)
class Followed:
    """What was seen in runs of a model.

    Args:
        blocks: that can be left out, in network order.
        staying: first layer of each branch that stays, with the reason.
        staying_whole: layers whose weights stay as they are, with the reason: those on which no
            answer depends, tried as well, and those that read nothing of the inputs.
        sources: as in ``Inventory``.
    """

    blocks: tuple[Block, ...]
    staying: Mapping[str, str]
    staying_whole: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[tuple[int, ...], ...] = ()


def followed(model: nn.Module, example: Any, layers: Sequence[LayerSpec]) -> Followed:
    """Who reads whom in a model, and the branches that can be left out, each tried on it.

    Args:
        model: in eval mode; not changed.
        example: one batch of inputs, built as the model takes them.
        layers: of the model's inventory.
    """
    inputs = map_tensors(_float32, unlike_samples(example))
    try:
        copied = lively(copy.deepcopy(model), torch.float32)
        finder = Finder(copied, watch(copied, inputs), layers)
        branches, idle = finder.branches(), finder.idle()
        if not _answers_without(copied, inputs, idle):
            idle = []
        check = _BlockCheck(copied, inputs, layers)
        for half in (branches[::2], branches[1::2]):
            check.test(half)
    # a forward of anyone's, which need not bear being watched; the reason is kept
    except Exception as error:
        reason = f"its branches cannot be followed: {explained(error)}"
        return Followed((), {layer.name: reason for layer in layers[:1]})
    good = tuple(b.block for b in branches if b.block.name not in check.failed)
    staying = {**finder.skipped, **check.failed}
    # tables of positions are small and stay tables, however constant what is read of them
    tables = {layer.name for layer in layers if layer.kind == "embedding"}
    fixed = [name for name in finder.constant() if name not in tables]
    whole = dict.fromkeys(fixed, _CONSTANT) | dict.fromkeys(idle, _IDLE)
    return Followed(good, staying, whole, layer_sources(finder, layers))


def _answers_without(model: nn.Module, inputs: Any, layers: Collection[str]) -> bool:
    """Whether a model answers the same whatever these layers give."""

    def noise(module: nn.Module, args: Any, outputs: Any) -> Any:
        return map_tensors(lambda x: torch.randn_like(x) if x.is_floating_point() else x, outputs)

    wanted = answers(model, inputs) if layers else []
    handles = [model.get_submodule(name).register_forward_hook(noise) for name in layers]
    try:
        return not layers or not difference(answers(model, inputs), wanted, tolerance=0)
    finally:
        for handle in handles:
            handle.remove()


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _passed_on(module: nn.Module, args: Any, outputs: Any) -> Any:
    """What a recurrent layer took, and its own states."""
    return args[0], *outputs[1:]


class _BlockCheck:
    def __init__(self, model: nn.Module, inputs: Any, layers: Sequence[LayerSpec]) -> None:
        self.model, self.inputs, self.layers = model, inputs, layers
        self.failed: dict[str, str] = {}
        self.trained: list[torch.Size] | None = None
        if in_training(model, inputs) is not None:
            found = answers(to_training(copy.deepcopy(model)), inputs)
            self.trained = [tensor.shape for tensor in found]
        self._until = time.monotonic() + MAX_SECONDS

    def test(self, branches: Sequence[Branch]) -> None:
        """Sort branches into good ones and failed ones."""
        if not branches:
            return
        if time.monotonic() > self._until:
            reason = f"trying all branches took longer than {MAX_SECONDS:g} s"
            self.failed |= {b.block.name: reason for b in branches}
            return
        reason = self._why_not(branches)
        if reason and len(branches) == 1:
            self.failed[branches[0].block.name] = reason
        elif reason:
            self.test(branches[: len(branches) // 2])
            self.test(branches[len(branches) // 2 :])

    def _why_not(self, branches: Sequence[Branch]) -> str:
        """Why these branches cannot be left out together, or an empty text."""
        small = copy.deepcopy(self.model)
        gone = {name for branch in branches for name in branch.block.modules}
        for branch in branches:
            leave_out(small, branch.block.modules, passes=branch.block.passes)
        try:
            run = watch(small, self.inputs)
        # whatever a model raises without them, the branches are what it cannot do without
        except Exception as error:
            return f"without it, the model does not run: {explained(error)}"
        if reader := self._reader(small, run, gone):
            return f"what it leaves is still read by the operator {reader}"
        zeroed = self._wanted(branches)
        if off := difference(run.answers, zeroed.answers, TOLERANCES[torch.float32]):
            return f"without it, the model answers differently ({off})"
        return self._why_not_in_training(small)

    def _why_not_in_training(self, small: nn.Module) -> str:
        """Why a model without some branches cannot be trained, or an empty text."""
        if self.trained is None:
            return ""
        try:
            found = answers(to_training(copy.deepcopy(small)), self.inputs)
        except Exception as error:  # as above
            return f"without it, the model does not run in training: {explained(error)}"
        if [tensor.shape for tensor in found] != self.trained:
            return "without it, the model gives outputs of another shape in training"
        return ""

    def _wanted(self, branches: Sequence[Branch]) -> ForwardPass:
        """The original's run with zeros for branches, and inputs for what passes them on."""
        handles = []
        for branch in branches:
            if branch.block.passes:
                module = self.model.get_submodule(branch.block.name)
                handles.append(module.register_forward_hook(_passed_on))
        try:
            zeros = {b.addition: b.right for b in branches if not b.block.passes}
            return watch(self.model, self.inputs, zeros)
        finally:
            for handle in handles:
                handle.remove()

    def _reader(self, small: nn.Module, run: ForwardPass, gone: set[str]) -> str:
        """The operator that still reads what stands in the place of a module, if any does.

        An operator by torch's name; what passes on its input makes none.
        """
        live = Finder(small, run, self.layers).live
        for number in sorted(live):
            for read in run.operators[number].reads:
                if gone.intersection(run.operators[read].modules):
                    return run.operators[number].name
        return ""
