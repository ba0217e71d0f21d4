"""Whether an exported graph computes what its module computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from autocompress.errors import ExportError
from autocompress.task.calling import call, input_names, output_names
from autocompress.task.dynamic import Axes, other_size, sizes_of
from autocompress.task.nested import named_tensors, tensors


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
        ExportError: the graph takes other inputs, or an output differs.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for inputs in examples(module, example, dynamic or {}):
        compare(session, module, inputs)


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


@torch.no_grad()
def compare(session: Any, module: nn.Module, example: Any) -> None:
    """The same for one batch of inputs and an opened session.

    Args:
        session: ``onnxruntime.InferenceSession``; outputs beside the model's are not looked at.
        module, example: as in ``check_graph``.
    """
    answer = call(module, example)
    names = output_names(answer, input_names(example))
    arrays = [part.numpy(force=True) for part in tensors(example)]
    feed = dict(zip([i.name for i in session.get_inputs()], arrays, strict=True))
    try:
        found = session.run(names, feed)
    except Exception as error:  # the runtime's errors have no common base class
        shapes = {name: tuple(part.shape) for name, part in named_tensors(example)}
        raise ExportError(
            f"The exported graph does not run on inputs of {shapes}, which the module takes: "
            f"{str(error).splitlines()[0]} A size may have become a constant of the file: leave "
            "that axis fixed, or give the model sizes that it computes from its input."
        ) from error
    for name, array, tensor in zip(names, found, tensors(answer), strict=True):
        wanted = tensor.numpy(force=True)
        near = array.shape == wanted.shape and _near(array, wanted)
        if not near:
            gap = "its shape" if array.shape != wanted.shape else f"up to {_gap(array, wanted):.3g}"
            raise ExportError(
                "The exported file must compute what the module computes; its output "
                f"{name!r} differs by {gap}. The model may branch on its input, which a file "
                "cannot."
            )


def _near(found: Any, wanted: Any) -> bool:
    if wanted.dtype.kind != "f":
        return bool((found == wanted).all())
    scale = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)))
    return bool(np.allclose(found, wanted, rtol=1e-3, atol=1e-3 * scale, equal_nan=True))


def _gap(found: Any, wanted: Any) -> float:
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max())
