"""The gate: before a speed-up is believed, the runtime must show what the policy promised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.measure.lock import machine_lock
from autocompress.policy.registry import techniques
from autocompress.targets.base import NodeTime, Profile, Target
from autocompress.targets.lengths import drawn_inputs
from autocompress.targets.profile import KernelClass

if TYPE_CHECKING:
    from torch import nn

    from autocompress.measure.latency import Timing
    from autocompress.techniques.compressed import Compressed

    Layers = Mapping[str, Sequence[NodeTime]]

#: what quantization brings along and nobody asked for
_SUSPECT = (KernelClass.FLOAT, KernelClass.QUANTIZE, KernelClass.LAYOUT)
_SHOWN = 6


def check_file(
    target: Target,
    path: str | Path,
    compressed: Compressed | None = None,
    timing: Timing | None = None,
) -> list[str]:
    """Profile a file in its runtime and compare with what was promised; see ``check_promise``."""
    with machine_lock(exclusive=False), closing(target.open(path)) as session:
        profile = session.profile(drawn_inputs(session, target.config)[0], runs=2)
    return check_promise(target, profile, compressed, timing)


def check_promise(
    target: Target,
    profile: Profile,
    compressed: Compressed | None = None,
    timing: Timing | None = None,
) -> list[str]:
    """What a runtime's profile does not show although the policy promised it.

    Args:
        target: tells what its kernels do.
        profile: of the exported file.
        compressed: the model that the file was made from; ``None`` where only its speed is judged.
        timing: of the file beside the uncompressed one; ``None`` judges the operators only.

    Returns:
        One sentence per problem; empty when every promise is kept.
    """
    problems = []
    if compressed is not None:
        nodes = layer_profile(profile, [n for n, _ in compressed.module.named_modules() if n])
        problems += _missing_integers(target, profile, nodes, compressed)
        problems += _missing_halves(target, nodes, compressed)
        problems += _unasked_integers(target, nodes, compressed)
        problems += _unpruned(target, nodes, compressed)
        asked = {n: compressed.policy[of] for of, parts in compressed.parts.items() for n in parts}
        for technique in techniques():
            problems += technique.problems(nodes, asked)
    rounded = compressed.quantized if compressed is not None else _rounds(target, profile)
    if timing is not None and timing.slower and rounded:
        problems.append(_blame(target, profile, timing))
    return problems


def layer_profile(profile: Profile, layers: Iterable[str]) -> dict[str, list[NodeTime]]:
    """Layer name to its operators of a profile, in the order in which they run.

    Args:
        profile: with nodes that have canonical names.
        layers: dotted module names.
    """
    from autocompress.exporters.names import layer_of

    known = set(layers)
    found: dict[str, list[NodeTime]] = {}
    for node in profile.nodes:
        layer = layer_of(node.name)
        if layer is not None and layer[0] in known:
            found.setdefault(layer[0], []).append(node)
    return found


def _integer(target: Target, node: NodeTime) -> bool:
    return target.classify(node) is KernelClass.INTEGER


def _missing_integers(
    target: Target, profile: Profile, nodes: Layers, compressed: Compressed
) -> list[str]:
    promised = [n for n, p in compressed.precisions.items() if p.integer]
    if not promised:
        return []
    integers = sum(_integer(target, node) for node in profile.nodes)
    if not nodes:
        if integers >= len(promised):
            return []
        return [
            f"The policy promises 8-bit arithmetic in {len(promised)} layers, the runtime's "
            f"profile shows {integers} integer kernels."
        ]
    scaling = {n: compressed.precisions[n].activation_scaling for n in promised}
    dynamic = {n for n in promised if scaling[n] == "dynamic"}
    convolutions = {n for n in promised if _is_convolution(compressed.module, n)}
    without = [
        n for n in promised if not _all_integer(target, nodes, n, n in dynamic - convolutions)
    ]
    if not without:
        return []
    return [
        "The policy promises 8-bit arithmetic, but the runtime's profile shows no integer kernel "
        f"for {_listed(without)}."
    ]


def _is_convolution(module: nn.Module, name: str) -> bool:
    from torch import nn

    return isinstance(module.get_submodule(name), nn.modules.conv._ConvNd)


def _all_integer(target: Target, nodes: Layers, layer: str, weights_only: bool) -> bool:
    """Whether a layer, or the modules inside it, multiply integers only.

    Args:
        weights_only: leave products of two activations out: with ranges at run time, attention's
            stay in float.
    """
    own = [
        node
        for name, found in nodes.items()
        if _within(name, layer)
        for node in found
        if target.classify(node).multiplies and not (weights_only and _of_activations(node))
    ]
    return bool(own) and all(_integer(target, node) for node in own)


def _of_activations(node: NodeTime) -> bool:
    """Whether a product is one of two batches of matrices, as attention has them."""
    return min((len(shape) for _, shape in node.inputs), default=0) > 2


def _missing_halves(target: Target, nodes: Layers, compressed: Compressed) -> list[str]:
    without = []
    for name, precision in compressed.precisions.items():
        own = [n for n in nodes.get(name, ()) if target.classify(n).multiplies and n.inputs]
        if precision.half and any(n.inputs[0][0] == "float" for n in own):
            without.append(name)
    if not without:
        return []
    return [
        "The policy promises half precision, but the runtime computes in 32 bits in "
        f"{_listed(without)}."
    ]


def _unasked_integers(target: Target, nodes: Layers, compressed: Compressed) -> list[str]:
    asked = [n for n, p in compressed.precisions.items() if p.integer]
    rounded = [
        name
        for name, found in nodes.items()
        if any(_integer(target, node) for node in found)
        and _weighted(compressed.module, name)
        and not any(_within(name, n) or _within(n, name) for n in asked)
    ]
    if not rounded:
        return []
    return [
        f"The policy keeps {_listed(rounded)} in float, but the runtime rounds there too, because "
        "the neighbours are integer: speed and accuracy are those of 8 bits."
    ]


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _weighted(module: nn.Module, name: str) -> bool:
    """Whether a module has a weight of its own; shortcuts that became convolutions have none."""
    return getattr(module.get_submodule(name), "weight", None) is not None


def _unpruned(target: Target, nodes: Layers, compressed: Compressed) -> list[str]:
    wrong = []
    for name, found in nodes.items():
        module = compressed.module.get_submodule(name)
        wanted = getattr(module, "out_channels", getattr(module, "out_features", None))
        shown = [n for n in found if n.outputs and len(n.outputs[0][1]) > 1]
        shown = [n for n in shown if target.classify(n).multiplies]
        if wanted is None:
            continue
        linear = hasattr(module, "out_features")
        other = next((n for n in shown if not target.shows_channels(n, int(wanted), linear)), None)
        if other is not None:
            shape = list(other.outputs[0][1])
            wrong.append(f"{name} ({wanted} channels promised, output {shape})")
    if not wrong:
        return []
    return [f"The runtime's profile shows other shapes than the policy promises: {_listed(wrong)}."]


def _rounds(target: Target, profile: Profile) -> bool:
    quantized = (KernelClass.INTEGER, KernelClass.QUANTIZE)
    return any(target.classify(node) in quantized for node in profile.nodes)


def _blame(target: Target, profile: Profile, timing: Timing) -> str:
    """The sentence on a quantized file that is slower than the float one."""
    suspects = {}
    for op, (count, ms) in profile.by_op().items():
        nodes = [n for n in profile.nodes if n.op == op]
        wide = any(n.outputs and n.outputs[0][0] == "int32" for n in nodes)
        if wide or any(target.classify(n) in _SUSPECT for n in nodes):
            suspects[op] = (count, ms)
    listed = sorted((suspects or profile.by_op()).items(), key=lambda item: -item[1][1])[:3]
    spent = ", ".join(f"{op} ({n} nodes, {ms:.3f} ms)" for op, (n, ms) in listed)
    return (
        f"The quantized file is slower than the uncompressed one in the same runtime: it takes "
        f"{timing.ratio:.2f} times as long (at least {timing.ratio_low:.2f}). Operators to "
        f"blame: {spent}."
    )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
