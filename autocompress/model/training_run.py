"""What a model does otherwise while it trains: heads of its own, answers built otherwise.

Norms, dropout and all other modules without parts stay in eval mode here: how they differ in
training is no matter of what is read and answered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.model.tracing_stubs import is_attention
from autocompress.task.calling import call
from autocompress.task.choices import noting
from autocompress.task.nested import named_tensors


@dataclass(frozen=True)
class Training:
    """How a run in training differs from one in use.

    Args:
        layers: that run in training only.
        rebuilt: whether the answer is built otherwise: other parts, or other names of them.
        unsteady: whether it draws random numbers, or changes what the model holds.
    """

    layers: tuple[str, ...]
    rebuilt: bool
    unsteady: bool

    @property
    def heads(self) -> tuple[str, ...]:
        """The outermost of the layers that run in training only."""
        names = set(self.layers)
        return tuple(n for n in self.layers if not any(up in names for up in _owners(n)))


def to_training(model: nn.Module) -> nn.Module:
    """Tell the modules that have parts that they train, in place."""
    model.eval()
    for module in model.modules():
        if any(True for _ in module.children()) and not _is_of_torch(module):
            module.training = True
    return model


def _is_of_torch(module: nn.Module) -> bool:
    """Whether a module with parts does nothing but dropout otherwise while it trains."""
    return is_attention(module) or type(module).__module__.startswith("torch.nn.")


@torch.no_grad()
def in_training(model: nn.Module, inputs: Any) -> Training | None:
    """In what a model differs while it trains; ``None`` if in nothing, or if it does not run so.

    Args:
        model: in eval mode; not changed.
        inputs: a few samples.
    """
    used, before, _ = _run(copy.deepcopy(model), inputs)
    trained = to_training(copy.deepcopy(model))
    held = {name: tensor._version for name, tensor in trained.named_buffers()}
    try:
        ran, after, draws = _run(trained, inputs)
    except Exception:  # it may want targets as well; then it cannot be trained here either
        return None
    changed = any(t._version != held.get(name) for name, t in trained.named_buffers())
    rebuilt = _kinds(before) != _kinds(after)
    if ran == used and not rebuilt and not draws and _equal(before, after):
        return None
    more = tuple(name for name, _ in model.named_modules() if name in ran - used)
    return Training(more, rebuilt, draws or changed)


def _run(model: nn.Module, inputs: Any) -> tuple[set[str], list[tuple[str, Tensor]], bool]:
    """Modules that ran, the answer's tensors, and whether random numbers were drawn."""
    with seeded(), noting(model) as ran:
        state = torch.get_rng_state()
        found = named_tensors(call(model, inputs))
        return ran, found, not torch.equal(state, torch.get_rng_state())


@contextmanager
def seeded() -> Iterator[None]:
    """Draw the same random numbers each time, and leave the generator as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        yield


def _owners(name: str) -> Iterator[str]:
    """The modules that a module lies in, the nearest first."""
    while name := name.rpartition(".")[0]:
        yield name


def _kinds(found: list[tuple[str, Tensor]]) -> list[Any]:
    return [(name, tensor.shape) for name, tensor in found]


def _equal(one: list[tuple[str, Tensor]], other: list[tuple[str, Tensor]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for (_, a), (_, b) in pairs)


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """What these modules say, call after call."""
    said: dict[str, list[Any]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, own=said[name]: own.append(output)
        )
        for name in names
    ]
    try:
        yield said
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def repeated(model: nn.Module, said: Mapping[str, Sequence[Any]]) -> Iterator[None]:
    """Let modules say what they did before, whatever they are given."""
    modules: dict[str, Any] = {name: model.get_submodule(name) for name in said}
    for name, module in modules.items():
        module.forward = _in_turn(said[name])
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def _in_turn(outputs: Sequence[Any]) -> Callable[..., Any]:
    turn = iter(outputs)
    return lambda *args, **kwargs: next(turn)
