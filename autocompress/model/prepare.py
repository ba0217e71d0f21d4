"""The one step before the inventory: a copy of the model, made of plain layers with plain weights.

Wrappers are taken off, weights that are computed from others are folded, other number types become
float32. All that comes after sees the copy; the user's model stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from autocompress.errors import UnsupportedModel
from autocompress.model.tracing_stubs import unfuse
from autocompress.model.usage import computed_layer

_NAMED = 3
"""Layers that a note names; the rest are counted."""


@dataclass(frozen=True)
class Prepared:
    """A model that is ready for the inventory.

    Args:
        model: a copy in eval mode, float32, on the CPU, every parameter trainable.
        notes: what was changed, one sentence each, for the user.
    """

    model: nn.Module
    notes: tuple[str, ...]


def prepare(model: nn.Module) -> Prepared:
    """Copy a model, and make its copy one of plain layers.

    Args:
        model: of any kind; not changed. A model that was prepared before comes out the same.

    Raises:
        UnsupportedModel: a scripted or already quantized model, or weights without values.
    """
    model, wrappers = _unwrapped(model)
    _check(model)
    copied, inner = _copied(model)
    notes = []
    if wrappers or inner:
        notes.append(f"{' and '.join(dict.fromkeys(wrappers + inner))} taken off a copy.")
    with torch.no_grad():
        notes += _to_cpu(copied)
        notes += _to_float32(copied)
        notes += _fold(copied)
        notes += _part_norms(copied)
    notes += _thaw(copied)
    unfuse(copied)
    return Prepared(copied.eval(), tuple(notes))


# ---- wrappers and copies


def inside(module: nn.Module) -> nn.Module | None:
    """The module in a wrapper that only says how to run it."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner: Any = module.module if isinstance(module, parallel) else None
    if type(module).__name__ == "OptimizedModule":  # torch._dynamo would have to be imported
        inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _unwrapped(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """What is inside all wrappers, and their names."""
    names = []
    while (inner := inside(module)) is not None:
        names.append(type(module).__name__)
        module = inner
    return module, names


def _copied(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A deep copy without the wrappers inside, and their names; shared tensors stay shared.

    Weights that a hook computes are results of autograd, which cannot be copied as they are.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    names = []
    for module in reversed(list(model.modules())):
        inner, found = _unwrapped(module)
        if found:
            names += found
            memo[id(module)] = copy.deepcopy(inner, memo)
    try:
        return copy.deepcopy(model, memo), names
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"The model must be one that `copy.deepcopy` can copy, which failed: {error}. Detach "
            "tensors that it keeps from an earlier run, and keep open files, locks and process "
            "groups outside of it."
        ) from error


def _check(model: nn.Module) -> None:
    """Refuse what cannot be taken apart."""
    own = {id(part) for module in model.modules() for part in _parts(module)}
    for name, module in model.named_modules():
        for function in _functions(module):
            if any(id(held) in own for held in _held(function)):
                raise UnsupportedModel(
                    f"A function that {name or 'the model'!r} keeps ({function.__name__}) refers "
                    "to the model itself, or to what it keeps, so that a copy of the model would "
                    "go on using parts of this one. Make it a method, or let the hook use the "
                    "module that it is given."
                )
    for name, module in model.named_modules():
        where = f"its part {name!r}" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModel(
                f"The model must be plain PyTorch, but {where} is scripted or traced, and its "
                "layers cannot be exchanged. Hand over the Python module that it was made from; "
                "`module.load_state_dict(scripted.state_dict())` gives that the same weights."
            )
        if _quantized(module):
            raise UnsupportedModel(
                f"The model must be in float, but {where} is quantized already. Hand over the "
                "float model that it was made from."
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        lazy = torch.nn.parameter.is_lazy(tensor)
        if lazy or tensor.is_meta:
            raise UnsupportedModel(
                f"Every weight needs values; {name!r} has none yet. "
                + ("Run the model once." if lazy else "Load its weights onto the CPU.")
            )


def _quantized(module: nn.Module) -> bool:
    """Whether a module computes on integers; what stands for arithmetic before that does not."""
    kind = type(module)
    return kind.__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")) and (
        kind.__name__ not in ("FloatFunctional", "FXFloatFunctional")
    )


def _parts(module: nn.Module) -> Iterable[Any]:
    """A module, and what it keeps that a copy has its own of."""
    yield module
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
    yield from (v for v in vars(module).values() if isinstance(v, Tensor | dict | list | set))


def _functions(module: nn.Module) -> Iterable[Any]:
    """Plain functions among a module's attributes and hooks that its forward may call."""
    for name, value in vars(module).items():
        if "state_dict" in name:
            continue
        for part in value.values() if isinstance(value, dict) else (value,):
            if isinstance(part, FunctionType):
                yield part


def _held(function: FunctionType) -> Iterable[Any]:
    """What a function has taken along from where it was made."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()


# ---- number types, places, frozen weights


def _to_cpu(model: nn.Module) -> list[str]:
    places = {t.device.type for t in _tensors(model)} - {"cpu"}
    if not places:
        return []
    model.cpu()
    return [f"A copy of the model was brought from {' and '.join(sorted(places))} to the CPU."]


def _to_float32(model: nn.Module) -> list[str]:
    kinds = {
        str(t.dtype).removeprefix("torch.")
        for t in _tensors(model)
        if t.is_floating_point() and t.dtype != torch.float32
    }
    if not kinds:
        return []
    model.float()
    return [
        f"The model's {' and '.join(sorted(kinds))} weights are taken as float32, and so are its "
        "inputs."
    ]


def _thaw(model: nn.Module) -> list[str]:
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    if not frozen:
        return []
    return [
        f"{len(frozen)} frozen parameters may be trained during recovery: what compression changes "
        "must be made up for. They stay frozen in your own model."
    ]


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


class LocalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm for inputs of any number of axes, as ``SyncBatchNorm`` is, of one process."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any input that has channels will do."""


def _part_norms(model: nn.Module) -> list[str]:
    """Batch norms that several processes share cannot be trained by one alone."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, nn.SyncBatchNorm):
                local = LocalBatchNorm(1).train(norm.training)
                local.__dict__ = {**vars(norm)}
                setattr(module, name, local)
    return [f"{_listed(names)} became batch norms of one process."] if names else []


# ---- computed weights


def _fold(model: nn.Module) -> list[str]:
    """Make computed weights plain ones, and layers that only compute their weight plain layers."""
    notes = []
    for what, folds in _FOLDS:
        names = [name or "model" for name, module in model.named_modules() if folds(module)]
        if names:
            notes.append(f"{what} folded into the weights of {_listed(names)}.")
    made: dict[int, nn.Module] = {}
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        found = made.get(id(module)) or computed_layer(module)
        if found is not None and name:
            made[id(module)] = found
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, found)
            names.append(f"{name} ({type(module).__name__})")
    if names:
        notes.append(f"{_listed(names)} became plain layers that compute the same.")
    return notes


def _fold_parametrizations(module: nn.Module) -> bool:
    """Weights that torch computes from others whenever they are read."""
    if not parametrize.is_parametrized(module):
        return False
    computed: Any = module.parametrizations
    values = {name: getattr(module, name).detach() for name in computed}
    held = {name for name in values if list(computed[name].parameters())}
    # by hand: torch would take the properties off the class, which the user's model shares
    module.__class__ = type(module).__mro__[1]
    del module._modules["parametrizations"]
    for name, value in values.items():
        if name in held:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)
    return True


def _fold_hooks(kind: type, fold: Callable[[nn.Module, str], object]) -> Any:
    """Weights that a hook of one kind computes before each call."""

    def folds(module: nn.Module) -> bool:
        hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, kind)]
        for hook in hooks:
            fold(module, getattr(hook, "name", None) or hook._tensor_name)  # type: ignore[attr-defined]  # of torch's norms
        return bool(hooks)

    return folds


_FOLDS: tuple[tuple[str, Callable[[nn.Module], bool]], ...] = (
    ("Parametrizations (weight or spectral norm and the like) were", _fold_parametrizations),
    ("Weight norm was", _fold_hooks(WeightNorm, remove_weight_norm)),
    ("Spectral norm was", _fold_hooks(SpectralNorm, remove_spectral_norm)),
    ("Masks of torch.nn.utils.prune were", _fold_hooks(prune.BasePruningMethod, prune.remove)),
)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
