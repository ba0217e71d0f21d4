"""Kernel files against the layers that they stand for, and the table that holds their times."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measured_network import images
from torch import nn

from autocompress.errors import InputError
from autocompress.estimate import kernel_table
from autocompress.estimate.kernel_table import (
    FOOTPRINT,
    KernelTable,
    chunks,
    keep,
    load_table,
    measure_kernels,
    parse_key,
    table_path,
    typical_footprint,
)
from autocompress.exporters.kernel_names import kernel_times
from autocompress.exporters.onnx_kernels import write_kernels
from autocompress.model.kernels import Kernel, KernelPrecision, kernel_precision, part_kernel
from autocompress.model.part import whole
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import LayerPolicy
from autocompress.targets import get_target
from autocompress.targets.base import Profile, random_inputs
from autocompress.targets.onnx_runtime import OnnxRuntimeTarget

_OPS: dict[str, set[str]] = {
    "fp32": {"Conv", "FusedConv", "Gemm"},
    "int8": {"QLinearConv", "QGemm"},
    "int8_dynamic": {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"},
}


def network_kernels(inventory: Inventory, precision: KernelPrecision) -> list[Kernel]:
    made = [
        part_kernel(whole(x, x.in_channels, x.out_channels), precision) for x in inventory.layers
    ]
    assert all(made)
    return [kernel for kernel in made if kernel is not None]


def test_a_kernel_costs_what_its_layer_costs(inventory: Inventory) -> None:
    """MACs as fvcore counted them on the network, weights as torch holds them."""
    kernels = network_kernels(inventory, "fp32")
    assert [k.macs for k in kernels] == [layer.macs for layer in inventory.layers]
    assert [k.depthwise for k in kernels] == [False, True, False, False]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8_dynamic"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_file_runs_every_kernel_in_its_precision_and_shape(
    precision: KernelPrecision, batch: int, inventory: Inventory, network: nn.Module, tmp_path: Path
) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [
        network.get_submodule(x.name).register_forward_hook(
            lambda m, i, o, name=x.name: shapes.update({name: tuple(o.shape)})
        )
        for x in inventory.layers
    ]
    with torch.inference_mode():
        network(images(batch))
    for handle in handles:
        handle.remove()
    kernels = network_kernels(inventory, precision)
    path = write_kernels(kernels, tmp_path / "kernels.onnx", batch)
    with closing(get_target("onnxruntime").open(path)) as session:
        inputs = random_inputs(session.inputs)
        outputs = session.run(inputs)
        profile = session.profile(inputs, runs=3)
    assert [o.shape for o in outputs] == [shapes[x.name] for x in inventory.layers]
    times = kernel_times([(n.name, n.ms) for n in profile.nodes], len(kernels))
    assert all(ms > 0 for ms in times)
    for i in range(len(kernels)):
        own = {n.op for n in profile.nodes if f"k{i:05d}" in n.name}
        assert own & _OPS[precision], own


def test_files_of_many_kernels_are_small_when_packed(tmp_path: Path) -> None:
    import zipfile

    path = write_kernels([Kernel("conv", 256, 256, (3, 3), (1, 1), 1, (4, 4))], tmp_path / "k.onnx")
    assert path.stat().st_size > 256 * 256 * 9 * 4
    with zipfile.ZipFile(tmp_path / "k.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "k.onnx")
    assert (tmp_path / "k.zip").stat().st_size < path.stat().st_size / 50


_WIDTH = st.integers(1, 300)


@given(
    st.sampled_from(["conv", "linear", "depthwise", "grouped"]),
    _WIDTH,
    _WIDTH,
    st.sampled_from(["fp32", "int8", "int8_dynamic", "fp16"]),
)
def test_a_key_names_its_kernel(kind: str, a: int, b: int, precision: KernelPrecision) -> None:
    kernels = {
        "conv": Kernel("conv", a, b, (3, 1), (2, 2), 1, (7, 5), precision),
        "linear": Kernel("linear", a, b, size=(9,), precision=precision),
        "depthwise": Kernel("conv", a + 1, a + 1, (3, 3), (1, 1), a + 1, (4, 4), precision),
        "grouped": Kernel("conv", 4 * a, 2 * b, (3, 3), (1, 1), 2, (4, 4), precision),
    }
    assert parse_key(kernels[kind].key) == kernels[kind]


def test_precisions_follow_the_policy() -> None:
    assert kernel_precision(LayerPolicy()) == "fp32"
    assert kernel_precision(LayerPolicy(weight_bits=8)) == "fp32"
    assert kernel_precision(LayerPolicy(weight_bits=4, activation_bits=8)) == "int8"
    assert (
        kernel_precision(
            LayerPolicy(weight_bits=8, activation_bits=8, activation_scaling="dynamic")
        )
        == "int8_dynamic"
    )
    assert kernel_precision(LayerPolicy(weight_bits=16, activation_bits=16)) == "fp16"


def power_law(a: int, b: int) -> float:
    return 1e-4 * a**0.8 * b**0.8


def conv(a: int, b: int, precision: KernelPrecision = "fp32") -> Kernel:
    return Kernel("conv", a, b, (3, 3), (1, 1), 1, (8, 8), precision)


def test_between_measured_widths_the_table_follows_the_kernel() -> None:
    """Times of a known power law on a coarse grid, asked in between."""
    grid = (8, 16, 24, 32, 48, 64)
    table = KernelTable({conv(a, b).key: power_law(a, b) for a in grid for b in grid})
    for a, b in [(12, 20), (40, 60), (9, 63), (28, 28)]:
        assert table.ms(conv(a, b)) == pytest.approx(power_law(a, b), rel=1e-6)
    assert table.ms(conv(8, 8)) == power_law(8, 8)
    assert conv(12, 20).key not in table.times  # what was guessed is not kept as measured


def test_a_kernel_of_another_shape_goes_by_the_rate_of_its_precision() -> None:
    table = KernelTable({conv(8, 8).key: 0.008, conv(16, 16).key: 0.032})
    rate = 0.008 / conv(8, 8).macs
    other = Kernel("linear", 100, 50)
    assert table.ms(other) == pytest.approx(rate * other.macs)
    with pytest.raises(InputError, match="has int8 arithmetic"):
        table.ms(conv(8, 8, "int8"))


def test_repeated_times_keep_the_fastest_and_forget_guesses() -> None:
    table = KernelTable({conv(8, 8).key: 1.0})
    assert table.ms(conv(16, 16)) == pytest.approx(1.0 * 2**1.6)
    table.add({conv(8, 8).key: 2.0, conv(16, 16).key: 0.5})
    assert table.ms(conv(8, 8)) == 1.0
    assert table.ms(conv(16, 16)) == 0.5


def test_chunks_hold_every_kernel_once_and_one_precision_each() -> None:
    kernels = [conv(a, b, p) for p in ("fp32", "int8") for a in range(1, 13) for b in range(1, 12)]
    found = chunks(kernels)
    assert sorted(k.key for c in found for k in c) == sorted(k.key for k in kernels)
    assert all(len({k.precision for k in c}) == 1 and len(c) <= 60 for c in found)
    assert len(found) == 2 * math.ceil(132 / 60)


def test_a_file_of_kernels_is_as_large_as_networks_are() -> None:
    """Nine weights per pair of channels: 4 bytes each in float, 1 in 8 bits."""
    kernels = [conv(a, b) for a in range(90, 110) for b in range(100, 104)]
    assert kernels[0].weight_bytes == 4 * 9 * 90 * 100
    assert conv(90, 100, "int8").weight_bytes == 9 * 90 * 100
    found = chunks(kernels, 1 << 20)
    assert sorted(k.key for c in found for k in c) == sorted(k.key for k in kernels)
    sizes = [sum(k.weight_bytes for k in c) for c in found]
    assert max(sizes) < 1.5 * (1 << 20)
    assert min(sizes) > 0.5 * (1 << 20)
    assert [len(c) for c in chunks(kernels[:3], 10)] == [1, 1, 1]  # one that is too heavy by itself


def test_the_typical_network_is_the_median_in_powers_of_two() -> None:
    assert typical_footprint([1 << 20, 5 << 20, 100 << 20]) == 1 << 22
    assert typical_footprint([1000]) == 1 << 20
    assert typical_footprint([]) == FOOTPRINT


def test_measured_kernels_are_kept_by_target(tmp_path: Path) -> None:
    target = get_target("onnxruntime")
    first = measure_kernels(target, [conv(4, 4), conv(4, 4), conv(8, 4)], tmp_path, runs=2)
    assert set(first.times) == {conv(4, 4).key, conv(8, 4).key}
    path = table_path(target, tmp_path)
    before = path.read_bytes()
    again = measure_kernels(target, [conv(4, 4)], tmp_path, runs=2)
    assert again.times == first.times
    assert path.read_bytes() == before
    more = measure_kernels(target, [conv(4, 4), conv(4, 8)], tmp_path, runs=2)
    assert set(more.times) == {*first.times, conv(4, 8).key}
    assert table_path(get_target({"threads": 2}), tmp_path) != path
    assert table_path(get_target({"batch": 2}), tmp_path) != path
    assert table_path(target, tmp_path, 1 << 25) != path


def test_threads_that_share_a_core_have_a_table_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path(cores: int, threads: int) -> Path:
        monkeypatch.setattr(kernel_table, "usable_cores", lambda: cores)
        return table_path(get_target({"threads": threads}), tmp_path)

    assert path(1, 2) != path(2, 2)
    assert path(1, 4) != path(2, 4)
    assert path(2, 2) == path(8, 2)
    assert path(1, 1) == path(8, 1)


def test_a_table_of_another_version_is_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table = KernelTable({conv(4, 4).key: 1.0}, {"where": "here"})
    keep(path, table.as_dict())
    assert load_table(path).as_dict() == table.as_dict()
    keep(path, {**table.as_dict(), "version": -1})
    assert load_table(path).times == {}
    assert load_table(tmp_path / "absent.json").times == {}
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]
    assert json.loads(path.read_text())["version"] == -1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"version": 1}',
        '{"version": 1, "facts": {}, "kernels": [1]}',
        '{"version": 1, "facts": null, "kernels": {}}',
        '{"version": 1, "facts": {}, "kernels": {"conv": 1.0}}',
        f'{{"version": 1, "facts": {{}}, "kernels": {{"{conv(4, 4).key}": NaN}}}}',
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kernels-here.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"kernels-here\.json|names no kernel"):
        load_table(path)


@pytest.mark.parametrize(
    ("part", "odd"), [("4>4", "0>4"), ("4>4", "4>-4"), ("fp32", "fp99"), ("3x3", "0x3")]
)
def test_a_key_names_a_kernel_that_can_be(part: str, odd: str) -> None:
    key = conv(4, 4).key
    assert parse_key(key) == conv(4, 4)
    assert part in key
    with pytest.raises(InputError, match="names no kernel"):
        parse_key(key.replace(part, odd))


def test_a_runtime_of_other_files_gets_a_table_by_multiply_adds(tmp_path: Path) -> None:
    """Nothing can be timed alone there; a larger layer still costs more, and the table is kept."""
    target = get_target("torch")
    made = [Kernel("conv", c, c, (3, 3), (1, 1), 1, (8, 8), "fp16") for c in (8, 16, 32)]
    table = measure_kernels(target, made, tmp_path)
    times = [table.ms(kernel) for kernel in made]
    assert times == sorted(times)
    assert (times[2] - times[0]) / (times[1] - times[0]) == pytest.approx(
        (32**2 - 8**2) / (16**2 - 8**2)
    )
    assert len(load_table(table_path(target, tmp_path, FOOTPRINT)).times) == 3


def test_a_target_reads_its_own_kernel_files(tmp_path: Path) -> None:
    """One that names the nodes of its profiles its own way."""

    class Own(OnnxRuntimeTarget):
        def kernel_times(self, profile: Profile, count: int) -> list[float]:
            return [7.0 + i for i in range(count)]

    table = measure_kernels(
        Own(OnnxRuntimeTarget.config_model()), [conv(4, 4), conv(8, 4)], tmp_path, runs=2
    )
    assert [table.ms(conv(4, 4)), table.ms(conv(8, 4))] == [7.0, 8.0]
