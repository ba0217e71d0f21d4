"""Every kind of layer in its file: integers where the runtime has kernels, else small weights."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from file_checks import check_file
from kinds import fitting, kind

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import get_target
from autocompress.targets.profile import KernelClass
from autocompress.task.data import Split
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import simulate

SETTINGS = CompressionSettings(calibration_images=32, importance="l1")
FILES = (
    "transposed 1d",
    "transposed 2d",
    "transposed 3d",
    "transposed in groups",
    "volume",
    "words",
)


@cache
def bank_of(name: str) -> LayerBank:
    model, inputs = kind(name), fitting(name, 32)
    inventory = take_inventory(model, inputs[:1])
    return LayerBank.build(model, inventory, Split(inputs, torch.arange(32) % 5), SETTINGS)


def made(name: str, **fields: object) -> Compressed:
    bank = bank_of(name)
    own = LayerPolicy.from_dict(fields)
    policy = Policy({layer.name: own for layer in bank.inventory.layers})
    return calibrate(bank.stitch(policy), fitting(name, 32))


def answers(path: Path, name: str) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": fitting(name, 8).numpy()})[0])


@pytest.mark.parametrize("scaling", ["static", "dynamic"])
@pytest.mark.parametrize("name", FILES)
def test_layers_are_integer_where_the_runtime_has_kernels(
    name: str, scaling: str, tmp_path: Path
) -> None:
    compressed = made(name, weight_bits=8, activation_bits=8, activation_scaling=scaling)
    path = export(compressed, tmp_path / "m.onnx", fitting(name, 1)).path
    target = get_target("onnxruntime")
    with closing(target.open(path)) as session:
        nodes = session.profile([fitting(name, 1).numpy()], runs=1).nodes
    kernels = Counter(target.classify(node) for node in nodes)
    layers = bank_of(name).inventory.layers
    assert kernels[KernelClass.INTEGER] == sum(layer.integer for layer in layers)
    assert kernels[KernelClass.FLOAT] == sum(layer.kind == "conv_transpose" for layer in layers)
    assert check_file(target, path, compressed) == []
    with torch.no_grad():
        wanted = simulate(compressed)(fitting(name, 8)).numpy()
    found = answers(path, name)
    cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert cosine > 0.995


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("name", FILES)
def test_small_weights_are_those_of_the_simulation(name: str, bits: int, tmp_path: Path) -> None:
    compressed = made(name, weight_bits=bits)
    written = export(compressed, tmp_path / "m.onnx", fitting(name, 1))
    with torch.no_grad():
        wanted = simulate(compressed)(fitting(name, 8)).numpy()
    np.testing.assert_allclose(answers(written.path, name), wanted, rtol=1e-3, atol=1e-4)
    if bits != 3:  # three bits take four in a file
        formula = policy_cost(bank_of(name).inventory, compressed.policy, SETTINGS).size_bytes
        assert abs(written.size_bytes - formula) < 4000


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_is_rounded_row_by_row(bits: int) -> None:
    compressed = made("words", weight_bits=bits)
    table, small = bank_of("words").model.table.weight, simulate(compressed).table
    rows = torch.arange(300)
    with torch.no_grad():
        step = table.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((small(rows) - table).abs() <= step / 2 * 1.001).all()


def test_half_precision_tables_run(tmp_path: Path) -> None:
    compressed = made("words", weight_bits=16, activation_bits=16)
    path = export(compressed, tmp_path / "m.onnx", fitting("words", 1)).path
    with torch.no_grad():
        wanted = simulate(compressed)(fitting("words", 8)).numpy()
    np.testing.assert_allclose(answers(path, "words"), wanted, rtol=1e-2, atol=1e-2)
