"""Networks of the kinds that people report: low rank, 8 bits, the file beside the simulation."""

from __future__ import annotations

import random
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from field_networks import CASES
from small_networks import enliven
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.model.cost import count_macs, policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.model.prepare import prepare
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.calling import call, call_flat, input_names, output_names
from autocompress.task.nested import map_tensors, tensors
from autocompress.task.split import Split
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import simulate

SETTINGS = CompressionSettings(calibration_images=8, importance="l1", prune_residual=True)


def batch(name: str) -> Any:
    """Eight samples."""
    return map_tensors(lambda x: torch.cat([x, x])[:8], CASES[name][1])


@cache
def bank_of(name: str) -> LayerBank:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the old weight norm
        model = prepare(enliven(CASES[name][0]())).model
    inventory = take_inventory(model, map_tensors(lambda x: x[:2], batch(name)))
    return LayerBank.build(model, inventory, Split(batch(name), torch.arange(8) % 5), SETTINGS)


def policy(bank: LayerBank, technique: str, **fields: Any) -> Policy:
    """The same for every layer that can take it, half of the channels of some groups gone."""
    draw = random.Random(technique)
    ratios = {p: draw.choice([0.0, 0.5]) for g in bank.inventory.channel_groups for p in [g.name]}
    group = {p: g.name for g in bank.inventory.channel_groups for p in g.producers}
    return Policy(
        {
            layer.name: LayerPolicy(
                prune_ratio=ratios.get(group.get(layer.name, ""), 0.0),
                **({} if layer.why_not(technique) else fields),
            )
            for layer in bank.inventory.layers
        }
    )


def of_file(made: Compressed, name: str, path: Path) -> list[np.ndarray]:
    """What the exported file answers, its outputs in the model's order."""
    inputs = batch(name)
    written = export(made, path, inputs)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(written.path, options, providers=["CPUExecutionProvider"])
    names = input_names(inputs)
    feed = {n: x.numpy() for n, x in zip(names, tensors(inputs), strict=True)}
    with torch.no_grad():
        wanted = output_names(call(made.module, inputs), names)
    return [np.asarray(array) for array in session.run(wanted, feed)]


def simulated(made: Compressed, name: str) -> list[Tensor]:
    with torch.no_grad():
        return call_flat(simulate(made), batch(name))


@pytest.mark.parametrize("name", CASES)
def test_low_rank_is_smaller_as_counted_and_as_its_file(name: str, tmp_path: Path) -> None:
    bank = bank_of(name)
    asked = policy(bank, "low-rank", rank_ratio=0.5)
    made = bank.stitch(asked)
    cost = policy_cost(bank.inventory, asked, bank.settings)
    counted = {
        layer: macs
        for layer, macs in count_macs(made.module, batch(name)).per_layer.items()
        if isinstance(made.module.get_submodule(layer), nn.Linear | nn.modules.conv._ConvNd)
    }
    assert sum(counted.values()) == cost.macs
    found = of_file(made, name, tmp_path / "m.onnx")
    for one, other in zip(found, simulated(made, name), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_eight_bits_in_the_file_are_those_of_the_simulation(name: str, tmp_path: Path) -> None:
    bank = bank_of(name)
    asked = policy(bank, "quantize", weight_bits=8, activation_bits=8)
    made = calibrate(bank.stitch(asked), batch(name))
    assert made.precisions
    found = of_file(made, name, tmp_path / "m.onnx")
    for one, other in zip(found, simulated(made, name), strict=True):
        wanted = other.numpy()
        cosine = (one * wanted).sum() / np.linalg.norm(one) / np.linalg.norm(wanted)
        assert cosine > 0.995
    with torch.no_grad():
        plain = call_flat(bank.stitch(asked).module, batch(name))
    assert any(
        not np.array_equal(a, b.numpy()) for a, b in zip(found, plain, strict=True)
    )  # something was rounded
