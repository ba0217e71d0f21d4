"""Write a compressed model: ``.onnx`` (what is measured), ``.pt2`` and ``.safetensors``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autocompress.errors import ExportError, InputError
from autocompress.techniques.compressed import Compressed

SUFFIXES = (".onnx", ".pt2", ".safetensors")


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """What was written.

    Args:
        path: of the file.
        size_bytes: of the file.
        quantized: names of the modules that are not float32 in it.
    """

    path: Path
    size_bytes: int
    quantized: tuple[str, ...]


def export(compressed: Compressed, path: str | Path, example: Any) -> ExportedFile:
    """Write a compressed model in the format of the path's suffix.

    Args:
        compressed: calibrated, if any layer is quantized with static activations.
        path: ends in ``.onnx``, ``.pt2`` (``torch.export``) or ``.safetensors`` (float weights of
            the compressed module, with the policy in the metadata).
        example: one batched input, or a tuple.

    Raises:
        InputError: another suffix.
        ExportError: the file does not do what the module does.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"A model is written as .onnx, .pt2 or .safetensors, got {path.name!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if path.suffix == ".onnx":
            _write_onnx(compressed, partial, example)
        elif path.suffix == ".pt2":
            _write_pt2(compressed, partial, example)
        else:
            _write_safetensors(compressed, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    changed = tuple(n for n, p in compressed.precisions.items() if p.weight_bits < 32)
    return ExportedFile(path, path.stat().st_size, changed)


def _write_onnx(compressed: Compressed, path: Path, example: Any) -> None:
    from autocompress.exporters.onnx_graph import float_graph
    from autocompress.exporters.onnx_quantize import quantize_graph
    from autocompress.exporters.onnx_share import share_weights
    from autocompress.techniques.fold import fold_batch_norms

    graph = compressed.graph
    if graph is None:
        graph = float_graph(fold_batch_norms(compressed.module), example)
        _check(compressed, graph, example)
    if compressed.quantized:
        graph = quantize_graph(graph, compressed)
    share_weights(graph)
    path.write_bytes(graph.SerializeToString())


@torch.no_grad()
def _check(compressed: Compressed, graph: Any, example: Any) -> None:
    """Run the float graph once beside the module."""
    import numpy as np
    import onnxruntime as ort

    inputs = example if isinstance(example, tuple) else (example,)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    found = session.run(None, feed)[0]
    wanted = compressed.module(*inputs)
    wanted = (wanted[0] if isinstance(wanted, tuple) else wanted).numpy()
    if not np.allclose(found, wanted, rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(wanted).max()))):
        raise ExportError(
            "The exported file must compute what the module computes; it differs by "
            f"up to {np.abs(found - wanted).max():.3g}. The model may branch on its "
            "input, which a file cannot."
        )


def _write_pt2(compressed: Compressed, path: Path, example: Any) -> None:
    from autocompress.techniques.quantize import in_half, simulate

    module = in_half(simulate(compressed)) if compressed.quantized else compressed.module
    inputs = example if isinstance(example, tuple) else (example,)
    if len(inputs[0]) < 2:  # a batch of one would be taken for a constant
        inputs = tuple(torch.cat([x, x]) for x in inputs)
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = tuple({0: batch} for _ in inputs)
    try:
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
    except Exception as error:
        if not type(error).__module__.startswith("torch"):
            raise
        raise ExportError(f"torch.export cannot take this model: {error}") from error
    torch.export.save(program, path)


def _write_safetensors(compressed: Compressed, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        n: t.detach().cpu().contiguous().clone() for n, t in compressed.module.state_dict().items()
    }
    policy = json.dumps(compressed.policy.as_dict(), sort_keys=True)
    save_file(tensors, path, {"policy": policy, "digest": compressed.policy.digest})
