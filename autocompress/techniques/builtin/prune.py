"""Structured pruning: whole channels go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from autocompress.policy.field import Field
from autocompress.policy.technique import Technique, percent, some
from autocompress.policy.values import Heads, Removed, ends

if TYPE_CHECKING:
    from autocompress.measure.gate import Shown
    from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec
    from autocompress.policy.policy import LayerPolicy
    from autocompress.policy.space_config import Rule

_RATIOS = (0.5, 0.25, 0.75, 0.375, 0.625, 0.125, 0.875)


class Prune(Technique):
    """Channels are removed, in coupled layers together; the tensors get smaller."""

    name = "prune"
    fields = (
        Field("prune_ratio", 0.0, **ends(Removed)),
        Field("heads", "fewer", values=get_args(Heads)),
    )
    knob = "prune_ratio"
    stage = "channels"
    coupled = True
    removes = True

    def why_not(self, layer: LayerSpec, policy: LayerPolicy, inventory: Inventory) -> str:
        """Also: its heads cannot get narrower."""
        reason = super().why_not(layer, policy, inventory)
        if reason or policy.heads != "narrower":
            return reason
        own = next(g for g in inventory.channel_groups if layer.name in g.producers)
        return (
            ""
            if own.narrower
            else "it makes no heads between whose projections stands nothing but a product; use "
            "`heads: fewer`"
        )

    def levels(self, rule: Rule, layer: LayerSpec) -> list[dict[str, Any]]:
        """The ratios."""
        return [{"prune_ratio": ratio} for ratio in sorted(set(rule.prune_ratio))]

    def group_levels(
        self, rules: Sequence[Rule], group: ChannelGroup, layers: Sequence[LayerSpec], multiple: int
    ) -> list[dict[str, Any]]:
        """Ratios that keep equally many channels are one level.

        Where heads may get narrower, every ratio says whether they do, or whether some go.
        """
        kinds = [k for k in self.fields[1].values if all(k in rule.heads for rule in rules)]
        ratios = super().group_levels(rules, group, layers, multiple)
        if not group.narrower or "narrower" not in kinds:
            by_kept: dict[int, dict[str, Any]] = {}
            for level in ratios:
                by_kept.setdefault(group.kept(level["prune_ratio"], multiple), level)
            return list(by_kept.values())
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for level in ratios:
            for kind in kinds:
                ratio = level["prune_ratio"]
                narrower = kind == "narrower" and ratio > 0
                kept = group.narrowed(ratio) if narrower else group.kept(ratio, multiple)
                named = kind if kept < group.channels else "fewer"
                found.setdefault((-kept, named), {"prune_ratio": ratio, "heads": named})
        return [found[key] for key in sorted(found)]

    def ladder(self, levels: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """Mild and hard ratios in turn, so that a short study sees the whole range of costs."""
        return [{"prune_ratio": ratio} for ratio in _RATIOS]

    def summary(self, policies: Sequence[LayerPolicy]) -> dict[str, float]:
        """The mean ratio."""
        return {"mean_prune_ratio": sum(p.prune_ratio for p in policies) / len(policies)}

    def told(self, summary: Mapping[str, float | str]) -> list[str]:
        """The mean ratio, where any channel goes."""
        mean = float(summary["mean_prune_ratio"])
        return [f"prune {percent(mean)}"] if mean else []

    def cell(self, policy: LayerPolicy) -> str:
        """The share of the channels that stays."""
        narrower = ", heads narrower" if policy.heads == "narrower" else ""
        return (
            f"{1 - policy.prune_ratio:.0%} of the channels{narrower}" if policy.prune_ratio else ""
        )

    def bar(self, policy: LayerPolicy) -> float | None:
        """The same."""
        return 1 - policy.prune_ratio

    def probes(self) -> Mapping[str, Mapping[str, Any]]:
        """Half the width."""
        return {"prune_ratio=0.5": {"prune_ratio": 0.5}}

    def timed_levels(self, count: int) -> Sequence[int]:
        """Both ends and the middle."""
        return sorted({0, count // 2, count - 1})

    def kept(self, group: ChannelGroup, policy: LayerPolicy, multiple: int) -> int:
        """By the ratio."""
        if self.narrows(group, policy):
            return group.narrowed(policy.prune_ratio)
        return group.kept(policy.prune_ratio, multiple)

    def narrows(self, group: ChannelGroup, policy: LayerPolicy) -> bool:
        """Where the policy says so, and the heads can."""
        return policy.heads == "narrower" and group.narrower > 0

    def problems(self, shown: Shown) -> list[str]:
        """Layers that are as wide as before."""
        wrong = []
        for name, nodes in shown.nodes.items():
            module = shown.compressed.module.get_submodule(name)
            linear = hasattr(module, "in_features")  # a bilinear module has two of them
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
        return [
            f"The runtime's profile shows other shapes than the policy promises: {some(wrong)}."
        ]
