"""Runtimes by name: the built-in ones, and those of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from autocompress.errors import InputError, TargetUnavailable, explained, nearest
from autocompress.policy.defaults import DEFAULT_RUNTIME
from autocompress.policy.packages import rivalry
from autocompress.policy.section import read_as
from autocompress.targets.config import FORMER, TargetConfig

GROUP = "autocompress.targets"
"""Entry points of this group name subclasses of ``Target``, each by its own ``name``."""

_PLACES = {
    "onnxruntime": "autocompress.targets.onnx_runtime:OnnxRuntimeTarget",
    "openvino": "autocompress.targets.open_vino:OpenVinoTarget",
    "torch": "autocompress.targets.torch_runtime:TorchTarget",
    "executorch": "autocompress.targets.executorch_runtime:ExecuTorchTarget",
    "onnxruntime-web": "autocompress.targets.onnx_web:OnnxWebTarget",
    "litert": "autocompress.targets.litert:LiteRtTarget",
}
BUILT_IN = tuple(EntryPoint(name, place, GROUP) for name, place in _PLACES.items())
#: what a target class must have; the rest comes with the base class
_NEEDED = ("suffix", "config_model", "availability", "open", "classify", "describe", "export")


def entries() -> Iterator[EntryPoint]:
    """The built-in runtimes, then others by name."""
    yield from BUILT_IN
    yield from sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value))


def load(name: str) -> Any:
    """The target class of a runtime.

    Raises:
        InputError: there is no such runtime.
        TargetUnavailable: its package is broken.
    """
    entry = next((e for e in entries() if e.name == name), None)
    if entry is None:
        names = [e.name for e in entries()]
        here = ", ".join(usable()) or "none"
        raise InputError(
            f"There is no runtime {name!r} (usable here: {here}); {nearest(name, names)}"
        )
    return load_entry(entry)


def load_entry(entry: EntryPoint) -> Any:
    """Import what an entry point names, and check that it is a target class.

    Raises:
        TargetUnavailable: it cannot be imported, or is something else; or others have its name.
    """
    if entry not in BUILT_IN:
        _check_alone(entry)
    try:
        found = entry.load()
    except Exception as error:  # an import may fail with anything
        raise TargetUnavailable(
            f"The target {entry.name!r} cannot be loaded from {entry.value}: {explained(error)}"
        ) from error
    missing = [part for part in _NEEDED if not hasattr(found, part)]
    if missing or getattr(found, "name", None) != entry.name:
        what = f"has no {', '.join(missing)}" if missing else f"is named {found.name!r}"
        raise TargetUnavailable(
            f"The target {entry.name!r} must be a subclass of autocompress.targets.Target of that "
            f"name, {entry.value} {what}"
        )
    return found


def _check_alone(entry: EntryPoint) -> None:
    """Refuse a package's target whose name another has."""
    points = [e for e in entries() if e.name == entry.name]
    if points[0] in BUILT_IN:
        owner = points[0].value
        raise TargetUnavailable(f"{entry.value} is left out, the name belongs to {owner}")
    several = rivalry("target", points)
    if several:
        raise TargetUnavailable(several)


def read_config(data: Any) -> TargetConfig:
    """Take a config, or plain data of one, into the config model of its runtime.

    Raises:
        InputError: an unknown key or runtime (with the nearest valid one), or a bad value.
        TargetUnavailable: the runtime comes with a package that is broken.
    """
    plain = data.model_dump() if isinstance(data, TargetConfig) else dict(data)
    runtime = plain.setdefault("runtime", DEFAULT_RUNTIME)
    if not isinstance(runtime, str):
        raise InputError(f"`target.runtime` must be a runtime's name, got {runtime!r}.")
    model: type[TargetConfig] = load(runtime).config_model
    if type(data) is model:
        return data
    for key, nothing in FORMER.items():
        if key not in model.model_fields and plain.get(key, 0) == nothing:
            plain.pop(key, None)
    return read_as(model, plain, f"`target` with the runtime {runtime!r}")


def usable(fits: Callable[[Any], bool] = lambda target: True) -> list[str]:
    """Names of the runtimes that can be used here and that are fit for something.

    Args:
        fits: whether a target class is.
    """
    found = []
    for entry in entries():
        try:
            target = load_entry(entry)
        except TargetUnavailable:
            continue
        if fits(target) and target.availability().available:
            found.append(entry.name)
    return found
