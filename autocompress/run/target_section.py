"""The ``target`` of a study as it is written: its runtime's fields, which may hold variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    create_model,
    model_serializer,
)
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from autocompress.errors import InputError, TargetUnavailable
from autocompress.policy.defaults import DEFAULT_RUNTIME
from autocompress.policy.section import Section, field_texts, read_as
from autocompress.run.variables import NAMED, VARIABLE, resolve_variables
from autocompress.targets.config import FORMER, TargetConfig
from autocompress.targets.registry import entries, load, load_entry, read_config


class TargetSection(Section):
    """Where the compressed model is to run. Each runtime has a subclass with its own fields."""

    @classmethod
    def of(cls, data: Any, at: str = "target") -> TargetSection:
        """Plain data as the section of its runtime; one whose runtime is a variable, of any.

        Args:
            data: plain, or a section.
            at: its place in the study.

        Raises:
            InputError: an unknown key or runtime (with the nearest valid one), or a bad value.
            TargetUnavailable: the runtime comes with a package that is broken.
        """
        if isinstance(data, TargetSection):
            return data
        if not isinstance(data, Mapping):
            raise InputError(f"`{at}` must be a mapping, got {data!r:.80}.")
        runtime = data.get("runtime", DEFAULT_RUNTIME)
        if not isinstance(runtime, str):
            raise InputError(f"`{at}.runtime` must be a runtime's name, got {runtime!r}.")
        if VARIABLE.search(runtime):
            return _of_any(data, runtime, at)
        where = f"`{at}` with the runtime {runtime!r}"
        found = read_as(_section(runtime, load(runtime).config_model), dict(data), where, at)
        if not VARIABLE.search(repr(data)):
            found.config()  # values that contradict each other
        return found

    def config(self) -> TargetConfig:
        """What the runtime takes, with the variables looked up.

        Raises:
            InputError: a variable is not set, or holds what the runtime cannot take.
        """
        return read_config(resolve_variables(self.model_dump()))

    @model_serializer
    def _written(self) -> dict[str, Any]:
        """Only what was given: other runtimes have other fields."""
        given = self.model_fields_set
        return {name: getattr(self, name) for name in type(self).model_fields if name in given}

    def __reduce__(self) -> tuple[Any, ...]:
        return (TargetSection.of, (self.model_dump(),))


class ByRuntime:
    """Reads a ``TargetSection``; its JSON Schema is that of any runtime registered here."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        serialization = core_schema.plain_serializer_function_ser_schema(
            lambda section: section.model_dump()
        )
        return core_schema.no_info_plain_validator_function(
            TargetSection.of, serialization=serialization
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        kinds: list[Any] = [TypeAdapter(kind).core_schema for _, kind in _sections()]
        return handler(core_schema.union_schema(kinds))


class _OrVariable:
    """A field that may also hold the name of an environment variable, which is not looked up."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            lambda value, check: value if VARIABLE.search(repr(value)) else check(value),
            handler(source),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        plain = handler(cast(Any, schema)["schema"])
        if plain.get("type") == "string" and "const" not in plain:
            return plain
        options = plain["anyOf"] if set(plain) == {"anyOf"} else [plain]
        return {"anyOf": [*options, {"type": "string", "pattern": NAMED}]}


def _sections() -> Iterator[tuple[str, type[TargetSection]]]:
    """Runtime and section of every target that can be loaded."""
    for entry in entries():
        try:
            config = load_entry(entry).config_model
        except TargetUnavailable:
            continue  # a broken package is told by `autocompress targets`
        yield entry.name, _section(entry.name, config)


def _of_any(data: Mapping[str, Any], runtime: str, at: str) -> TargetSection:
    """A section that fits some runtime; the error is that of the first."""
    refused = None
    for _, kind in _sections():
        try:
            where = f"`{at}` with the runtime {runtime!r}"
            return read_as(kind, dict(data), where, at)
        except InputError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _only(nothing: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value is not nothing:
            raise PydanticKnownError("extra_forbidden")
        return value

    return check


@cache
def _section(runtime: str, config: type[TargetConfig]) -> type[TargetSection]:
    """The section of one runtime: the fields of its config model, none of them looked up."""
    texts, fields = field_texts(config), dict[str, Any]()
    for name, known in config.model_fields.items():
        kind, default, make = known.rebuild_annotation(), known.default, known.default_factory
        if name == "runtime":
            kind, default = Literal[runtime], DEFAULT_RUNTIME if runtime == DEFAULT_RUNTIME else ...
        given: Any = {"default": default} if make is None else {"default_factory": make}
        about = Field(**given, description=texts.get(name) or known.description)
        fields[name] = (Annotated[kind, _OrVariable()], about)
    for name, nothing in FORMER.items():
        if name not in fields:
            about = Field(nothing, deprecated=True, description="of earlier versions")
            fields[name] = (Annotated[Literal[nothing], BeforeValidator(_only(nothing))], about)
    made: Any = create_model(
        f"Target_{runtime}", __base__=TargetSection, __doc__=config.__doc__, **fields
    )
    return cast("type[TargetSection]", made)
