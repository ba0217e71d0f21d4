"""Changes between integers and floats, as counted without exporting, against the exporter's."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest
import torch
from small_networks import example, make
from torch import Tensor, nn

from autocompress.estimate.boundaries import Boundaries
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_row import FEATURES
from autocompress.exporters.names import layer_of
from autocompress.exporters.onnx_glue import Wires, with_glue
from autocompress.exporters.write import export
from autocompress.model.inventory import take_inventory
from autocompress.policy.inventory import OUTSIDE, Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.techniques.compressed import Compressed

INT8 = LayerPolicy(weight_bits=8, activation_bits=8)
WIDTH, SIZE = 4, 6


class Drawn(nn.Module):
    """Convolutions in a row, in residual branches, or beside each other and concatenated."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.kinds = [draw.choice(["plain", "residual", "concat", "norm"]) for _ in range(5)]
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in self.kinds)
        self.second = nn.ModuleList(
            nn.Conv2d(2 * WIDTH if kind == "concat" else WIDTH, WIDTH, 1) for kind in self.kinds
        )
        self.end = nn.Conv2d(WIDTH, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for kind, first, second in zip(self.kinds, self.first, self.second, strict=True):
            found = torch.relu(first(x))
            if kind == "concat":
                found = torch.cat([found, x], 1)
            if kind == "norm":
                found = found / (1 + found.exp())
            x = x + second(found) if kind == "residual" else second(found)
        found = self.end(x)
        assert isinstance(found, Tensor)
        return found


def counted(inventory: Inventory, chosen: list[str]) -> tuple[float, float]:
    """Changes to integers and to floats, in all; the last layer gives floats."""
    plan = LayerPlan(inventory, CompressionSettings())
    row = plan.row(Policy(dict.fromkeys(chosen, INT8)), lambda kernel: 1.0, 1 << 20)
    found = dict(zip(FEATURES, row.features, strict=True))
    return found["to_int8"], found["to_float"]


def exported(model: nn.Module, inputs: Tensor, chosen: list[str], path: Path) -> tuple[int, int]:
    """The same as the graph has them: tensors that are rounded, and such that are made floats."""
    whole = Compressed(model, Policy(), CompressionSettings())
    graph = onnx.load(export(whole, path, inputs).path).graph
    nodes = {n.name for n in graph.node if (layer_of(n.name) or ("",))[0] in chosen}
    names, wires = set(with_glue(graph, nodes)), Wires.of(graph)
    read = {t for n in wires.nodes if n.name in names for t in wires.data(n)}
    made = {t for n in wires.nodes if n.name in names for t in n.output}
    floats = {t for n in wires.nodes if n.name not in names for t in wires.data(n)}
    return len(read - made), len(made & (floats | set(wires.answers)))


@pytest.mark.parametrize("seed", range(12))
def test_changes_are_those_of_the_exported_graph(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    draw, model = random.Random(seed), Drawn(seed).eval()
    inputs = torch.randn(2, 3, SIZE, SIZE)
    inventory = take_inventory(model, inputs)
    names = [layer.name for layer in inventory.layers]
    assert len(inventory.sources) == len(names)
    for share in (0.3, 0.6, 0.9, 1.0):
        chosen = [name for name in names if draw.random() < share]
        assert counted(inventory, chosen) == exported(model, inputs, chosen, tmp_path / "a.onnx")


def test_a_layer_reads_the_nearest_ones_before_it() -> None:
    """``third`` reads ``left`` and ``right``; ``side`` reads ``right``, past a depthwise layer."""
    inventory = take_inventory(make("nested"), example("nested"))
    names = [layer.name for layer in inventory.layers]
    found = {
        name: {"image" if i == OUTSIDE else names[i] for i in read}
        for name, read in zip(names, inventory.sources, strict=True)
    }
    assert found == {
        "left": {"image"},
        "right": {"image"},
        "third": {"left", "right"},
        "depth": {"left", "right", "third"},
        "point": {"depth"},
        "side": {"right"},
        "head": {"point", "side"},
    }


def test_what_is_joined_is_integer_where_all_of_it_is() -> None:
    inventory = take_inventory(make("nested"), example("nested"))
    plan = LayerPlan(inventory, CompressionSettings())
    row = plan.row(Policy({"left": INT8, "third": INT8}), lambda kernel: 1.0, 1 << 20)
    quantity = dict(zip(FEATURES, row.features, strict=True))
    # the image enters `left`, 32 maps of `left` and `right` enter `third`
    assert quantity["to_int8_values"] == pytest.approx((3 + 32) * 64 / 1e3)
    # 16 maps of `left` are concatenated with floats, and 8 of `third`
    assert quantity["to_float_values"] == pytest.approx((16 + 8) * 64 / 1e3)


def test_sums_count_once_and_as_integers_where_all_before_are() -> None:
    inventory = take_inventory(make("residual"), example("residual"))
    plan = LayerPlan(inventory, CompressionSettings())
    names = [layer.name for layer in inventory.layers]
    sizes = {layer.name: layer.out_channels * layer.positions / 1e3 for layer in inventory.layers}
    for chosen, integer in (([], 0), (["stem", "conv2", "conv3"], 1), (names, 2)):
        row = plan.row(Policy(dict.fromkeys(chosen, INT8)), lambda kernel: 1.0, 1 << 20)
        quantity = dict(zip(FEATURES, row.features, strict=True))
        sums = [sizes["conv2"], sizes["conv4"]]
        assert quantity["int8_adds"] == pytest.approx(sum(sums[:integer]))
        assert quantity["float_adds"] == pytest.approx(sum(sums[integer:]))


def test_without_a_branch_the_stream_is_left() -> None:
    inventory = take_inventory(make("residual"), example("residual"))
    place = {layer.name: i for i, layer in enumerate(inventory.layers)}
    whole, left = (
        Boundaries(inventory, [place[name] for name in gone]) for gone in ((), ("conv1", "conv2"))
    )
    assert [v.added for v in whole.values].count(True) == 2
    assert [v.added for v in left.values].count(True) == 1
    assert not any(v.made_of >> (place["conv2"] - OUTSIDE) & 1 for v in left.values)


def test_a_stream_through_many_blocks_is_followed_to_its_end() -> None:
    """Only the last layer reads integers, so that every sum before it is integer, too."""
    blocks = 600
    names = ["stem", *(f"{i}.{part}" for i in range(blocks) for part in ("in", "out")), "head"]
    streams = [(0, *range(2, 2 * i + 1, 2)) for i in range(blocks + 1)]
    inner = [read for i in range(blocks) for read in (streams[i], (2 * i + 1,))]
    inventory = Inventory(
        tuple(LayerSpec(name, "linear", WIDTH, WIDTH) for name in names),
        (),
        ((WIDTH,),),
        "stream",
        "",
        sources=((OUTSIDE,), *inner, streams[-1]),
    )
    chosen = [name for name in names if not name.endswith(".in")]
    # the image and what each branch holds are rounded; each branch reads the stream as floats
    assert counted(inventory, chosen) == (1 + blocks, blocks + 1)
