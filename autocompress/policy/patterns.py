"""Which layers a pattern speaks of: globs, regular expressions, and places in the model."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from autocompress.errors import InputError, nearest

REGEX = "re:"
"""Before a regular expression, which must match a whole name; anything else is a glob."""


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a layer's name.

    Raises:
        InputError: a regular expression that is none.
    """
    if pattern.startswith(REGEX):
        return _compiled(pattern).fullmatch(name) is not None
    return fnmatch.fnmatchcase(name, pattern)


def within(pattern: str, name: str) -> bool:
    """Whether a layer, or a module that it lies in, matches a pattern."""
    parts = name.split(".")
    return any(matches(pattern, ".".join(parts[: i + 1])) for i in range(len(parts)))


def check_found(patterns: Iterable[str], names: Iterable[str], where: str, deep: bool) -> None:
    """Refuse patterns that match nothing.

    Args:
        patterns: to check.
        names: of all layers.
        where: whose patterns they are, for the message.
        deep: they may also name modules that layers lie in.

    Raises:
        InputError: a pattern matches no layer; the nearest names are told.
    """
    names = list(names)
    meets = within if deep else matches
    for pattern in patterns:
        if not any(meets(pattern, name) for name in names):
            known = {name.rpartition(".")[0] for name in names} - {""} if deep else set()
            plain = pattern.removeprefix(REGEX).replace("*", "")
            raise InputError(
                f"The pattern {pattern!r} of {where} matches no layer; "
                f"{nearest(plain, [*names, *known])}"
            )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix(REGEX))
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression: {error}.") from None
