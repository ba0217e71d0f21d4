"""Written files are what ONNX itself calls valid, so that any runtime can open them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from measured_network import images, quantized, small

from autocompress.exporters.write import export
from autocompress.techniques.compressed import Precision


@pytest.mark.parametrize(
    "precision", [Precision(), Precision(8, 8), Precision(8, 8, "dynamic"), Precision(16, 16)]
)
def test_nodes_stand_behind_those_that_they_read(precision: Precision, tmp_path: Path) -> None:
    layers = ("first", "deep", "last", "head") if precision != Precision() else ()
    compressed = quantized(small(), dict.fromkeys(layers, precision))
    path = export(compressed, tmp_path / "model.onnx", images()).path
    graph = onnx.load(path).graph
    known = {"", *(i.name for i in graph.input), *(i.name for i in graph.initializer)}
    for node in graph.node:
        assert set(node.input) <= known, node.name
        known |= set(node.output)
