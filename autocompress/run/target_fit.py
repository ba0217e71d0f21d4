"""Whether a study's target can hold what the study asks for, and gains by it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from autocompress.errors import InputError
from autocompress.measure.extras import ExtraCosts
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import LayerPolicy
from autocompress.policy.registry import by_knob, techniques
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.factories import may_reach
from autocompress.targets import get_target
from autocompress.targets.base import Target, unsupported
from autocompress.targets.registry import usable

if TYPE_CHECKING:
    from autocompress.run.study import StudyConfig

_log = logging.getLogger(__name__)


def fitting_target(study: StudyConfig, *, reached: bool) -> Target:
    """The target of a study, before anything is loaded.

    Args:
        study: as read.
        reached: see that a device of another place is there.

    Raises:
        InputError: it is not here, or its files cannot hold what a technique makes.
    """
    target, others = get_target(study.target.config()), other_targets(study)
    if reached:
        for one in (target, *others):
            reach(one)
        ExtraCosts(target, study.extra_costs(), others).refuse()
    for one in (target, *others):
        refuse_unfit(type(one), study.settings)
    return target


def reach(target: Target) -> None:
    """See that the device of a target is there, and may be connected to.

    Raises:
        InputError: a stranger's study names it, and nobody vouches for it.
        TargetUnavailable: it is not there.
    """
    if target.elsewhere is not None:
        may_reach(target.elsewhere.url, target.elsewhere.python)
    target.reach()


def other_targets(study: StudyConfig) -> tuple[Target, ...]:
    """The further targets of a study.

    Raises:
        InputError: one is not here, or is a table, on which nothing can be timed.
    """
    found = tuple(get_target(section.config()) for section in study.also_on)
    if any(one.config.table is not None for one in found):
        raise InputError("Files cannot be timed on a `table`: leave it out of `also_on`.")
    return found


def refuse_unfit(target: type[Target], settings: CompressionSettings) -> None:
    """Refuse a target whose files cannot hold what a technique makes under some settings.

    Raises:
        InputError: with the runtimes here that fit.
    """
    for technique in techniques():
        _refuse(target, partial(technique.unfit, settings=settings))


def tell(space: Space, config: SpaceConfig, inventory: Inventory, target: type[Target]) -> None:
    """Log which branches stay where a search may leave some out, and what gains nothing.

    Raises:
        InputError: the target's files cannot hold what the space offers.
    """
    levels = [x for c in space.choices if c.kind in by_knob() for x in c.levels]
    refuse_policies(target, map(LayerPolicy.from_dict, levels))
    _warn_of_no_gain(space, target)
    fields = [t.fields[0] for t in techniques() if t.whole_blocks]
    if any(set(rule.listed(f.name)) != {f.default} for rule in config.rules for f in fields):
        for name, reason in inventory.blocks_left_alone:
            _log.info("The branch of %s stays: %s.", name, reason)


def refuse_policies(target: type[Target], policies: Iterable[LayerPolicy]) -> None:
    """Refuse a target whose files cannot hold what some policies ask for.

    Raises:
        InputError: with the runtimes here that fit.
    """
    _refuse(target, partial(unsupported, policies=[*policies]))


def _refuse(target: type[Target], why_not: Callable[[type[Target]], str]) -> None:
    """Refuse a target where there is a reason to.

    Raises:
        InputError: with the runtimes here for which there is none.
    """
    if reason := why_not(target):
        raise InputError(f"The study does not fit its target: {reason}.{_better(why_not)}")


def _better(why_not: Callable[[type[Target]], str]) -> str:
    """A sentence with the runtimes here for which there is no reason against; empty for none."""
    names = usable(lambda target: not why_not(target))
    return f" Runtimes here that do: {', '.join(names)}." if names else ""


def _warn_of_no_gain(space: Space, target: type[Target]) -> None:
    """Log which techniques the space asks for although the target gains nothing by them."""
    for kind in dict.fromkeys(choice.kind for choice in space.choices):
        technique = by_knob().get(kind)
        reason = technique.no_gain(target) if technique is not None else ""
        if technique is not None and reason:
            told = f"{reason}.{_better(technique.no_gain)}"
            _log.warning("%s gains nothing by %s: %s", target.name, technique.name, told)
