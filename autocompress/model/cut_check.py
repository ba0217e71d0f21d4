"""Try every channel group once: cut, the model must answer as the masked one does.

See ``model.masked`` for what masked means. All groups are cut at once, each by some of its
channels; only where that differs are they tried in parts. A model that does something else while it
trains is run so as well, and on another size of axes that are free. Layers that run in training
only may read channels that go, for a model which they do not fit is trained on what it answers in
use: here they repeat what they say in the masked network. The weights are copies, with noise where
all of a tensor is one value (a layer that was set to zero would hide what goes wrong behind it),
and of double precision where the model can run in it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autocompress.errors import explained
from autocompress.model.masked import masked
from autocompress.model.sides import Removals
from autocompress.model.slicing import remove
from autocompress.model.tracing_stubs import unfused_attention
from autocompress.model.training_run import in_training, recorded, repeated, seeded, to_training
from autocompress.task.calling import call_flat
from autocompress.task.compared import TOLERANCES, difference
from autocompress.task.dynamic import Axes, other_sizes
from autocompress.task.nested import map_tensors, tensors

if TYPE_CHECKING:
    from autocompress.model.groups import SlicingPlan

MAX_SECONDS = 120.0
"""Groups that were not reached after that are left alone."""
IN_TRAINING_ONLY = (
    "it runs in training only, so that it stays as it is; where it reads channels that go, the "
    "model is trained on what it answers in use"
)
"""Said of such layers."""
DRAWS = 3
"""Cuts where calls say sizes, which may fit one cut by chance; the last one of every other group:
code that runs again and again meets channels that went and such that did not."""


def first_samples(inputs: Any, count: int) -> Any:
    """The first samples of a batch; tensors without the batch's axis stay whole."""
    found = tensors(inputs)
    batch = len(found[0]) if found and found[0].dim() else 0

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:count] if tensor.dim() and len(tensor) == batch > count else tensor

    return map_tensors(cut, inputs)


def unlike_samples(inputs: Any) -> Any:
    """Two samples of a batch; where it has one, or two alike, another is made of the first."""
    inputs = first_samples(inputs, 2)
    found = tensors(inputs)
    batch = len(found[0]) if found and found[0].dim() else 0
    batched = [tensor for tensor in found if tensor.dim() and len(tensor) == batch]
    if batch == 2 and not all(torch.equal(tensor[0], tensor[1]) for tensor in batched):
        return inputs

    def with_another(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) != batch:
            return tensor
        other = tensor[:1].flip(-1) if tensor.dim() > 1 else tensor[:1]
        return torch.cat([tensor[:1], other * 0.75 if other.is_floating_point() else other])

    return map_tensors(with_another, inputs)


CallNames = frozenset[tuple[str, str]]
"""Modules and names of calls in their forward, without counts; see ``model.call_sites``."""


def check_groups(
    model: nn.Module, inputs: Any, plan: SlicingPlan, axes: Axes | None = None
) -> tuple[dict[str, str], CallNames]:
    """Cut every group of a plan once.

    Args:
        model: in eval mode; not changed.
        inputs: a few samples.
        plan: how groups are cut.
        axes: of the inputs that may have other sizes, beside the batch; one of these is tried too.

    Returns:
        Name of a group that cannot be cut to the reason, and of what runs in training only; and
        calls that had to be corrected.
    """
    if not plan.members:
        return {}, frozenset()
    try:
        check = CutCheck(model, inputs, plan, axes)
    except Exception as error:  # a forward of anyone's; no group is tried, and the reason is kept
        reason = f"a copy of the model does not run: {explained(error)}"
        return dict.fromkeys(plan.members, reason), frozenset()
    check.test(list(plan.members))
    heads = {name for way in check.ways for name in way.heads}
    return check.failed | dict.fromkeys(sorted(heads), IN_TRAINING_ONLY), check.corrected


def needed_calls(model: nn.Module, inputs: Any, plan: SlicingPlan) -> CallNames:
    """The calls that must be corrected where all groups of a plan are cut."""
    check = CutCheck(model, inputs, plan)
    for draw in range(check.draws):
        check.run(check.cut(list(plan.members), draw))
    return check.corrected


@dataclass(frozen=True)
class Way:
    """One way in which a model is run.

    Args:
        inputs: of the run.
        training: whether the parts of the model are told that they train.
        shapes_only: what it answers there is drawn at random, or changes from run to run.
        name: for people; empty for the usual one.
        heads: the outermost modules that run in training only.
    """

    inputs: Any
    training: bool = False
    shapes_only: bool = False
    name: str = ""
    heads: tuple[str, ...] = ()


