"""Quantization: weights and activations in fewer bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from autocompress.errors import PolicyError
from autocompress.policy.field import Field
from autocompress.policy.technique import Technique, percent, some
from autocompress.policy.values import ActivationBits, ActivationScaling, WeightBits, WeightBlock

if TYPE_CHECKING:
    from autocompress.measure.gate import Shown
    from autocompress.model.kernels import KernelPrecision
    from autocompress.policy.inventory import Inventory, LayerSpec, LayerTraits
    from autocompress.policy.policy import LayerPolicy
    from autocompress.policy.settings import CompressionSettings
    from autocompress.policy.space_config import Rule
    from autocompress.targets.base import NodeTime, Target
    from autocompress.techniques.stitching import Stitching

_STATIC = {"activation_scaling": "static"}
_IN_BLOCKS = ("linear", "attention")
_INT8 = {"weight_bits": 8, "activation_bits": 8}


def packed_bytes(weights: int, channels: int, bits: int, block: int = 0) -> int:
    """Bytes of weights on disk; integers carry a float scale per output channel, or per block.

    Blocks are stored whole, 4 bits a weight.
    """
    if block:
        blocks = channels * math.ceil(weights / max(1, channels) / block)
        return blocks * (block // 2 + 4)
    return math.ceil(weights * bits / 8) + (4 * channels if bits < 16 else 0)


def _contradiction(weights: int, activations: int) -> str:
    """Why bits of weights and of activations cannot stand together; empty where they can."""
    if activations == 8 and weights > 8:
        return f"`weight_bits` must be 8 or less where activation_bits is 8, got {weights}."
    if (weights == 16) != (activations == 16):
        half = "`activation_bits` must be 16 together with weight_bits 16 (half precision)"
        return f"{half}, got {activations}."
    return ""


def _in_blocks(weight_bits: int, activation_bits: int, **other: Any) -> bool:
    """Whether weights can have scales by blocks: runtimes multiply them so in few bits alone."""
    return weight_bits < 8 and activation_bits == 32


class Quantize(Technique):
    """Integers of 8 bits or fewer, or half precision; carried out after all training."""

    name = "quantize"
    fields = (
        Field("weight_bits", 32, values=get_args(WeightBits)),
        Field("activation_bits", 32, values=get_args(ActivationBits)),
        Field("activation_scaling", "static", values=get_args(ActivationScaling)),
        Field("weight_block", 0, values=get_args(WeightBlock)),
    )
    knob = "bits"
    stage = "precision"

    def active(self, policy: LayerPolicy) -> bool:
        """Whether weights or activations are kept in fewer than 32 bits."""
        return policy.weight_bits < 32 or policy.activation_bits < 32

    def validate(self, policy: LayerPolicy) -> None:
        """Integer activations need integer weights, and half precision is of both."""
        super().validate(policy)
        wrong = _contradiction(policy.weight_bits, policy.activation_bits)
        if policy.weight_block and not _in_blocks(policy.weight_bits, policy.activation_bits):
            wrong = wrong or (
                "`weight_block` needs `weight_bits` of 4 or fewer beside activation_bits 32, got "
                f"{policy.weight_bits} and {policy.activation_bits}. Leave it at 0."
            )
        if wrong:
            raise PolicyError(wrong)

    def left_alone(self, layer: LayerSpec, traits: LayerTraits) -> str:
        """Also: no runtime has kernels for it."""
        reason = ""
        if layer.kind in ("gru", "rnn"):
            reason = f"runtimes have no integer kernels for {traits.class_name} layers"
        elif traits.sums_rows:
            reason = "runtimes sum rows of a table in float only"
        return super().left_alone(layer, traits) or reason

    def why_not(self, layer: LayerSpec, policy: LayerPolicy, inventory: Inventory) -> str:
        """Blocks are of rows of matrices."""
        reason = super().why_not(layer, policy, inventory)
        if policy.weight_block and layer.kind not in _IN_BLOCKS:
            reason = reason or (
                f"`weight_block` is for linear layers and attention, this is a {layer.kind}"
            )
        return reason

    def levels(self, rule: Rule, layer: LayerSpec) -> list[dict[str, Any]]:
        """Every valid pair of bits, the most bits first; weights alone where only they can be.

        Of few bits alone, one level for each size of block, the smallest first.
        """
        levels = self._pairs(rule, layer)
        if not any(rule.weight_block) or layer.kind not in _IN_BLOCKS:
            return levels
        sizes = sorted(set(rule.weight_block), key=lambda size: size or math.inf)
        return [
            {**level, "weight_block": size}
            for level in levels
            for size in (sizes if _in_blocks(**level) else [0])
        ]

    def _pairs(self, rule: Rule, layer: LayerSpec) -> list[dict[str, Any]]:
        """Bits of weights and activations, and how these are scaled."""
        if not layer.integer:
            bits = sorted(set(rule.weight_bits), reverse=True)
            return [
                {"weight_bits": b, "activation_bits": 16 if b == 16 else 32} | _STATIC for b in bits
            ]
        levels: list[dict[str, Any]] = []
        for weight in sorted(set(rule.weight_bits), reverse=True):
            for activation in sorted(set(rule.activation_bits), reverse=True):
                if _contradiction(weight, activation):
                    continue
                float_inputs = weight < 16 and activation == 32
                if float_inputs and 8 in rule.activation_bits and not rule.weight_only:
                    continue
                level: dict[str, Any] = {"weight_bits": weight, "activation_bits": activation}
                if activation == 8:
                    levels += [{**level, "activation_scaling": s} for s in rule.activation_scaling]
                else:
                    levels.append(level | _STATIC)
        return levels

    def followed(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Bits of activations follow those of weights."""
        return {"activation_bits": 8} if values.get("weight_bits") == 8 else {}

    def named_starts(self, levels: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """All in 8 bits, where the space has that."""
        return {"int8": _INT8} if any(level["activation_bits"] == 8 for level in levels) else {}

    def ladder(self, levels: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """Weights alone, where their activations cannot be integers."""
        return () if self.named_starts(levels) else ({"weight_bits": 8}, {"weight_bits": 4})

    def words(self, policies: Sequence[LayerPolicy]) -> list[str]:
        """Half, integer, and integer weights beside float activations."""
        used = {
            "half": any(p.weight_bits == 16 for p in policies),
            "int8": any(p.integer for p in policies),
            "weight-only": any(p.weight_bits < 16 and not p.integer for p in policies),
        }
        return [word for word, is_used in used.items() if is_used]

    def summary(self, policies: Sequence[LayerPolicy]) -> dict[str, float]:
        """Mean bits of weights, and the share of integer layers."""
        return {
            "mean_weight_bits": sum(p.weight_bits for p in policies) / len(policies),
            "int8_share": sum(p.integer for p in policies) / len(policies),
        }

    def told(self, summary: Mapping[str, float | str]) -> list[str]:
        """The share of integer layers, and other bits by name."""
        share = float(summary["int8_share"])
        method = str(summary["method"]).split(" + ")
        int8 = [f"int8 in {percent(share)}"] if share else []
        return [*int8, *(word for word in ("half", "weight-only") if word in method)]

    def cell(self, policy: LayerPolicy) -> str:
        """Bits of weights and activations."""
        how = " at run time" if policy.integer and policy.activation_scaling == "dynamic" else ""
        bits = f"{policy.weight_bits}/{policy.activation_bits} bits"
        how += f" in blocks of {policy.weight_block}" if policy.weight_block else ""
        return f"{bits}{how}" if self.active(policy) else ""

    def probes(self) -> Mapping[str, Mapping[str, Any]]:
        """All in 8 bits."""
        return {"int8": _INT8}

    def unfit(self, target: type[Target], settings: CompressionSettings) -> str:
        """Its files do not hold the 16-bit format."""
        if settings.half_format in target.half_formats:
            return ""
        return (
            f"the files of {target.name} hold 16 bits as {' or '.join(target.half_formats)}, not "
            f"as `settings.half_format: {settings.half_format}` asks"
        )

    def unsupported(self, target: type[Target], policy: LayerPolicy) -> str:
        """Blocks need a product of the runtime's own."""
        if not policy.weight_block or target.weight_blocks:
            return ""
        return (
            f"`weight_block: {policy.weight_block}` needs a runtime that multiplies packed "
            f"weights; the files of {target.name} hold one scale per output channel, which is "
            "`weight_block: 0`"
        )

    def no_gain(self, target: type[Target]) -> str:
        """Without integer kernels, 8 bits are simulated."""
        if target.integer_kernels:
            return ""
        return (
            "its files simulate integers in float, which shows what they cost in accuracy and "
            "gains no time"
        )

    def timed_levels(self, count: int) -> Sequence[int]:
        """All: each is another arithmetic."""
        return range(count)

    def arithmetic(self, policy: LayerPolicy) -> KernelPrecision | None:
        """Integers, halves, or floats on weights alone."""
        if policy.integer:
            return "int8" if policy.activation_scaling == "static" else "int8_dynamic"
        return "fp16" if policy.weight_bits == 16 else "fp32"

    def unpacks(self, policy: LayerPolicy) -> bool:
        """Integer weights beside float activations."""
        return policy.weight_bits < 16 and not policy.integer

    def problems(self, shown: Shown) -> list[str]:
        """Layers that are integer, or half, in the policy alone, or in the file alone."""
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
                f"kernel for {some(without)}."
            )
        if floats := [name for name in half if _computes_in_32_bits(shown, name)]:
            problems.append(
                "The policy promises half precision, but the runtime computes in 32 bits in "
                f"{some(floats)}."
            )
        blocks = [name for name, precision in precisions.items() if precision.block]
        if unpacked := [name for name in blocks if not _all_packed(shown, name)]:
            problems.append(
                "The policy promises weights that stay packed in blocks, but the runtime's profile "
                f"shows no kernel that multiplies them so for {some(unpacked)}."
            )
        if rounded := [name for name in shown.nodes if _rounded_unasked(shown, name, integer)]:
            problems.append(
                f"The policy keeps {some(rounded)} in float, but the runtime rounds there too, "
                "because the neighbours are integer: speed and accuracy are those of 8 bits."
            )
        return problems

    def stored_bytes(self, before: int, weights: int, channels: int, policy: LayerPolicy) -> int:
        """In so many bits."""
        return packed_bytes(weights, channels, policy.weight_bits, policy.weight_block)

    def apply(self, work: Stitching) -> None:
        """Note the bits; the weights stay float until all training is done."""
        from autocompress.techniques.compressed import Precision

        for spec, policy in work.layers(self):
            if not spec.integer and policy.integer:  # its inputs stay float, where they are any
                policy = replace(policy, activation_bits=32)
            for part in work.parts[spec.name]:
                work.precisions[part] = Precision.of(policy, work.settings)


# ---- what a profile shows of it


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
    weights_only = not hasattr(module, "kernel_size")
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
