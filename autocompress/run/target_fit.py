"""Whether a study's target can hold what the study asks for, and gains by it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

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
from autocompress.targets.config import TargetConfig
from autocompress.targets.registry import usable

_log = logging.getLogger(__name__)


def fitting_target(
    config: TargetConfig,
    settings: CompressionSettings,
    asked: frozenset[str],
    *,
    reached: bool,
) -> Target:
    """The target of a study, before anything is loaded.

    Args:
        config: of the study.
        settings: of the study.
        asked: costs that it limits or compares; see ``measure.extras``.
        reached: see that a device of another place is there.

    Raises:
        InputError: it is not here, or its files cannot hold what a technique makes.
    """
    target = get_target(config)
    if target.elsewhere is not None and reached:
        may_reach(target.elsewhere.url, target.elsewhere.python)
        target.reach()
    if reached:
        ExtraCosts(target, asked).refuse()
    refuse_unfit(type(target), settings)
    return target


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
    _refuse(target, partial(unsupported, policies=[LayerPolicy.from_dict(x) for x in levels]))
    _warn_of_no_gain(space, target)
    fields = [t.fields[0] for t in techniques() if t.whole_blocks]
    if any(set(rule.listed(f.name)) != {f.default} for rule in config.rules for f in fields):
        for name, reason in inventory.blocks_left_alone:
            _log.info("The branch of %s stays: %s.", name, reason)


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
