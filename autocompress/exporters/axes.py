"""Which axes of a model's inputs may be free in a file: found by exporting and trying two sizes."""

from __future__ import annotations

from typing import Any

from torch import nn

from autocompress.errors import ExportError
from autocompress.exporters.agreement import check_graph
from autocompress.exporters.onnx_graph import float_graph
from autocompress.task.dynamic import candidates, other_size
from autocompress.task.nested import take
from autocompress.techniques.fold import fold_batch_norms


def find_axes(model: nn.Module, inputs: Any) -> tuple[dict[str, dict[int, str]], list[str]]:
    """The axes that may be free, and why others are not.

    An axis is free where the model runs on another size and the exported graph, traced on the
    first, computes the same there.

    Args:
        model: in eval mode; not changed.
        inputs: of two samples at least.
    """
    found: dict[str, dict[int, str]] = {}
    notes = []
    folded = fold_batch_norms(model)
    for axes in candidates(inputs):
        label = next(name for own in axes.values() for name in own.values())
        if other_size(folded, inputs, axes) is None:
            continue  # the model itself takes one size only
        both = {name: {**found.get(name, {}), **axes.get(name, {})} for name in {**found, **axes}}
        try:
            graph = float_graph(folded, take(inputs, slice(0, 1)), dynamic=both)
            check_graph(folded, graph, inputs, dynamic=both)
        except ExportError as error:
            notes.append(f"The axis {label!r} stays fixed: {error}")
            continue
        found = both
    return found, notes
