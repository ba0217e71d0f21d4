"""Whether a runtime adds up 8-bit products in 16 bits here, so that they can overflow.

x86 processors without VNNI multiply unsigned by signed bytes and add up pairs of products with
saturation at 2^15. Weights of -127 to 127 beside activations of 0 to 255 reach past that: the file
then computes something else than the quantized model. Weights of at most 64 cannot.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autocompress.policy.settings import CompressionSettings
from autocompress.targets.base import Target

if TYPE_CHECKING:
    from autocompress.techniques.compressed import Compressed

_WIDTH = 64


def products_overflow(target: Target) -> bool:
    """Run the largest 8-bit products in a target and compare their sum with the exact one.

    Args:
        target: only ONNX files compute in integers; in others nothing can overflow.
    """
    if target.suffix != ".onnx":
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = _largest_products(Path(folder) / "largest.onnx")
        with closing(target.open(path)) as session:
            found = session.run([np.ones((1, _WIDTH), np.float32)])[0]
    return bool(np.abs(found - _WIDTH).max() > 0.01 * _WIDTH)


def overflow_problems(compressed: Compressed, overflows: bool) -> list[str]:
    """What to say of a file whose integer layers use the full range where products overflow.

    A recipe from another machine brings such a policy along. Weights of fewer bits are stored with
    8 as well, and reach as far.

    Args:
        compressed: what the file was written from.
        overflows: as ``products_overflow`` says.
    """
    full = [n for n, p in compressed.precisions.items() if p.integer and not p.reduced]
    if not overflows or not full:
        return []
    return [
        f"Sums of 8-bit products overflow on this processor, so that {len(full)} integer layers "
        "compute something else than elsewhere: accuracy may be lower. Search here with "
        "`settings.weight_range: auto`, or judge this file on the processor it is meant for."
    ]


def settled(settings: CompressionSettings, target: Target) -> CompressionSettings:
    """The settings with ``weight_range: auto`` replaced by what the target here needs."""
    if settings.weight_range != "auto":
        return settings
    chosen = "reduced" if products_overflow(target) else "full"
    return settings.model_copy(update={"weight_range": chosen})


def _largest_products(path: Path) -> Path:
    """A linear layer whose every activation is 255 (as a float, 1) and every weight 127 (1)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values = {
        "weight": np.full((_WIDTH, _WIDTH), 127, np.int8),
        "weight_scale": np.float32(1 / 127),
        "weight_zero": np.int8(0),
        "scale": np.float32(1 / 255),
        "zero": np.uint8(0),
        "out_scale": np.float32(_WIDTH / 255),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["wf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["yf"]),
        helper.make_node("QuantizeLinear", ["yf", "out_scale", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "out_scale", "zero"], ["y"]),
    ]
    shape = [1, _WIDTH]
    graph = helper.make_graph(
        nodes,
        "largest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, path)
    return path
