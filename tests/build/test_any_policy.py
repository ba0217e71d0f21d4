"""Any policy on any small network: a model that is right in shape, cost and file, or a typed error.

Every technique may meet every other one; errors must say what cannot be done, never crash.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from small_networks import IMAGE_NETWORKS, data, example, hook_macs

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.errors import AutocompressError
from autocompress.exporters.write import export
from autocompress.model.cost import policy_cost
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings

NAMES = (*IMAGE_NETWORKS, "lstm", "two_way_lstm", "stacked_lstm", "tokens")
BITS = ((32, 32), (8, 8), (4, 8), (8, 32), (4, 32), (16, 16))


def random_policy(inventory: Inventory, draw: random.Random) -> Policy:
    """One ratio per group; everything else layer by layer, invalid places included now and then."""
    ratios = {g.name: draw.choice([0, 0, 0.25, 0.5, 0.8, 0.99]) for g in inventory.channel_groups}
    group_of = {p: g.name for g in inventory.channel_groups for p in g.producers}
    layers = {}
    for layer in inventory.layers:
        weight_bits, activation_bits = draw.choice(BITS) if draw.random() < 0.4 else (32, 32)
        rank = draw.choice([0.2, 0.6, 1.0]) if draw.random() < 0.2 else None
        if rank is not None and layer.why_not("low-rank") and draw.random() < 0.9:
            rank = None
        layers[layer.name] = LayerPolicy(
            prune_ratio=ratios.get(group_of.get(layer.name, ""), 0.0),
            sparsity=draw.choice([0, 0, 0.3, 0.9]),
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            activation_scaling=draw.choice(["static", "static", "dynamic"]),
            rank_ratio=rank,
            factorization=draw.choice(["auto", "svd", "spatial", "tucker2"]),
        )
    return Policy(layers)


def check(found: LayerBank, name: str, policy: Policy, path: Path) -> bool:
    """Whether the policy went through; ``False`` where it was refused with a reason."""
    inputs = example(name, 6, seed=3)
    try:
        made = found.stitch(policy)
        if made.quantized:
            made = calibrate(made, data(name).train.inputs())
        written = export(made, path, example(name))
    except AutocompressError:
        return False
    with torch.no_grad():
        outputs = made.module(inputs)
    assert outputs.shape == (6, 5)
    assert torch.isfinite(outputs).all()
    if name in IMAGE_NETWORKS:
        counted = hook_macs(made.module, inputs)
        assert policy_cost(found.inventory, policy, found.settings).macs == sum(counted.values())
    session = ort.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": inputs.numpy()})
    assert got.shape == (6, 5)
    return True


def run_policies(
    bank: Callable[..., LayerBank], folder: Path, count: int, seed: int
) -> dict[str, int]:
    draw = random.Random(seed)
    done = dict.fromkeys(NAMES, 0)
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        settings = CompressionSettings(
            prune_residual=True,
            weight_rounding=draw.choice(["auto", "nearest", "gptq"]),
            channel_multiple=draw.choice([1, 4]),
            sparsity_scope=draw.choice(["layer", "global"]),
        )
        found = bank(name, settings)
        policy = random_policy(found.inventory, draw)
        try:
            done[name] += check(found, name, policy, folder / "m.onnx")
        except Exception as error:
            raise AssertionError(f"{name}, {settings}, {policy.as_dict()}") from error
    return done


def test_some_random_policies(bank: Callable[..., LayerBank], tmp_path: Path) -> None:
    done = run_policies(bank, tmp_path, 18, seed=0)
    assert sum(done.values()) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_random_policies(bank: Callable[..., LayerBank], tmp_path: Path, seed: int) -> None:
    done = run_policies(bank, tmp_path, 54, seed)
    assert sum(done.values()) >= 27
