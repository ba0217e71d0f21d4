"""PyTorch itself: exported programs, eager or compiled, on the CPU, CUDA or Apple's MPS."""

from __future__ import annotations

import operator
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from autocompress.errors import InputError, TargetUnavailable
from autocompress.exporters.names import canonical_name, program_scope
from autocompress.targets.base import (
    Array,
    Availability,
    Inputs,
    NodeTime,
    Profile,
    TargetConfig,
    TensorSpec,
    check_file,
)

_WARM_UP = 5


class TorchTarget:
    """Opens ``.pt2`` files.

    Quantized layers are simulated in such a file, in float arithmetic: it shows what they cost in
    accuracy, and gains no time.
    """

    suffix = ".pt2"

    def __init__(self, config: TargetConfig) -> None:
        self.config = config
        present = _devices()
        if config.device.partition(":")[0] not in present:
            raise TargetUnavailable(
                f"PyTorch {torch.__version__} here has the devices {', '.join(present)}, got "
                f"{config.device!r}. Use `device: cpu`."
            )
        if config.compile and config.device == "cpu" and _compiler() is None:
            raise TargetUnavailable(
                "`compile: true` needs a C++ compiler (g++ or clang++), there is none on the path. "
                "Install one, or use `compile: false`."
            )

    def open(
        self, path: str | Path, *, threads: int | None = None, fixed: bool = True
    ) -> TorchSession:
        """Open a ``.pt2`` file; see ``Target``."""
        file = check_file(path, self.suffix)
        return TorchSession(
            file,
            torch.device(self.config.device),
            threads or self.config.threads,
            self.config.batch if fixed else None,
            self.config.compile,
        )

    def describe(self) -> dict[str, Any]:
        """Plain data, for records."""
        return {
            "runtime": "torch",
            "version": torch.__version__,
            "device": self.config.device,
            "compile": self.config.compile,
            "threads": self.config.threads,
            "batch": self.config.batch,
        }


class TorchSession:
    """One opened ``.pt2`` file.

    Args:
        file: an exported program.
        device: where it runs.
        threads: of one operator; the process's own setting is put back after every call.
        batch: free first dimensions of inputs are fixed to this, or left free with ``None``.
        compiled: through ``torch.compile``.
    """

    def __init__(
        self, file: Path, device: torch.device, threads: int, batch: int | None, compiled: bool
    ) -> None:
        self.file = file
        self._device = device
        self._threads = threads
        program = load_program(file)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        self._module: Any = program.module()
        self.inputs = _specs(program, batch)
        self._call: Any = torch.compile(self._module) if compiled else self._module
        self._compiled = compiled

    @property
    def threads(self) -> int:
        """Threads that a call of this session sees."""
        with _threads(self._threads):
            return torch.get_num_threads()

    def run(self, inputs: Inputs) -> list[Array]:
        """One inference."""
        found = self.prepare(inputs)()
        parts = found if isinstance(found, tuple | list) else (found,)
        return [part.numpy(force=True) for part in parts]

    def prepare(self, inputs: Inputs) -> Callable[[], Any]:
        """A call without arguments on inputs that lie on the device; waits for the end of it."""
        feed = self._feed(inputs)
        call, device, threads = self._call, self._device, self._threads

        def once() -> Any:
            with _threads(threads), torch.inference_mode():
                found = call(*feed)
                _wait(device)
            return found

        return once

    def _feed(self, inputs: Inputs) -> list[Tensor]:
        if len(inputs) != len(self.inputs):
            raise InputError(
                f"{self.file.name} takes {len(self.inputs)} inputs, got {len(inputs)}."
            )
        return [
            torch.from_numpy(np.ascontiguousarray(array, dtype=spec.dtype)).to(self._device)
            for spec, array in zip(self.inputs, inputs, strict=True)
        ]

    def profile(self, inputs: Inputs, runs: int = 20) -> Profile:
        """Times of operators: of the program's own, or of the kernels that it was compiled to."""
        feed = self._feed(inputs)
        with _threads(self._threads), torch.inference_mode():
            if self._compiled:
                return _compiled_profile(lambda: self._call(*feed), runs)
            return _eager_profile(self._module, feed, self._device, runs)

    def close(self) -> None:
        """Free the module."""
        self._module = self._call = None


