"""What every runtime offers: it opens an exported file and runs, times and profiles it."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autocompress.errors import InputError, TargetUnavailable, explained
from autocompress.exporters.kernel_names import kernel_times
from autocompress.machine.facts import machine_facts, machine_id
from autocompress.machine.lock import timing_lock
from autocompress.machine.ssh import SCHEME
from autocompress.model.kernels import Kernel
from autocompress.policy.registry import techniques
from autocompress.targets.config import TargetConfig
from autocompress.targets.profile import KernelClass, NodeTime, Profile
from autocompress.targets.session import WARM_UP, Array, Arrays, Session, TensorSpec, random_inputs

if TYPE_CHECKING:
    from autocompress.exporters.write import ExportedFile
    from autocompress.machine.device import Device
    from autocompress.policy.policy import LayerPolicy
    from autocompress.techniques.compressed import Compressed

__all__ = [
    "WARM_UP",
    "Array",
    "Arrays",
    "Availability",
    "KernelWriter",
    "NodeTime",
    "Profile",
    "Session",
    "Target",
    "TargetConfig",
    "TensorSpec",
    "random_inputs",
]

KernelWriter = Callable[[Sequence[Kernel], str | Path, int], Path]
"""Writes kernels, for a batch, into one file at a path; see ``exporters.onnx_kernels``."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a runtime can be used here, with its version and devices, or why not.

    ``no_gain`` holds the techniques that gain nothing there, each with the reason.
    """

    runtime: str
    available: bool
    version: str = ""
    devices: tuple[str, ...] = ()
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    no_gain: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {
            "runtime": self.runtime,
            "available": self.available,
            "version": self.version,
            "devices": list(self.devices),
            "reason": self.reason,
            "no_gain": dict(self.no_gain),
            **self.details,
        }


class Target(ABC):
    """A runtime on a device of this machine, or on another one that ``ssh`` reaches.

    Everything that is peculiar to a runtime stands in its subclass; the rest of the package asks.

    Args:
        config: of the class's ``config_model``.

    Attributes:
        name: as ``target: {runtime: ...}`` and the entry point say it.
        suffix: of the files that are exported for it, ``.onnx`` for example.
        also_opens, also_writes: other suffixes that ``open`` and ``export`` take.
        config_model: the fields of ``target:`` that it takes.
        install: how to get the runtime, for messages.
        integer_kernels: whether layers of 8 bits run on integers, not simulated in float.
        free_batch: whether a file can be opened for any number of samples.
        half_formats: 16-bit formats that its files can hold.
        weight_blocks: whether its files can hold weights with a scale per block.
        skips_zeros: whether kernels are faster on weights that hold zeros.
        elsewhere: another device, where files are timed; their quality is judged here all the same.
        packable: whether files that ONNX Runtime times on another device tell how fast this one
            is there; see ``estimate.pack``.
        in_process: whether files run in the process that opens them, whose memory tells theirs.

    Raises:
        TargetUnavailable: the runtime or the device is not present here.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    also_opens: ClassVar[tuple[str, ...]] = ()
    also_writes: ClassVar[tuple[str, ...]] = ()
    config_model: ClassVar[type[TargetConfig]] = TargetConfig
    install: ClassVar[str] = ""
    integer_kernels: ClassVar[bool] = False
    free_batch: ClassVar[bool] = True
    half_formats: ClassVar[tuple[str, ...]] = ("float16",)
    weight_blocks: ClassVar[bool] = False
    skips_zeros: ClassVar[bool] = False
    packable: ClassVar[bool] = False
    in_process: ClassVar[bool] = True

    config: TargetConfig
    elsewhere: Device | None = None

    def __init__(self, config: TargetConfig) -> None:
        found = self.availability()
        if not found.available:
            raise TargetUnavailable(
                f"The runtime {self.name!r} cannot be used here: {found.reason}."
            )
        self.config = config
        self.version = found.version
        self.check_device(found)

    @classmethod
    @abstractmethod
    def present(cls) -> Availability:
        """Version and devices of the runtime; an ``ImportError`` says that it is not installed."""

    @classmethod
    def availability(cls) -> Availability:
        """Whether the runtime can be used here."""
        try:
            return cls.present()
        except ImportError as error:
            how = f": {cls.install}" if cls.install else ""
            return Availability(cls.name, False, reason=f"not installed ({error}){how}")
        except Exception as error:  # a broken installation raises whatever it stumbles on
            reason = f"installed, but broken: {explained(error)}"
            return Availability(cls.name, False, reason=reason)

    def check_device(self, found: Availability) -> None:
        """Refuse a device that is not here.

        Raises:
            TargetUnavailable: with the devices that are.
        """
        device = self.config.device
        if device.startswith(SCHEME):
            raise TargetUnavailable(
                f"Files of the runtime {self.name!r} cannot be timed on {device!r}, only those of "
                "`runtime: onnxruntime`."
            )
        if device not in found.devices and device.partition(":")[0] not in found.devices:
            raise TargetUnavailable(
                f"The runtime {self.name!r} {self.version} here has the devices "
                f"{', '.join(found.devices)}, got {device!r}. Use `device: {found.devices[0]}`."
            )

    def open(self, path: str | Path, *, threads: int | None = None, fixed: bool = True) -> Session:
        """Open an exported file.

        Args:
            path: with the target's suffix.
            threads: takes the place of the config's, e.g. for judging accuracy.
            fixed: settle free batch dimensions to the config's batch, as for latency;
                ``False`` leaves them free, where the runtime can.

        Raises:
            InputError: no such file, or one that the runtime cannot open.
        """
        file = Path(path)
        if not file.is_file():
            raise InputError(
                f"There is no model file at {file}. Export one with `autocompress apply`."
            )
        if file.suffix not in (self.suffix, *self.also_opens):
            raise InputError(
                f"The runtime {self.name!r} opens {self.suffix} files, got {file.name}. Export to "
                f"{self.suffix}, or choose another runtime with `--target`."
            )
        batch = self.config.batch if fixed or not self.free_batch else None
        return self.load(file, threads or self.config.threads, batch)

    @abstractmethod
    def load(self, file: Path, threads: int, batch: int | None) -> Session:
        """What ``open`` gives; the file is there.

        Args:
            file: with a suffix that the target opens.
            threads: of one inference.
            batch: free first dimensions of inputs are settled to this, or left free with ``None``.

        Raises:
            InputError: the runtime cannot open it.
        """

    @classmethod
    @abstractmethod
    def classify(cls, node: NodeTime) -> KernelClass:
        """What a kernel of this runtime's profiles does."""

    @classmethod
    def keeps_packed(cls, node: NodeTime) -> bool:
        """Whether a kernel multiplies integer weights block by block, never all as floats."""
        return False

    def shows_channels(self, node: NodeTime, channels: int, linear: bool) -> bool:
        """Whether the output of a multiplying operator has so many channels.

        Args:
            node: with the shape of its output.
            channels: of the layer's output.
            linear: features come last, as in linear layers, not second.
        """
        return node.outputs[0][1][-1 if linear else 1] == channels

    def export(self, compressed: Compressed, path: str | Path, example: Any) -> ExportedFile:
        """Write a compressed model as a file for this target.

        Args:
            compressed: calibrated, if any layer is quantized with static activations.
            path: with ``suffix``, or one of ``also_writes``.
            example: inputs of two samples or more, built as the model takes them.

        Raises:
            InputError: its files cannot hold what the policy asks for.
            ExportError: the file does not do what the module does.
        """
        from autocompress.exporters.write import export

        reason = unsupported(type(self), compressed.policy.layers.values())
        if reason:
            raise InputError(f"This policy cannot be exported: {reason}.")
        return export(compressed, path, example)

    def lowered(self, path: Path, folder: Path) -> Path:
        """What a device opens of an exported file, where that is made of it when it is opened.

        Args:
            path: as ``export`` wrote it.
            folder: for the other file, if there is one.
        """
        return path

    def kernel_writer(self) -> KernelWriter | None:
        """What writes single layers into one file that the runtime opens and profiles by node.

        ``None`` where no layer can be timed alone.
        """
        return None

    def kernel_times(self, profile: Profile, count: int) -> list[float]:
        """Milliseconds of each layer in a file of ``kernel_writer``; NaN where none is told.

        Nodes are expected under the names that ``exporters.onnx_kernels`` gives them.
        """
        return kernel_times([(node.name, node.ms) for node in profile.nodes], count)

    def products_overflow(self) -> bool:
        """Whether sums of 8-bit products overflow on this machine; see ``measure.saturation``."""
        return False

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device, threads, batch, ...: JSON-able, for every record."""
        # what is not asked for is left out, so that records of earlier versions read the same
        plain = self.config.model_dump(mode="json")
        asked = {name: plain[name] for name in ("lengths", "throughput") if plain[name] is not None}
        return {
            **asked,
            "runtime": self.name,
            "version": self.version,
            "device": self.config.device,
            **self.facts(),
            "threads": self.config.threads,
            "batch": self.config.batch,
        }

    def reach(self) -> None:
        """See that the device is there, and say what it does otherwise than the config asks.

        Raises:
            TargetUnavailable: it is not.
        """
        # a device of this machine was seen to when the target was made
        return

    def machine(self) -> dict[str, Any]:
        """What the files are timed on: processor, cores, memory, system."""
        return machine_facts() if self.elsewhere is None else dict(self.elsewhere.machine)

    def machine_id(self) -> str:
        """Digest of what makes timings comparable, for names in a cache."""
        if self.elsewhere is None:
            return machine_id()
        text = json.dumps(self.machine(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def fields(self) -> dict[str, Any]:
        """What files run with on another device, as plain data."""
        plain = self.config.model_dump(mode="json")
        return {key: plain[key] for key in ("threads", "batch", "lengths")}

    def timing_lock(self) -> AbstractContextManager[None]:
        """Keeps other work off while something is timed; a device sees to that itself."""
        return timing_lock() if self.elsewhere is None else nullcontext()

    def facts(self) -> dict[str, Any]:
        """What else decides how fast this runtime is, for ``describe``."""
        return {}


def unsupported(target: type[Target], policies: Iterable[LayerPolicy]) -> str:
    """Why the files of a target cannot hold one of these policies; empty where they hold all."""
    asked = ((t, p) for p in policies for t in techniques() if t.active(p))
    reasons = (technique.unsupported(target, policy) for technique, policy in asked)
    return next((reason for reason in reasons if reason), "")
