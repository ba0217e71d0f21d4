"""Runs a cascade where it is used: needs numpy and onnxruntime only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.cascade.confidence import Floats, agreement, as_logits, confidence
from autocompress.cascade.manifest import MANIFEST, Manifest, Stage
from autocompress.errors import InputError

__all__ = ["Cascade"]

Array = NDArray[Any]


class Cascade:
    """Files one after another, with the interface of an ``onnxruntime.InferenceSession``.

    Each input of a batch is answered by the first stage that is sure enough of it; those that are
    left go on together.

    Args:
        path: the folder that ``autocompress cascade`` wrote, or its ``cascade.json``.
        threads: of one operator; by default as many as it was timed with.
        providers: of ONNX Runtime.

    Raises:
        InputError: no cascade is there, or ONNX Runtime cannot open its files.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        self.manifest = Manifest.load(folder / MANIFEST if folder == Path(path) else path)
        self._sessions = [
            [
                open_file(folder / name, threads or self.manifest.threads, providers)
                for name in stage.files
            ]
            for stage in self.manifest.stages
        ]
        self._inputs = [i.name for i in self._sessions[0][0].get_inputs()]
        self._names = [o.name for o in self._sessions[0][0].get_outputs()]

    def get_inputs(self) -> list[Any]:
        """As of an ``InferenceSession``."""
        return list(self._sessions[0][0].get_inputs())

    def get_outputs(self) -> list[Any]:
        """As of an ``InferenceSession``."""
        return list(self._sessions[0][0].get_outputs())

    def run(self, output_names: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """Outputs for a batch.

        Args:
            output_names: those wanted; ``None`` gives all.
            feed: name of each input to its array, batch first.

        Raises:
            InputError: an output that the files do not have.
        """
        outputs, _ = self.answer(feed)
        if output_names is None:
            return outputs
        unknown = set(output_names) - set(self._names)
        if unknown:
            raise InputError(f"The outputs are {self._names}, got {sorted(unknown)}.")
        return [outputs[self._names.index(name)] for name in output_names]

    def answer(self, feed: Mapping[str, Array]) -> tuple[list[Array], NDArray[np.int64]]:
        """Outputs for a batch, and the stage that answered each input, ``(N,)`` from 0."""
        return self._from(0, [feed[name] for name in self._inputs])

    def _from(self, place: int, inputs: list[Array]) -> tuple[list[Array], NDArray[np.int64]]:
        """Outputs of a stage and of those after it."""
        stage = self.manifest.stages[place]
        # by place: files of one model take their inputs in one order
        found = [self._run(session, inputs) for session in self._sessions[place]]
        outputs, count = found[-1], len(inputs[0])
        if stage.threshold is None:
            return outputs, np.full(count, place)
        left = self._sure(stage, found) < stage.threshold
        if not left.any():
            return outputs, np.full(count, place)
        if left.all():
            return self._from(place + 1, inputs)
        later, places = self._from(place + 1, [array[left] for array in inputs])
        answered = np.full(count, place)
        answered[left] = places
        merged = [np.array(output) for output in outputs]
        for output, rest in zip(merged, later, strict=True):
            output[left] = rest
        return merged, answered

    @staticmethod
    def _run(session: Any, inputs: list[Array]) -> list[Array]:
        names = (i.name for i in session.get_inputs())
        return list(session.run(None, dict(zip(names, inputs, strict=True))))

    def _sure(self, stage: Stage, found: list[list[Array]]) -> Floats:
        """How sure a stage is of each input."""
        kind, place = self.manifest.confidence, self.manifest.output
        logits = [as_logits(outputs[place], self.manifest.scores) for outputs in found]
        if len(logits) == 1:
            return confidence(kind, logits[0], stage.temperatures[0])
        each = zip(logits, stage.temperatures, strict=True)
        first, second = (confidence("probability", one, t) for one, t in each)
        answers = logits[0].argmax(axis=1), logits[1].argmax(axis=1)
        return agreement(answers, (first, second))


def open_file(file: Path, threads: int, providers: Sequence[str]) -> Any:
    """A file in ONNX Runtime, with the options under which studies time it.

    Raises:
        InputError: no such file, or one that it cannot open.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=list(providers))
    except Exception as error:  # the runtime's errors have no common base class
        raise InputError(f"ONNX Runtime cannot open {file}: {str(error).splitlines()[0]}") from None
