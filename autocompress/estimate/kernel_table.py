"""Measured times of single layers, on disk by target and machine; interpolated in between."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, ConfigDict, Field

from autocompress.errors import InputError
from autocompress.estimate.tasks import Tasks
from autocompress.machine.facts import usable_cores
from autocompress.machine.progress import Progress, silent
from autocompress.machine.scratch import scratch_folder
from autocompress.measure.rounds import warm_up
from autocompress.model.kernels import Kernel, KernelPrecision
from autocompress.policy.reading import read_mapping
from autocompress.policy.section import STRICT, Section
from autocompress.policy.writing import replacing
from autocompress.targets.base import KernelWriter, Target, random_inputs

#: kernels per file: about as many as a network has layers
_PER_FILE = 60
#: bytes of weights per file where nobody says how many a network of the space has
FOOTPRINT = 1 << 23
#: an operator's time and a multiply-add's where nothing can be timed alone: 50 billion a second
_NOMINAL_MS, _NOMINAL_MS_PER_MAC = 0.01, 2e-8
#: of the table's file format
TABLE_VERSION = 1


@dataclass
class KernelTable:
    """Milliseconds by kernel.

    Args:
        times: ``Kernel.key`` to milliseconds.
        facts: target and machine that they were taken on.
    """

    times: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    _guessed: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    @property
    def footprint(self) -> int:
        """Bytes of weights that lay in one file when the times were taken."""
        return int(self.facts.get("footprint", FOOTPRINT))

    def add(self, times: Mapping[str, float]) -> None:
        """Take in more times; the fastest of repeated ones is kept."""
        for key, ms in times.items():
            self.times[key] = min(ms, self.times.get(key, math.inf))
        self.__dict__.pop("_points", None)
        self._guessed.clear()

    def ms(self, kernel: Kernel) -> float:
        """Time of a kernel: measured, or interpolated between its neighbours in width.

        Raises:
            InputError: the table holds no kernel of that kind at all.
        """
        found = self.times.get(kernel.key)
        if found is None:
            found = self._guessed.get(kernel.key)
        if found is None:
            found = self._guessed[kernel.key] = self._interpolate(kernel)
        return found

    @cached_property
    def _points(self) -> Mapping[str, list[tuple[float, float, float]]]:
        """Template to logarithms of input and output channels, and milliseconds."""
        found = defaultdict(list)
        for key, ms in self.times.items():
            template, _, widths = key.rpartition(":")
            a, b = (math.log(int(width)) for width in widths.split(">"))
            found[template].append((a, b, max(ms, 1e-6)))
        return found

    def _interpolate(self, kernel: Kernel) -> float:
        """Inverse-distance mean of milliseconds per multiply-add over the nearest four widths."""
        points = self._points.get(kernel.template)
        if not points:
            return self._by_macs(kernel)
        at = (math.log(kernel.in_channels), math.log(kernel.out_channels))
        near = sorted((math.dist(at, (a, b)), a, b, ms) for a, b, ms in points)[:4]
        total = weight = 0.0
        for distance, a, b, ms in near:
            # time grows slower than work at small widths: a power between them
            growth = (at[0] - a) * (0.0 if kernel.depthwise else 0.8) + (at[1] - b) * 0.8
            share = 1.0 / (distance + 1e-6) ** 2
            total += share * (math.log(ms) + growth)
            weight += share
        return math.exp(total / weight)

    def _by_macs(self, kernel: Kernel) -> float:
        """From the work alone, at the table's usual rate for that precision."""
        rates = sorted(
            ms / other.macs
            for key, ms in self.times.items()
            if (other := parse_key(key)).precision == kernel.precision
        )
        if not rates:
            raise InputError(
                f"Nothing that was timed on the device has {kernel.precision} arithmetic, so that "
                f"{kernel.key} cannot be predicted. Pack the kernels again with this study's space "
                "and run them there, or leave that arithmetic out of the space."
            )
        return rates[len(rates) // 2] * kernel.macs

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``load_table`` reads it."""
        return {"version": TABLE_VERSION, "facts": self.facts, "kernels": self.times}


def nominal_ms(kernel: Kernel) -> float:
    """Milliseconds of a kernel at a speed that no device has, in proportion to its work."""
    return _NOMINAL_MS + kernel.macs * _NOMINAL_MS_PER_MAC


def parse_key(key: str) -> Kernel:
    """The kernel that a table's key names.

    Raises:
        InputError: it names none.
    """

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(n) for n in text.split("x")) if text else ()

    try:
        kind, kernel, stride, groups, size, precision, widths = key.split(":")
        a, b = (int(n) for n in widths.split(">"))
        found = Kernel(
            kind,
            a,
            b,
            numbers(kernel),
            numbers(stride),
            a if groups == "dw" else int(groups),
            numbers(size),
            precision,  # type: ignore[arg-type]  # one of its literals
        )
        counts = (a, b, found.groups, *found.kernel_size, *found.stride, *found.size)
        if min(counts) < 1 or precision not in get_args(KernelPrecision):
            raise ValueError(key)
        return found
    except ValueError:
        raise InputError(
            f"A kernel table holds {key!r:.80}, which names no kernel. Pack the kernels again and "
            "run them on the device."
        ) from None


def table_path(target: Target, cache_dir: str | Path, footprint: int = FOOTPRINT) -> Path:
    """Where the table of a target on this machine is kept, for networks of about that weight."""
    asked, cores = target.config.threads, usable_cores()
    # threads that share a core take other times, which must not pass for those of the machine
    shared = [cores] if target.elsewhere is None and cores < asked else []
    text = json.dumps([target.describe(), footprint, *shared], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Path(cache_dir) / f"kernels-{target.config.runtime}-{digest}-{target.machine_id()}.json"


def load_table(path: Path) -> KernelTable:
    """The table on disk; empty where there is none, or one of another version.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return KernelTable()
    remedy = "Delete it: its kernels are timed again."
    data = read_mapping(path, "kernel table", form="JSON", remedy=remedy)
    if data.get("version") != TABLE_VERSION:
        return KernelTable()
    found = StoredTable.read(data, where=f"The kernel table {path}")
    return KernelTable(found.kernels, found.facts)


def _check_facts(facts: dict[str, Any]) -> dict[str, Any]:
    for name in ("target", "machine"):
        if not isinstance(facts.get(name, {}), dict):
            raise ValueError(f"`{name}` must be a mapping, got {facts[name]!r:.80}")
    footprint = facts.get("footprint", FOOTPRINT)
    if isinstance(footprint, bool) or not isinstance(footprint, int) or footprint < 1:
        raise ValueError(f"`footprint` must be a count of bytes, got {footprint!r:.80}")
    return facts


def _check_key(key: str) -> str:
    parse_key(key)
    return key


LONGEST_MS = 1e9
"""Nothing that somebody waited for takes as long: some days."""
Facts = Annotated[dict[str, Any], AfterValidator(_check_facts)]
"""Target and machine that times were taken on, and the table's footprint."""
KernelTimes = dict[
    Annotated[str, AfterValidator(_check_key)],
    Annotated[float, Field(ge=0, le=LONGEST_MS, allow_inf_nan=False, strict=True)],
]
"""Milliseconds by ``Kernel.key``; 0 where the profiler's clock did not move."""


class StoredTable(Section):
    """A table as it lies on disk, of this machine or of another device."""

    model_config = ConfigDict(**{**STRICT, "extra": "ignore"})

    facts: Facts
    kernels: KernelTimes


def keep(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data as JSON."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(data), encoding="utf-8")


def measure_kernels(
    target: Target,
    kernels: Iterable[Kernel],
    cache_dir: str | Path,
    *,
    footprint: int = FOOTPRINT,
    runs: int = 16,
    progress: Progress = silent,
) -> KernelTable:
    """Times of the kernels, from the cache or by the runtime's profiler.

    Args:
        target: a runtime without ``kernel_writer`` times no layer alone: its table holds
            multiply-adds at a nominal speed, and what they really cost is left to the whole
            models that are timed.
        kernels: repeated ones are measured once.
        cache_dir: the table is kept here.
        footprint: bytes of weights that lie in one file, as many as in a network of the space:
            weights that stay in the caches from one inference to the next are read several times
            as fast as others. See ``typical_footprint``.
        runs: profiled inferences per file.
        progress: told how far it is.
    """
    path = table_path(target, cache_dir, footprint)
    table = load_table(path)
    table.facts = {
        "target": target.describe(),
        "machine": target.machine(),
        "footprint": footprint,
    }
    missing = [k for k in dict.fromkeys(kernels) if k.key not in table.times]
    if not missing:
        return table
    writer = target.kernel_writer()
    if writer is None:
        table.add({k.key: nominal_ms(k) for k in missing})
        keep(path, table.as_dict())
        return table
    _profile(target, writer, chunks(missing, footprint), table, runs, progress)
    keep(path, table.as_dict())
    return table


def _profile(
    target: Target,
    writer: KernelWriter,
    parts: Sequence[Sequence[Kernel]],
    table: KernelTable,
    runs: int,
    progress: Progress,
) -> None:
    """Time the kernels of each part in one file; again where the machine was disturbed."""
    done: set[int] = set()
    with scratch_folder("kernels") as folder, ExitStack() as stack:

        def written(i: int, name: str) -> Path:
            return writer(parts[i], folder / f"{name}{target.suffix}", target.config.batch)

        def measure(i: int) -> None:
            file = written(i, str(i))
            with closing(target.open(file)) as session, target.timing_lock():
                profile = session.profile(random_inputs(session.inputs), runs)
            times = target.kernel_times(profile, len(parts[i]))
            table.add({k.key: t for k, t in zip(parts[i], times, strict=True) if t == t})
            file.unlink()
            done.add(i)
            progress("kernels", len(done) / len(parts))

        # the last precision is an integer one, where there is one: those suffer most
        look = _sentinel(target, written(-1, "watched"), stack)
        Tasks([partial(measure, i) for i in range(len(parts))], look).run()


def _sentinel(target: Target, file: Path, stack: ExitStack) -> Callable[[], float]:
    """Milliseconds of a file at the moment of the call, where the target times; stays open."""
    if target.elsewhere is not None:
        ask = partial(target.elsewhere.ask, "look", target.fields(), [file])
        return lambda: float(ask()[0])
    session = stack.enter_context(closing(target.open(file)))
    call = session.prepare(random_inputs(session.inputs))

    def look() -> float:
        with target.timing_lock():
            return 1e3 * warm_up(call)

    return look


def chunks(kernels: Sequence[Kernel], footprint: int = FOOTPRINT) -> list[list[Kernel]]:
    """Split by precision, and deal the shapes out so that every file holds all sizes.

    Args:
        kernels: in the order of the network.
        footprint: about so many bytes of weights per file; see ``measure_kernels``.
    """
    out = []
    for precision in dict.fromkeys(k.precision for k in kernels):
        own = [k for k in kernels if k.precision == precision]
        weight = sum(k.weight_bytes for k in own)
        count = max(-(-len(own) // _PER_FILE), min(len(own), round(weight / footprint)))
        out += [own[i::count] for i in range(count)]
    return out


def typical_footprint(sizes: Iterable[int]) -> int:
    """The median of some networks' bytes of weights, as a power of two, at least a MiB."""
    found = sorted(sizes)
    middle = found[len(found) // 2] if found else FOOTPRINT
    return int(2 ** max(20, round(math.log2(max(middle, 1)))))
