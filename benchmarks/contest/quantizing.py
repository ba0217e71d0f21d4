"""Tools that quantize: NNCF and Sony's Model Compression Toolkit; and plain int8."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contest.task import Task, input_name

Answer = tuple[Path, dict[str, Any]]


def plain_int8(task: Task) -> Answer:
    """ONNX Runtime's own static quantization of the uncompressed model, nothing trained."""
    import onnxruntime

    return task.int8(task.base, 512), {
        "settings": "quantize_static after quant_pre_process, QDQ, per channel, 512 images",
        "version": f"onnxruntime {onnxruntime.__version__}",
    }


def nncf_int8(task: Task) -> Answer:
    """NNCF's quantization with accuracy control of the ONNX file."""
    import nncf
    import onnx
    import onnxruntime

    graph, name = onnx.load(task.base), input_name(task.base)
    images = nncf.Dataset([{name: one.numpy()} for one in task.calibration(300)])
    split = task.data.val
    checked = nncf.Dataset(
        [
            ({name: split.prepare(stored).numpy()}, targets.numpy())
            for stored, targets in (split.take(slice(i, i + 250)) for i in range(0, 2000, 250))
        ]
    )

    def accuracy(model: Any, batches: Any) -> tuple[float, None]:
        right = count = 0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        for inputs, targets in batches:
            right += int((session.run(None, inputs)[0].argmax(1) == targets).sum())
            count += len(targets)
        return right / count, None

    done = nncf.quantize_with_accuracy_control(
        graph, images, checked, accuracy, max_drop=0.01, subset_size=300
    )
    path = task.folder / "nncf.onnx"
    onnx.save(done, path)
    settings = "quantize_with_accuracy_control on ONNX, max_drop 0.01, 2,000 val images"
    return path, {"settings": settings, "version": f"nncf {version('nncf')}"}


def mct_mixed(task: Task) -> Answer:
    """MCT's mixed precision post-training quantization, at three quarters of int8's bytes."""
    import model_compression_toolkit as mct

    def images() -> Iterator[list[Tensor]]:
        for batch in task.calibration(500, 50):
            yield [batch]

    mixed = mct.core.MixedPrecisionQuantizationConfig(num_of_images=32)
    config = mct.core.CoreConfig(mixed_precision_config=mixed)
    parameters = sum(p.numel() for p in task.model.parameters())
    model, _ = mct.ptq.pytorch_post_training_quantization(
        copy.deepcopy(task.model),
        images,
        target_resource_utilization=mct.core.ResourceUtilization(weights_memory=0.75 * parameters),
        core_config=config,
    )
    path = task.folder / "mct.onnx"
    # it names free axes as torch's older exporter wants them
    torch.onnx.export = partial(torch.onnx.export, dynamo=False)
    mct.exporter.pytorch_export_model(
        model=model,
        save_model_path=str(path),
        repr_dataset=images,
        serialization_format=mct.exporter.PytorchExportSerializationFormat.ONNX,
        quantization_format=mct.exporter.QuantizationFormat.FAKELY_QUANT,
    )
    settings = "mixed precision, weights_memory 75 % of int8's, 500 images; FAKELY_QUANT export"
    name = "model-compression-toolkit"
    return path, {"settings": settings, "version": f"{name} {version(name)}"}


def mct_pruning(task: Task) -> Answer:
    """MCT's pruning by label-free Hessian scores, then training and ONNX Runtime's int8."""
    import model_compression_toolkit as mct

    def images() -> Iterator[list[Tensor]]:
        for batch in task.calibration(64, 32):
            yield [batch]

    whole = sum(p.numel() for p in task.model.state_dict().values())
    config = mct.pruning.PruningConfig(num_score_approximations=1)
    built: dict[float, nn.Module] = {}

    def build(share: float) -> nn.Module:
        if share == 0:
            return task.model
        wanted = mct.core.ResourceUtilization(weights_memory=4 * whole * (1 - share))
        built[share], _ = mct.pruning.pytorch_pruning_experimental(
            model=copy.deepcopy(task.model),
            target_resource_utilization=wanted,
            representative_data_gen=images,
            pruning_config=config,
        )
        return built[share].eval()

    # it removes channels in groups of 32, so that narrow networks cannot lose many
    share = task.aimed(build, high=0.9 if task.network == "vgg16" else 0.3)
    model = built.get(share, copy.deepcopy(task.model))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    name = "model-compression-toolkit"
    return task.finished(model), {
        "settings": "label-free Hessian, one score approximation, 64 images",
        "version": f"{name} {version(name)}",
    }