class CutCheck:
    """The copy of a model on which groups are tried.

    Args:
        model, inputs, plan, axes: as in ``check_groups``.

    Attributes:
        model: the copy, whole.
        ways: in which it is run.
        corrected: calls that cut models had to correct.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, plan: SlicingPlan, axes: Axes | None = None
    ) -> None:
        self.plan = plan
        self.failed: dict[str, str] = {}
        self.corrected: CallNames = frozenset()
        self._good: list[str] = []
        self._until = time.monotonic() + MAX_SECONDS
        self._draws = _drawn_channels(plan)
        self.draws = DRAWS if plan.sites else 1
        # other samples than were followed, and more: sizes must not hold the batch's
        few = first_samples(inputs, 2)
        batches = (unlike_samples(few), _twice(few), few)
        for dtype in TOLERANCES:
            self.model = lively(copy.deepcopy(model), dtype)
            self._tolerance = TOLERANCES[dtype]
            for batch in batches:
                usual = Way(map_tensors(partial(_as, dtype), batch))
                try:
                    self._answer(self.model, usual)
                except Exception as error:  # the next type and batch are tried; the last is raised
                    failure = error
                    continue
                self._usual = usual
                self.ways = (usual, *self._others(usual, axes))
                return
        raise failure

    def _others(self, usual: Way, axes: Axes | None) -> Iterator[Way]:
        """The other ways in which the model runs, if it does."""
        training = in_training(self.model, usual.inputs)
        if training is not None:
            yield Way(usual.inputs, True, training.unsteady, " in training", training.heads)
        for inputs in other_sizes(self.model, usual.inputs, axes) if axes else ():
            yield Way(inputs, name=" at another size")

    def test(self, names: Sequence[str]) -> None:
        """Sort groups into good ones and failed ones; those that are good are so together."""
        if not names:
            return
        if time.monotonic() > self._until:
            reason = f"trying all groups took longer than {MAX_SECONDS:g} s"
            self.failed |= dict.fromkeys(names, reason)
            return
        reason = self._why_not([*self._good, *names])
        if not reason:
            self._good += names
        elif len(names) == 1:
            self.failed[names[0]] = reason
        else:
            self.test(names[: len(names) // 2])
            self.test(names[len(names) // 2 :])

    def cut(self, names: Sequence[str], draw: int) -> nn.Module:
        """The model without some channels of these groups."""
        small = copy.deepcopy(self.model)
        remove(small, self._removals(names, draw))
        return small

    def _removals(self, names: Sequence[str], draw: int) -> Removals:
        chosen = names[::2] if draw == DRAWS - 1 else names
        return self.plan.removals({name: self._draws[draw][name] for name in chosen})

    def _why_not(self, names: Sequence[str]) -> str:
        """Why these groups cannot be cut together, or an empty text."""
        before = self.corrected
        for draw in range(self.draws):
            reason = self._why_not_drawn(names, draw)
            if reason:
                self.corrected = before
                return reason
        return ""

    def _why_not_drawn(self, names: Sequence[str], draw: int) -> str:
        small, error = self._tried(lambda: self.cut(names, draw))
        if error:
            return f"cut, the model does not run: {error}"
        for way in self.ways:
            reason = self._why_not_so(small, way, self._removals(names, draw))
            if reason:  # what comes next most likely fails there as well
                self.ways = (way, *(other for other in self.ways if other is not way))
                return reason
        return ""

    def _why_not_so(self, small: nn.Module, way: Way, removals: Removals) -> str:
        """Why a cut model is not the masked one, run in one way."""
        with masked(self.model, removals), recorded(self.model, way.heads) as said:
            wanted = self._answer(self.model, way)
        with repeated(small, said):
            got, error = self._tried(lambda: self._answer(small, way))
        if error:
            return f"cut, the model does not run{way.name}: {error}"
        off = difference(got, wanted, self._tolerance)
        reason = f"cut, the model answers differently from the masked one{way.name} ({off})"
        return reason if off else ""

    @staticmethod
    def _tried(function: Callable[[], Any]) -> tuple[Any, str]:
        """What a function gives, or the error that it raises."""
        try:
            return function(), ""
        # whatever a cut model raises, the group is what it cannot do without
        except Exception as error:
            return None, explained(error)

    def run(self, model: nn.Module) -> None:
        """Run a model in the usual way, and note what it corrects."""
        self._answer(model, self._usual)

    def alike(self, one: nn.Module, other: nn.Module) -> bool:
        """Whether two models answer the same."""
        return not any(
            difference(self._answer(one, way), self._answer(other, way), self._tolerance)
            for way in self.ways
        )

    def _answer(self, model: nn.Module, way: Way) -> list[Tensor]:
        """What a copy answers; what it corrected in doing so is noted."""
        if way.shapes_only:  # what it keeps of a run must not reach the next one
            model = copy.deepcopy(model)
        if way.training:
            to_training(model)
        try:
            found = answers(model, way.inputs)
        finally:
            model.eval()
        self.corrected |= frozenset(
            (name, call)
            for name, module in model.named_modules()
            for call in getattr(vars(module).get("forward"), "concerned", ())
        )
        return [torch.zeros_like(t) for t in found] if way.shapes_only else found


def answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The tensors of a model's answer, the same ones each time."""
    with unfused_attention(), torch.no_grad(), seeded():
        return call_flat(model, inputs)


def _twice(inputs: Any) -> Any:
    """A batch, its first sample once more."""
    return map_tensors(lambda x: torch.cat([x, x[:1]]) if x.dim() else x, inputs)


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _drawn_channels(plan: SlicingPlan) -> list[dict[str, list[int]]]:
    """Some channels of every group: about a third of them, then another number, then that again."""
    generator = torch.Generator().manual_seed(0)
    draws: list[dict[str, list[int]]] = [{} for _ in range(DRAWS)]
    for name, units in plan.units.items():
        third = max(1, len(units) // 3)
        others = [n for n in range(1, len(units)) if n != third] or [third]
        any_other = others[int(torch.randint(len(others), (1,), generator=generator))]
        for draw, count in zip(draws, (third, any_other, any_other), strict=True):
            order = torch.randperm(len(units), generator=generator).tolist()
            draw[name] = [c for unit in order[:count] for c in units[unit]]
    return draws


def lively(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model whose constant tensors are noisy, in another precision."""
    model = model._apply(partial(_as, dtype)).eval()  # `to` would drop imaginary parts
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and tensor.numel() > 1:
                first = tensor.flatten()[0]
                if bool((tensor == first).all()):
                    noise = torch.rand(tensor.shape, generator=generator, dtype=dtype) - 0.5
                    if name.endswith("var"):
                        noise = noise.abs()
                    tensor.add_(noise.to(tensor.device), alpha=0.2)
    return model
