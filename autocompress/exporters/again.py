"""Write a rebuilt module to a file again, also after it was trained further elsewhere.

``autocompress.apply`` hands out a plain ``nn.Module``. What the file needs beside it (bits, ranges,
where they belong) travels along as an attribute that copies, pickles and training leave alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from autocompress.errors import ExportError, InputError
from autocompress.exporters.checked import checked_graph
from autocompress.exporters.onnx_quantize import plan_nodes, quantized_tensors
from autocompress.exporters.write import ExportedFile, Writer, export
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.nested import map_tensors
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import simulate, unwrapped

if TYPE_CHECKING:
    from torch import Tensor

_ATTRIBUTE = "_autocompress"


@dataclass(frozen=True)
class Provenance:
    """What a rebuilt module was made from.

    Args:
        compressed: without its modules and its graph, which the module itself stands for.
        example: one batched input.
    """

    compressed: Compressed
    example: Any


def handed_out(compressed: Compressed, example: Any) -> nn.Module:
    """A compressed model as a module for people: it computes what the exported file computes.

    Args:
        compressed: calibrated, if any layer is quantized.
        example: one batched input.

    Returns:
        In eval mode, on the CPU; ``export_module`` writes it.
    """
    module = simulate(compressed) if compressed.quantized else compressed.module
    light = compressed.with_(module=nn.Identity(), folded=None, graph=None)
    setattr(module, _ATTRIBUTE, Provenance(light, map_tensors(_on_cpu, example)))
    return module


def export_module(
    module: nn.Module, path: str | Path, example: Any = None, write: Writer = export
) -> ExportedFile:
    """Write a module that ``apply`` gave, with the weights that it has now.

    Layers in 8 bits keep the input ranges that they had, and that further training went through:
    the file computes what the module computes.

    Args:
        module: from ``apply``, perhaps trained since, on any device; or any other module, which
            is then written in float. Not changed.
        path: with a suffix that ``write`` takes.
        example: one batched input; needed for a module that ``apply`` did not give.
        write: as ``export``; a target's own for a format of its own.

    Raises:
        InputError: no example, or another suffix.
        ExportError: the module was changed so that its ranges no longer fit, or no exporter takes
            it.
    """
    provenance = getattr(module, _ATTRIBUTE, None)
    if provenance is None:
        if example is None:
            raise InputError(
                "A module that `autocompress.apply` did not give needs an example to be traced "
                "with: export(module, path, example=inputs), a batch of one or more."
            )
        provenance = Provenance(Compressed(nn.Identity(), Policy(), CompressionSettings()), example)
    plain = unwrapped(module).cpu().eval()
    inputs = provenance.example if example is None else map_tensors(_on_cpu, example)
    compressed = provenance.compressed.with_(module=plain)
    if compressed.ranges is not None:
        compressed = _with_graph(compressed, inputs)
    return write(compressed, Path(path), inputs)


def _with_graph(compressed: Compressed, example: Any) -> Compressed:
    """The same with its float graph, which must hold the tensors that ranges are known for."""
    graph = checked_graph(compressed, compressed.module, example)
    needed = set(quantized_tensors(graph, plan_nodes(graph, compressed)))
    missing = sorted(needed - set(compressed.ranges or {}))
    if missing:
        raise ExportError(
            f"The module was changed since `apply` gave it: of {len(missing)} tensors, "
            f"{missing[0]!r} among them, the range in 8 bits is not known. Change only its "
            "weights, or search again."
        )
    # trained through rounding, or as calibration left it: either way nearest is what it simulates
    return compressed.with_(folded=compressed.module, graph=graph, qat=True)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()
