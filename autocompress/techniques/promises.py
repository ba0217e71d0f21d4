"""What a runtime's profile must show of pruned and quantized layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from autocompress.measure.gate import Shown
    from autocompress.targets.base import NodeTime

_LISTED = 6


def quantization_problems(shown: Shown) -> list[str]:
    """Integer and half-precision layers that are none, and layers that are without being asked."""
    precisions = shown.compressed.precisions
    integer = [name for name, precision in precisions.items() if precision.integer]
    half = [name for name, precision in precisions.items() if precision.half]
    problems = []
    if integer and not shown.nodes:
        count = sum(map(shown.integer, shown.profile.nodes))
        if count < len(integer):
            problems.append(
                f"The policy promises 8-bit arithmetic in {len(integer)} layers, the runtime's "
                f"profile shows {count} integer kernels."
            )
    elif without := [name for name in integer if not _all_integer(shown, name)]:
        problems.append(
            "The policy promises 8-bit arithmetic, but the runtime's profile shows no integer "
            f"kernel for {_some(without)}."
        )
    if floats := [name for name in half if _computes_in_32_bits(shown, name)]:
        problems.append(
            "The policy promises half precision, but the runtime computes in 32 bits in "
            f"{_some(floats)}."
        )
    blocks = [name for name, precision in precisions.items() if precision.block]
    if unpacked := [name for name in blocks if not _all_packed(shown, name)]:
        problems.append(
            "The policy promises weights that stay packed in blocks, but the runtime's profile "
            f"shows no kernel that multiplies them so for {_some(unpacked)}."
        )
    if rounded := [name for name in shown.nodes if _rounded_unasked(shown, name, integer)]:
        problems.append(
            f"The policy keeps {_some(rounded)} in float, but the runtime rounds there too, "
            "because the neighbours are integer: speed and accuracy are those of 8 bits."
        )
    return problems


def _all_integer(shown: Shown, layer: str) -> bool:
    """Whether a layer, or the modules inside it, multiply integers only."""
    own = _products(shown, layer)
    return bool(own) and all(map(shown.integer, own))


def _all_packed(shown: Shown, layer: str) -> bool:
    """Whether a layer, or the modules inside it, multiply weights that stay packed."""
    own = _products(shown, layer)
    return bool(own) and all(map(shown.target.keeps_packed, own))


def _products(shown: Shown, layer: str) -> list[NodeTime]:
    """Operators in which the weights of a layer, or of the modules inside it, are at work."""
    module = shown.compressed.module.get_submodule(layer)
    # attention's products of two activations stay in float, where they are as fast
    weights_only = not isinstance(module, nn.modules.conv._ConvNd)
    return [
        node
        for name, found in shown.nodes.items()
        if _within(name, layer)
        for node in found
        if shown.multiplies(node) and not (weights_only and _of_activations(node))
    ]


def _of_activations(node: NodeTime) -> bool:
    """Whether a product is one of two batches of matrices, as attention has them."""
    return min((len(shape) for _, shape in node.inputs), default=0) > 2


def _computes_in_32_bits(shown: Shown, layer: str) -> bool:
    own = [n for n in shown.nodes.get(layer, ()) if shown.multiplies(n) and n.inputs]
    return any(node.inputs[0][0] == "float" for node in own)


def _rounded_unasked(shown: Shown, name: str, asked: Sequence[str]) -> bool:
    """Whether a module's weights are at work in integers although no policy says so."""
    module = shown.compressed.module.get_submodule(name)
    # shortcuts that became convolutions have no weight of their own
    return (
        any(map(shown.integer, shown.nodes[name]))
        and getattr(module, "weight", None) is not None
        and not any(_within(name, other) or _within(other, name) for other in asked)
    )


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def channel_problems(shown: Shown) -> list[str]:
    """Layers whose output has another number of channels than the compressed model's."""
    wrong = []
    for name, nodes in shown.nodes.items():
        module = shown.compressed.module.get_submodule(name)
        linear = hasattr(module, "out_features")
        wanted = getattr(module, "out_features" if linear else "out_channels", None)
        if wanted is None:
            continue
        for node in nodes:
            output = node.outputs[0][1] if node.outputs else ()
            if len(output) < 2 or not shown.multiplies(node):
                continue
            if not shown.target.shows_channels(node, int(wanted), linear):
                wrong.append(f"{name} ({wanted} channels promised, output {list(output)})")
                break
    if not wrong:
        return []
    return [f"The runtime's profile shows other shapes than the policy promises: {_some(wrong)}."]


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
