"""Checked data that people write: the base of every section of a file, and its error messages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Self, TypeVar, cast, get_args, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from autocompress.errors import AutocompressError, InputError, nearest
from autocompress.policy.flat import show_flat
from autocompress.policy.registry import MAYBE_MISSING, added_fields

T = TypeVar("T")

_LONGEST_SHOWN = 80
_NO_MAPPING, _ANY_DEPTH = 1, 4
"""How deep a flag is looked for: in a list alone, or as deep as fields of numbers go."""


def field_texts(kind: type) -> dict[str, str]:
    """What the ``Args`` of a class's docstring, or of those before it, say about each field."""
    found: dict[str, str] = {}
    for before in reversed(kind.__bases__):
        if before not in (object, BaseModel, Section):
            found |= field_texts(before)
    names: list[str] = []
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:\n")
    for line in text.splitlines():
        if line and not line.startswith(" "):
            break  # the next part of the docstring
        head = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if head:
            names = head[1].split(", ")
            found |= dict.fromkeys(names, head[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return {name: text.replace("``", "`") for name, text in found.items()}


def describe(schema: dict[str, Any], kind: type) -> None:
    """Put the docstring into a JSON Schema: its first part, and a text for every field."""
    summary, _, _ = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:\n")
    schema["description"] = " ".join(summary.replace("``", "`").split())
    for name, text in field_texts(kind).items():
        if name in schema.get("properties", {}):
            schema["properties"][name]["description"] = text
    if "more" in schema.get("properties", {}):
        show_flat(schema["properties"], listed=hasattr(kind, "listed"))


STRICT = ConfigDict(extra="forbid", frozen=True, json_schema_extra=describe)
"""Of everything that is read from files: sections, and the dataclasses of a policy."""


class Section(BaseModel):
    """Immutable data that refuses unknown keys; its JSON Schema tells what the docstring does."""

    model_config = STRICT

    @classmethod
    def read(cls, data: Any, *, where: str | None = None) -> Self:
        """Check plain data.

        Args:
            data: a mapping.
            where: what it is, for the beginning of an error message; the class by default.

        Raises:
            InputError: an unknown key (the nearest valid one is named), a missing one, or a value
                that cannot be used.
        """
        return read_as(cls, data, where or cls.__name__)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1, and nobody who writes it means that."""
        name = str(info.field_name)
        deepest = _numbers_within(cls, name)
        if deepest and (found := _flag_at(value, deepest)) is not None:
            said = PydanticCustomError("number_type", "Input should be a number")
            told = InitErrorDetails(type=said, loc=found[0], input=found[1])
            raise ValidationError.from_exception_data(cls.__name__, [told])
        return value


@cache
def _numbers_within(kind: type[BaseModel], name: str) -> int:
    """How deep a field holds numbers, and neither flags nor anything at all; 0 where it does not.

    What sections hold, which may be flags, is theirs to check.
    """
    annotation = kind.model_fields[name].annotation
    inner = set(_parts_of(annotation))
    if not inner & {int, float} or inner & {bool, Any, object, True, False}:
        return 0
    return _NO_MAPPING if any(_kinds_in([annotation])) else _ANY_DEPTH


def _flag_at(value: Any, deepest: int) -> tuple[tuple[str, ...], Any] | None:
    """Keys under which a flag stands in a value, or in place of one, and what is wrong there.

    ``None`` where no flag stands.

    Args:
        value: of a field.
        deepest: as ``_numbers_within`` tells.
    """
    if isinstance(value, bool):
        return (), value
    within = list | tuple if deepest == _NO_MAPPING else list | tuple | Mapping
    if not deepest or not isinstance(value, within):
        return None
    pairs = value.items() if isinstance(value, Mapping) else [((), v) for v in value]
    for key, inner in pairs:
        if isinstance(key, bool):
            return (), value
        if (found := _flag_at(inner, deepest - 1)) is not None:
            return found if key == () else ((str(key), *found[0]), found[1])
    return None


def _parts_of(annotation: Any) -> Iterator[Any]:
    """What an annotation consists of, through unions, lists and mappings."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts_of(part)


class AsWritten(Section):
    """A section of which only what was given is written again, not the defaults."""

    @model_serializer(mode="wrap")
    def _given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k in self.model_fields_set}


class _OneOrMore:
    """A single value stands for a list of one."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: value if isinstance(value, list | tuple) else [value], handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        several = handler(schema["schema"])
        return {"anyOf": [several["items"], several]}


OneOrMore = Annotated[tuple[T, ...], _OneOrMore()]


def read_as(kind: type[T], data: Any, where: str, within: str = "") -> T:
    """Check plain data against a section or a dataclass; errors as of ``Section.read``.

    Args:
        kind: of section.
        data: a mapping.
        where: as of ``Section.read``.
        within: key of the section that it is, for the paths in error messages.
    """
    try:
        found: T = _adapter(cast(Any, kind)).validate_python(data)
        return found
    except ValidationError as error:
        raise InputError(explain(error, where, kind, within)) from None
    except AutocompressError as error:  # values that contradict each other
        raise InputError(f"{where}: {error}") from None


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """A journal reads thousands of policies: making one takes a hundred times as long as one."""
    return TypeAdapter(kind)


def explain(error: ValidationError, where: str, kind: type, within: str = "") -> str:
    """Turn pydantic's error into one of our messages.

    Args:
        error: only one of its problems is told; an unknown key goes first, because it is often a
            misspelled one that then is missing too.
        where: what was read: a file, or a section.
        kind: what it was to become.
        within: key of the section that it is.
    """
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] in _UNKNOWN), problems[0])
    path, kinds = _walk(kind, problem["loc"], problem["type"] in _UNKNOWN)
    parts = map(str, [within, *path] if within else path)
    at, found = _short(".".join(parts)), _short(repr(problem["input"]))
    sections = {name: annotation for k in kinds for name, annotation in _fields(k).items()}
    fields = set(sections)
    name = str(path[-1]) if path else ""
    if problem["type"] in _UNKNOWN:
        more = f" {MAYBE_MISSING}" if "more" in fields else ""
        fields = fields - {"more"} | set(added_fields()) if more else fields
        return f"{where} has an unknown key {at!r}; {valid_keys(name, fields, sections)}{more}"
    if problem["type"] in ("missing", "missing_argument"):
        says = next((t[name] for t in map(field_texts, kinds) if name in t), "it must be given")
        return f"{where} lacks `{at}`: {says}"
    if problem["type"] == "invalid_key" or problem["loc"][-1:] == ("[key]",):
        return f"{where}: the key `{at}` must be text; put it into quotes."
    subject = f"{where}: `{at}`" if at else where
    if problem["type"].startswith(("model_", "dataclass_", "dict_", "mapping_")):
        return f"{subject} must be a mapping, got {found}."
    if problem["type"] == CONTRADICTION:
        return f"{subject}: {problem['msg']}"
    text = problem["msg"].replace("a valid tuple", "a list")
    if problem["type"] == "literal_error":
        valid = re.findall(r"'([^']*)'", str(problem["ctx"]["expected"]))
        near = nearest(str(problem["input"]), valid)
        return f"{subject}: {text}, got {found}" + (f"; {near}" if valid else ".")
    return f"{subject}: {text}, got {found}."


def valid_keys(name: str, valid: Iterable[str], sections: Mapping[str, Any]) -> str:
    """What somebody may have meant by an unknown key, for the end of an error message.

    Args:
        name: of the key.
        valid: what could stand in its place.
        sections: the types of those among them that hold keys of their own.
    """
    valid = set(valid)
    within = [
        f"`{key}`"
        for key, annotation in sections.items()
        if key in valid and any(name in _fields(kind) for kind in _kinds_in([annotation]))
    ]
    if within:
        return f"it is a key of the section {' or '.join(sorted(within))}"
    return nearest(name, valid)


CONTRADICTION = "contradiction"
"""Type of an error whose message says all: which value it is, what it must be and what it is."""
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _walk(
    kind: type, location: Sequence[str | int], unknown: bool
) -> tuple[list[str | int], list[type]]:
    """The path that a user wrote, and the kinds of the section that holds its last part."""
    path: list[str | int] = []
    kinds = holders = [kind]
    for left, part in zip(reversed(range(len(location))), location, strict=True):
        if str(part).endswith(("]", ")")) and not (unknown and left == 0):
            continue  # pydantic's own: the member of a union, or "[key]"
        path.append(part)
        holders = kinds
        inner = [_fields(k)[str(part)] for k in kinds if part in _fields(k)]
        if inner:
            kinds = list(_kinds_in(inner))
    return path, holders


def _fields(kind: type) -> dict[str, Any]:
    """Field names and their types."""
    hints = get_type_hints(kind)
    return {name: hints[name] for name in _writable(kind)}


def _writable(kind: type) -> list[str]:
    """What a file may give: neither class variables nor what a class works out for itself."""
    if issubclass(kind, BaseModel):
        return [name for name, field in kind.model_fields.items() if not field.deprecated]
    return [field.name for field in fields(kind) if field.init] if is_dataclass(kind) else []


def _kinds_in(annotations: Iterable[Any]) -> Iterator[type]:
    """Sections and dataclasses in annotations, through unions, tuples and mappings."""
    for annotation in annotations:
        if isinstance(annotation, type) and (
            issubclass(annotation, BaseModel) or is_dataclass(annotation)
        ):
            yield annotation
        else:
            yield from _kinds_in(get_args(annotation))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
