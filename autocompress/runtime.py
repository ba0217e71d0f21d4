"""Runs a cascade where it is used: needs numpy and onnxruntime only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.cascade.confidence import Floats, agreement, as_logits, confidence
from autocompress.cascade.manifest import MANIFEST, MANY, Manifest, Stage
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
        InputError: no cascade is there, ONNX Runtime cannot open its files, or they do not belong
            together.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        if threads is not None and (type(threads) is not int or not 1 <= threads < MANY):
            raise InputError(f"`threads` must be a whole number from 1, got {threads!r}.")
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
        self._names = [o.name for o in self._sessions[-1][0].get_outputs()]
        self._check_files()

    def get_inputs(self) -> list[Any]:
        """As of an ``InferenceSession``."""
        return list(self._sessions[0][0].get_inputs())

    def get_outputs(self) -> list[Any]:
        """As of an ``InferenceSession``."""
        return list(self._sessions[-1][0].get_outputs())

    def run(self, output_names: Sequence[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """Outputs for a batch.

        Args:
            output_names: those wanted; ``None``, or none of them, gives all.
            feed: name of each input to its array, batch first.

        Raises:
            InputError: an output that the files do not have, or what ``answer`` refuses.
        """
        unknown = set(output_names or ()) - set(self._names)
        if unknown:
            raise InputError(f"The outputs are {self._names}, got {sorted(unknown)}.")
        outputs, _ = self.answer(feed)
        if not output_names:  # as ONNX Runtime has it
            return outputs
        return [outputs[self._names.index(name)] for name in output_names]

    def answer(self, feed: Mapping[str, Array]) -> tuple[list[Array], NDArray[np.int64]]:
        """Outputs for a batch, and the stage that answered each input, ``(N,)`` from 0.

        Raises:
            InputError: inputs that the files do not take, or outputs that are not one per input.
        """
        if not isinstance(feed, Mapping):
            raise InputError(f"Inputs are given by name, as {{{self._inputs[0]!r}: array}}.")
        if set(feed) != set(self._inputs):
            raise InputError(f"The inputs are {self._inputs}, got {sorted(map(str, feed))}.")
        inputs = [np.asarray(feed[name]) for name in self._inputs]
        counts = {array.shape[:1] for array in inputs}
        if len(counts) != 1 or counts == {()}:
            shapes = {name: array.shape for name, array in zip(self._inputs, inputs, strict=True)}
            raise InputError(f"Every input is a batch of as many samples, got {shapes}.")
        return self._from(0, inputs)

    def _check_files(self) -> None:
        """Refuse files that are asked differently or answer something else."""
        inputs, outputs = _form(self._sessions[0][0])[0], _form(self._sessions[-1][0])[1]
        handed: _Form = []
        for place, stage in enumerate(self.manifest.stages):
            taken = handed if stage.takes == "features" else inputs
            for name, session in zip(stage.files, self._sessions[place], strict=True):
                found = takes, gives = _form(session)
                handed = gives[len(outputs) :]  # which the next stage may take, or leave
                if not (_fit(taken, takes) and _fit(outputs, gives[: len(outputs)])):
                    raise InputError(
                        f"{name} takes and gives {found}, but the others {taken, outputs}: they "
                        "are no files of one cascade. `autocompress cascade` writes them anew."
                    )
        if self.manifest.output >= len(self._names):
            raise InputError(
                f"`output` is {self.manifest.output}, and the files have {len(self._names)}, "
                "counted from 0."
            )

    def _from(
        self, place: int, inputs: list[Array], handed: list[Array] | None = None
    ) -> tuple[list[Array], NDArray[np.int64]]:
        """Outputs of a stage and of those after it.

        Args:
            place: of the stage.
            inputs: of the network.
            handed: features that the stage before computed of them.
        """
        stage = self.manifest.stages[place]
        # by place: files of one model take their inputs in one order
        given = handed if handed is not None and stage.takes == "features" else inputs
        found = [self._run(session, given) for session in self._sessions[place]]
        outputs, count = found[-1][: len(self._names)], len(inputs[0])
        features = found[-1][len(self._names) :]
        if stage.threshold is None:
            return outputs, np.full(count, place)
        left = ~(self._sure(stage, found) >= stage.threshold)  # NaN is handed on, too
        if not left.any():
            return outputs, np.full(count, place)
        if left.all():
            return self._from(place + 1, inputs, features)
        rest = [array[left] for array in inputs]
        later, places = self._from(place + 1, rest, [array[left] for array in features])
        answered = np.full(count, place)
        answered[left] = places
        merged = [np.array(output) for output in outputs]
        for output, found_later in zip(merged, later, strict=True):
            if output.shape[1:] != found_later.shape[1:]:  # what numpy would spread over all
                raise InputError(
                    f"Stages answer one batch in the shapes {output.shape[1:]} and "
                    f"{found_later.shape[1:]} an input: they are no files of one cascade. "
                    "`autocompress cascade` writes them anew."
                )
            output[left] = found_later
        return merged, answered

    @staticmethod
    def _run(session: Any, inputs: list[Array]) -> list[Array]:
        names = (i.name for i in session.get_inputs())
        try:
            found = list(session.run(None, dict(zip(names, inputs, strict=True))))
        except Exception as error:  # the runtime's errors have no common base class
            told = " ".join(str(error).split())
            raise InputError(f"ONNX Runtime cannot run on these inputs: {told}") from None
        shapes = [output.shape for output in found]
        if any(shape[:1] != (len(inputs[0]),) for shape in shapes):
            raise InputError(
                f"{len(inputs[0])} inputs are answered in the shapes {shapes}: a cascade needs "
                "files that answer each input by itself, in its row."
            )
        return found

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


_Form = list[tuple[str, list[Any]]]


def _form(session: Any) -> tuple[_Form, _Form]:
    """Element type and shape of each input, and of each output."""
    both = session.get_inputs(), session.get_outputs()
    inputs, outputs = ([(part.type, list(part.shape)) for part in parts] for parts in both)
    return inputs, outputs


def _fit(one: _Form, other: _Form) -> bool:
    """Whether what two files take, or give, may be the same; axes may be free."""
    if [kind for kind, _ in one] != [kind for kind, _ in other]:
        return False
    shapes = [(a, b) for (_, a), (_, b) in zip(one, other, strict=True)]
    return all(
        len(a) == len(b)
        and all(m == n for m, n in zip(a, b, strict=True) if type(m) is type(n) is int)
        for a, b in shapes
    )


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