def load_program(file: Path) -> Any:
    """Read an exported program.

    Raises:
        InputError: the file is none.
    """
    try:
        return torch.export.load(file)
    except Exception as error:  # a broken archive raises whatever its reader stumbles on
        raise InputError(f"torch cannot open {file.name}: {error}") from None


class _Stopwatch(fx.Interpreter):
    """Runs a program operator by operator and notes what each one took."""

    def __init__(self, module: fx.GraphModule, device: torch.device) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._device = device
        self.times: dict[fx.Node, list[float]] = defaultdict(list)
        self.seen: dict[fx.Node, tuple[Any, Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and time it."""
        _wait(self._device)
        begin = time.perf_counter()
        found = super().run_node(n)
        _wait(self._device)
        if n.op == "call_function" and n.target is not operator.getitem:
            self.times[n].append((time.perf_counter() - begin) * 1e3)
            if n not in self.seen:
                read = [self.env[a] for a in n.all_input_nodes]
                self.seen[n] = (_shapes(read), _shapes([found]))
        return found


def _eager_profile(
    module: fx.GraphModule, feed: Sequence[Tensor], device: torch.device, runs: int
) -> Profile:
    stopwatch = _Stopwatch(module, device)
    totals = []
    for _ in range(_WARM_UP + runs):
        begin = time.perf_counter()
        stopwatch.run(*feed)
        totals.append((time.perf_counter() - begin) * 1e3)
    nodes = tuple(
        NodeTime(_scoped(n), str(n.target), float(np.median(t[_WARM_UP:])), *stopwatch.seen[n])
        for n, t in stopwatch.times.items()
    )
    return Profile(nodes, float(np.median(totals[_WARM_UP:])))


def _compiled_profile(call: Callable[[], Any], runs: int) -> Profile:
    for _ in range(_WARM_UP):
        call()
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    totals = []
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as trace:
        for _ in range(runs):
            with torch.profiler.record_function("one inference"):
                begin = time.perf_counter()
                call()
                totals.append((time.perf_counter() - begin) * 1e3)
    for event in trace.events():
        if event.name != "one inference" or event.cpu_parent is not None:
            continue
        children = event.cpu_children
        while len(children) == 1 and children[0].cpu_children:
            children = children[0].cpu_children
        for i, child in enumerate(children):
            spent = max(child.cpu_time_total, child.device_time_total)
            times[child.name, i].append(spent / 1e3)
    nodes = tuple(NodeTime(name, name, float(np.median(t))) for (name, _), t in times.items())
    return Profile(nodes, float(np.median(totals)))


def _scoped(node: fx.Node) -> str:
    """Canonical name of a node, as in ``layer1.0.conv1#0/conv2d``."""
    module, call = program_scope(node) or ("", 0)
    return canonical_name(module, call, node.name)


def _shapes(values: Sequence[Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (str(v.dtype).removeprefix("torch.").replace("float32", "float"), tuple(v.shape))
        for v in values
        if isinstance(v, Tensor)
    )


def _specs(program: Any, batch: int | None) -> tuple[TensorSpec, ...]:
    wanted = set(program.graph_signature.user_inputs)
    specs = []
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in wanted:
            continue
        value = node.meta["val"]
        shape: list[int | None] = [d if isinstance(d, int) else None for d in value.shape]
        if shape and shape[0] is None:
            shape[0] = batch
        specs.append(TensorSpec(node.name, tuple(shape), str(value.dtype).removeprefix("torch.")))
    return tuple(specs)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _compiler() -> str | None:
    return next((c for c in ("g++", "clang++", "cl") if shutil.which(c)), None)


def availability() -> Availability:
    """What PyTorch offers here."""
    compiler = _compiler()
    return Availability(
        "torch",
        True,
        torch.__version__,
        tuple(_devices()),
        details={"compile": compiler is not None},
    )
