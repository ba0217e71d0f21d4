"""How data are read, as keywords of the Python surface. Light: it is part of every call's type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypedDict, TypeVar, get_type_hints

from autocompress.policy.section import valid_keys

P = ParamSpec("P")
T = TypeVar("T")


class Reading(TypedDict, total=False):
    """How data are read; keywords of ``search`` and of ``Data.wrap``.

    Args:
        input_fn: from a batch to the model's inputs, where the batch does not say what is what.
        target_fn: from a batch to the targets, likewise.
        memory: budget of decoded samples, such as ``"2GB"``; by default a quarter of what the
            machine has free.
        length: samples to take of streams without a length, for all splits or by split.
        groups: per sample of ``train``, what belongs together, where splits are cut from it.
        dynamic: input name to its free axes beside the batch, e.g.
            ``{"input_ids": {1: "sequence"}}`` or, without a name, ``{"input_ids": [1]}``; or
            ``"auto"`` to find them.
    """

    input_fn: Callable[[Any], Any]
    target_fn: Callable[[Any], Any]
    memory: str | int
    length: int | Mapping[str, int]
    groups: Any
    dynamic: Mapping[str, Mapping[int, str] | Sequence[int]] | str


def own_keywords(call: Callable[P, T]) -> Callable[P, T]:
    """Let a function refuse what is no keyword of its own, nor of ``**reading`` where it has that.

    The error is a ``TypeError``, as of Python's own, which names what may have been meant.
    """
    given = signature(call).parameters
    own = {name for name, one in given.items() if one.kind != Parameter.VAR_KEYWORD}
    if len(own) < len(given):
        own |= set(Reading.__annotations__)

    @wraps(call)
    def checked(*args: P.args, **keywords: P.kwargs) -> T:
        for name in keywords:
            if name not in own:
                raise TypeError(f"{call.__name__}() has no keyword {name!r}; {_near(name, own)}")
        return call(*args, **keywords)

    return checked


def _near(name: str, own: Iterable[str]) -> str:
    from autocompress.run.study import StudyConfig
    from autocompress.targets.config import TargetConfig

    return valid_keys(name, own, {**get_type_hints(StudyConfig), "target": TargetConfig})


def file_part(reading: Mapping[str, Any]) -> dict[str, Any]:
    """Of how data are read, what a study file can say."""
    return {k: v for k, v in reading.items() if k in ("memory", "length", "dynamic")}
