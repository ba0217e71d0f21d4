"""An opened ``.onnx`` file in ONNX Runtime; packed, so that it needs numpy and onnxruntime only."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress.exporters.metadata import SIZES_KEY
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.writing import read_back
from autocompress.targets.profile import NodeTime, Profile
from autocompress.targets.session import WARM_UP, Array, Arrays, Session, TensorSpec

#: where a name within ``tensor(...)`` is not numpy's
_DTYPES = {"float": "float32", "double": "float64"}
#: what it adds to the output's name when it calls a merged node after it
_RENAMED = re.compile("^InsertedPrecisionFreeCast_|_nchwc$")


class OnnxRuntimeSession(Session):
    """One opened ``.onnx`` file; sequential execution, all graph optimizations.

    Args:
        file: the model.
        providers: execution providers with their options.
        threads: of one operator.
        free: name of a free axis to the size that it is opened for.
        makers: of a file, tensor to the node that computed it; where none is told, a profile keeps
            the names that the runtime made up.
    """

    def __init__(
        self,
        file: Path,
        providers: Sequence[tuple[str, dict[str, str]]],
        threads: int,
        free: Mapping[str, int],
        makers: Callable[[Path], Mapping[str, str]] = lambda file: {},
    ) -> None:
        self.file = file
        self._providers = list(providers)
        self._threads = threads
        self._free = free
        self._makers = makers
        self._session: Any = self._make(None)
        self.inputs = tuple(
            TensorSpec(
                i.name,
                tuple(d if isinstance(d, int) else None for d in i.shape),
                _DTYPES.get(i.type[7:-1], i.type[7:-1]),
                tuple(d if isinstance(d, str) else None for d in i.shape),
            )
            for i in self._session.get_inputs()
        )
        said = self._session.get_modelmeta().custom_metadata_map.get(SIZES_KEY)
        self.sizes = json.loads(said) if said else {}

    def _make(self, profile_prefix: str | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for name, size in self._free.items():
            options.add_free_dimension_override_by_name(name, size)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        try:
            return onnxruntime.InferenceSession(str(self.file), options, providers=self._providers)
        except Exception as error:  # the runtime's errors have no common base class
            raise InputError(
                f"ONNX Runtime cannot open {self.file.name}: {str(error).splitlines()[0]}"
            ) from None

    @property
    def threads(self) -> int:
        """Threads of one operator."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def prepare(self, inputs: Arrays) -> Callable[[], Any]:
        """A call without arguments; ``run`` copies to and from the device and waits."""
        feed, run = self._feed(inputs), self._session.run
        names = [o.name for o in self._session.get_outputs()]
        return lambda: run(names, feed)

    def _feed(self, inputs: Arrays) -> dict[str, Array]:
        return {s.name: a for s, a in zip(self.inputs, self.arrays(inputs), strict=True)}

    def profile(self, inputs: Arrays, runs: int = 20) -> Profile:
        """The runtime's own profile, from a second session with the profiler on."""
        feed = self._feed(inputs)
        with scratch_folder("profile") as folder:
            session = self._make(str(folder / "profile"))
            for _ in range(WARM_UP + runs):
                session.run(None, feed)
            events = read_back(Path(session.end_profiling()))
            return read_profile(events, WARM_UP, self._makers(self.file))

    def close(self) -> None:
        """Free the session."""
        self._session = None


def origin(name: str, makers: Mapping[str, str]) -> str:
    """The file's own name of a node that the runtime renamed."""
    tensor = _RENAMED.sub("", name)
    return makers.get(tensor, name) if tensor != name else name


def read_profile(events: list[dict[str, Any]], warm_up: int, makers: Mapping[str, str]) -> Profile:
    """Median per node over the runs after the warm-up, from the profiler's trace events."""
    times: dict[str, list[float]] = defaultdict(list)
    first: dict[str, dict[str, Any]] = {}
    totals = [event["dur"] / 1e3 for event in events if event.get("name") == "model_run"]
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        key = f"{event['args'].get('node_index')}:{name}"
        times[key].append(event["dur"] / 1e3)
        first.setdefault(key, event)
    nodes = []
    for key, event in first.items():
        args = event["args"]
        kept = times[key][warm_up:] or times[key]
        nodes.append(
            NodeTime(
                name=origin(event["name"].removesuffix("_kernel_time"), makers),
                op=args.get("op_name", "?"),
                # the profiler counts whole microseconds: the mean of the faster half keeps more
                # of them than a median and still leaves interruptions out
                ms=float(np.mean(np.sort(kept)[: max(1, (len(kept) + 1) // 2)])),
                inputs=_shapes(args.get("input_type_shape", [])),
                outputs=_shapes(args.get("output_type_shape", [])),
            )
        )
    return Profile(tuple(nodes), float(np.median(totals[warm_up:] or totals or [np.nan])))


def _shapes(listed: list[dict[str, list[int]]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((kind, tuple(shape)) for one in listed for kind, shape in one.items())
