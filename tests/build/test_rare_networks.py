"""Whatever a network does with its layers, a policy changes them all, and the file is the module.

Each technique alone, then all at once: what the file answers is what the compressed module answers,
bits move its answers by little, and the module has as many parameters as the formula says.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from rare_networks import RARE, inputs_of
from small_networks import enliven
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.errors import ExportError
from autocompress.estimate.kernel_table import parse_key
from autocompress.exporters.write import export
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.model.kernels import part_kernel
from autocompress.model.prepare import prepare
from autocompress.model.shapes import resolver
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.answers import file_answers
from autocompress.quality.saturation import settled
from autocompress.targets import get_target
from autocompress.task.data import Split
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import simulate

COUNT = 48
SETTINGS = settled(
    CompressionSettings(calibration_images=32, prune_residual=True), get_target("onnxruntime")
)
FIELDS: dict[str, dict[str, Any]] = {
    "pruned": {"prune_ratio": 0.4},
    "factorized": {"rank_ratio": 0.5},
    "8 bits": {"weight_bits": 8, "activation_bits": 8},
    "4 bits": {"weight_bits": 4},
    "all": {"prune_ratio": 0.3, "rank_ratio": 0.6, "weight_bits": 8, "activation_bits": 8},
}
MOVED = {"8 bits": 0.03, "4 bits": 0.15}
"""By how much of their size answers may move."""


@cache
def bank_of(name: str) -> LayerBank:
    torch.manual_seed(0)
    model = prepare(enliven(RARE[name]())).model
    inputs = inputs_of(name, COUNT)
    inventory = take_inventory(model, inputs[:2])
    split = Split(inputs, torch.zeros(COUNT, dtype=torch.long))
    return LayerBank.build(model, inventory, split, SETTINGS)


def made(name: str, case: str) -> Compressed:
    """A policy that asks of each layer what may be done with it."""
    inventory = bank_of(name).inventory
    prunable = {p for g in inventory.channel_groups for p in g.producers}
    layers = {}
    for layer in inventory.layers:
        own = dict(FIELDS[case])
        if layer.name not in prunable:
            own.pop("prune_ratio", None)
        if layer.why_not("low-rank"):
            own.pop("rank_ratio", None)
        if layer.why_not("quantize"):
            own = {k: v for k, v in own.items() if not k.endswith("bits")}
        layers[layer.name] = LayerPolicy(**own)
    return calibrate(bank_of(name).stitch(Policy(layers)), inputs_of(name, COUNT))


def answers(module: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(module)(inputs_of(name, COUNT))


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@cache
def inverse_transforms_open() -> bool:
    """Whether this ONNX Runtime knows Fourier transforms back to real numbers: old ones do not."""
    back = helper.make_node("DFT", ["x", "", "axis"], ["y"], inverse=1, onesided=1)
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [1])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 5, 2]), ("y", [1, 8, 1]))
    ]
    graph = helper.make_graph([back], "back", ends[:1], ends[1:], [axis])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    try:
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Fail:
        return False
    return True


@pytest.mark.parametrize("case", FIELDS)
@pytest.mark.parametrize("name", RARE)
def test_the_file_is_the_module_and_the_formula_counts_it(
    name: str, case: str, tmp_path: Path
) -> None:
    if name == "Sampled" and not inverse_transforms_open():
        with pytest.raises(ExportError, match=r"onnxruntime \d.*DFT.*pip install --upgrade"):
            export(made(name, case), tmp_path / "m.onnx", inputs_of(name, 2))
        return
    bank, compressed = bank_of(name), made(name, case)
    counted = policy_cost(bank.inventory, compressed.policy, SETTINGS).params
    assert counted == sum(p.numel() for p in compressed.module.parameters())
    wanted, exact = answers(simulate(compressed), name), answers(bank.model, name)
    assert distance(wanted, exact) > 0, "nothing was done"
    assert distance(wanted, exact) < MOVED.get(case, 1.0)
    path = export(compressed, tmp_path / "m.onnx", inputs_of(name, 2)).path
    split = Split(inputs_of(name, COUNT), torch.zeros(COUNT, dtype=torch.long))
    parts = file_answers(get_target("onnxruntime"), path, split, batch=COUNT)
    found = torch.cat([answer for answer, _ in parts])
    assert distance(found, wanted) < (1e-2 if FIELDS[case].get("activation_bits") else 1e-4)


@pytest.mark.parametrize("name", ["SeveralNames", "PlainLists"])
def test_no_layer_is_left_behind_where_it_has_other_names(name: str) -> None:
    compressed = made(name, "4 bits")
    rounded = simulate(compressed)
    levels = []

    def count(module: nn.Module, args: Any, out: Tensor) -> None:
        weight: Any = module.weight
        levels.append(max(len(row.unique()) for row in weight.flatten(1)))

    layers = [m for m in rounded.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(count)
    answers_of = inputs_of(name, 2)
    with torch.no_grad():
        rounded(answers_of)
    assert len(levels) == len(layers) + (name == "SeveralNames")
    assert max(levels) <= 15, "a layer ran with weights that are not rounded"


@pytest.mark.parametrize("name", RARE)
def test_every_kernel_can_be_kept_and_read_again(name: str) -> None:
    inventory = bank_of(name).inventory
    shapes = resolver(inventory, SETTINGS).layers(Policy())
    kernels = [part_kernel(part, "fp32") for shape in shapes for part in shape.parts]
    named = [kernel for kernel in kernels if kernel is not None]
    assert named
    assert [parse_key(kernel.key) for kernel in named] == named


def test_what_reads_constants_alone_is_left_alone_with_the_reason() -> None:
    layers = bank_of("Constants").inventory.layers
    alone = {x.name: x.why_not("quantize") for x in layers if x.why_not("quantize")}
    assert set(alone) == {"made", "of_image", "of_queries", "of_places.0", "of_places.2"}
    assert all("reads nothing of the model's inputs" in reason for reason in alone.values())


def test_an_expert_that_calibration_does_not_reach_answers_all_the_same(tmp_path: Path) -> None:
    bank, inputs = bank_of("Experts"), inputs_of("Experts", COUNT)
    chosen: list[Tensor] = []
    handle = bank.model.get_submodule("router").register_forward_hook(
        lambda module, args, out: chosen.append(out[:, :2].argmax(-1))
    )
    with torch.no_grad():
        bank.model(inputs)
    handle.remove()
    (first,) = chosen
    reached, others = inputs[first == 0], inputs[first == 1]
    assert min(len(reached), len(others)) > 4
    compressed = calibrate(bank.stitch(made("Experts", "8 bits").policy), reached)
    (note,) = (n for n in compressed.notes if "No calibration sample" in n)
    assert "experts.1.0" in note
    assert "experts.0.0" not in note
    path = export(compressed, tmp_path / "m.onnx", reached[:2]).path
    split = Split(others, torch.zeros(len(others), dtype=torch.long))
    ((found, _),) = file_answers(get_target("onnxruntime"), path, split, batch=len(others))
    with torch.no_grad():
        wanted = bank.model(others)
    assert distance(found, wanted) < 0.1
