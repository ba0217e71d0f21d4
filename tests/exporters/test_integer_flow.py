"""What lies between integer layers: paddings, data movement and activations stay on integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from autocompress.exporters.onnx_pads import fold_padding

PADDED = """
<ir_version: 10, opset_import: ["": 18]>
padded (float[2, 3, 9, 7] x) => (float[N, C, H, W] y) {{
    p = Pad{mode}(x, widths{fill})
    y = {reader}
}}
"""
CONV = "Conv<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1]>(p, weight)"
POOL = "AveragePool<kernel_shape=[3, 3]{more}>(p)"
AROUND = [0, 0, 0, 1, 0, 0, 1, 2]


def padded(
    reader: str, widths: list[int], mode: str = "", fill: float | None = 0.0
) -> onnx.ModelProto:
    given = "" if fill is None else ", value"
    text = PADDED.format(reader=reader, mode=mode, fill=given)
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    values = {"widths": np.array(widths), "weight": weight, "value": np.float32(fill or 0.0)}
    used = {i for n in model.graph.node for i in n.input}
    for name in used & set(values):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values[name]), name))
    return model


def answer(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize(
    ("reader", "widths", "mode", "fill", "folds"),
    [
        (CONV, AROUND, "", 0.0, True),
        (CONV, AROUND, "", None, True),
        (CONV, AROUND, '<mode="constant">', 0.0, True),
        (POOL.format(more=""), AROUND, "", 0.0, True),
        (
            POOL.format(more=", pads=[1, 1, 1, 1], count_include_pad=1"),
            [0] * 7 + [1],
            "",
            0.0,
            True,
        ),
        (POOL.format(more=", pads=[1, 1, 1, 1]"), [0] * 7 + [1], "", 0.0, False),
        (POOL.format(more=", strides=[2, 2], ceil_mode=1"), AROUND, "", 0.0, False),
        (POOL.format(more=""), [0, 0, 3, 0, 0, 0, 0, 0], "", 0.0, False),
        ("MaxPool<kernel_shape=[3, 3]>(p)", AROUND, "", 0.0, False),
        (CONV, AROUND, "", 1.0, False),
        (CONV, AROUND, '<mode="edge">', None, False),
        (CONV, [0, 0, 0, -1, 0, 0, 1, 0], "", 0.0, False),
        ("Relu(p)", [0, 1, 0, 0, 0, 0, 0, 0], "", 0.0, False),
    ],
)
def test_zeros_around_images_become_the_readers_own(
    reader: str, widths: list[int], mode: str, fill: float | None, folds: bool
) -> None:
    model = padded(reader, widths, mode, fill)
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 7)).astype(np.float32)
    wanted = answer(model, x=x)
    fold_padding(model)
    assert any(n.op_type == "Pad" for n in model.graph.node) is not folds
    np.testing.assert_array_equal(answer(model, x=x), wanted)


def test_a_pad_that_others_read_as_well_stays_for_them() -> None:
    model = padded("Relu(c)", AROUND)
    conv = onnx.parser.parse_model(PADDED.format(reader=CONV, mode="", fill="")).graph.node[1]
    conv.output[0] = "c"
    model.graph.node.insert(1, conv)
    model.graph.node[2].input[0] = "p"
    weight = np.ones((4, 3, 3, 3), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    fold_padding(model)
    assert [n.op_type for n in model.graph.node] == ["Pad", "Conv", "Relu"]
    assert [n.input[0] for n in model.graph.node] == ["x", "x", "p"]
