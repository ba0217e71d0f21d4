"""Functions of the user that settings name: written as ``package.module:function``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from autocompress.errors import InputError, nearest


def path_of(function: Callable[..., Any]) -> str:
    """``package.module:function`` of a function, as files and other processes find it.

    Raises:
        InputError: a function that cannot be found by its name: a lambda, one inside of another.
    """
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if not module or not name or "<" in name or module == "__main__":
        raise InputError(
            f"A function that settings name must lie at the top of an importable module, got "
            f"{module}.{name}: recipes and other processes find it there. Move it into a file of "
            "its own, and give the function or 'package.module:function'."
        )
    return f"{module}:{name}"


def load(path: str) -> Callable[..., Any]:
    """The function behind ``package.module:function``.

    Raises:
        InputError: there is none.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = import_module(module_name)
    except ImportError as error:
        raise InputError(f"There is no module {module_name!r} (of {path!r}): {error}") from None
    found = within(found, name)
    if not callable(found):
        raise InputError(f"{path!r} is no function but a {type(found).__name__}.")
    return found  # type: ignore[no-any-return]  # checked above


def within(module: ModuleType, name: str) -> Any:
    """What a module holds by a name, which may have dots: of a class, a method.

    Raises:
        InputError: nothing; the message names the nearest.
    """
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [each for each in dir(found) if not each.startswith("_")]
            raise InputError(f"{module.__name__} has no {name!r}; {nearest(part, public)}")
        found = getattr(found, part)
    return found
