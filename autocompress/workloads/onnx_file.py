"""An ONNX file as the model of a study, through the library ``onnx2torch``."""

from __future__ import annotations

import keyword
import re
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.errors import InputError, explained
from autocompress.task.compared import TOLERANCES, difference
from autocompress.task.nested import tensors

_INTEGER = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits")
_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}
_READ = 18
"""Newest set of operators whose reshapes onnx2torch reads."""
_LEAST = 1e-2
"""Values below count as this large in that check."""
_FREE = 32
"""Size of a free axis, other than the batch, in the check of the conversion."""


def onnx_model(path: str) -> nn.Module:
    """A file's network as a module: its layers can be pruned, factorized and quantized again.

    Convolutions, linear layers and products with constant matrices become layers of ``torch.nn``,
    named after the file's nodes. The module is compared with the file once, on random inputs in a
    batch of two.

    Args:
        path: an ONNX file in float, its batch free.

    Raises:
        InputError: no such file, one that is quantized already, has a fixed batch, or an operator
            that cannot be converted.
    """
    try:
        import onnx2torch
    except ImportError:
        raise InputError(
            "An ONNX file as the model needs onnx2torch: pip install 'autocompress[onnx]'."
        ) from None
    graph = _load(path)
    try:
        module = onnx2torch.convert(_plainer(graph))
    except Exception as error:  # of what is refused, and of what a stranger's file makes stumble
        raise InputError(
            f"{path} cannot become layers: {explained(error)}. Give the torch model that it was "
            "exported from."
        ) from None
    _settle(module)
    module.eval()
    _compare(module, path, graph)
    return module


def _plainer(graph: Any) -> Any:
    """A file of a newer operator set in an older one, as far as its operators allow that.

    torch's exporter writes set 20, and reshapes that take a zero as a size; onnx2torch reads
    neither. That the module answers as the file does is seen to afterwards.
    """
    from onnx import version_converter

    for one in graph.opset_import:
        one.domain = "" if one.domain == "ai.onnx" else one.domain  # the same by another name
    newest = max((one.version for one in graph.opset_import if not one.domain), default=0)
    if newest > _READ:
        try:
            graph = version_converter.convert_version(graph, _READ)
        except (
            RuntimeError,
            version_converter.ConvertError,
        ):  # an operator that the older set lacks: onnx2torch says which
            return graph
    for node in graph.graph.node:
        if node.op_type == "Reshape":
            kept = [one for one in node.attribute if one.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return graph


def _load(path: str) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not Path(path).is_file():
        raise InputError(f"There is no file {path}.")
    try:
        graph = onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise InputError(f"{path} is no ONNX file: {error}") from None
    taken: set[str] = set()
    for node in graph.graph.node:  # torch.fx writes names into source code, which it runs
        node.name = _another(_plain(node.name or node.op_type), taken)
    kinds = {node.op_type for node in graph.graph.node}
    integers = sorted(k for k in kinds if k in _INTEGER or k.startswith("QLinear"))
    if integers:
        raise InputError(
            f"{path} is quantized already ({', '.join(integers)}). Give the float file: a study "
            "chooses the bits of each layer itself."
        )
    return graph


def _settle(module: fx.GraphModule) -> None:
    """Give every part a plain name, and every product with a constant matrix a linear layer."""
    parts: dict[fx.Node, nn.Module] = {}
    taken: set[str] = set()
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        part = module.get_submodule(node.target)
        weight = _constant(module, node.args[1]) if _is_product(part, node) else None
        if weight is not None and weight.dim() == 2:
            part = nn.Linear(weight.shape[0], weight.shape[1], bias=False)
            part.weight = nn.Parameter(weight.t().contiguous())
            node.args = node.args[:1]
        parts[node] = part
    for name in {str(node.target) for node in parts}:
        module.delete_submodule(name)
    for node, part in parts.items():
        name = _another(_plain(str(node.target)), taken)
        module.add_submodule(name, part)
        node.target = name
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _plain(text: str) -> str:
    """A name that a part of a module may have, and nothing else.

    A dot would stand for a part of a part, a number sign for a call.
    """
    name = re.sub(r"\W+", "_", text).strip("_") or "node"
    taken = keyword.iskeyword(name) or hasattr(nn.Module(), name) or name == "initializers"
    return f"{name}_" if taken else name


def _another(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; it is taken then."""
    numbered = (f"{name}_{number}" for number in count(1))
    found = next(n for n in chain([name], numbered) if n not in taken)
    taken.add(found)
    return found


def _is_product(part: nn.Module, node: fx.Node) -> bool:
    return type(part).__name__ == "OnnxMatMul" and len(node.args) == 2


def _constant(module: fx.GraphModule, value: Any) -> Tensor | None:
    """The tensor behind an argument that is an initializer of the file."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    found: Any = module
    for part in str(value.target).split("."):
        found = getattr(found, part)
    return found.detach() if isinstance(found, Tensor) else None


def _zeros_and_ones(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(2, shape)


@torch.no_grad()
def _compare(module: nn.Module, path: str, graph: Any) -> None:
    """Refuse a conversion that computes something else than the file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a class for each of its reasons
        raise InputError(f"ONNX Runtime cannot open {path}: {error}") from None
    inputs = []
    for spec in session.get_inputs():
        if not spec.shape or spec.type not in _TYPES:
            raise InputError(
                f"{path} takes {spec.name!r} of the type {spec.type}, without a batch."
            )
        first, *rest = spec.shape
        if isinstance(first, int) and first != 2:
            raise InputError(
                f"{path} takes batches of exactly {first}. Export it with a free batch: "
                "torch.onnx.export(..., dynamic_axes={name: {0: 'batch'}})."
            )
        shape = (2, *(d if isinstance(d, int) else _FREE for d in rest))
        kind = _TYPES[spec.type]
        inputs.append((torch.randn if kind.is_floating_point else _zeros_and_ones)(shape).to(kind))
    feed = {s.name: x.numpy() for s, x in zip(session.get_inputs(), inputs, strict=True)}
    try:
        wanted = [torch.as_tensor(array) for array in session.run(None, feed)]
    except Exception as error:  # the same
        raise InputError(
            f"ONNX Runtime cannot run {path} on a batch of two random inputs: {error}"
        ) from None
    try:
        found = module(*inputs)
    except Exception as error:  # converted operators raise whatever they stumble on
        raise InputError(
            f"{path} cannot be used: what onnx2torch makes of it does not run ({error}). Give the "
            "torch model that it was exported from."
        ) from error
    off = difference(tensors(found), wanted, TOLERANCES[torch.float32], _LEAST)
    if off:
        raise InputError(
            f"{path} cannot be used: what onnx2torch makes of it computes something else ({off}). "
            "Give the torch model that it was exported from."
        )
