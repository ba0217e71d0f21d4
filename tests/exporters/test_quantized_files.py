"""Simulation and exported file against each other, and against the runtime's own profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from file_checks import check_file
from small_networks import IMAGE_NETWORKS, RECURRENT, data, example
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.build.rounding import compensate
from autocompress.errors import ExportError, PolicyError
from autocompress.exporters.write import export
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.saturation import settled
from autocompress.targets import get_target
from autocompress.task.data import Data
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.fold import fold_batch_norms
from autocompress.techniques.quantize import round_weight, simulate

Build = Callable[..., LayerBank]
INT8 = LayerPolicy(weight_bits=8, activation_bits=8)
HERE = settled(CompressionSettings(), get_target("onnxruntime"))


def everywhere(bank: LayerBank, policy: LayerPolicy) -> Policy:
    return Policy({x.name: policy for x in bank.inventory.layers if x.kind in ("conv", "linear")})


def compress(bank: LayerBank, name: str, policy: LayerPolicy, **settings: object) -> Compressed:
    made = bank.stitch(everywhere(bank, policy))
    made = made.with_(settings=made.settings.model_copy(update=settings))
    return calibrate(made, data(name).train.inputs())


def run(path: Path, inputs: Tensor) -> Tensor:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])


def kernels(path: Path, inputs: Tensor) -> Counter[str]:
    with closing(get_target({"runtime": "onnxruntime"}).open(path)) as session:
        return Counter(node.op for node in session.profile([inputs.numpy()], runs=2).nodes)


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_folding_batch_norms_changes_nothing(bank: Build, name: str) -> None:
    model, inputs = bank(name).model, example(name, 5)
    folded = fold_batch_norms(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(inputs), model(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_integer_file_and_simulation_agree(bank: Build, name: str, tmp_path: Path) -> None:
    made, inputs = compress(bank(name), name, INT8), example(name, 200, seed=7)
    written = export(made, tmp_path / "m.onnx", example(name))
    got = run(written.path, inputs)
    with torch.no_grad():
        simulated, real = simulate(made)(inputs), bank(name).model(inputs)
    spread = float(real.std())
    assert float((got - simulated).abs().mean()) < 0.05 * spread
    assert float((got - real).abs().mean()) < 0.15 * spread
    assert float((got.argmax(1) == simulated.argmax(1)).float().mean()) > 0.9


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_the_runtime_shows_integer_kernels(bank: Build, name: str, tmp_path: Path) -> None:
    written = export(compress(bank(name), name, INT8), tmp_path / "m.onnx", example(name))
    ops = kernels(written.path, example(name, 1))
    convolutions = sum(x.kind == "conv" for x in bank(name).inventory.layers)
    assert ops["QLinearConv"] >= convolutions
    assert ops["Conv"] == 0
    assert ops["QGemm"] + ops["QLinearMatMul"] >= 1
    assert ops["Gemm"] + ops["MatMul"] == 0


@pytest.mark.parametrize("weight_bits", [32, 8, 4])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_floats_between_integers_stay_floats(
    bank: Build, name: str, first: int, weight_bits: int, tmp_path: Path
) -> None:
    """Every other layer is integer; the runtime would round those between them as well."""
    found = bank(name)
    layers = [x.name for x in found.inventory.layers if x.kind in ("conv", "linear")]
    floats = LayerPolicy(weight_bits=weight_bits)
    mixed = {layer: INT8 if i % 2 == first else floats for i, layer in enumerate(layers)}
    made = found.stitch(Policy(mixed))
    # the simulation knows no corrected biases
    settings = made.settings.model_copy(update={"bias_correction": False})
    made = calibrate(made.with_(settings=settings), data(name).train.inputs())
    path = export(made, tmp_path / "m.onnx", example(name)).path
    assert check_file(get_target("onnxruntime"), path, made) == []
    inputs = example(name, 50, seed=7)
    with torch.no_grad():
        simulated, real = simulate(made)(inputs), found.model(inputs)
    assert float((run(path, inputs) - simulated).abs().mean()) < 0.05 * float(real.std())


def test_dynamic_ranges_run_on_integers_without_calibration(bank: Build, tmp_path: Path) -> None:
    policy = LayerPolicy(weight_bits=8, activation_bits=8, activation_scaling="dynamic")
    found = bank("plain")
    made = found.stitch(Policy({"fc1": policy, "fc2": policy}))
    written = export(made, tmp_path / "m.onnx", example("plain"))
    ops = kernels(written.path, example("plain", 1))
    assert ops["MatMulIntegerToFloat"] + ops["DynamicQuantizeMatMul"] + ops["MatMulInteger"] == 2
    inputs = example("plain", 40, seed=7)
    with torch.no_grad():
        simulated, real = simulate(made)(inputs), found.model(inputs)
    assert float((run(written.path, inputs) - simulated).abs().mean()) < 0.05 * float(real.std())


def _stored(path: Path) -> list[np.ndarray]:
    """The integer weights of a file as the floats that they stand for, output channels first."""
    held = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(str(path)).graph.initializer}
    found = []
    for name, grid in held.items():
        scale = held.get(name.removesuffix("_quantized") + "_scale")
        if not name.endswith("_quantized") or grid.dtype != np.int8 or scale is None:
            continue
        rows = grid if len(grid) == scale.size else grid.T
        found.append(rows * scale.reshape(-1, *[1] * (grid.ndim - 1)))
    return found


@pytest.mark.parametrize("scaling", ["static", "dynamic"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_weights_of_few_bits_are_stored_as_they_are_simulated(
    bank: Build, bits: int, scaling: str, tmp_path: Path
) -> None:
    policy = LayerPolicy.from_dict(
        {"weight_bits": bits, "activation_bits": 8, "activation_scaling": scaling}
    )
    made = compress(bank("plain"), "plain", policy)
    stored = _stored(export(made, tmp_path / "m.onnx", example("plain")).path)
    assert made.folded is not None
    weights = [made.folded.get_submodule(name).weight.detach() for name in made.precisions]
    assert len(stored) == len(weights)
    for weight in weights:
        wanted = round_weight(weight, bits).numpy()
        assert any(np.array_equal(found, wanted) for found in stored)


def test_ranges_at_run_time_leave_every_channel_its_own_scale(tmp_path: Path) -> None:
    """A channel a thousand times as large takes nothing from the others."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten()).eval()
    with torch.no_grad():
        network[0].weight[0] *= 1000
    policy = LayerPolicy(weight_bits=8, activation_bits=8, activation_scaling="dynamic")
    made = Compressed(network, Policy({"0": policy}), HERE, {"0": Precision.of(policy, HERE)})
    inputs = torch.randn(20, 3, 6, 6)
    made = calibrate(made, inputs)
    written = export(made, tmp_path / "m.onnx", inputs[:1])
    assert kernels(written.path, inputs[:1])["ConvInteger"] == 1
    got = run(written.path, inputs)[:, 36:]
    with torch.no_grad():
        real, simulated = network(inputs)[:, 36:], simulate(made)(inputs)[:, 36:]
    assert float((got - real).abs().mean()) < 0.02 * float(real.std())
    torch.testing.assert_close(got, simulated, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_is_quantized_or_refused(bank: Build, name: str, tmp_path: Path) -> None:
    policy = LayerPolicy(weight_bits=8, activation_bits=8, activation_scaling="dynamic")
    found = bank(name)
    if "gru" in name:  # the runtime has no integer kernel for it
        with pytest.raises(PolicyError, match="GRU"):
            found.stitch(Policy({"cell": policy}))
        return
    made = found.stitch(Policy({"cell": policy}))
    written = export(made, tmp_path / "m.onnx", example(name))
    layers = made.module.cell.num_layers
    assert kernels(written.path, example(name, 1))["DynamicQuantizeLSTM"] == layers
    assert check_file(get_target("onnxruntime"), written.path, made) == []
    inputs = example(name, 40, seed=7)
    with torch.no_grad():
        real = found.model(inputs)
    assert float((run(written.path, inputs) - real).abs().mean()) < 0.1 * float(real.std())


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_weight_only_files_hold_the_simulated_weights(
    bank: Build, bits: int, rounding: str, tmp_path: Path
) -> None:
    found = bank("residual")
    made = compress(found, "residual", LayerPolicy(weight_bits=bits), weight_rounding=rounding)
    written = export(made, tmp_path / "m.onnx", example("residual"))
    full = export(found.stitch(Policy()), tmp_path / "full.onnx", example("residual"))
    inputs = example("residual", 40, seed=7)
    saved = full.size_bytes - written.size_bytes
    weights = sum(p.numel() for p in found.model.parameters() if p.dim() > 1)
    assert saved > weights * (4 - bits / 8) * 0.6
    with torch.no_grad():
        wanted, nearest = simulate(made)(inputs), simulate(made.with_(folded=None))(inputs)
    torch.testing.assert_close(run(written.path, inputs), wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(nearest, wanted, atol=1e-6)  # biases are corrected in both, or none


def test_gptq_brings_every_four_bit_layer_nearer(bank: Build) -> None:
    found, inputs = bank("residual"), data("residual").train.inputs()
    for spec in found.inventory.layers:
        made = found.stitch(Policy({spec.name: LayerPolicy(weight_bits=4)}))
        folded = fold_batch_norms(made.module)
        layer = folded.get_submodule(spec.name)
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda m, a, o, s=seen: s.append(o))
        with torch.no_grad():
            folded(inputs)
            weight = layer.weight.clone()
            layer.weight.copy_(round_weight(weight, 4))
            folded(inputs)
            layer.weight.copy_(weight)
            compensate(folded, made, inputs)
            folded(inputs)
        handle.remove()
        real, nearest, compensated = seen[0], seen[1], seen[-1]
        assert ((compensated - real) ** 2).mean() < ((nearest - real) ** 2).mean(), spec.name


def test_half_precision_is_in_the_file_and_near(bank: Build, tmp_path: Path) -> None:
    import onnx

    found = bank("residual")
    made = compress(found, "residual", LayerPolicy(weight_bits=16, activation_bits=16))
    written = export(made, tmp_path / "m.onnx", example("residual"))
    graph = onnx.load(str(written.path)).graph
    kinds = Counter(i.data_type for i in graph.initializer if len(i.dims) > 1)
    assert set(kinds) == {onnx.TensorProto.FLOAT16}
    inputs = example("residual", 20, seed=7)
    with torch.no_grad():
        real = found.model(inputs)
    torch.testing.assert_close(run(written.path, inputs), real, rtol=2e-2, atol=2e-2)


def test_bfloat16_computes_in_sixteen_bits_in_a_program_of_torch(
    bank: Build, tmp_path: Path
) -> None:
    found = bank("residual")
    half = LayerPolicy(weight_bits=16, activation_bits=16)
    made = compress(found, "residual", half, half_format="bfloat16")
    path = export(made, tmp_path / "m.pt2", example("residual")).path
    inputs = example("residual", 20, seed=7)
    with closing(get_target("torch").open(path, fixed=False)) as session:
        outputs = torch.from_numpy(session.run([inputs.numpy()])[0])
        nodes = session.profile([inputs.numpy()], runs=2).nodes
    kinds = {n.inputs[0][0] for n in nodes if "conv2d" in n.op or "linear" in n.op}
    assert kinds == {"bfloat16"}
    assert check_file(get_target("torch"), path, made) == []
    with torch.no_grad():
        real, simulated = found.model(inputs), simulate(made)(inputs)
    scale = float(real.abs().max())  # eight bits of mantissa, a few layers deep
    assert 1e-5 * scale < float((outputs - real).abs().max()) < 0.03 * scale
    assert float((outputs - simulated).abs().max()) < 0.02 * scale
    held = torch.export.load(path).state_dict
    assert {v.dtype for n, v in held.items() if n.endswith("layer.weight")} == {torch.bfloat16}
    with pytest.raises(ExportError, match=r"half_format: float16"):
        export(made, tmp_path / "m.onnx", example("residual"))


def test_mixed_bits_each_do_what_was_asked(bank: Build, tmp_path: Path) -> None:
    found = bank("residual")
    policy = Policy(
        {
            "conv1": INT8,
            "conv2": INT8,
            "conv3": LayerPolicy(weight_bits=4),
            "conv4": LayerPolicy(prune_ratio=0.0, weight_bits=4, activation_bits=8),
        }
    )
    made = calibrate(found.stitch(policy), data("residual").train.inputs())
    written = export(made, tmp_path / "m.onnx", example("residual"))
    assert set(written.quantized) == {"conv1", "conv2", "conv3", "conv4"}
    ops = kernels(written.path, example("residual", 1))
    assert ops["QLinearConv"] == 3
    assert ops["Conv"] + ops["FusedConv"] >= 3
    inputs = example("residual", 40, seed=7)
    with torch.no_grad():
        simulated = simulate(made)(inputs)
    assert float((run(written.path, inputs) - simulated).abs().mean()) < 0.1 * float(
        simulated.std()
    )


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_bias_correction_takes_the_mean_error_out(bank: Build, rounding: str) -> None:
    found, inputs = bank("residual"), data("residual").train.inputs()
    with torch.no_grad():
        real = found.model(inputs)
        shifts = []
        for corrected in (False, True):
            made = compress(
                found,
                "residual",
                LayerPolicy(weight_bits=3),
                bias_correction=corrected,
                weight_rounding=rounding,
            )
            session = ort.InferenceSession(
                _graph_with_rounded_weights(made), providers=["CPUExecutionProvider"]
            )
            got = torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])
            shifts.append(float((got - real).mean(0).abs().mean()))
    assert shifts[1] < shifts[0]


