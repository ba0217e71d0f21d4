"""Whether an exported file computes what its module computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import ExportError, explained
from autocompress.task.calling import call, input_names, output_names
from autocompress.task.choices import other_values, reads_values
from autocompress.task.compared import TOLERANCES, difference
from autocompress.task.dynamic import Axes, other_size, sizes_of
from autocompress.task.nested import named_tensors, tensors

RunFile = Callable[[list[str], list[Tensor]], Sequence[Any]]
"""From names of outputs and the tensors of an input to these outputs, as arrays."""


TOLERANCE = TOLERANCES[torch.float32]
LEAST = 1e-2
"""Values below count as this large: what rounding leaves of numbers that cancel."""

_VALUES = (
    "The model may branch on its input, or on whether it is being exported, or read values as "
    "Python numbers (`tolist`, `item`, numpy), which a file cannot: compute with tensors alone, "
    "both ways, and choose by `torch.where`, or export the part that does not choose."
)
_SIZES = (
    "A size may have become a constant of the file. If it is that of a free axis (`dynamic`), "
    "leave the axis fixed; otherwise take it from a tensor as it is (`x.shape[0]`, without `int`), "
    "and compute all samples at once, without a loop over them."
)


class Unsteady(ExportError):
    """The module answers the same input differently from run to run: no file can be it."""


@torch.no_grad()
def check_graph(
    module: nn.Module, graph: Any, example: Any, *, dynamic: Axes | None = None
) -> None:
    """Run a float graph beside the module.

    Args:
        module: in eval mode.
        graph: ``onnx.ModelProto`` with canonical names.
        example: inputs of the module, of at least two samples, so that what was taken for a
            constant is found.
        dynamic: free axes beside the batch; the graph is then run on another size as well.

    Raises:
        ExportError: the graph takes other inputs, lacks an output, or an output differs.
        Unsteady: the module itself differs from run to run.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it would print is raised as well
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's errors have no common base class
        raise ExportError(
            f"onnxruntime {ort.__version__} does not open the exported graph: {error}. A newer one "
            "may (`pip install --upgrade onnxruntime`); or let torch run the model: "
            "`target: {runtime: torch}`."
        ) from error
    held = {o.name for o in session.get_outputs()}

    def run(names: list[str], parts: list[Tensor]) -> Sequence[Any]:
        missing = [name for name in names if name not in held]
        if missing:
            raise ExportError(
                f"The exported graph lacks the outputs {missing}, which the model answers. The "
                "exporter leaves out what no input leads to: drop it from the answer, or compute "
                "it from an input."
            )
        arrays = [part.numpy(force=True) for part in parts]
        feed = dict(zip([i.name for i in session.get_inputs()], arrays, strict=True))
        return session.run(names, feed)

    for inputs in examples(module, example, dynamic or {}):
        compare(run, module, inputs)
    if reads_values(module, example):
        for inputs in other_values(example):
            if _takes(module, inputs):
                compare(run, module, inputs)


def _takes(module: nn.Module, inputs: Any) -> bool:
    """Whether a module gives finite numbers for values that nobody gave it."""
    try:
        return all(bool(part.isfinite().all()) for part in tensors(call(module, inputs)))
    except Exception:  # forwards raise whatever they do
        return False


@torch.no_grad()
def check_program(
    module: nn.Module, program: Any, example: Any, *, dynamic: Axes | None = None
) -> None:
    """Run an exported program of torch beside the module; see ``check_graph``.

    Args:
        module: in eval mode.
        program: ``torch.export.ExportedProgram``.
        example, dynamic: as in ``check_graph``.

    Raises:
        ExportError: the program does not take these inputs, or an output differs.
    """
    exported = program.module()

    def run(names: list[str], parts: list[Tensor]) -> Sequence[Any]:
        return [part.numpy(force=True) for part in tensors(exported(*parts))]

    for inputs in examples(module, example, dynamic or {}):
        compare(run, module, inputs)


def examples(module: nn.Module, example: Any, dynamic: Axes) -> list[Any]:
    """Inputs to check a file on: as given, and in another size where axes are free.

    Raises:
        ExportError: the model takes no other size.
    """
    if not dynamic:
        return [example]
    other = other_size(module, example, dynamic)
    if other is None:
        raise ExportError(
            f"The axes {sorted(sizes_of(example, dynamic))} are to be free, but the model takes "
            "neither half nor twice the size that the data have. Leave them out of `dynamic`."
        )
    return [example, other]


def compare(run: RunFile, module: nn.Module, example: Any) -> None:
    """The same for one batch of inputs and an opened file.

    Args:
        run: the file.
        module, example: as in ``check_graph``.
    """
    answer = call(module, example)
    names = output_names(answer, input_names(example))
    try:
        found = run(names, tensors(example))
    except ExportError:
        raise
    except Exception as error:  # the runtimes' errors have no common base class
        shapes = {name: tuple(part.shape) for name, part in named_tensors(example)}
        raise ExportError(
            f"The exported file does not run on inputs of {shapes}, which the module takes: "
            f"{explained(error)}. {_SIZES}"
        ) from error
    different = differing(names, found, answer)
    if different:
        _check_steady(module, example, names, answer)
        sized = [tuple(a.shape) for a in found] == [tuple(t.shape) for t in tensors(answer)]
        raise ExportError(
            f"The exported file must compute what the module computes; its output {different}. "
            f"{_VALUES if sized else _SIZES}"
        )


def differing(names: Sequence[str], found: Sequence[Any], answer: Any) -> str:
    """Which output is not the answer's, and by how much; an empty text where all are.

    Args:
        names: of the outputs.
        found: arrays.
        answer: of the module.
    """
    for name, array, tensor in zip(names, found, tensors(answer), strict=True):
        off = difference([torch.as_tensor(np.asarray(array))], [tensor.cpu()], TOLERANCE, LEAST)
        if off:
            return f"{name!r} differs: {off}"
    return ""


def _check_steady(module: nn.Module, example: Any, names: list[str], answer: Any) -> None:
    again = [part.numpy(force=True) for part in tensors(call(module, example))]
    different = differing(names, again, answer)
    if different:
        raise Unsteady(
            "A file answers the same input in the same way each time, and so must the model: from "
            f"one run to the next its output {different}. It draws random numbers (noise, dropout) "
            "or keeps a state in eval mode: switch that off, for example by `if self.training`."
        )
