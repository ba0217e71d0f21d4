"""The samplers by name: our own, and those of installed packages.

A package offers one through an entry point of the group ``autocompress.samplers``: a function that
takes the ``Context`` of a study and returns a ``Proposer`` or one of Optuna's samplers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from autocompress.controller.context import Context
from autocompress.controller.guided.proposer import GuidedProposer
from autocompress.controller.optuna_study import is_optuna_sampler
from autocompress.controller.plain import PlainProposer
from autocompress.controller.protocols import Proposer
from autocompress.errors import AutocompressError, InputError, explained, nearest
from autocompress.policy.packages import rivalry, source

if TYPE_CHECKING:
    from autocompress.controller.optuna_study import BaseSampler

GROUP = "autocompress.samplers"
"""Entry points of packages that offer a sampler."""

_OUR_OWN: dict[str, Callable[[Context], Proposer]] = {
    "guided": GuidedProposer,
    **{name: partial(PlainProposer, sampler=name) for name in ("tpe", "nsga2", "gp", "random")},
}
"""Looked at first: no package can take the place of one of these."""


def sampler_names() -> list[str]:
    """All that ``search.sampler`` may name here."""
    return sorted({*_OUR_OWN, *(point.name for point in entry_points(group=GROUP))})


def make_proposer(context: Context, sampler: str | BaseSampler | None = None) -> Proposer:
    """Who proposes in a study. Called before anything is evaluated.

    Args:
        context: of the study.
        sampler: a name, or one of Optuna's samplers as an object (see ``OptunaController`` for what
            it is told of objectives and budget); ``search.sampler`` of the study by default.

    Raises:
        InputError: no sampler has this name, or the package that offers it is broken.
    """
    wanted: Any = context.config.sampler if sampler is None else sampler
    if not isinstance(wanted, str):
        return _proposer(context, wanted, type(wanted).__name__, "`search.sampler`")
    if wanted in _OUR_OWN:
        return _OUR_OWN[wanted](context)
    return _from_package(context, _point(wanted))


def check_sampler(sampler: str | BaseSampler) -> None:
    """Refuse a name that nobody offers, or another object, before anything is loaded or measured.

    Raises:
        InputError: with the nearest name.
    """
    if isinstance(sampler, str):
        if sampler not in _OUR_OWN:
            _point(sampler)
    elif not is_optuna_sampler(sampler) and not _proposes(sampler):
        raise _no_sampler(sampler, type(sampler).__name__, "`search.sampler`")


def _point(wanted: str) -> EntryPoint:
    """The entry point of the one package that offers a sampler."""
    points = list(entry_points(group=GROUP, name=wanted))
    if not points:
        raise InputError(
            f"`search.sampler` must name a sampler, got {wanted!r}; "
            f"{nearest(wanted, sampler_names())} A package that offers one must be installed in "
            "this environment."
        )
    several = rivalry("sampler", points)
    if several:
        raise InputError(several)
    return points[0]


def _from_package(context: Context, point: EntryPoint) -> Proposer:
    try:
        made = point.load()
        if not is_optuna_sampler(made):
            made = made(context)
    except AutocompressError:
        raise
    except Exception as error:
        raise InputError(
            f"The sampler {point.name!r} of {source(point)} cannot be made: "
            f"{explained(error)}. Mend or uninstall the package."
        ) from error
    return _proposer(context, made, point.name, source(point))


def _proposer(context: Context, made: Any, name: str, source: str) -> Proposer:
    """What somebody offers, as a proposer."""
    if is_optuna_sampler(made):
        return PlainProposer(context, made, name)
    if _proposes(made):
        proposer: Proposer = made
        return proposer
    raise _no_sampler(made, name, source)


def _proposes(made: Any) -> bool:
    return all(callable(getattr(made, name, None)) for name in ("suggest", "update"))


def _no_sampler(made: Any, name: str, source: str) -> InputError:
    return InputError(
        f"A sampler must have `suggest` and `update`, be one of Optuna's samplers, or a name "
        f"({', '.join(sampler_names())}); the one {name!r} from {source} is {made!r}."
    )
