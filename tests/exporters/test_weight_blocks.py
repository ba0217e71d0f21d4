"""Weights with a scale per block: rounding, packing, files and their kernels.

The oracles are numpy, which unpacks what a file holds byte by byte, and ONNX Runtime.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from file_checks import check_file
from torch import Tensor, nn

from autocompress.build.calibrate import calibrate
from autocompress.errors import ExportError, InputError, PolicyError
from autocompress.exporters.onnx_blocks import pack
from autocompress.exporters.write import export
from autocompress.model.cost import layer_cost
from autocompress.model.inventory import take_inventory
from autocompress.model.shapes import resolver
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import get_target
from autocompress.targets.base import unsupported
from autocompress.targets.open_vino import OpenVinoTarget
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.gptq import gptq_round
from autocompress.techniques.quantize import round_weight, simulate

BITS = (2, 3, 4)


class Encoder(nn.Module):
    """Layers on two and three axes, with and without a bias, and attention; 40 inputs are no whole
    number of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bare = nn.Linear(40, 48), nn.Linear(48, 48, bias=False)
        self.odd = nn.MultiheadAttention(48, 4, batch_first=True)
        self.last = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = x + self.odd(x, x, x, need_weights=False)[0]
        return self.last(torch.tanh(self.bare(x)).mean(1))


LAYERS = ("first", "bare", "odd", "last")


def made(precision: Precision, layers: tuple[str, ...] = LAYERS, **settings: object) -> Compressed:
    torch.manual_seed(0)
    model, given = Encoder().eval(), CompressionSettings.model_validate(settings)
    layer = LayerPolicy(
        weight_bits=precision.weight_bits,
        activation_bits=precision.activation_bits,
        weight_block=precision.block,
    )
    policy = Policy(dict.fromkeys(layers, layer))
    compressed = Compressed(model, policy, given, precisions=dict.fromkeys(layers, precision))
    return calibrate(compressed, inputs(96))


def inputs(count: int, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 7, 40, generator=draw)


