"""The techniques: our own, and those of installed packages.

A package offers one through an entry point of the group ``autocompress.techniques``: a subclass of
``Technique``. Our own are loaded by name as well: their files stand in a room above this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from autocompress.errors import AutocompressError, InputError, explained, nearest
from autocompress.policy.field import Field
from autocompress.policy.packages import source
from autocompress.policy.technique import STAGES, Technique

if TYPE_CHECKING:
    from autocompress.policy.policy import LayerPolicy

GROUP = "autocompress.techniques"
"""Entry points of packages that offer a technique."""
MAYBE_MISSING = "A package that adds a technique must be installed in this environment."

_RESERVED = {
    *("distill", "student", "more", "match", "kinds", "depth", "exclude"),
    *("weight_only", "layers", "absent", "identity"),
}
"""Words that mean something else in a policy, a space or a rule."""
_STARTS = {"uniform", "random", "student"}
"""Starts of a search that no technique names."""
_OUR_OWN = (
    "autocompress.techniques.builtin.prune:Prune",
    "autocompress.techniques.builtin.quantize:Quantize",
    "autocompress.techniques.builtin.low_rank:LowRank",
    "autocompress.techniques.builtin.sparsify:Sparsify",
    "autocompress.techniques.builtin.blocks:Blocks",
)
"""In the order of a layer's choices; stored studies and their random draws rely on it."""


@cache
def builtin() -> tuple[Technique, ...]:
    """Our own techniques."""
    found = []
    for place in _OUR_OWN:
        module, _, name = place.partition(":")
        found.append(getattr(import_module(module), name)())
    return tuple(found)


@cache
def added() -> tuple[Technique, ...]:
    """The techniques of installed packages, by name.

    Raises:
        InputError: a package is broken, or two offer the same name, field or knob.
    """
    found: list[Technique] = []
    taken = {word for technique in builtin() for word in _words(technique)}
    taken |= _RESERVED
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        technique = _load(point)
        for word in sorted(_words(technique)):
            if word in taken:
                raise InputError(
                    f"Two techniques use the name {word!r}, one of them from "
                    f"{source(point)}. Uninstall one of them."
                )
        taken |= _words(technique)
        found.append(technique)
    return tuple(found)


def techniques() -> tuple[Technique, ...]:
    """All techniques, in the order of a layer's choices."""
    return (*builtin(), *added())


@cache
def in_order() -> tuple[Technique, ...]:
    """All techniques, in the order in which they are applied."""
    return tuple(sorted(techniques(), key=lambda technique: STAGES.index(technique.stage)))


@cache
def by_knob() -> Mapping[str, Technique]:
    """The technique of each kind of choice; other kinds are not of one layer."""
    return {technique.knob: technique for technique in techniques()}


def named_starts(levels: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Values of fields by the name that a technique gives them; see ``Technique.named_starts``.

    Args:
        levels: all that is offered, of any technique.

    Raises:
        InputError: a name that something else has.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for technique in techniques():
        own = [level for level in levels if technique.fields[0].name in level]
        for name, values in technique.named_starts(own).items() if own else ():
            if name in found or name in _STARTS:
                raise InputError(
                    f"The technique {technique.name!r} names a start {name!r}, which is the name "
                    "of others. Its package must choose another one."
                )
            found[name] = values
    return found


def sets_weights(policy: LayerPolicy) -> bool:
    """Whether a technique changes single weights of a layer; zeros that it leaves must stay."""
    return any(t.stage == "weights" and t.active(policy) for t in techniques())


@cache
def added_fields() -> Mapping[str, Field]:
    """Fields that installed packages add to a layer's policy."""
    return {field.name: field for t in added() for field in t.fields}


@cache
def field_names() -> tuple[str, ...]:
    """All fields of a layer's policy."""
    return tuple(field.name for t in techniques() for field in t.fields)


def no_field(name: str) -> str:
    """The error message on a field that no technique has."""
    return f"A layer policy has no {name!r}; {nearest(name, field_names())} {MAYBE_MISSING}"


def _words(technique: Technique) -> set[str]:
    return {technique.name, technique.knob, *(field.name for field in technique.fields)}


def _load(point: EntryPoint) -> Technique:
    try:
        technique = point.load()()
    except AutocompressError:
        raise
    except Exception as error:
        raise InputError(
            f"The technique {point.name!r} of {source(point)} cannot be loaded: "
            f"{explained(error)}. Mend or uninstall the package."
        ) from error
    if not isinstance(technique, Technique) or not getattr(technique, "fields", ()):
        raise InputError(
            f"A technique must be a subclass of `Technique` with at least one field; the one "
            f"{point.name!r} from {source(point)} is {technique!r}."
        )
    return technique
