"""Training through rounding: it learns, and what it learnt reaches the integer file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.build.pipeline import Pipeline
from autocompress.build.state import load_state, save_state
from autocompress.errors import InputError
from autocompress.exporters.write import export
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings
from autocompress.recover.distill import Distillation
from autocompress.recover.finetune import fine_tune
from autocompress.recover.score import score
from autocompress.results.trial import Phase
from autocompress.task.data import Data
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.quantize import simulate

LAYERS = ("conv1", "conv2", "head")


def with_bits(module: nn.Module, weight_bits: int, activation_bits: int) -> Compressed:
    """The module as it is, to be quantized."""
    wanted = LayerPolicy(weight_bits=weight_bits, activation_bits=activation_bits)
    precision = Precision(weight_bits, activation_bits)
    policy = Policy(dict.fromkeys(LAYERS, wanted))
    return Compressed(module, policy, CompressionSettings(), dict.fromkeys(LAYERS, precision))


@pytest.fixture
def learnt(images: Data, make_net: Callable[..., Any], schedule: Schedule) -> nn.Module:
    """A network that knows the images."""
    longer = schedule.model_copy(update={"epochs": 6, "lr": 0.2})
    return fine_tune(make_net(0, width=8), images, longer).module


def loss_of(module: nn.Module, data: Data) -> float:
    """Cross-entropy on val: finer than accuracy."""
    with torch.no_grad():
        outputs = module(data.val.inputs())
        return float(nn.functional.cross_entropy(outputs, data.val.targets))


@pytest.mark.parametrize(
    ("qat", "through"),
    [("auto", {8: False, 4: True, 32: False}), (True, {8: True, 4: True, 32: False})],
)
def test_which_policies_are_trained_through_rounding(
    learnt: nn.Module, images: Data, schedule: Schedule, qat: Any, through: dict[int, bool]
) -> None:
    """Told by what training leaves: fake quantization has weights rounded to nearest afterwards."""
    inventory = take_inventory(learnt, images.train.inputs(2))
    settings = CompressionSettings()
    bank = LayerBank.build(learnt, inventory, images.train, settings)
    parts = Pipeline(learnt, images, inventory, bank, settings, schedule, qat=qat)
    for bits, rounded in through.items():
        layer = LayerPolicy(weight_bits=bits, activation_bits=32 if bits == 4 else bits)
        made = parts.stitch(Policy({"conv2": layer} if bits < 32 else {}))
        assert parts.train(made, Phase("recover", 0.1, 1), seed=0).qat is rounded


def test_int8_reaches_integer_kernels(
    learnt: nn.Module, images: Data, schedule: Schedule, tmp_path: Path
) -> None:
    compressed = with_bits(learnt, 8, 8)
    before = copy.deepcopy(learnt.state_dict())
    tuned = fine_tune(compressed, images, schedule, qat=True).compressed
    assert tuned is not None
    assert all(torch.equal(t, before[n]) for n, t in learnt.state_dict().items())
    done = calibrate(tuned, images.train.inputs())
    export(done, tmp_path / "int8.onnx", images.train.inputs(1))

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"]
    )
    run = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "QLinearConv" in run
    assert "Conv" not in run

    inputs = images.val.inputs()
    name = session.get_inputs()[0].name
    of_file = np.concatenate(
        [session.run(None, {name: inputs[i : i + 1].numpy()})[0] for i in range(len(inputs))]
    )
    assert (of_file.argmax(1) == images.val.targets.numpy()).mean() > 0.9
    expected = simulate(done)(inputs).detach().numpy()
    assert np.abs(of_file - expected).mean() < 0.05 * np.abs(expected).mean()


def test_training_through_rounding_beats_rounding_afterwards(
    make_images: Callable[..., Data], make_net: Callable[..., Any], schedule: Schedule
) -> None:
    """At 2 bits, where rounding hurts; summed over three first weights."""
    images = make_images(contrast=20)
    longer = schedule.model_copy(update={"epochs": 12})
    losses = {True: 0.0, False: 0.0}
    for seed in range(3):
        compressed = with_bits(make_net(seed, width=8), 2, 32)
        for qat in losses:
            tuned = fine_tune(compressed, images, longer, qat=qat).compressed
            assert tuned is not None
            losses[qat] += loss_of(simulate(tuned), images)
    assert losses[True] < 0.8 * losses[False]


def test_weights_come_back_as_floats_of_the_same_names(
    learnt: nn.Module, images: Data, schedule: Schedule
) -> None:
    tuned = fine_tune(with_bits(learnt, 4, 32), images, schedule, qat=True)
    assert tuned.compressed is not None
    assert tuned.compressed.ranges is None
    assert list(tuned.module.state_dict()) == list(learnt.state_dict())
    rounded = (2**3 - 1) * 2 + 1  # levels of a 4-bit channel
    channel = tuned.module.get_submodule("conv2").weight[0].flatten()
    assert len(channel.unique()) > rounded


def test_a_teacher_helps_through_rounding_too(
    learnt: nn.Module, images: Data, schedule: Schedule
) -> None:
    spoken = Distillation([learnt], Distill(features="attention"))
    tuned = fine_tune(with_bits(learnt, 4, 8), images, schedule, qat=True, distillation=spoken)
    assert score(tuned.module, images.val) > 0.9


def test_nothing_to_round_is_said(learnt: nn.Module, images: Data, schedule: Schedule) -> None:
    plain = Compressed(learnt, Policy(), CompressionSettings())
    for given in (plain, learnt):
        with pytest.raises(InputError, match="quantizes at least one layer"):
            fine_tune(given, images, schedule, qat=True)


def test_zeros_of_a_sparse_policy_stay_zero(
    learnt: nn.Module, images: Data, schedule: Schedule
) -> None:
    weight = learnt.get_submodule("conv2").weight
    with torch.no_grad():
        weight[weight.abs() < weight.abs().median()] = 0
    zeros = weight == 0
    policy = Policy({"conv2": LayerPolicy(sparsity=0.5)})
    tuned = fine_tune(Compressed(learnt, policy, CompressionSettings()), images, schedule)
    after = tuned.module.get_submodule("conv2").weight
    assert bool((after[zeros] == 0).all())
    assert not torch.equal(after, weight)


@pytest.mark.parametrize("bits", [(8, 8), (2, 32)])
@pytest.mark.parametrize("qat", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_weights_from_disk_make_the_same_file(
    learnt: nn.Module,
    images: Data,
    schedule: Schedule,
    bits: tuple[int, int],
    qat: bool,
    rounding: str,
    tmp_path: Path,
) -> None:
    def fresh() -> Compressed:
        settings = CompressionSettings.model_validate({"weight_rounding": rounding})
        return with_bits(copy.deepcopy(learnt), *bits).with_(settings=settings)

    tuned = fine_tune(fresh(), images, schedule, qat=qat).compressed
    assert tuned is not None
    state, inputs = tmp_path / "a" / "state.safetensors", images.train.inputs()
    done = calibrate(tuned, inputs)
    loaded = calibrate(load_state(save_state(state, done), fresh()), inputs)
    assert loaded.ranges == done.ranges
    files = [
        export(made, tmp_path / f"{number}.onnx", inputs[:1]).path.read_bytes()
        for number, made in enumerate((done, loaded))
    ]
    assert files[0] == files[1]


def test_state_of_another_policy_or_none_is_said(learnt: nn.Module, tmp_path: Path) -> None:
    path = save_state(tmp_path / "state.safetensors", with_bits(learnt, 8, 8))
    with pytest.raises(InputError, match="another policy"):
        load_state(path, with_bits(copy.deepcopy(learnt), 4, 8))
    with pytest.raises(InputError, match="are missing"):
        load_state(tmp_path / "none.safetensors", with_bits(learnt, 8, 8))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_weights_trained_through_rounding_are_rounded_as_in_training(
    learnt: nn.Module, images: Data, schedule: Schedule, rounding: str
) -> None:
    """No bias is corrected and no weight compensated: training has done that already."""
    settings = CompressionSettings.model_validate({"weight_rounding": rounding})
    start = with_bits(learnt, 2, 32).with_(settings=settings)
    tuned = fine_tune(start, images, schedule, qat=True).compressed
    assert tuned is not None
    inputs = images.val.inputs()
    with torch.no_grad():
        trained_for = simulate(tuned)(inputs)
        found = simulate(calibrate(tuned, images.train.inputs()))(inputs)
    torch.testing.assert_close(found, trained_for, rtol=1e-4, atol=1e-4)
