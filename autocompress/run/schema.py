"""The JSON Schemas of the files that people write, and the reference that is made from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from autocompress.errors import InputError, nearest
from autocompress.policy.recipe import Recipe
from autocompress.policy.section import Section
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.study import StudyConfig
from autocompress.run.variables import NAMED

_KINDS: dict[str, type[Section]] = {"study": StudyConfig, "space": SpaceConfig, "recipe": Recipe}


def schema(what: str) -> dict[str, Any]:
    """The JSON Schema of one kind of file.

    Args:
        what: ``study``, ``space`` or ``recipe``.

    Raises:
        InputError: another word.
    """
    if what not in _KINDS:
        raise InputError(f"There is no schema of {what!r}; {nearest(what, _KINDS)}")
    found = _KINDS[what].model_json_schema()
    if what == "study":
        found["required"].remove("name")  # a file's own name stands in
    if what == "recipe":  # `policy`, where recipes stand, knows no studies
        study = StudyConfig.model_json_schema()
        defined = {**study.pop("$defs"), **found["$defs"], "StudyConfig": study}
        about = found["properties"]["study"]["description"]
        found["properties"]["study"] = {"$ref": "#/$defs/StudyConfig", "description": about}
        found["$defs"] = dict(sorted(defined.items()))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def reference() -> str:
    """All schemas as one page of Markdown: a table per section."""
    lines = [
        "# Reference of files",
        "",
        "Made by `autocompress schema --markdown`. A table is a section, a row is one of its keys.",
        "",
        "`autocompress schema study > study.schema.json` writes the JSON Schema. Editors complete",
        "and check a study that begins with `# yaml-language-server: $schema=study.schema.json`.",
    ]
    seen: set[str] = set()
    for what in _KINDS:
        top = schema(what)
        lines += ["", f"## A {what}", "", top["description"], "", *_table(top)]
        for name, section in _sections(top):
            if name not in seen:
                seen.add(name)
                lines += ["", f"### {name}", "", section["description"], "", *_table(section)]
    return "\n".join(lines) + "\n"


def _sections(top: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The sections below, in the order in which they are met."""
    defined, left, met = top.get("$defs", {}), [top], set[str]()
    while left:
        here = left.pop(0)
        for name in _names(here.get("properties", {})):
            if name not in met:
                met.add(name)
                yield name, defined[name]
                left.append(defined[name])


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from _names(part)


def _table(section: Mapping[str, Any]) -> Iterator[str]:
    yield "| Key | Value | Default | Meaning |"
    yield "|---|---|---|---|"
    needed = section.get("required", ())
    for name, field in section["properties"].items():
        if field.get("deprecated"):
            continue
        default = field.get("default", "")
        if name in needed:
            default = "required"
        elif default != "":
            default = "its own defaults" if isinstance(default, dict) else _code(default)
        cells = (f"`{name}`", _values(field), default, field["description"])
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(field: Mapping[str, Any]) -> str:
    """What a field may hold, in words."""
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(dict.fromkeys(_values(option) for option in field[key]))
    if field.get("pattern") == NAMED:
        return "`${NAME}`"
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field or "const" in field:
        return ", ".join(_code(value) for value in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])}: {_values(field['prefixItems'][0])}"
    if field.get("type") == "array":
        return f"list of {_values(field['items'])}"
    if isinstance(field.get("additionalProperties"), Mapping):
        return f"mapping to {_values(field['additionalProperties'])}"
    return _WORDS[field.get("type", "any")] + _bounds(field)


_WORDS = {
    "string": "text",
    "number": "number",
    "integer": "integer",
    "boolean": "`true`, `false`",
    "null": "`null`",
    "object": "mapping",
    "any": "anything",
}


def _bounds(field: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return f" {', '.join(found)}" if found else ""


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`"
