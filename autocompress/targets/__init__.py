"""Runtimes that exported files can run in, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from autocompress.errors import TargetUnavailable
from autocompress.targets.base import (
    RUNTIMES,
    Availability,
    Target,
    TargetConfig,
)

_MODULES = {
    "onnxruntime": ("onnx_runtime", "OnnxRuntimeTarget"),
    "openvino": ("open_vino", "OpenVinoTarget"),
    "torch": ("torch_runtime", "TorchTarget"),
    "executorch": ("executorch_runtime", "ExecuTorchTarget"),
}

__all__ = ["RUNTIMES", "Availability", "Target", "TargetConfig", "available_targets", "get_target"]


def get_target(config: TargetConfig | Mapping[str, Any] | str) -> Target:
    """The target that a config names.

    Args:
        config: a ``TargetConfig``, plain data of one, or only a runtime's name.

    Raises:
        InputError: the config cannot be read.
        TargetUnavailable: the runtime, device or provider is not present here.
    """
    config = TargetConfig.read({"runtime": config} if isinstance(config, str) else config)
    found = _availability(config.runtime)
    if not found.available:
        raise TargetUnavailable(
            f"The runtime {config.runtime!r} cannot be used here: {found.reason}."
        )
    module, name = _MODULES[config.runtime]
    target: Target = getattr(_load(module), name)(config)
    return target


def available_targets() -> list[Availability]:
    """Every runtime: its version and devices here, or why it is not available."""
    return [_availability(runtime) for runtime in RUNTIMES]


def _availability(runtime: str) -> Availability:
    found: Availability = _load(_MODULES[runtime][0]).availability()
    return found


def _load(module: str) -> Any:
    return import_module(f"{__name__}.{module}")
