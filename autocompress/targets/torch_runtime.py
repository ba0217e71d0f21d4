"""PyTorch itself: exported programs, eager or compiled, on the CPU, CUDA or Apple's MPS."""

from __future__ import annotations

import json
import operator
import os
import re
import shutil
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.errors import InputError, TargetUnavailable
from autocompress.exporters.metadata import AXES_KEY, SIZES_KEY
from autocompress.targets.base import (
    WARM_UP,
    Arrays,
    Availability,
    Session,
    Target,
    TargetConfig,
    TensorSpec,
)
from autocompress.targets.profile import KernelClass, NodeTime, Profile, kernel_class

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx

_LAYOUT = ("transpose.int", "permute.default", "clone.default", "to.dtype", "_to_copy.default")
_CLASSES = {f"aten.{op}": KernelClass.LAYOUT for op in _LAYOUT}
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_OBJECTS = ("custom_obj_", "opaque_obj_")
"""Beginnings of the names of pickled parts of an archive."""
_MULTIPLYING = re.compile(r"conv|gemm|matmul|\.linear|lstm|gru|attention|addmm", re.IGNORECASE)


class TorchConfig(TargetConfig):
    """Fields of ``target:`` for PyTorch.

    Args:
        compile: through ``torch.compile``.
    """

    runtime: str = "torch"
    compile: bool = False


class TorchTarget(Target):
    """Opens ``.pt2`` files.

    Quantized layers are simulated in such a file, in float arithmetic: it shows what they cost in
    accuracy, and gains no time.
    """

    name = "torch"
    suffix = ".pt2"
    config_model = TorchConfig
    install = "pip install torch"
    half_formats = ("float16", "bfloat16")
    weight_blocks = True
    config: TorchConfig

    @classmethod
    def present(cls) -> Availability:
        """What PyTorch offers here."""
        import torch

        devices = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        found = ("cpu", *(device for device, here in devices.items() if here))
        details = {"compiler": _compiler()}
        return Availability(cls.name, True, torch.__version__, found, details=details)

    def check_device(self, found: Availability) -> None:
        """Compiling for the CPU also needs a C++ compiler."""
        super().check_device(found)
        if self.config.compile and self.config.device == "cpu" and not found.details["compiler"]:
            raise TargetUnavailable(
                "`compile: true` needs a C++ compiler (g++ or clang++), there is none on the path. "
                "Install one, or use `compile: false`."
            )

    def load(self, file: Path, threads: int, batch: int | None) -> TorchSession:
        """Open a ``.pt2`` file; see ``Target``."""
        return TorchSession(file, self.config, threads, batch)

    @classmethod
    def classify(cls, node: NodeTime) -> KernelClass:
        """By the operator's name; the compiler's own kernels hold several. See ``Target``."""
        if "fused" in node.op:
            return KernelClass.FUSED
        return kernel_class(node.op, _CLASSES, _MULTIPLYING)

    def facts(self) -> dict[str, Any]:
        """Whether it is compiled."""
        return {"compile": self.config.compile}


class TorchSession(Session):
    """One opened ``.pt2`` file.

    Args:
        file: an exported program.
        config: where it runs, and whether it is compiled.
        threads: of one operator; the process's own setting is put back after every call.
        batch: as in ``Target.load``.
    """

    def __init__(self, file: Path, config: TorchConfig, threads: int, batch: int | None) -> None:
        import torch

        self.file = file
        self._device = device = torch.device(config.device)
        self._threads = threads
        about = {AXES_KEY: "", SIZES_KEY: ""}
        program = load_program(file, about)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        with _opening(file):
            self._module: Any = program.module()
        self.inputs = _specs(program, batch, json.loads(about[AXES_KEY] or "{}"))
        self.sizes = json.loads(about[SIZES_KEY] or "{}")
        self._call: Any = torch.compile(self._module) if config.compile else self._module
        self._compiled = config.compile

    @property
    def threads(self) -> int:
        """Threads that a call of this session sees."""
        import torch

        with _threads(self._threads):
            return torch.get_num_threads()

    def prepare(self, inputs: Arrays) -> Callable[[], Any]:
        """A call without arguments on inputs that lie on the device; waits for the end of it."""
        import torch

        feed = self._feed(inputs)
        call, device, threads = self._call, self._device, self._threads

        def once() -> Any:
            with _threads(threads), torch.inference_mode():
                found = call(*feed)
                _wait(device)
            return found

        return once

    def _feed(self, inputs: Arrays) -> list[Tensor]:
        import torch

        return [torch.from_numpy(array).to(self._device) for array in self.arrays(inputs)]

    def profile(self, inputs: Arrays, runs: int = 20) -> Profile:
        """Times of operators: of the program's own, or of the kernels that it was compiled to."""
        import torch

        feed = self._feed(inputs)
        with _threads(self._threads), torch.inference_mode():
            if self._compiled:
                return _compiled_profile(lambda: self._call(*feed), runs)
            return _eager_profile(self._module, feed, self._device, runs)

    def close(self) -> None:
        """Free the module."""
        self._module = self._call = None


