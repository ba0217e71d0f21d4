"""Unstructured and 2:4 sparsity: single weights become zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from autocompress.errors import PolicyError
from autocompress.policy.field import Field
from autocompress.policy.technique import Technique, percent
from autocompress.policy.values import Pattern, Removed, ends
from autocompress.techniques.builtin.quantize import packed_bytes

if TYPE_CHECKING:
    from autocompress.policy.inventory import LayerSpec, LayerTraits
    from autocompress.policy.policy import LayerPolicy
    from autocompress.policy.space_config import Rule
    from autocompress.targets.base import Target
    from autocompress.techniques.stitching import Stitching


class Sparsify(Technique):
    """The smallest weights become zero; files shrink, and few runtimes gain time by it."""

    name = "sparse"
    fields = (
        Field("sparsity", 0.0, **ends(Removed)),
        Field("pattern", None, values=(None, *get_args(Pattern))),
    )
    knob = "sparsity"
    stage = "weights"
    removes = True

    def implied(self, policy: LayerPolicy) -> Mapping[str, Any]:
        """Two of four is half."""
        return {"sparsity": 0.5} if policy.pattern == "2:4" and policy.sparsity == 0 else {}

    def validate(self, policy: LayerPolicy) -> None:
        """A pattern sets the sparsity."""
        super().validate(policy)
        if policy.pattern == "2:4" and policy.sparsity != 0.5:
            raise PolicyError(f"`sparsity` must be 0.5 with pattern 2:4, got {policy.sparsity!r}.")

    def left_alone(self, layer: LayerSpec, traits: LayerTraits) -> str:
        """Also: another layer holds its weight, and has the say."""
        others = f"its zeros are those of {layer.tied_to}" if layer.tied_to else ""
        return super().left_alone(layer, traits) or others

    def levels(self, rule: Rule, layer: LayerSpec) -> list[dict[str, Any]]:
        """By sparsity, the free ones before the patterns."""
        levels: list[dict[str, Any]] = []
        for pattern in dict.fromkeys(rule.pattern):
            if pattern is not None:
                levels.append({"sparsity": 0.5, "pattern": pattern})
            else:
                levels += [{"sparsity": s, "pattern": None} for s in dict.fromkeys(rule.sparsity)]
        return sorted(levels, key=lambda level: (level["sparsity"], level["pattern"] or ""))

    def ladder(self, levels: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """Half, then a hard and a mild one."""
        return [{"sparsity": ratio} for ratio in (0.5, 0.75, 0.25)]

    def summary(self, policies: Sequence[LayerPolicy]) -> dict[str, float]:
        """The mean sparsity."""
        return {"mean_sparsity": sum(p.sparsity for p in policies) / len(policies)}

    def told(self, summary: Mapping[str, float | str]) -> list[str]:
        """The mean sparsity, if any."""
        mean = float(summary["mean_sparsity"])
        return [f"sparse {percent(mean)}"] if mean else []

    def cell(self, policy: LayerPolicy) -> str:
        """The pattern, or the share of zeros."""
        return policy.pattern or (f"{policy.sparsity:.0%} zeros" if policy.sparsity else "")

    def no_gain(self, target: type[Target]) -> str:
        """No kernel skips single zeros, unless a target says so."""
        if target.skips_zeros:
            return ""
        return (
            "its kernels multiply zeros like any number, which gains no time; for speed use "
            "`prune_ratio`"
        )

    def stored_bytes(self, before: int, weights: int, channels: int, policy: LayerPolicy) -> int:
        """A bitmap of one bit per weight and the values that are left, where that is smaller."""
        left = weights - int(weights * policy.sparsity)
        values = packed_bytes(left, channels, policy.weight_bits, policy.weight_block)
        return min(before, math.ceil(weights / 8) + values)

    def apply(self, work: Stitching) -> None:
        """Zero weights in place, in the factors too."""
        from autocompress.techniques.sparsify import sparsify

        sparsify(dict(work.weighted(self)), work.settings.sparsity_scope)
