"""Operators of the user's own (``torch.library.custom_op``) and what stands for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from autocompress.errors import InputError

Passes = Literal["elementwise", "per_channel", "mixed"]


@dataclass(frozen=True)
class Operator:
    """What is known of one operator.

    Args:
        plain: computes the same with operators of torch.
        channels: how channels pass; ``None`` as they do in ``plain``.
    """

    plain: Callable[..., Any] | None
    channels: Passes | None


KNOWN: dict[str, Operator] = {}
"""By the operator's name, ``library::name``."""


def operator(
    op: Any, plain: Callable[..., Any] | None = None, *, channels: Passes | None = None
) -> None:
    """Say what an operator of your own does, so that layers around it can be compressed.

    Call it where the operator is defined: worker processes, ``apply`` and ``verify`` must see it.

    Args:
        op: what ``torch.library.custom_op`` gave, or the operator's name, ``"library::name"``.
        plain: a function of the same arguments that computes the same with operators of torch.
            Channels are followed through it, and exported files hold it in the operator's place.
        channels: how channels pass where ``plain`` does not show it: ``elementwise``; each channel
            by itself along axis 1 (``per_channel``; further tensors hold one number per channel);
            or ``mixed``, which leaves the layers around it alone.

    Raises:
        InputError: neither is given, or the operator has no name.
    """
    name = _name(op)
    if plain is None and channels is None:
        raise InputError(
            f"Say of the operator {name!r} what computes the same (`plain`) or how channels pass "
            f"(`channels`, one of {', '.join(get_args(Passes))})."
        )
    if channels is not None and channels not in get_args(Passes):
        raise InputError(
            f"`channels` of the operator {name!r} must be one of {', '.join(get_args(Passes))}, "
            f"got {channels!r}."
        )
    KNOWN[name] = Operator(plain, channels)


def _name(op: Any) -> str:
    """``library::name`` of an operator in any of its forms."""
    found: Any = op
    if not isinstance(op, str):
        found = getattr(op, "_qualname", None) or getattr(op, "_qualified_op_name", None)
        if found is None and callable(getattr(op, "name", None)):
            found = op.name()  # one overload
    if not isinstance(found, str) or "::" not in found:
        raise InputError(
            "An operator is what `torch.library.custom_op` gave, one of `torch.ops`, or a name "
            f"such as 'library::name', got {op!r}."
        )
    return found
