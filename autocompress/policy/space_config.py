"""The search space file: which values each layer's knobs may take, by patterns.

``SpaceConfig.bind`` resolves the patterns on a model's inventory and gives a ``Space``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from autocompress.errors import InputError, nearest
from autocompress.policy.inventory import Inventory, LayerSpec
from autocompress.policy.policy import ActivationScaling, Factorization, LayerPolicy
from autocompress.policy.reading import read_mapping
from autocompress.policy.section import OneOrMore, Section
from autocompress.policy.space import Choice, Space


class Rule(Section):
    """What may be done to the layers that match; a single value stands for a list of one.

    Args:
        match: glob patterns on layer names; every pattern must match a layer.
        kinds: layer kinds that the rule speaks of; empty means all.
        exclude: glob patterns of layers that it leaves alone.
        prune_ratio, sparsity, pattern, rank_ratio: values to search; one value is fixed.
        weight_bits, activation_bits: values to search; combined to every valid pair.
        weight_only: whether integer weights may also stand beside float activations where 8-bit
            activations are to be had too; files shrink, but CPU runtimes gain no time by it.
        activation_scaling: of the pairs with 8-bit activations.
        factorization: of the rank ratios; ``auto`` takes, for each layer and ratio, the factors
            with the least error in the layer's outputs, and the policy names them.
    """

    match: OneOrMore[str] = ("*",)
    kinds: OneOrMore[str] = ()
    exclude: OneOrMore[str] = ()
    prune_ratio: OneOrMore[Annotated[float, Field(ge=0, lt=1)]] = (0.0,)
    sparsity: OneOrMore[Annotated[float, Field(ge=0, lt=1)]] = (0.0,)
    pattern: OneOrMore[Literal["2:4"] | None] = (None,)
    weight_bits: OneOrMore[Literal[2, 3, 4, 8, 16, 32]] = (32,)
    activation_bits: OneOrMore[Literal[8, 16, 32]] = (32,)
    weight_only: bool = False
    activation_scaling: OneOrMore[ActivationScaling] = ("static",)
    rank_ratio: OneOrMore[Annotated[float, Field(gt=0, le=1)] | None] = (None,)
    factorization: Factorization = "auto"

    def applies_to(self, layer: LayerSpec) -> bool:
        """Whether the rule speaks of this layer."""
        return (
            any(fnmatch.fnmatchcase(layer.name, p) for p in self.match)
            and (not self.kinds or layer.kind in self.kinds)
            and not any(fnmatch.fnmatchcase(layer.name, p) for p in self.exclude)
        )


class SpaceConfig(Section):
    """A search space file.

    Args:
        name: for people.
        rules: later rules override earlier ones, layer by layer, whole.
        prune_residual: whether residual streams may lose channels.
        distill: values to search; ``true`` stands for the default distillation.
        students: names of architectures that may take the model's place.
    """

    name: str = "custom"
    rules: tuple[Rule, ...]
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
        max_levels: Callable[[LayerSpec], bool] | None = None,
    ) -> Space:
        """Resolve the patterns on a model.

        Args:
            inventory: the model's layers and channel groups.
            channel_multiple: as in ``CompressionSettings``; ratios that keep equally many
                channels become one level.
            max_levels: optional test whether a layer may be factorized at all.

        Raises:
            InputError: a pattern matches no layer, or nothing is left to search.
        """
        return _Binder(self, inventory, channel_multiple, max_levels).space()


class _Binder:
    """Turns rules and an inventory into choices."""

    def __init__(
        self,
        config: SpaceConfig,
        inventory: Inventory,
        multiple: int,
        may_factorize: Callable[[LayerSpec], bool] | None,
    ) -> None:
        self.config = config
        self.inventory = inventory
        self.multiple = multiple
        self.may_factorize = may_factorize or (lambda layer: layer.factorizable)

    def space(self) -> Space:
        self._check_patterns()
        rules = {
            layer.name: rule
            for layer in self.inventory.layers
            if (rule := self._rule(layer)) is not None
        }
        choices = [*self._prune(rules), *self._per_layer(rules)]
        choices += self._policy_level()
        if not choices:
            raise InputError(
                f"The search space {self.config.name!r} leaves nothing to choose on "
                "this model: give at least one knob two values."
            )
        return Space(tuple(choices), self.inventory)

    def _check_patterns(self) -> None:
        names = list(self.inventory.by_name)
        for rule in self.config.rules:
            for pattern in (*rule.match, *rule.exclude):
                if not fnmatch.filter(names, pattern):
                    raise InputError(
                        f"The pattern {pattern!r} of the search space "
                        f"{self.config.name!r} matches no layer; "
                        f"{nearest(pattern.replace('*', ''), names)}"
                    )

    def _rule(self, layer: LayerSpec) -> Rule | None:
        found = None
        for rule in self.config.rules:
            if rule.applies_to(layer):
                found = rule
        return found

    def _prune(self, rules: Mapping[str, Rule]) -> Iterable[Choice]:
        for group in self.inventory.channel_groups:
            if group.residual and not self.config.prune_residual:
                continue
            ruled = [rules[p] for p in group.producers if p in rules]
            if len(ruled) < len(group.producers):
                continue  # coupled to a layer that may not be touched
            allowed = set(ruled[0].prune_ratio)
            for rule in ruled[1:]:
                allowed &= set(rule.prune_ratio)
            by_kept: dict[int, float] = {}
            for ratio in sorted(allowed):
                by_kept.setdefault(group.kept(ratio, self.multiple), ratio)
            levels = tuple({"prune_ratio": r} for r in sorted(by_kept.values()))
            if levels and (len(levels) > 1 or levels[0]["prune_ratio"] > 0):
                yield Choice(f"{group.name}/prune_ratio", "prune_ratio", group.producers, levels)

    def _per_layer(self, rules: Mapping[str, Rule]) -> Iterable[Choice]:
        for layer in self.inventory.layers:
            rule = rules.get(layer.name)
            if rule is None:
                continue
            for kind, levels in (
                ("bits", self._bits(layer, rule)),
                ("rank_ratio", self._ranks(layer, rule)),
                ("sparsity", self._sparsity(rule)),
            ):
                if levels and (len(levels) > 1 or not LayerPolicy(**levels[0]).identity):
                    yield Choice(f"{layer.name}/{kind}", kind, (layer.name,), tuple(levels))

    @staticmethod
    def _bits(layer: LayerSpec, rule: Rule) -> list[dict[str, Any]]:
        if not layer.quantizable:
            return []
        levels: list[dict[str, Any]] = []
        for weight in sorted(set(rule.weight_bits), reverse=True):
            for activation in sorted(set(rule.activation_bits), reverse=True):
                half = (weight == 16) != (activation == 16)
                if half or (activation == 8 and weight > 8):
                    continue
                float_inputs = weight < 16 and activation == 32
                if float_inputs and 8 in rule.activation_bits and not rule.weight_only:
                    continue
                level: dict[str, Any] = {"weight_bits": weight, "activation_bits": activation}
                if activation == 8:
                    levels += [{**level, "activation_scaling": s} for s in rule.activation_scaling]
                else:
                    levels.append({**level, "activation_scaling": "static"})
        return levels

    def _ranks(self, layer: LayerSpec, rule: Rule) -> list[dict[str, Any]]:
        if not self.may_factorize(layer):
            return []
        ratios = sorted((r for r in rule.rank_ratio if r is not None), reverse=True)
        levels: list[dict[str, Any]] = []
        if None in rule.rank_ratio:
            levels.append({"rank_ratio": None, "factorization": None})
        for ratio in ratios:
            chosen: Factorization | None = rule.factorization
            if chosen == "auto":
                # named, so that the policy is the same model on other weights too
                best = layer.best_factors(ratio)
                chosen = None if best == "svd" else best
            levels.append({"rank_ratio": ratio, "factorization": chosen})
        return levels

    @staticmethod
    def _sparsity(rule: Rule) -> list[dict[str, Any]]:
        levels: list[dict[str, Any]] = []
        for pattern in rule.pattern:
            if pattern is not None:
                levels.append({"sparsity": 0.5, "pattern": pattern})
            else:
                levels += [{"sparsity": s, "pattern": None} for s in rule.sparsity]
        levels.sort(key=lambda level: (level["sparsity"], level["pattern"] or ""))
        assert all(a != b for a, b in pairwise(levels))
        return levels

    def _policy_level(self) -> list[Choice]:
        out = []
        if any(self.config.distill):
            levels = tuple({"distill": d} for d in sorted(set(self.config.distill)))
            out.append(Choice("distill", "distill", (), levels))
        if self.config.students:
            names: tuple[str | None, ...] = (None, *self.config.students)
            out.append(Choice("student", "student", (), tuple({"student": n} for n in names)))
        return out
