"""Write a compressed model: ``.onnx`` (what is measured), ``.pt2`` and ``.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autocompress.errors import ExportError, InputError
from autocompress.exporters.agreement import check_program
from autocompress.exporters.checked import checked_graph
from autocompress.exporters.metadata import AXES_KEY, SIZES_KEY
from autocompress.exporters.onnx_graph import flat_program
from autocompress.exporters.onnx_quantize import quantize_graph
from autocompress.exporters.onnx_share import share_weights
from autocompress.exporters.silence import silent
from autocompress.model.weights import state_tensors
from autocompress.policy.writing import replacing
from autocompress.task.calling import Flat, call, input_names, is_flat
from autocompress.task.dynamic import sizes_of
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.fold import fold_batch_norms
from autocompress.techniques.quantize import in_half, settled_weights, simulate


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


Writer = Callable[[Compressed, Path, Any], ExportedFile]
"""Writes a compressed model, with an example of its inputs, to a path."""


def export(compressed: Compressed, path: str | Path, example: Any) -> ExportedFile:
    """Write a compressed model in the format of the path's suffix.

    Args:
        compressed: calibrated, if any layer is quantized with static activations.
        path: ends in ``.onnx``, ``.pt2`` (``torch.export``) or ``.safetensors`` (float weights of
            the compressed module, with the policy in the metadata).
        example: one batch of inputs, built as the model takes them; of two samples or more, and of
            two sizes where axes are free, see ``check_graph``.

    Raises:
        InputError: another suffix.
        ExportError: the file does not do what the module does.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        listed = ", ".join(WRITERS)
        raise InputError(f"The formats that every target shares are {listed}, got {path.name!r}.")
    with replacing(path) as partial:
        WRITERS[path.suffix](compressed, partial, example)
    changed = tuple(n for n, p in compressed.precisions.items() if p.weight_bits < 32)
    return ExportedFile(path, path.stat().st_size, changed)


def _write_onnx(compressed: Compressed, path: Path, example: Any) -> None:
    graph = compressed.graph
    if graph is None:
        folded = fold_batch_norms(compressed.module)
        graph = checked_graph(compressed, folded, example, judge=compressed.module)
    if compressed.quantized:
        graph = quantize_graph(graph, compressed)
    share_weights(graph)
    if compressed.dynamic:
        entry = graph.metadata_props.add()
        entry.key, entry.value = SIZES_KEY, json.dumps(sizes_of(example, compressed.dynamic))
    path.write_bytes(graph.SerializeToString())


def _write_pt2(compressed: Compressed, path: Path, example: Any) -> None:
    module = compressed.module
    if compressed.quantized:
        module = in_half(settled_weights(simulate(compressed)))
    module.eval()
    names = input_names(example)
    axes = {name: {0: "batch", **compressed.dynamic.get(name, {})} for name in names}
    with torch.no_grad():
        plain = is_flat(example, call(module, example))
    try:
        with silent():
            program = flat_program(module if plain else Flat(module, example), example, axes)
    except Exception as error:  # a forward of anyone's, run on sizes that are no numbers
        raise ExportError(f"torch.export cannot take this model: {error}") from error
    check_program(module, program, example, dynamic=compressed.dynamic)
    about = {AXES_KEY: axes, SIZES_KEY: sizes_of(example, compressed.dynamic)}
    with silent():  # it warns of weights that are parts of larger ones
        torch.export.save(program, path, extra_files={k: json.dumps(v) for k, v in about.items()})


def _write_safetensors(compressed: Compressed, path: Path, example: Any) -> None:
    from safetensors.torch import save_file

    tensors = {
        n: t.detach().cpu().contiguous().clone()
        for n, t in state_tensors(compressed.module).items()
    }
    policy = json.dumps(compressed.policy.as_dict(), sort_keys=True)
    save_file(tensors, path, {"policy": policy, "digest": compressed.policy.digest})


WRITERS: dict[str, Callable[[Compressed, Path, Any], None]] = {
    ".onnx": _write_onnx,
    ".pt2": _write_pt2,
    ".safetensors": _write_safetensors,
}
"""By suffix. Targets bring further formats; ``run.formats`` knows all."""
