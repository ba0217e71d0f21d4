"""Low rank: one layer becomes two or three thinner ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from autocompress.policy.field import Field
from autocompress.policy.technique import Technique, percent
from autocompress.policy.values import Factorization, RankRatio, ends
from autocompress.techniques.factors import NAME, factor_parts

if TYPE_CHECKING:
    from autocompress.model.part import Part
    from autocompress.policy.inventory import Inventory, LayerSpec, LayerTraits
    from autocompress.policy.policy import LayerPolicy
    from autocompress.policy.space_config import Rule
    from autocompress.techniques.stitching import Stitching


_NOTABLE = 0.1
"""Share of the model's weights from which on a table's rank is searched."""

_LEFT_ALONE = {
    "conv_transpose": "factors of transposed convolutions are not known here",
    **dict.fromkeys(("lstm", "gru", "rnn"), "recurrent weights are not factorized"),
    "attention": "its projections are held as one weight",
}


class LowRank(Technique):
    """Matrices and convolutions are replaced by factors."""

    name = NAME
    fields = (
        Field("rank_ratio", None, null="no factorization", **ends(RankRatio)),
        Field("factorization", None, values=(None, *get_args(Factorization))),
    )
    knob = "rank_ratio"
    stage = "factors"
    removes = True
    settled_by_bank = True
    of_first = True

    def left_alone(self, layer: LayerSpec, traits: LayerTraits) -> str:
        """Also: no two layers can stand in its place, or another one holds its weight."""
        reason = super().left_alone(layer, traits) or _LEFT_ALONE.get(layer.kind, "")
        if not reason and layer.conv_groups > 1:
            reason = "a convolution with groups is thin already"
        others = _held_by(layer.tied_to) if layer.tied_to else ""
        return reason or traits.indivisible or others

    def left_alone_together(self, layers: Sequence[LayerSpec]) -> str:
        """Factors of a table can be all of theirs: a smaller table that all hold, and a map for
        each."""
        first, *others = layers
        makers = all(x.kind == "embedding" or (x.kind == "linear" and x.plain) for x in layers)
        if not makers or first.kind != "embedding":
            return f"its weight is also that of {', '.join(x.name for x in others)}"
        reasons = {x.name: x.why_not(self.name) for x in others}
        wrong = [name for name, reason in reasons.items() if reason != _held_by(first.name)]
        return f"{wrong[0]} holds its weight: {reasons[wrong[0]]}" if wrong else ""

    def levels(self, rule: Rule, layer: LayerSpec) -> list[dict[str, Any]]:
        """Not factorized first, then the highest rank."""
        ratios = sorted((r for r in rule.rank_ratio if r is not None), reverse=True)
        levels: list[dict[str, Any]] = []
        if None in rule.rank_ratio:
            levels.append({"rank_ratio": None, "factorization": None})
        for ratio in ratios:
            chosen: str | None = rule.factorization
            if chosen == "auto":
                # named, so that the policy is the same model on other weights too
                best = layer.best_factors(ratio)
                chosen = None if best == "svd" else best
            levels.append({"rank_ratio": ratio, "factorization": chosen})
        return levels

    def settle(
        self, model: Any, inventory: Inventory, moments: Mapping[str, Any]
    ) -> Mapping[str, tuple[Factorization, ...]]:
        """Which factors have the least error, where there is a choice."""
        from autocompress.techniques.factorize import choose_factors

        return choose_factors(model, inventory, moments)

    def ladder(self, levels: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """Half, then a mild and a hard one."""
        return [{"rank_ratio": ratio} for ratio in (0.5, 0.75, 0.25)]

    def summary(self, policies: Sequence[LayerPolicy]) -> dict[str, float]:
        """The share of factorized layers."""
        return {"factorized_share": sum(map(self.active, policies)) / len(policies)}

    def told(self, summary: Mapping[str, float | str]) -> list[str]:
        """The share of factorized layers, if any."""
        share = float(summary["factorized_share"])
        return [f"low rank in {percent(share)}"] if share else []

    def cell(self, policy: LayerPolicy) -> str:
        """The share of the rank at which the factors cost what the layer did."""
        kind = f" {policy.factorization}" if policy.factorization else ""
        return f"{policy.rank_ratio:.0%} of the rank{kind}" if policy.rank_ratio else ""

    def timed_levels(self, count: int) -> Sequence[int]:
        """Both ends."""
        return sorted({0, count - 1})

    def parts(
        self, layer: LayerSpec, policy: LayerPolicy, inputs: int, outputs: int
    ) -> tuple[Part, ...] | None:
        """The factors, where the layer has any, or is given those of a table that it holds too."""
        known = self.usable(layer) or layer.holders > 1
        return factor_parts(layer, policy, inputs, outputs) if known else None

    def worthwhile(self, layer: LayerSpec, inventory: Inventory) -> bool:
        """Tables, which gain no time alone, only where they hold a notable share of the weights."""
        weights = sum(x.params for x in inventory.layers)
        alone = layer.kind == "embedding" and layer.holders == 1
        return not alone or layer.params >= _NOTABLE * weights

    def apply(self, work: Stitching) -> None:
        """Put the factors in the layers' places."""
        from autocompress.techniques.factorize import factorize
        from autocompress.techniques.tables import factorize_tables

        def made(spec: LayerSpec, policy: LayerPolicy) -> Any:
            layer = work.module.get_submodule(spec.name)
            return factorize(layer, spec, policy, work.moments(spec.name))

        def tables(spec: LayerSpec, policy: LayerPolicy, names: Sequence[str]) -> Any:
            layers = {name: work.module.get_submodule(name) for name in names}
            seen = [work.moments(name) for name in names]
            return factorize_tables(layers, spec, policy, work.shares(spec.name), seen)

        found: dict[str, Any] = {}
        for spec, policy in work.layers(self):
            if spec.kind == "embedding":
                names = (spec.name, *work.inventory.followers.get(spec.name, ()))
                made_once: Any = work.remembered(
                    self, spec.name, partial(tables, spec, policy, names)
                )
                found.update(zip(names, made_once, strict=True))
            else:
                found[spec.name] = work.remembered(self, spec.name, partial(made, spec, policy))
        work.replace(found)


def _held_by(first: str) -> str:
    return f"its weight is that of {first}"
