"""The search space file: which values each layer's knobs may take, by patterns.

``SpaceConfig.bind`` resolves the patterns on a model's inventory and gives a ``Space``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from autocompress.errors import InputError
from autocompress.policy.flat import fold, only_folded
from autocompress.policy.inventory import Inventory, LayerSpec
from autocompress.policy.patterns import check_found, matches, within
from autocompress.policy.policy import LayerPolicy
from autocompress.policy.reading import read_mapping
from autocompress.policy.registry import added_fields, techniques
from autocompress.policy.section import OneOrMore, Section
from autocompress.policy.space import Choice, Space
from autocompress.policy.technique import Technique
from autocompress.policy.values import (
    ActivationBits,
    ActivationScaling,
    Factorization,
    Heads,
    Pattern,
    Presence,
    RankRatio,
    Removed,
    Share,
    WeightBits,
    WeightBlock,
)


class Rule(Section):
    """What may be done to the layers that match; a single value stands for a list of one.

    Args:
        match: patterns on layer names, globs or regular expressions (``re:`` before them); every
            pattern must match a layer.
        kinds: layer kinds that the rule speaks of; empty means all.
        depth: how deep in the network layers lie that the rule speaks of, from 0 (the first) to
            1 (the last that runs): ``[0.5, 1]`` is the second half.
        exclude: patterns of layers that it leaves alone.
        prune_ratio, sparsity, pattern, rank_ratio: values to search; one value is fixed.
        weight_bits, activation_bits: values to search; combined to every valid pair.
        weight_only: whether integer weights may also stand beside float activations where 8-bit
            activations are to be had too; files shrink, but CPU runtimes gain no time by it.
        weight_block: of weights in 4 bits or fewer beside float activations, in linear layers
            and attention.
        activation_scaling: of the pairs with 8-bit activations.
        factorization: of the rank ratios; ``auto`` takes, for each layer and ratio, the factors
            with the least error in the layer's outputs, and the policy names them.
        block: of residual blocks all of whose layers match: ``gone`` leaves the block out.
        heads: what prune ratios take of attentions: ``fewer`` heads, or ``narrower`` ones where
            that is possible; with both, each ratio is there twice, and the search chooses.
        more: values to search of fields that installed packages add; in files they stand beside
            the others.
    """

    match: OneOrMore[str] = ("*",)
    kinds: OneOrMore[str] = ()
    depth: tuple[Share, Share] = (0.0, 1.0)
    exclude: OneOrMore[str] = ()
    prune_ratio: OneOrMore[Removed] = (0.0,)
    sparsity: OneOrMore[Removed] = (0.0,)
    pattern: OneOrMore[Pattern | None] = (None,)
    weight_bits: OneOrMore[WeightBits] = (32,)
    activation_bits: OneOrMore[ActivationBits] = (32,)
    weight_block: OneOrMore[WeightBlock] = (0,)
    weight_only: bool = False
    activation_scaling: OneOrMore[ActivationScaling] = ("static",)
    rank_ratio: OneOrMore[RankRatio | None] = (None,)
    factorization: Factorization = "auto"
    block: OneOrMore[Presence] = ("keep",)
    heads: OneOrMore[Heads] = ("fewer",)
    more: Annotated[tuple[tuple[str, Any], ...], BeforeValidator(only_folded)] = ()

    @field_validator("more")
    @classmethod
    def _listed(cls, more: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
        """A single value stands for a list of one; every value must be allowed."""
        found = tuple((n, tuple(v) if isinstance(v, list | tuple) else (v,)) for n, v in more)
        for name, values in found:
            for value in values:
                added_fields()[name].check(value)
        return found

    @model_serializer(mode="wrap")
    def _flat(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        del found["more"]
        return {**found, **{name: list(values) for name, values in self.more}}

    def listed(self, name: str) -> tuple[Any, ...]:
        """The values that the rule gives for a field; its default where it gives none."""
        if name in added_fields():
            return tuple(dict(self.more).get(name, (added_fields()[name].default,)))
        values = getattr(self, name)
        return values if isinstance(values, tuple) else (values,)

    @property
    def general(self) -> bool:
        """Whether it speaks of layers of any name and kind."""
        return self.match == ("*",) and not self.kinds

    def applies_to(self, layer: LayerSpec, depth: float = 0.5) -> bool:
        """Whether the rule speaks of this layer.

        Args:
            layer: of the model.
            depth: where it lies, from 0 to 1.
        """
        return (
            any(matches(p, layer.name) for p in self.match)
            and (not self.kinds or layer.kind in self.kinds)
            and self.depth[0] <= depth <= self.depth[1]
            and not any(matches(p, layer.name) for p in self.exclude)
        )


def _fold_each(rules: Any) -> Any:
    if not isinstance(rules, list | tuple):
        return rules
    return [fold(rule, Rule.model_fields) for rule in rules]


class SpaceConfig(Section):
    """A search space file.

    Args:
        name: for people.
        rules: later rules override earlier ones, layer by layer, whole.
        only: patterns of layers, or of modules that they lie in (``backbone``); all others are
            left alone. Empty means the whole model.
        prune_residual: whether residual streams may lose channels.
        distill: values to search; ``true`` stands for the default distillation.
        students: names of architectures that may take the model's place.
    """

    name: str = "custom"
    rules: Annotated[tuple[Rule, ...], BeforeValidator(_fold_each)]
    only: OneOrMore[str] = ()
    prune_residual: bool = False
    distill: OneOrMore[bool] = (False,)
    students: OneOrMore[str] = ()

    @classmethod
    def load(cls, path: str | Path) -> SpaceConfig:
        """Read a file; an unknown key is an error that names the nearest valid one."""
        return cls.read(read_mapping(path, "search space"), where=str(path))

    def bind(
        self,
        inventory: Inventory,
        *,
        channel_multiple: int = 1,
    ) -> Space:
        """Resolve the patterns on a model.

        Args:
            inventory: the model's layers and channel groups.
            channel_multiple: as in ``CompressionSettings``; ratios that keep equally many
                channels become one level.

        Raises:
            InputError: a pattern matches no layer, or nothing is left to search.
        """
        return _Binder(self, inventory, channel_multiple).space()


class _Binder:
    """Turns rules and an inventory into choices."""

    def __init__(self, config: SpaceConfig, inventory: Inventory, multiple: int) -> None:
        self.config = config
        self.inventory = inventory
        self.multiple = multiple
        last = max(1, len(inventory.layers) - 1)
        self.depths = {layer.name: i / last for i, layer in enumerate(inventory.layers)}

    def space(self) -> Space:
        self._check_patterns()
        rules = {
            layer.name: rule
            for layer in self.inventory.layers
            if (rule := self._rule(layer)) is not None
        }
        choices = [*self._per_group(rules), *self._per_block(rules), *self._per_layer(rules)]
        choices += self._policy_level()
        if not choices:
            why = f" {self.inventory.cannot_prune}" if self.inventory.cannot_prune else ""
            raise InputError(
                f"The search space {self.config.name!r} leaves nothing to choose on "
                f"this model: give at least one knob two values.{why}"
            )
        return Space(tuple(choices), self.inventory)

    def _check_patterns(self) -> None:
        names, where = list(self.inventory.by_name), f"the search space {self.config.name!r}"
        for rule in self.config.rules:
            check_found((*rule.match, *rule.exclude), names, where, deep=False)
        check_found(self.config.only, names, where, deep=True)

    def _rule(self, layer: LayerSpec) -> Rule | None:
        only = self.config.only
        if only and not any(within(pattern, layer.name) for pattern in only):
            return None
        found = None
        for rule in self.config.rules:
            if rule.applies_to(layer, self.depths[layer.name]):
                found = rule
        return found

    def _per_group(self, rules: Mapping[str, Rule]) -> Iterable[Choice]:
        coupled = [technique for technique in techniques() if technique.coupled]
        for group in self.inventory.channel_groups:
            if group.residual and not self.config.prune_residual:
                continue
            ruled = [rules[p] for p in group.producers if p in rules]
            if len(ruled) < len(group.producers):
                continue  # coupled to a layer that may not be touched
            layers = [self.inventory.by_name[p] for p in group.producers]
            for technique in coupled:
                levels = technique.group_levels(ruled, group, layers, self.multiple)
                yield from _choice(technique, group.name, group.producers, levels)

    def _per_block(self, rules: Mapping[str, Rule]) -> Iterable[Choice]:
        for block in self.inventory.blocks:
            layers = [self.inventory.by_name[name] for name in block.layers]
            if any(layer.name not in rules for layer in layers):
                continue  # with a layer that may not be touched
            for technique in techniques():
                if technique.whole_blocks and all(map(technique.usable, layers)):
                    each = [technique.levels(rules[layer.name], layer) for layer in layers]
                    levels = [level for level in each[0] if all(level in e for e in each[1:])]
                    yield from _choice(technique, block.name, block.layers, levels)

    def _per_layer(self, rules: Mapping[str, Rule]) -> Iterable[Choice]:
        single = [t for t in techniques() if not t.coupled and not t.whole_blocks]
        for layer in self.inventory.layers:
            rule = rules.get(layer.name)
            if rule is None:
                continue
            for technique in single:
                if technique.usable(layer) and (
                    not rule.general or technique.worthwhile(layer, self.inventory)
                ):
                    levels = technique.levels(rule, layer)
                    yield from _choice(technique, layer.name, (layer.name,), levels)

    def _policy_level(self) -> list[Choice]:
        out = []
        if any(self.config.distill):
            levels = tuple({"distill": d} for d in sorted(set(self.config.distill)))
            out.append(Choice("distill", "distill", (), levels))
        if self.config.students:
            names: tuple[str | None, ...] = (None, *self.config.students)
            out.append(Choice("student", "student", (), tuple({"student": n} for n in names)))
        return out


def _choice(
    technique: Technique, name: str, layers: tuple[str, ...], levels: list[dict[str, Any]]
) -> Iterable[Choice]:
    """A choice, where the levels leave anything to do."""
    if levels and (len(levels) > 1 or not LayerPolicy.from_dict(levels[0]).identity):
        yield Choice(f"{name}/{technique.knob}", technique.knob, layers, tuple(levels))