def run(path: Path, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return found


def rounded_by_hand(rows: np.ndarray, bits: int, block: int) -> np.ndarray:
    out = np.zeros_like(rows)
    for row in range(len(rows)):
        for begin in range(0, rows.shape[1], block):
            own = rows[row, begin : begin + block]
            scale = np.abs(own).max() / (2 ** (bits - 1) - 1)
            out[row, begin : begin + block] = np.round(own / scale) * scale
    return out


def unpacked(packed: np.ndarray, scales: np.ndarray, bits: int, inputs: int) -> np.ndarray:
    """What the operator's documentation says that its bytes stand for, value by value."""
    out = np.zeros((len(packed), inputs), np.float32)
    for row in range(len(packed)):
        for column in range(inputs):
            block, place = divmod(column, packed.shape[2] * 8 // bits)
            byte = int(packed[row, block, place * bits // 8])
            code = (byte >> (place * bits % 8)) & (2**bits - 1)
            out[row, column] = (code - 2 ** (bits - 1)) * scales[row, block]
    return out


@pytest.mark.parametrize(("bits", "width"), [(2, 2), (2, 4), (3, 4), (4, 4), (8, 8)])
@pytest.mark.parametrize("shape", [(5, 64), (3, 40), (4, 7)])
def test_blocks_are_rounded_and_packed_as_by_hand(
    bits: int, width: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(bits)
    weight, block = torch.randn(shape), 16
    wanted = rounded_by_hand(weight.numpy(), bits, block)
    rounded = round_weight(weight, bits, block=block)
    np.testing.assert_allclose(rounded.numpy(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(round_weight(rounded, bits, block=block), rounded)
    packed, scales = pack(weight.numpy(), bits, block, width)
    assert packed.shape == (shape[0], -(-shape[1] // block), block * width // 8)
    found = unpacked(packed, scales, width, shape[1])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_one_block_for_a_row_is_a_scale_for_a_channel(bits: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 32), torch.randn(100, 32) @ torch.randn(32, 32)
    moments = x.T @ x / len(x)
    assert torch.equal(round_weight(weight, bits, block=32), round_weight(weight, bits))
    assert torch.equal(round_weight(weight, bits, block=64), round_weight(weight, bits))
    blocks, whole = (gptq_round(weight, moments, bits, block=size) for size in (32, 0))
    rows = (blocks == whole).all(1)  # the others are rounded plainly, which is better there
    assert rows.sum() >= 5
    assert torch.equal(blocks[~rows], round_weight(weight, bits)[~rows])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("seed", range(4))
def test_compensated_blocks_are_no_worse_than_plain_ones(bits: int, block: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(12, 72) * torch.rand(1, 72)
    x = torch.randn(300, 72) @ torch.randn(72, 72) * torch.rand(72).pow(2)
    moments = x.T @ x / len(x)
    zeros = torch.rand(12, 72) < 0.3 if seed % 2 else None
    if zeros is not None:
        weight[zeros] = 0
    rounded = gptq_round(weight, moments, bits, block=block, zeros=zeros)
    # on the grid, whose scales can be read off
    torch.testing.assert_close(round_weight(rounded, bits, block=block), rounded)
    if zeros is not None:
        assert (rounded[zeros] == 0).all()

    def error(found: Tensor) -> Tensor:
        return (x @ (found - weight).T).square().mean(0)

    plain = error(round_weight(weight, bits, block=block))
    assert (error(rounded) <= plain * 1.0001).all()
    assert error(rounded).sum() < 0.8 * plain.sum()


@pytest.mark.parametrize("inputs", [1, 6, 16, 24, 33, 64, 96, 128, 130, 200, 384, 1000])
def test_rows_of_one_scale_are_packed_in_the_fewest_bytes(inputs: int) -> None:
    """Of what the blocks that the kernel knows really take; a row's scale stands in every block."""
    rows = torch.randn(3, inputs, generator=torch.Generator().manual_seed(inputs)).numpy()
    packed, scales = pack(rows, 4, 0)
    every = [sum(part.nbytes for part in pack(rows, 4, block)) for block in (16, 32, 64, 128)]
    assert packed.nbytes + scales.nbytes == min(every)
    assert (scales == scales[:, :1]).all()


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(
    ("bits", "block"), [(2, 16), (3, 32), (4, 16), (4, 32), (4, 128), (2, 0), (4, 0)]
)
def test_the_file_computes_what_is_simulated(
    bits: int, block: int, rounding: str, tmp_path: Path
) -> None:
    compressed = made(Precision(bits, block=block), weight_rounding=rounding)
    path = export(compressed, tmp_path / "m.onnx", inputs(2)).path
    fresh = inputs(20, seed=2)
    with torch.no_grad():
        wanted, real = simulate(compressed)(fresh), compressed.module(fresh)
    np.testing.assert_allclose(run(path, fresh), wanted.numpy(), rtol=1e-4, atol=1e-5)
    # there is something to simulate
    assert not np.allclose(wanted.numpy(), real.numpy(), rtol=1e-3, atol=1e-4)
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops.count("MatMulNBits") == 5  # attention has two matrices
    assert "DequantizeLinear" not in ops
    assert check_file(get_target("onnxruntime"), path, compressed) == []


def test_blocks_stand_beside_integers_and_halves(tmp_path: Path) -> None:
    policies = {
        "first": Precision(8, 8, reduced=True),
        "odd": Precision(4, block=16),
        "bare": Precision(16, 16),
        "last": Precision(4, block=32),
    }
    compressed = replace(made(Precision(4, block=16)), precisions=policies)
    compressed = calibrate(compressed, inputs(96))
    path = export(compressed, tmp_path / "m.onnx", inputs(2)).path
    fresh = inputs(20, seed=2)
    with torch.no_grad():
        wanted = simulate(compressed)(fresh).numpy()
    assert np.abs(run(path, fresh) - wanted).max() < 0.05 * np.abs(wanted).max()


def test_the_gate_misses_a_kernel_that_keeps_weights_packed(tmp_path: Path) -> None:
    """The file holds floats, the policy promises blocks."""
    compressed = made(Precision(4, block=32))
    plain = replace(compressed, precisions={})
    path = export(plain, tmp_path / "m.onnx", inputs(2)).path
    (problem,) = check_file(get_target("onnxruntime"), path, compressed)
    assert "stay packed" in problem
    assert "first" in problem


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("block", [16, 32])
def test_the_formula_counts_the_bytes_of_the_file(bits: int, block: int, tmp_path: Path) -> None:
    compressed = made(Precision(bits, block=block), ("first", "bare", "last"))
    path = export(compressed, tmp_path / "m.onnx", inputs(2)).path
    held = onnx.load(path).graph.initializer
    stored = sum(len(i.raw_data) for i in held if i.name.endswith(("_packed", "_scales")))
    inventory = take_inventory(compressed.module, inputs(2))
    shapes = resolver(inventory, CompressionSettings()).layers(compressed.policy)
    biases = {"first": 48, "bare": 0, "last": 3}
    counted = sum(
        layer_cost(s).size_bytes - 4 * biases[s.layer.name]
        for s in shapes
        if s.layer.name in biases
    )
    assert counted == stored


def test_what_cannot_be_in_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="weight_block"):
        LayerPolicy(weight_bits=8, activation_bits=8, weight_block=32)
    for bits in (8, 32):
        with pytest.raises(PolicyError, match="weight_block"):
            LayerPolicy(weight_bits=bits, weight_block=32)
    with pytest.raises(PolicyError, match="one of 0, 16"):
        LayerPolicy(weight_bits=4, weight_block=24)
    policy = LayerPolicy(weight_bits=4, weight_block=32)
    assert "files of openvino" in unsupported(OpenVinoTarget, [policy])
    assert unsupported(type(get_target("onnxruntime")), [policy]) == ""

    class Without(type(get_target("onnxruntime"))):  # type: ignore[misc]  # its class is found at run time
        weight_blocks = False

    compressed = made(Precision(4, block=32))
    with pytest.raises(InputError, match="weight_block: 0"):
        Without(get_target("onnxruntime").config).export(compressed, tmp_path / "m.onnx", inputs(2))
    convolution = nn.Sequential(nn.Conv2d(16, 4, 1))
    precisions = {"0": Precision(4, block=16)}
    wrong = Compressed(convolution, Policy(), CompressionSettings(), precisions=precisions)
    with pytest.raises(ExportError, match="weight_block: 0"):
        export(wrong, tmp_path / "c.onnx", torch.randn(2, 16, 5, 5))


def test_the_kernel_is_the_runtimes_own(tmp_path: Path) -> None:
    compressed = made(Precision(4, block=32))
    path = export(compressed, tmp_path / "m.onnx", inputs(2)).path
    with closing(get_target("onnxruntime").open(path)) as session:
        ops = {node.op for node in session.profile([inputs(1).numpy()], runs=2).nodes}
    assert "MatMulNBits" in ops
    assert not ops & {"Gemm", "DequantizeLinear"}
