"""ExecuTorch with XNNPACK, the runtime of phones, tried on this machine's CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autocompress.errors import InputError
from autocompress.exporters.silence import silent
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.writing import replacing
from autocompress.targets.base import (
    Arrays,
    Availability,
    Session,
    Target,
    TargetConfig,
    TensorSpec,
)
from autocompress.targets.profile import KernelClass, NodeTime, Profile
from autocompress.targets.torch_runtime import load_program, program_inputs

if TYPE_CHECKING:
    from autocompress.exporters.write import ExportedFile
    from autocompress.techniques.compressed import Compressed

#: torch's numbers of element types, which the runtime hands out
_DTYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 11: "bool"}
#: where nodes came from, which nobody asks of a lowered program
_NOTES = ("stack_trace", "from_node", "source_fn_stack", "nn_module_stack", "torch_fn")


class ExecuTorchConfig(TargetConfig):
    """Fields of ``target:`` for ExecuTorch."""

    runtime: str = "executorch"


class ExecuTorchTarget(Target):
    """Opens ``.pt2`` files, which it lowers to XNNPACK, and ``.pte`` files that were lowered.

    Quantized layers are simulated in a ``.pt2`` file and stay float when it is lowered.
    """

    name = "executorch"
    suffix = ".pt2"
    also_opens = also_writes = (".pte",)
    config_model = ExecuTorchConfig
    install = "pip install 'autocompress[executorch]'"
    free_batch = False
    half_formats = ("float16", "bfloat16")
    weight_blocks = True

    @classmethod
    def present(cls) -> Availability:
        """Whether ExecuTorch and its XNNPACK backend are here."""
        from importlib.metadata import version

        with silent():
            from executorch.runtime import Runtime

        backends = list(Runtime.get().backend_registry.registered_backend_names)
        found = version("executorch")
        if "XnnpackBackend" not in backends:
            return Availability(cls.name, False, found, reason="this build has no XNNPACK backend")
        return Availability(cls.name, True, found, ("cpu",), details={"backends": backends})

    def load(self, file: Path, threads: int, batch: int | None) -> ExecuTorchSession:
        """Open a file; see ``Target``. The batch is always fixed: memory is planned for it."""
        if file.suffix == ".pte":
            return ExecuTorchSession(file, file.read_bytes(), threads)
        state = file.stat()
        lowered = _lower(file, state.st_mtime_ns, state.st_size, self.config.batch)
        return ExecuTorchSession(file, lowered, threads)

    def export(self, compressed: Compressed, path: str | Path, example: Any) -> ExportedFile:
        """Write a ``.pt2`` file, or lower it to a ``.pte`` file for phones; see ``Target``."""
        path = Path(path)
        if path.suffix not in self.also_writes:
            return super().export(compressed, path, example)
        with scratch_folder("lowered") as folder, replacing(path) as partial:
            made = super().export(compressed, folder / "model.pt2", example)
            partial.write_bytes(_lower.__wrapped__(made.path, 0, 0, self.config.batch))
        return replace(made, path=path, size_bytes=path.stat().st_size)

    def lowered(self, path: Path, folder: Path) -> Path:
        """The ``.pte`` file that a device would open; see ``Target``."""
        if path.suffix == ".pte":
            return path
        state, file = path.stat(), folder / "lowered.pte"
        file.write_bytes(_lower(path, state.st_mtime_ns, state.st_size, self.config.batch))
        return file

    @classmethod
    def classify(cls, node: NodeTime) -> KernelClass:
        """The backend runs a program in one piece; see ``Target``."""
        return KernelClass.FUSED

    def facts(self) -> dict[str, Any]:
        """What the programs are lowered to."""
        return {"backend": "XNNPACK"}


class ExecuTorchSession(Session):
    """One opened program.

    Args:
        file: for messages.
        lowered: the program's bytes.
        threads: of the process's one pool, which all open programs share.

    Raises:
        InputError: not a program, or one with other threads is still open.
    """

    _open: ClassVar[weakref.WeakSet[ExecuTorchSession]] = weakref.WeakSet()

    def __init__(self, file: Path, lowered: bytes, threads: int) -> None:
        from executorch.runtime import Runtime

        self.file = file
        try:
            with silent():  # the first one prints what it finds of the processor
                self._set_threads(threads)
                self._program: Any = Runtime.get().load_program(lowered)
                self._method: Any = self._program.load_method("forward")
        except RuntimeError as error:
            raise InputError(f"ExecuTorch cannot open {file.name}: {error}") from None
        about = self._method.metadata
        described = [about.input_tensor_meta(i) for i in range(about.num_inputs())]
        self.inputs = tuple(
            TensorSpec(f"input_{i}", tuple(t.sizes()), _DTYPES[int(t.dtype())])
            for i, t in enumerate(described)
        )
        self._open.add(self)

    def _set_threads(self, threads: int) -> None:
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() == threads:
            return
        # an open program keeps a pointer to the pool that this would replace
        if len(self._open):
            raise InputError(
                "ExecuTorch has one thread pool per process: close the programs that are open "
                f"before opening one with {threads} threads."
            )
        portable_lib._unsafe_reset_threadpool(threads)

    @property
    def threads(self) -> int:
        """Threads of the pool."""
        from executorch.extension.pybindings import portable_lib

        return int(portable_lib._threadpool_get_thread_count())

    def prepare(self, inputs: Arrays) -> Callable[[], Any]:
        """A call without arguments."""
        import torch

        feed = [torch.from_numpy(array) for array in self.arrays(inputs)]
        execute = self._method.execute
        return lambda: execute(feed)

    def profile(self, inputs: Arrays, runs: int = 20) -> Profile:
        """The whole program as one operator: the wheel is built without event tracing."""
        median = self.whole_ms(inputs, runs)
        return Profile((NodeTime("forward", "XnnpackBackend", median),), median)

    def close(self) -> None:
        """Free the program."""
        self._method = self._program = None
        self._open.discard(self)


@lru_cache(maxsize=8)
def _lower(file: Path, modified_ns: int, size_bytes: int, batch: int) -> bytes:
    """The bytes of a lowered program, kept by the file's state because lowering takes seconds."""
    import torch

    with silent():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    del modified_ns, size_bytes
    program = load_program(file)
    example = []
    for value in program_inputs(program).values():
        sizes = [
            d if isinstance(d, int) else batch if i == 0 else 1 for i, d in enumerate(value.shape)
        ]
        example.append(torch.zeros(sizes, dtype=value.dtype))
    fixed = torch.export.export(program.module(), tuple(example))
    for node in fixed.graph.nodes:
        for note in _NOTES:  # some fifty passes would copy them from graph to graph
            node.meta.pop(note, None)
    # the check after each pass finds mistakes of passes, and takes a tenth of the time
    unchecked = EdgeCompileConfig(_check_ir_validity=False)
    with silent():
        lowered = to_edge_transform_and_lower(
            fixed, partitioner=[XnnpackPartitioner()], compile_config=unchecked
        )
        return bytes(lowered.to_executorch().buffer)
