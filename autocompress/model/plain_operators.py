"""Operators of the user's own, carried out as plain ones of torch."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode

from autocompress.policy.operators import KNOWN, Operator

_OF_TORCH = {"aten", "prims", "prim", "torchvision"}
"""Libraries whose operators are what they are called."""


def known(func: Any) -> Operator | None:
    """What the user said of an operator, in any of the forms in which torch calls it."""
    name = getattr(func, "_qualified_op_name", None)
    if name is None and callable(getattr(func, "name", None)) and hasattr(func, "overloadpacket"):
        name = func.name().partition(".")[0]
    return KNOWN.get(name) if isinstance(name, str) else None


def passing(func: Any) -> str:
    """How channels pass through an operator: the name of torch's own, or what the user says."""
    if func.namespace in _OF_TORCH:
        return str(func.overloadpacket.__name__)
    found = known(func)
    return (found.channels if found else None) or func.name()  # another library's may bear any name


class PlainOperators(TorchFunctionMode):
    """Calls what computes the same in the place of operators that are known.

    Args:
        all_of_them: also where the user says how channels pass.
    """

    def __init__(self, *, all_of_them: bool) -> None:
        super().__init__()
        self.all_of_them = all_of_them

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any call of torch."""
        found = known(func)
        plain = None if found is None else found.plain
        if found is not None and found.channels is not None and not self.all_of_them:
            plain = None
        if plain is not None:
            return plain(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
