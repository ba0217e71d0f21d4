"""ONNX Runtime for browsers: WebAssembly on the CPU, run by Node.js as a browser runs it."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress.targets.base import (
    WARM_UP,
    Array,
    Arrays,
    Availability,
    Session,
    TargetConfig,
    TensorSpec,
)
from autocompress.targets.onnx_files import OnnxTarget, file_sizes, free_batch_names, makers
from autocompress.targets.onnx_runtime import OnnxRuntimeTarget
from autocompress.targets.onnx_session import read_profile
from autocompress.targets.profile import KernelClass, NodeTime, Profile

_WORKER = Path(__file__).with_name("onnx_web_worker.mjs")
_CLOSE_S = 5.0


class OnnxWebConfig(TargetConfig):
    """Fields of ``target:`` for ONNX Runtime in browsers."""

    runtime: str = "onnxruntime-web"


class OnnxWebTarget(OnnxTarget):
    """Opens ``.onnx`` files in the package ``onnxruntime-web``, each in a process of its own.

    A call goes to that process and comes back, which takes some ten microseconds on top.
    """

    name = "onnxruntime-web"
    config_model = OnnxWebConfig
    install = (
        "install Node.js 18 or later, and `npm install onnxruntime-web` in this folder (or one "
        "that NODE_PATH names)"
    )
    integer_kernels = weight_blocks = True
    in_process = False

    @classmethod
    def present(cls) -> Availability:
        """What Node.js finds."""
        found = _found()
        details = {"node": found["node"], "package": found["folder"]}
        return Availability(cls.name, True, found["version"], ("cpu",), details=details)

    def load(self, file: Path, threads: int, batch: int | None) -> OnnxWebSession:
        """Open an ``.onnx`` file; see ``Target``."""
        free = {} if batch is None else dict.fromkeys(free_batch_names(file), batch)
        return OnnxWebSession(file, threads, free)

    @classmethod
    def classify(cls, node: NodeTime) -> KernelClass:
        """The kernels are those of ONNX Runtime; see ``Target``."""
        return OnnxRuntimeTarget.classify(node)

    @classmethod
    def keeps_packed(cls, node: NodeTime) -> bool:
        """As in ONNX Runtime; see ``Target``."""
        return OnnxRuntimeTarget.keeps_packed(node)

    shows_channels = OnnxRuntimeTarget.shows_channels

    def facts(self) -> dict[str, Any]:
        """Where it runs; the package has no build without SIMD."""
        return {"node": _found()["node"], "wasm": "SIMD, threads"}


class NodeProcess:
    """Node.js with the runtime in it.

    Raises:
        ImportError: there is no Node.js.
    """

    def __init__(self) -> None:
        node = shutil.which("node")
        if node is None:
            raise ImportError("no `node` on the path")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [node, str(_WORKER)], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0
        )

    def ask(self, operation: str, arrays: Sequence[Array] = (), **asked: Any) -> dict[str, Any]:
        """What it answers to a request.

        Args:
            operation: as the worker calls it.
            arrays: whose bytes follow.
            **asked: the rest of the request.

        Raises:
            RuntimeError: what the runtime said; or the process ended.
        """
        text = json.dumps({"operation": operation, **asked}).encode()
        parts = [struct.pack("<I", len(text)), text, *(array.tobytes() for array in arrays)]
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"".join(parts))
            answer: dict[str, Any] = json.loads(self.read(*struct.unpack("<I", self.read(4))))
        except OSError as error:
            raise RuntimeError(f"Node.js has ended: {error}") from None
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def read(self, count: int) -> bytes:
        """So many bytes of an answer."""
        assert self._process.stdout is not None
        found = bytearray()
        while len(found) < count:
            more = self._process.stdout.read(count - len(found))
            if not more:
                raise RuntimeError("Node.js has ended without an answer")
            found += more
        return bytes(found)

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@lru_cache(maxsize=1)
def _found() -> dict[str, Any]:
    """Versions of Node.js and the package, and the package's folder.

    Raises:
        ImportError: one of them is not here.
    """
    worker = NodeProcess()
    try:
        return worker.ask("version")
    except RuntimeError as error:
        raise ImportError(str(error).splitlines()[0]) from None
    finally:
        worker.close()


class OnnxWebSession(Session):
    """One opened ``.onnx`` file.

    Args:
        file: the model.
        threads: of the WebAssembly module.
        free: name of a free axis to the size that it is opened for.

    Raises:
        InputError: the runtime cannot open it.
    """

    def __init__(self, file: Path, threads: int, free: Mapping[str, int]) -> None:
        self.file = file
        self._held: Any = None
        self._worker: NodeProcess | None = NodeProcess()
        try:
            told = self._ask("open", file=str(file.absolute()), threads=threads, free=dict(free))
        except RuntimeError as error:
            self.close()
            raise InputError(f"onnxruntime-web cannot open {file.name}: {error}") from None
        self._threads = int(told["threads"])
        self.inputs = tuple(
            TensorSpec(
                i["name"],
                tuple(d if isinstance(d, int) else None for d in i["shape"]),
                i["type"],
                tuple(d if isinstance(d, str) else None for d in i["shape"]),
            )
            for i in told["inputs"]
        )
        self.sizes = file_sizes(file)

    def _ask(self, operation: str, arrays: Sequence[Array] = (), **asked: Any) -> dict[str, Any]:
        assert self._worker is not None, "the session is closed"
        return self._worker.ask(operation, arrays, **asked)

    @property
    def threads(self) -> int:
        """Threads of the WebAssembly module."""
        return self._threads

    def _hold(self, feed: Sequence[Array]) -> None:
        """Send inputs, unless they lie there already."""
        if self._held is feed:
            return
        about = [
            {"name": s.name, "type": s.dtype, "shape": list(a.shape), "bytes": a.nbytes}
            for s, a in zip(self.inputs, feed, strict=True)
        ]
        self._ask("feed", feed, listed=about)
        self._held = feed

    def prepare(self, inputs: Arrays) -> Callable[[], Any]:
        """A call without arguments; inputs and outputs lie in the other process."""
        feed = self.arrays(inputs)

        def once() -> dict[str, Any]:
            self._hold(feed)
            return self._ask("run")

        return once

    def run(self, inputs: Arrays) -> list[Array]:
        """One inference, with its outputs; see ``Session``."""
        self.prepare(inputs)()
        told = self._ask("outputs")["arrays"]
        assert self._worker is not None
        return [
            np.frombuffer(self._worker.read(each["bytes"]), each["type"]).reshape(each["shape"])
            for each in told
        ]

    def profile(self, inputs: Arrays, runs: int = 20) -> Profile:
        """The runtime's own profile, from a second session in the same process."""
        self._hold(self.arrays(inputs))
        events = json.loads(self._ask("profile", runs=WARM_UP + runs)["events"])
        return read_profile(events, WARM_UP, makers(self.file))

    def close(self) -> None:
        """End the process."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
