"""What installed packages offer through entry points, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint


def source(point: EntryPoint) -> str:
    """Who offers something, for error messages."""
    package = point.dist.name if point.dist is not None else "an unknown package"
    return f"the package {package} ({point.value})"


def rivalry(what: str, points: Sequence[EntryPoint]) -> str:
    """Why none of some entry points of one name is taken; empty where there is but one.

    Args:
        what: they offer.
        points: of one name.
    """
    if len(points) < 2:
        return ""
    return (
        f"The {what} {points[0].name!r} is offered by {' and by '.join(map(source, points))}; "
        "uninstall all but one of them."
    )
