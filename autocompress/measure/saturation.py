"""Whether a runtime adds up 8-bit products in 16 bits here, so that they can overflow.

x86 processors without VNNI multiply unsigned by signed bytes and add up pairs of products with
saturation at 2^15. Weights of -127 to 127 beside activations of 0 to 255 reach past that: the file
then computes something else than the quantized model. Weights of at most 64 cannot.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autocompress.machine.scratch import scratch_folder
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
    with scratch_folder("saturation") as folder:
        path = _largest_products(folder / "largest.onnx")
        with closing(target.open(path)) as session:
            found = session.run([np.ones((1, _WIDTH), np.float32)])[0]
    return bool(np.abs(found - _WIDTH).max() > 0.01 * _WIDTH)


def overflow_problems(compressed: Compressed, overflows: bool) -> list[str]:
    """What to say of a file whose integer layers use the full range where products overflow.

    A recipe from another machine brings such a policy along.

    Args:
        compressed: what the file was written from.
        overflows: as ``products_overflow`` says.
    """
    chosen = compressed.precisions.items()
    full = [n for n, p in chosen if p.integer and p.weight_bits == 8 and not p.reduced]
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


_LARGEST = f"""
<ir_version: 10, opset_import: ["": 18]>
largest (float[1, {_WIDTH}] x) => (float[1, {_WIDTH}] y) {{
    xq = QuantizeLinear(x, scale, zero)
    xf = DequantizeLinear(xq, scale, zero)
    wf = DequantizeLinear(weight, weight_scale, weight_zero)
    yf = MatMul(xf, wf)
    yq = QuantizeLinear(yf, out_scale, zero)
    y = DequantizeLinear(yq, out_scale, zero)
}}
"""
"""A linear layer whose every activation is 255 (as a float, 1) and every weight 127 (1)."""


def _largest_products(path: Path) -> Path:
    import onnx
    from onnx import numpy_helper

    values = {
        "weight": np.full((_WIDTH, _WIDTH), 127, np.int8),
        "weight_scale": np.float32(1 / 127),
        "weight_zero": np.int8(0),
        "scale": np.float32(1 / 255),
        "zero": np.uint8(0),
        "out_scale": np.float32(_WIDTH / 255),
    }
    model = onnx.parser.parse_model(_LARGEST)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    model.graph.initializer.extend(tensors)
    onnx.save(model, path)
    return path
