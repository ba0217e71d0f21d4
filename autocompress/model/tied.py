"""Parameters and modules that several modules hold: found, kept together, and taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

ParameterPath = tuple[str, str]
"""Name of a module and of its parameter."""


def shared_parameters(model: nn.Module) -> list[list[ParameterPath]]:
    """The places of every parameter that more than one module holds."""
    places: dict[int, list[ParameterPath]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((name, key))
    return [found for found in places.values() if len(found) > 1]


def holders(shared: Iterable[list[ParameterPath]], name: str, key: str = "weight") -> list[str]:
    """Names of the modules that hold the same parameter as one, itself among them.

    Args:
        shared: as ``shared_parameters`` gives it.
        name, key: of a module and of its parameter.
    """
    for places in shared:
        if (name, key) in places:
            return [module for module, _ in places]
    return [name]


def untie(model: nn.Module, form: Callable[[str, str], object]) -> None:
    """Give places a parameter of their own where they will hold its values in another form.

    Args:
        model: changed in place.
        form: of a module's name and its parameter's; places of equal form go on sharing one.
    """
    for places in shared_parameters(model):
        first = model.get_submodule(places[0][0]).get_parameter(places[0][1])
        made = {form(*places[0]): first}
        for name, key in places[1:]:
            own = form(name, key)
            if own not in made:
                made[own] = nn.Parameter(first.detach().clone(), first.requires_grad)
            setattr(model.get_submodule(name), key, made[own])


def exchange(model: nn.Module, others: Mapping[str, nn.Module]) -> None:
    """Let other modules stand wherever some modules do: a forward may call one by any of its names,
    or out of a plain list or dictionary.

    Args:
        model: changed in place.
        others: name of a module, one of several it may have, to what stands in its place.
    """
    new = {id(model.get_submodule(name)): other for name, other in others.items()}
    for holder in list(model.modules()) if new else ():
        for child, module in holder._modules.items():
            if id(module) in new:
                setattr(holder, child, new[id(module)])
        for name, value in vars(holder).items():
            if name not in _OF_TORCH and isinstance(value, _CONTAINERS):
                vars(holder)[name] = _exchanged(value, new)


_CONTAINERS = (list, tuple, dict)
_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module: its parts and hooks."""


def _exchanged(value: Any, new: Mapping[int, nn.Module]) -> Any:
    """A container with other modules in it; the same one where it holds none of those that go."""
    if not isinstance(value, _CONTAINERS):
        return new.get(id(value), value)
    inside = list(value.values()) if isinstance(value, dict) else list(value)
    found = [_exchanged(part, new) for part in inside]
    if all(one is other for one, other in zip(found, inside, strict=True)):
        return value
    if isinstance(value, dict):
        value.update(zip(value, found, strict=True))
        return value
    if isinstance(value, list):
        value[:] = found
        return value
    return type(value)(*found) if hasattr(value, "_fields") else type(value)(found)
