"""Fields of installed techniques stand flat beside ours in files; in memory they have one place.

A class that takes them has a field ``more`` for them, which nobody may write as such.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic_core import PydanticKnownError

from autocompress.policy.registry import added_fields


class Folded(tuple[tuple[str, Any], ...]):
    """What ``fold`` gathered: pairs of name and value."""


def fold(data: Any, own: Collection[str]) -> Any:
    """Flat data with the fields of installed techniques gathered under ``more``.

    Args:
        data: as it was read; returned as it is where it holds none of them.
        own: names that are not looked for.
    """
    if not isinstance(data, Mapping) or all(name in own for name in data):
        return data
    mine = [name for name in data if name in added_fields()]
    if not mine:
        return data
    rest = {name: value for name, value in data.items() if name not in mine}
    return {**rest, "more": Folded((name, data[name]) for name in mine)}


def only_folded(value: Any) -> Any:
    """Refuse a ``more`` that somebody wrote, as an unknown key."""
    if not isinstance(value, Folded):
        raise PydanticKnownError("unexpected_keyword_argument")
    return value


def show_flat(properties: dict[str, Any], *, listed: bool) -> None:
    """Put the fields of installed techniques in the place of ``more`` in a JSON Schema.

    Args:
        properties: of the schema; changed.
        listed: whether lists of values may be given.
    """
    del properties["more"]
    for name, field in added_fields().items():
        one = field.json_schema()
        default = [field.default] if listed else field.default
        options = {"anyOf": [one, {"type": "array", "items": one}]} if listed else one
        properties[name] = {**options, "default": default, "description": field.text}