def _graph_with_rounded_weights(made: Compressed) -> bytes:
    from autocompress.exporters.onnx_quantize import quantize_graph

    return bytes(quantize_graph(made.graph, made).SerializeToString())


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_the_other_formats_hold_the_compressed_model(
    bank: Build, suffix: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    found = bank("residual")
    made = found.stitch(Policy({"conv1": LayerPolicy(prune_ratio=0.5)}))
    written = export(made, tmp_path / f"m{suffix}", example("residual"))
    inputs = example("residual", 5, seed=7)
    if suffix == ".pt2":
        module: nn.Module = torch.export.load(written.path).module()
        with torch.no_grad():
            torch.testing.assert_close(module(inputs), made.module(inputs))
        return
    state = load_file(written.path)
    for name, value in made.module.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_trained_resnet_agrees_with_its_integer_file(
    resnet20_trained: nn.Module, cifar_data: Data, tmp_path: Path
) -> None:
    train, val = cifar_data.train, cifar_data.val
    inventory = take_inventory(resnet20_trained.eval(), train.inputs(1))
    names = [x.name for x in inventory.layers]
    made = Compressed(
        resnet20_trained,
        Policy(dict.fromkeys(names, INT8)),
        HERE,
        precisions=dict.fromkeys(names, Precision.of(INT8, HERE)),
    )
    made = calibrate(made, train.sample(64).inputs())
    written = export(made, tmp_path / "m.onnx", train.inputs(1))
    inputs = val.inputs(300)
    with torch.no_grad():
        simulated = simulate(made)(inputs).argmax(1)
    got = run(written.path, inputs).argmax(1)
    assert float((got == simulated).float().mean()) >= 0.99
