"""Parts of files put together again are the files; heads read what they are said to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from autocompress.cascade.heads import LinearHead
from autocompress.exporters.onnx_parts import Parts


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Net(nn.Module):
    """Blocks in a row; ``skip``: the last reads what the first read, so that nothing is single."""

    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        self.skip = skip
        self.stem = nn.Conv2d(3, 6, 3, padding=1, stride=2)
        self.blocks = nn.ModuleList(Residual(6) for _ in range(2))
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.relu(self.stem(x))
        found = stem
        for block in self.blocks:
            found = block(found)
        found = found + stem if self.skip else found
        return self.linear(found.mean((2, 3)))


def exported(model: nn.Module, path: Path, example: Tensor) -> Any:
    torch.onnx.export(
        model.eval(),
        (example,),
        str(path),
        dynamo=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        opset_version=18,
    )
    return onnx.load(str(path))


def quantized(model: Any, path: Path, inputs: np.ndarray) -> Any:
    """The same in 8 bits, by ONNX Runtime's own tool."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{"input": inputs}])

        def get_next(self) -> Any:
            return next(self.rows, None)

    onnx.save(model, str(path))
    quantize_static(str(path), str(path), Reader(), quant_format=QuantFormat.QDQ)
    return onnx.load(str(path))


def run(model: Any, given: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: given})


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((9, 3, 14, 14)).astype(np.float32)


@pytest.fixture(params=["float", "8 bits"])
def model(request: pytest.FixtureRequest, tmp_path: Path, inputs: np.ndarray) -> Any:
    torch.manual_seed(0)
    made = exported(Net(), tmp_path / "net.onnx", torch.from_numpy(inputs[:2]))
    return made if request.param == "float" else quantized(made, tmp_path / "q.onnx", inputs)


def drawn(features: int) -> LinearHead:
    rng = np.random.default_rng(1)
    return LinearHead(rng.standard_normal((features, 5)), rng.standard_normal(5))


def test_a_beginning_and_the_rest_answer_as_the_whole(model: Any, inputs: np.ndarray) -> None:
    parts, (whole,) = Parts(model), run(model, inputs)
    cuts = parts.cuts()
    assert len(cuts) >= 3  # the stem and two blocks
    for cut in cuts:
        _, features = run(parts.part(None, cut.tensor, drawn(cut.features)), inputs)
        (answer,) = run(parts.part(cut.tensor, None), features)
        np.testing.assert_allclose(answer, whole, rtol=1e-5, atol=1e-6)
    first, second = cuts[:2]
    _, features = run(parts.part(None, first.tensor, drawn(first.features)), inputs)
    head = drawn(second.features)
    middle = run(parts.part(first.tensor, second.tensor, head), features)
    whole_way = run(parts.part(None, second.tensor, head), inputs)
    for one, other in zip(middle, whole_way, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_eight_bit_files_are_cut_at_bytes(tmp_path: Path, inputs: np.ndarray) -> None:
    """A float tensor between integer kernels would end them on both sides."""
    made = exported(Net(), tmp_path / "net.onnx", torch.from_numpy(inputs[:2]))
    parts = Parts(quantized(made, tmp_path / "q.onnx", inputs))
    for cut in parts.cuts():
        handed = parts.part(None, cut.tensor, drawn(cut.features)).graph.output[-1]
        assert handed.type.tensor_type.elem_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)


def test_a_head_answers_what_numpy_says(model: Any, inputs: np.ndarray) -> None:
    parts = Parts(model)
    for cut in parts.cuts():
        head = drawn(cut.features)
        answer, features = run(parts.part(None, cut.tensor, head), inputs)
        (probed,) = run(parts.probes([cut.tensor]), inputs)[1:]
        assert probed.shape == (len(inputs), cut.features)
        if features.dtype == np.float32 and features.ndim == 4:
            # torch's adaptive pooling where its windows are all of one size
            size, grid = features.shape[2], round((cut.features / features.shape[1]) ** 0.5)
            step = size // grid
            kernel = size - step * (grid - 1)
            pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(features), kernel, step)
            np.testing.assert_allclose(probed, pooled.flatten(1).numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(answer, probed @ head.weight + head.bias, rtol=1e-4, atol=1e-4)


def test_the_share_is_that_of_the_multiply_adds(tmp_path: Path, inputs: np.ndarray) -> None:
    parts = Parts(exported(Net(), tmp_path / "net.onnx", torch.from_numpy(inputs[:2])))
    stem, conv = 7 * 7 * 6 * 3 * 9, 7 * 7 * 6 * 6 * 9
    total = stem + 4 * conv + 6 * 5
    shares = [cut.share for cut in parts.cuts()]
    assert shares[:3] == pytest.approx([stem / total, (stem + 2 * conv) / total, 1 - 30 / total])


def test_where_several_tensors_flow_on_there_is_no_cut(tmp_path: Path, inputs: np.ndarray) -> None:
    parts = Parts(exported(Net(skip=True), tmp_path / "net.onnx", torch.from_numpy(inputs[:2])))
    places = [cut.share for cut in parts.cuts()]
    assert len(places) == 2  # after the stem, and before the last layer
    assert places[0] < 0.2
    assert places[1] > 0.9
