"""The one reader of YAML and JSON files that people hand over: studies, spaces, policies, recipes.

A file may come from anyone. It is refused before it can cost memory or time: large ones, aliases
that stand for millions of values, deep nesting, a key that is given twice.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from yaml.constructor import ConstructorError

from autocompress.errors import InputError
from autocompress.policy.files import LARGEST_FILE, open_file

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML was built without libyaml; ten times slower
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]  # another class that does the same

MOST_VALUES = {"YAML": 100_000, "JSON": 1_000_000}
"""Values of a file with every alias written out."""
DEEPEST = 100
"""Levels of nesting."""


_TOO_DEEP = f"it is nested deeper than {DEEPEST} levels{{at}}. Make it flatter."


class _Refused(Exception):
    """A file that is not read: what was found, and what to do."""


_UNREADABLE = (_Refused, yaml.YAMLError, ValueError, RecursionError)


def read_mapping(
    path: str | Path,
    what: str,
    *,
    form: Literal["YAML", "JSON"] | None = None,
    missing: str = "",
    remedy: str = "",
) -> dict[str, Any]:
    """Read a file that holds a mapping.

    Args:
        path: UTF-8 text.
        what: it should be, for error messages: ``study``, ``recipe``.
        form: by default JSON where the name ends in ``.json``, otherwise YAML.
        missing: what to do where there is no such file.
        remedy: what to do where it is damaged.

    Raises:
        InputError: no such file, something that is none (a pipe, a folder), or one that is too
            large, damaged or not a mapping.
    """
    path = Path(path)
    form = form or ("JSON" if path.suffix.lower() == ".json" else "YAML")
    with open_file(path, what, missing) as file:
        found = file.read(LARGEST_FILE + 1)
    try:
        return _parse(found, form)
    except _UNREADABLE as error:
        raise InputError(
            f"{path} is not readable as a {what} in {form}: {_why(error)} {remedy}".rstrip()
        ) from None


def read_line(found: bytes) -> dict[str, Any]:
    """Read a line of JSON that holds a mapping, with the limits of a file.

    Raises:
        InputError: it does not; the message has no subject and no remedy.
    """
    try:
        return _parse(found, "JSON")
    except _UNREADABLE as error:
        raise InputError(_why(error)) from None


def _why(error: Exception) -> str:
    """A reason as a sentence; the parsers' own words for deep nesting say no remedy."""
    if isinstance(error, RecursionError) or "nesting depth" in str(error):
        return _TOO_DEEP.format(at="")
    return f"{error}".rstrip(".") + "."


def read_value(text: str) -> Any:
    """Read a value as a YAML file would hold it, for options of the command line.

    Raises:
        InputError: it is none.
    """
    try:
        return _load_yaml(text)
    except _UNREADABLE as error:
        raise InputError(f"{text!r:.80} is no value: {_why(error)}") from None


def _parse(found: bytes, form: str) -> dict[str, Any]:
    if len(found) > LARGEST_FILE:
        raise _Refused(
            f"it is larger than {LARGEST_FILE >> 20} MB. Give the file that was meant, or split it."
        )
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Refused(f"it is not UTF-8 ({error}). Save it as UTF-8.") from None
    data = json.loads(text, object_pairs_hook=_unique) if form == "JSON" else _load_yaml(text)
    if not (form == "JSON" and _small(text, MOST_VALUES[form])):
        _check_values(data, MOST_VALUES[form])
    if not isinstance(data, dict):
        held = "nothing" if data is None else f"a {type(data).__name__}"
        raise _Refused(f"it must hold a mapping (`key: value`), got {held}.")
    for key in data:
        if not isinstance(key, str):
            raise _Refused(f"keys are names, got {key!r}. Put it into quotes.")
    return data


def _load_yaml(text: str) -> Any:
    _check_yaml(text)
    return yaml.load(text, Loader=_Loader)


class _Loader(_SafeLoader):
    """PyYAML's safe loader; a scalar that its tag does not fit is an error of YAML."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError):
            text = f"{node.value!r:.40} is no {node.tag.rpartition(':')[2]}; put text into quotes"
            raise ConstructorError(None, None, text, node.start_mark) from None


def _plain(self: Any, node: yaml.Node) -> Any:
    raise ConstructorError(
        None, None, f"{node.tag!r} is not supported; use text, numbers, lists", node.start_mark
    )


for _tag in ("binary", "omap", "pairs", "set"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _plain)


@dataclass
class _Open:
    """A list or mapping under way: its values, levels and keys so far."""

    anchor: str | None = None
    mapping: bool = False
    parts: int = 0
    values: int = 1
    levels: int = 1
    keys: set[str] = field(default_factory=set)

    def add(self, values: int, levels: int, key: str | None, line: int) -> None:
        """Count one more part; every other part of a mapping is a key."""
        if self.mapping and self.parts % 2 == 0 and key is not None and key != "<<":
            if key in self.keys:
                raise _Refused(f"the key {key!r} is given twice, again in line {line}. Keep one.")
            self.keys.add(key)
        self.parts += 1
        self.values += values
        self.levels = max(self.levels, levels + 1)


def _check_yaml(text: str) -> None:
    """Refuse deep nesting, too many values and keys given twice, before anything is built."""
    known: dict[str | None, tuple[int, int]] = {}
    outer, total = [_Open()], 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        values, levels = 1, 0
        if isinstance(event, yaml.CollectionStartEvent):
            outer.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = outer.pop()
            known[done.anchor] = (done.values, done.levels)
            outer[-1].add(done.values, done.levels, None, line)
            values = 0
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in {o.anchor for o in outer}:
                raise _Refused(f"the alias *{event.anchor} in line {line} holds itself. Remove it.")
            values, levels = known.get(event.anchor, (1, 0))
            outer[-1].add(values, levels, None, line)
        elif isinstance(event, yaml.ScalarEvent):
            known[event.anchor] = (1, 0)
            outer[-1].add(1, 0, event.value, line)
        total += values
        _check_size(total, len(outer) - 1 + levels, MOST_VALUES["YAML"], f" (line {line})")


def _check_size(values: int, levels: int, most: int, at: str = "") -> None:
    if values > most:
        raise _Refused(
            f"it stands for more than {most:,} values, aliases written out{at}. Leave out what "
            "does not belong to it."
        )
    if levels > DEEPEST:
        raise _Refused(_TOO_DEEP.format(at=at))


def _small(text: str, most: int) -> bool:
    """Whether JSON is too short for any limit: true of a journal's lines, which are many.

    It has no more values than signs, and no more levels than brackets that open one.
    """
    plain = text.isascii() and "\\u" not in text
    return plain and len(text) <= most and text.count("{") + text.count("[") <= DEEPEST


def _check_values(data: Any, most: int) -> None:
    """The same limits for what was read, and text that can be written again."""
    left, count = [(data, 0)], 0
    while left:
        value, level = left.pop()
        count += 1
        if isinstance(value, dict | list):
            level += 1
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            left += [(part, level) for part in parts]
        elif isinstance(value, str) and not value.isascii():
            value.encode()  # half of a surrogate pair is a ValueError
        _check_size(count, level, most)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _Refused(f"the key {twice!r} is given twice. Keep one.")
    return found
