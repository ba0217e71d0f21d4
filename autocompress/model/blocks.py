"""Branches that a model can do without, found in one run of it.

Where a branch's result is added to the stream that the branch reads, leaving the branch out leaves
the stream. Which layers then work for nobody is seen in the graph of operators, whatever classes
the model is written in: those from which no path leads to the outputs but through that addition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.model.absent import absent
from autocompress.model.operator_paths import ForwardPass, Operator, Paths
from autocompress.model.specs import listed
from autocompress.model.tracing_stubs import unfused_attention
from autocompress.policy.inventory import Block, LayerSpec
from autocompress.task.calling import call_flat
from autocompress.task.dispatch import OperatorMode
from autocompress.task.nested import tensors

_ADD, _INPUT = "add", "input"


class _Watching(OperatorMode):
    """Notes operators, and which of them read whose results.

    Args:
        run: takes them in.
        zeros: numbers of additions, to whether the right operand is zeros in this run.
    """

    def __init__(self, run: ForwardPass, zeros: Mapping[int, bool]) -> None:
        super().__init__()
        self.run, self.zeros = run, zeros
        self.modules: list[str] = []
        # tensors are kept, so that none takes another's id or memory
        self._made: dict[int, tuple[Tensor, int]] = {}
        self._written: dict[int, int] = {}

    def made(self, tensor: Tensor, number: int) -> None:
        self._made[id(tensor)] = (tensor, number)

    def by(self, tensor: Tensor) -> tuple[int, ...]:
        """Whose result a tensor is: of what made it, and of what last wrote into its memory."""
        found = [self._made[id(tensor)][1]] if id(tensor) in self._made else []
        written = self._written.get(tensor.untyped_storage().data_ptr())
        return tuple(dict.fromkeys([*found, *([] if written is None else [written])]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tensors((args, kwargs)) if isinstance(t, Tensor)]
        reads = tuple(dict.fromkeys(n for t in given for n in self.by(t)))
        name = func.overloadpacket.__name__
        plain = not kwargs and len(args) == 2 and len(given) == 2
        addend = (
            name.rstrip("_") == _ADD
            and plain
            and given[0].shape == given[1].shape
            and all(t.is_floating_point() and len(self.by(t)) >= 1 for t in given)
        )
        if addend:
            reads = (max(self.by(given[0])), max(self.by(given[1])))
        number = len(self.run.operators)
        if number in self.zeros:
            args = _with_zeros(name, args, self.zeros[number])
        out = func(*args, **kwargs)
        results = tensors(out)
        floating = any(t.is_floating_point() for t in results)
        self.run.operators.append(Operator(name, reads, tuple(self.modules), addend, floating))
        for tensor in results:
            self.made(tensor, number)
            if name.endswith("_") and not name.endswith("__"):
                self._written[tensor.untyped_storage().data_ptr()] = number
        return out


def _with_zeros(name: str, args: Any, right: bool) -> Any:
    """Operands of an addition, one of them zeros; what is added to in place becomes zeros."""
    if right:
        return args[0], torch.zeros_like(args[1])
    if name.endswith("_"):
        args[0].zero_()
        return args
    return torch.zeros_like(args[0]), args[1]


def watch(model: nn.Module, inputs: Any, zeros: Mapping[int, bool] | None = None) -> ForwardPass:
    """Run a model once and note its operators.

    Args:
        model: in eval mode; not changed.
        inputs: a few samples.
        zeros: numbers of additions, as an earlier run told them, one operand of which is zeros in
            this run: whether the right one.
    """
    run = ForwardPass()
    watching = _Watching(run, zeros or {})
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            watching.modules.append(name)

        def leave(
            module: nn.Module, args: Any, kwargs: Any, outputs: Any, name: str = name
        ) -> None:
            watching.modules.pop()
            found = tensors((args, kwargs))
            one = len(found) == 1 and isinstance(outputs, Tensor)
            if not one or found[0].shape != outputs.shape:
                run.resized.add(name)
            if isinstance(module, nn.RNNBase):
                fits = len(found) == 1 and found[0].shape == tensors(outputs)[0].shape
                run.passing[name] = fits and name not in run.passing

        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
    for tensor in tensors(inputs):
        floating = tensor.is_floating_point()
        watching.made(tensor, len(run.operators))
        run.operators.append(Operator(_INPUT, (), (), False, floating))
    try:
        with unfused_attention(), torch.no_grad(), watching:
            run.answers = call_flat(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    run.outputs = tuple(n for tensor in run.answers for n in watching.by(tensor))
    return run


@dataclass(frozen=True)
class Branch:
    """What may go.

    Args:
        block: its layers, and all modules that go with them.
        addition: number of the operator that adds it to the stream; of a block that passes on what
            comes in, its first one.
        right: whether it is the right operand.
    """

    block: Block
    addition: int
    right: bool


class Finder:
    """Finds the branches of a run.

    Args:
        model: that ran.
        run: of it.
        layers: of its inventory.
    """

    def __init__(self, model: nn.Module, run: ForwardPass, layers: Sequence[LayerSpec]) -> None:
        self.run = run
        self.macs = {layer.name: layer.macs for layer in layers}
        self.modules = dict(model.named_modules())
        self.holders: dict[str, list[int]] = {}
        self.layer_of: list[str | None] = []
        for number, operator in enumerate(run.operators):
            inner = [m for m in operator.modules if m in self.macs]
            self.layer_of.append(inner[0] if inner else None)
            for name in operator.modules:
                self.holders.setdefault(name, []).append(number)
        self.paths = Paths(run, [layer is not None for layer in self.layer_of])
        self.live = self.paths.live
        self.skipped: dict[str, str] = {}
        self._working = self._counted(self.live)
        self._places = {name: i for i, name in enumerate(self.modules)}

    def branches(self) -> list[Branch]:
        """All of them, smaller ones first taken, in the order in which they run."""
        found: list[Branch] = []
        for number, operator in enumerate(self.run.operators):
            if operator.addend and number in self.live and self.layer_of[number] is None:
                branch = self._at(number)
                if branch is not None:
                    found.append(branch)
        kept: list[Branch] = []
        owner: dict[str, Branch] = {}
        for branch in sorted(found, key=lambda b: len(b.block.layers)):
            layers = branch.block.layers
            smaller = next((owner[name] for name in layers if name in owner), None)
            if smaller is None:
                kept.append(branch)
                owner.update(dict.fromkeys(layers, branch))
            elif smaller.block.layers != layers:
                within = f"the block of {smaller.block.name} lies within it, and may go by itself"
                self.skipped[f"{layers[0]} to {layers[-1]}"] = within
        kept += self._passing(owner)
        return sorted(kept, key=lambda branch: branch.addition)

    def idle(self) -> list[str]:
        """Layers from which no path leads to the outputs."""
        return [name for name in self.macs if self.live.isdisjoint(self.holders.get(name, ()))]

    def constant(self) -> list[str]:
        """Layers to which no path leads from the inputs: they give the same at every run."""
        fed: set[int] = set()
        for number, operator in enumerate(self.run.operators):
            if operator.name == _INPUT or not fed.isdisjoint(operator.reads):
                fed.add(number)
        return [name for name in self.macs if fed.isdisjoint(self.holders.get(name, ()))]

    def _passing(self, taken: Collection[str]) -> list[Branch]:
        """Recurrent layers of a stack that lie in no branch."""
        if len(self.run.passing) < 2:
            return []
        return [
            Branch(
                Block(name, (name,), (name,), self.macs[name], True), self.holders[name][0], True
            )
            for name, fits in self.run.passing.items()
            if fits and name in self.macs and name not in taken
        ]

    def _at(self, addition: int) -> Branch | None:
        """The branch of one addition, if one of its operands is one."""
        left, right = self.run.operators[addition].reads
        if left == right:
            return None
        dead = [self.paths.only_for(n) for n in (left, right)]
        shares = [sum(self.macs[n] for n in self._layers(gone)) for gone in dead]
        # of two operands with layers the lesser is a projection of the stream
        side = int(shares[1] >= shares[0])
        gone, other = dead[side], dead[1 - side]
        layers = self._layers(gone)
        if not layers or not self._fits((left, right)[1 - side], gone, other):
            return None
        working = self._counted(gone)
        shared = [n for n in layers if working[n] < self._working[n]]
        if shared:
            self.skipped[layers[0]] = f"{shared[0]} also runs outside of the branch"
            return None
        whole = (name for name, count in working.items() if count == self._working[name])
        leave: list[str] = []
        for name in sorted(whole, key=lambda name: self._places[name]):
            inside = any(name.startswith(f"{parent}.") for parent in leave)
            if name and not inside and self._leaves(name):
                leave.append(name)
        macs = sum(self.macs[n] for n in layers)
        block = Block(layers[0], tuple(layers), tuple(leave), macs)
        return Branch(block, addition, bool(side))

    def _counted(self, numbers: Iterable[int]) -> Counter[str]:
        """How many of these operators ran in each module."""
        return Counter(name for n in numbers for name in set(self.run.operators[n].modules))

    def _layers(self, numbers: Iterable[int]) -> list[str]:
        """Layers that these operators are of, in the order in which they run."""
        found = sorted(n for n in numbers if self.layer_of[n] is not None)
        return list(dict.fromkeys(name for n in found if (name := self.layer_of[n]) is not None))

    def _fits(self, stream: int, branch: set[int], projection: set[int]) -> bool:
        """Whether the stream is what the branch reads, or a projection of it."""
        entries = {
            n
            for number in branch
            for n in self.run.operators[number].reads
            if n not in branch and self.run.operators[n].floating
        }
        return self.paths.share_source(entries, stream, projection)

    def _leaves(self, name: str) -> bool:
        """Whether a module that works for a branch alone, a layer, a norm or the like, may go."""
        module = self.modules[name]
        if name in self.macs:
            return absent(module) is not None
        holds = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
        layers = any(listed(part) for part in module.modules())
        return holds and not layers and name not in self.run.resized
