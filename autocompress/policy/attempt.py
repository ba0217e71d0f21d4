"""Build, export or run a policy's model outside a trial: what fails is left out, and said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from autocompress.errors import DeviceLost, explained
from autocompress.policy.files import disk_full
from autocompress.policy.policy import Policy

Made = TypeVar("Made")

_log = logging.getLogger(__name__)
_SHOWN = 3
"""Layers that are named of those with the same policy."""


def attempt(
    policy: Policy, purpose: str, make: Callable[[], Made], *, level: int = logging.WARNING
) -> tuple[Made | None, str]:
    """What is made of a policy, or why not, which is logged.

    A trial that fails does not end its study; models that are built for other ends must not end it
    either.

    Args:
        policy: of the model.
        purpose: what the model is left out of where it fails.
        make: builds, exports or runs the model.
        level: at which a failure is logged.

    Returns:
        What was made and an empty text, or ``None`` and the reason.
    """
    try:
        return make(), ""
    except DeviceLost:  # no other model could be timed either
        raise
    except Exception as error:  # forwards, exporters and runtimes raise whatever they do
        if disk_full(error):  # no other model could be exported either
            raise
        reason = explained(error).rstrip(". \n") + "."
        _log.log(level, "Left out of %s: the model with %s. %s", purpose, words(policy), reason)
        _log.debug("Where it failed", exc_info=True)
        return None, reason


def words(policy: Policy) -> str:
    """What a policy does to which layers, in a line.

    >>> from autocompress.policy.policy import LayerPolicy
    >>> words(Policy({"a": LayerPolicy(weight_bits=8), "b": LayerPolicy(weight_bits=8)}))
    'weight_bits=8 on a, b'
    """
    if policy.student is not None:
        return f"the student {policy.student!r}"
    alike: dict[str, list[str]] = {}
    for name in policy:
        alike.setdefault(_values(policy[name].as_dict()), []).append(name)
    found = []
    for values, names in alike.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        found.append(f"{values} on {', '.join(names[:_SHOWN])}{more}")
    return "; ".join(found) or "nothing changed"


def _values(changed: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in changed.items())
