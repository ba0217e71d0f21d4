"""Runtimes that exported files can run in, one file each; packages can bring more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

from autocompress.errors import TargetUnavailable
from autocompress.policy.registry import techniques
from autocompress.targets import registry
from autocompress.targets.base import Availability, Session, Target, TargetConfig, TensorSpec
from autocompress.targets.config import named
from autocompress.targets.profile import KernelClass, NodeTime, Profile
from autocompress.targets.registry import read_config

__all__ = [
    "Availability",
    "KernelClass",
    "NodeTime",
    "Profile",
    "Session",
    "Target",
    "TargetConfig",
    "TensorSpec",
    "available_targets",
    "get_target",
    "read_config",
]


def get_target(config: TargetConfig | Mapping[str, Any] | str) -> Target:
    """The target that a config names.

    Args:
        config: a ``TargetConfig``, plain data of one, or only a runtime's name or
            a device's address.

    Raises:
        InputError: the config cannot be read.
        TargetUnavailable: the runtime, device or provider is not present here.
    """
    config = read_config(named(config) if isinstance(config, str) else config)
    target: Target = registry.load(config.runtime)(config)
    return target


def available_targets() -> list[Availability]:
    """Every runtime: its version and devices here, or why it is not available."""
    return [_availability(entry) for entry in registry.entries()]


def _availability(entry: EntryPoint) -> Availability:
    try:
        target: type[Target] = registry.load_entry(entry)
    except TargetUnavailable as error:
        return Availability(entry.name, False, reason=str(error))
    reasons = {technique.name: technique.no_gain(target) for technique in techniques()}
    return replace(target.availability(), no_gain={n: why for n, why in reasons.items() if why})