def load_program(file: Path, about: dict[str, str] | None = None) -> Any:
    """Read an exported program.

    Args:
        file: that holds it.
        about: its keys are told what the file says about itself under them, if anything.

    Raises:
        InputError: the file is none, or holds pickled objects.
    """
    import torch

    with _opening(file):
        with zipfile.ZipFile(file) as archive:
            parts = [part for name in archive.namelist() for part in PurePosixPath(name).parts]
        if any(part.startswith(_OBJECTS) for part in parts):
            raise ValueError("it holds Python objects, which run code when they are read")
        with _tensors_alone():
            return torch.export.load(file, extra_files=about)


def program_inputs(program: Any) -> dict[str, Tensor]:
    """Name of each input to a tensor of its shape, whose free sizes are symbols."""
    wanted = set(program.graph_signature.user_inputs)
    holders = (n for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted)
    return {node.name: node.meta["val"] for node in holders}


@contextmanager
def _opening(file: Path) -> Iterator[None]:
    """Tell in a sentence that a file cannot be opened."""
    try:
        yield
    except Exception as error:  # a broken archive raises whatever its reader stumbles on
        raise InputError(f"torch cannot open {file.name}: {error}") from None


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """Let ``torch.load`` read tensors and plain containers only, whatever it is asked for."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _eager_profile(
    module: fx.GraphModule, feed: Sequence[Tensor], device: torch.device, runs: int
) -> Profile:
    """Run the program operator by operator and note what each one takes."""
    from torch import fx

    times: dict[fx.Node, list[float]] = defaultdict(list)
    seen: dict[fx.Node, tuple[Any, Any]] = {}

    class Stopwatch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            _wait(device)
            begin = time.perf_counter()
            found = super().run_node(n)
            _wait(device)
            if n.op == "call_function" and n.target is not operator.getitem:
                times[n].append((time.perf_counter() - begin) * 1e3)
                if n not in seen:
                    seen[n] = (_shapes([self.env[a] for a in n.all_input_nodes]), _shapes([found]))
            return found

    stopwatch = Stopwatch(module, garbage_collect_values=False)
    totals = []
    for _ in range(WARM_UP + runs):
        begin = time.perf_counter()
        stopwatch.run(*feed)
        totals.append((time.perf_counter() - begin) * 1e3)
    nodes = tuple(
        NodeTime(_scoped(n), str(n.target), float(np.median(t[WARM_UP:])), *seen[n])
        for n, t in times.items()
    )
    return Profile(nodes, float(np.median(totals[WARM_UP:])))


def _compiled_profile(call: Callable[[], Any], runs: int) -> Profile:
    import torch

    for _ in range(WARM_UP):
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
    from autocompress.exporters.names import canonical_name, program_scope

    module, call = program_scope(node) or ("", 0)
    return canonical_name(module, call, node.name)


def _shapes(values: Sequence[Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    from torch import Tensor

    return tuple(
        (str(v.dtype).removeprefix("torch.").replace("float32", "float"), tuple(v.shape))
        for v in values
        if isinstance(v, Tensor)
    )


def _specs(
    program: Any, batch: int | None, axes: dict[str, dict[str, str]]
) -> tuple[TensorSpec, ...]:
    """Inputs of a program; names of inputs and axes are those that the file says, if it does."""
    specs = []
    for name, value in program_inputs(program).items():
        shape: list[int | None] = [d if isinstance(d, int) else None for d in value.shape]
        if shape and shape[0] is None:
            shape[0] = batch
        specs.append(TensorSpec(name, tuple(shape), str(value.dtype).removeprefix("torch.")))
    if len(axes) != len(specs):  # another program than one of ours
        return tuple(specs)
    return tuple(
        replace(spec, name=name, axes=tuple(own.get(str(i)) for i in range(len(spec.shape))))
        for spec, (name, own) in zip(specs, axes.items(), strict=True)
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

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
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _compiler() -> str | None:
    return next((c for c in ("g++", "clang++", "cl") if shutil.which(c)), None)
