"""Files that run on this device's ONNX Runtime; packed, so that it needs numpy and onnxruntime."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from autocompress.errors import InputError, MeasurementError
from autocompress.exporters.kernel_names import kernel_times
from autocompress.machine.facts import machine_facts
from autocompress.measure.joules import energy_mj
from autocompress.measure.peak import STATUS, peak_growth
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.rounds import Call, warm_up
from autocompress.measure.sampling import InterleavedTiming, Plan
from autocompress.measure.taking import call_of, take
from autocompress.targets.lengths import drawn_inputs
from autocompress.targets.onnx_session import OnnxRuntimeSession
from autocompress.targets.session import Array, random_inputs

CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class FileRunner:
    """Runs files.

    Args:
        threads: of one inference.
        batch: samples of one inference.
        lengths: of free axes beside the batch.
        providers: execution providers, in order of preference.
    """

    threads: int
    batch: int
    lengths: Any = None
    providers: Sequence[str] = CPU

    def open(self, path: Path, free: Sequence[str] = ("batch",)) -> OnnxRuntimeSession:
        """A session.

        Args:
            path: of the file.
            free: names of free axes that are settled to the batch.

        Raises:
            InputError: the runtime cannot open it, or lacks a provider.
        """
        here = onnxruntime.get_available_providers()
        missing = [name for name in self.providers if name not in here]
        if missing:
            raise InputError(
                f"ONNX Runtime {onnxruntime.__version__} there has no {missing[0]}, only "
                f"{', '.join(here)}."
            )
        providers = [(name, dict[str, str]()) for name in self.providers]
        return OnnxRuntimeSession(path, providers, self.threads, dict.fromkeys(free, self.batch))

    def inputs(self, session: OnnxRuntimeSession) -> list[Array]:
        """Random inputs of a file."""
        return random_inputs(session.inputs, self.batch, sizes=session.sizes)

    def call(self, path: Path, free: Sequence[str] = ("batch",)) -> Call:
        """One inference of a file."""
        session = self.open(path, free)
        return session.prepare(self.inputs(session))

    def kernels(self, path: Path, keys: list[str], runs: int) -> dict[str, float]:
        """Milliseconds by key, from the runtime's own profiler."""
        with closing(self.open(path)) as session:
            nodes = session.profile(self.inputs(session), runs).nodes
        times = kernel_times([(node.name, node.ms) for node in nodes], len(keys))
        return {key: ms for key, ms in zip(keys, times, strict=True) if ms == ms}

    def models(self, paths: list[Path], seconds: float) -> tuple[float, list[float]]:
        """Milliseconds of the first file, and what the others take of it."""
        plan = Plan(min_rounds=8, max_seconds=seconds, slot_ms=3.0)
        found = InterleavedTiming([self.call(path) for path in paths], plan, QuietSpeed()).run()
        ratios = [found.interval(i, plan)[0] for i in range(1, len(paths))]
        return float(np.median(found.times(0))), ratios

    def timings(
        self,
        files: Sequence[tuple[Path, Sequence[str]]],
        plan: Mapping[str, Any],
        quiet: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Files timed in turn, the first one as the baseline, as plain data.

        Args:
            files: path and free axes of each, as for ``open``.
            plan: fields of a ``Plan``.
            quiet: fields of a ``QuietSpeed``; it comes back with what was learned.
        """
        asked = Plan(**plan)
        speed = QuietSpeed(deque(quiet["recent"], QuietSpeed().recent.maxlen), quiet["in_vain"])
        with ExitStack() as stack:
            sessions = [stack.enter_context(closing(self.open(p, axes))) for p, axes in files]
            fed = [drawn_inputs(session, self, asked.seed) for session in sessions]
            calls = [call_of(session, one) for session, one in zip(sessions, fed, strict=True)]
            samples, facts = take(calls, [len(one) for one in fed], asked, speed)
        learned = {"recent": list(speed.recent), "in_vain": speed.in_vain}
        return {"samples": samples.as_dict(), "facts": facts, "quiet": learned}

    def profile(
        self, path: Path, free: Sequence[str], inputs: Sequence[Array], runs: int
    ) -> dict[str, Any]:
        """The runtime's own profile of a file, as plain data."""
        with closing(self.open(path, free)) as session:
            found = session.profile(inputs, runs)
        return {"nodes": [asdict(node) for node in found.nodes], "total_ms": found.total_ms}

    def run(self, path: Path, free: Sequence[str], inputs: Sequence[Array]) -> list[Array]:
        """Outputs of a file."""
        with closing(self.open(path, free)) as session:
            return session.run(inputs)

    def look_ms(self, path: Path, free: Sequence[str]) -> float:
        """Milliseconds of a file at this moment, roughly."""
        return 1e3 * warm_up(self.call(path, free))

    def energy_mj(self, path: Path, free: Sequence[str]) -> float:
        """Millijoules of one inference of a file."""
        with closing(self.open(path, free)) as session:
            fed = drawn_inputs(session, self)
            return energy_mj(call_of(session, fed), len(fed))

    def memory(self, path: Path, free: Sequence[str]) -> int | None:
        """Bytes by which a file lets the peak of this process grow, which ran nothing before."""
        return peak_growth(partial(self.open, path, free), self) if STATUS.is_file() else None

    def facts(self) -> dict[str, Any]:
        """What the times are taken on."""
        target = {"runtime": "onnxruntime", "version": onnxruntime.__version__, "device": "cpu"}
        return {
            "target": {**target, "threads": self.threads, "batch": self.batch},
            "machine": {**machine_facts(), "name": platform.node()},
        }


def in_own_process(runner: Path, asked: str) -> Any:
    """What ``FileRunner.memory`` finds in a process of its own.

    Args:
        runner: the script that answers ``--memory``.
        asked: JSON of the device's fields and the method's.

    Raises:
        MeasurementError: the process failed.
    """
    command = [sys.executable, str(runner), "--memory", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"code {done.returncode}"]
        raise MeasurementError(f"Measuring the memory failed: {last[0]}")
    return None if done.stdout.strip() == "None" else int(done.stdout)
