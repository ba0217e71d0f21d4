"""Float graphs that were run beside their module, whichever exporter wrote them."""

from __future__ import annotations

from typing import Any

from torch import nn

from autocompress.exporters.agreement import check_graph
from autocompress.exporters.onnx_graph import float_graph
from autocompress.task.nested import take
from autocompress.techniques.compressed import Compressed


def checked_graph(
    compressed: Compressed, folded: nn.Module, example: Any, judge: nn.Module | None = None
) -> Any:
    """The float graph of a compressed model's folded module.

    An exporter whose graph computes something else counts as one that does not take the model: the
    other one is asked.

    Args:
        compressed: says which axes are free, and which model it was.
        folded: exported.
        example: inputs, of two samples at least, see ``check_graph``.
        judge: what the graph must compute; ``folded`` unless given.

    Raises:
        ExportError: no exporter writes what the module computes.
    """
    judged = folded if judge is None else judge
    return float_graph(
        folded,
        take(example, slice(0, 1)),
        dynamic=compressed.dynamic,
        check=lambda graph: check_graph(judged, graph, example, dynamic=compressed.dynamic),
        architecture=compressed.architecture,
    )
