"""A search space bound to a model: choices with their levels, and the way to policies and back.

Level 0 of every choice is the mildest. The file that a space comes from is
``space_config.SpaceConfig``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from autocompress.errors import InputError, nearest
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.policy.registry import by_knob, field_names

Assignment = tuple[int, ...]
"""One level index per choice, in the order of ``Space.choices``."""


_STUDENT = "student"
_OF_THE_POLICY = ("distill", _STUDENT)


@dataclass(frozen=True, slots=True)
class Choice:
    """One knob: a name, what it sets, and its levels from mildest to hardest.

    Args:
        name: ``LAYER/`` and the knob of a technique, ``distill`` or ``student``.
        kind: the part after the slash.
        layers: the layers that it sets.
        levels: for each level, the ``LayerPolicy`` fields that it sets (or the policy's own).
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    levels: tuple[Mapping[str, Any], ...]

    @property
    def of_layers(self) -> bool:
        """Whether its levels change layers; else they are about the whole policy."""
        return self.kind not in _OF_THE_POLICY

    @property
    def replaces(self) -> bool:
        """Whether a level puts another network in the model's place.

        Untrained it shows nothing, and no other choice means anything then: such levels are
        starting policies, and nothing draws, moves or learns them.
        """
        return self.kind == _STUDENT

    @property
    def drawn_levels(self) -> range:
        """The levels that samplers draw from."""
        return range(1 if self.replaces else len(self.levels))

    def label(self, level: int) -> str:
        """A short text for a level, for tables and Optuna's categories."""
        return ",".join(f"{v}" for v in self.levels[level].values())


def _removes(choice: Choice) -> bool:
    """Whether a choice may leave no layer."""
    technique = by_knob().get(choice.kind)
    return technique is not None and technique.whole_blocks


@dataclass(frozen=True)
class Space:
    """All choices of a study on one model."""

    choices: tuple[Choice, ...]
    inventory: Inventory

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Choice name to its position."""
        return {choice.name: i for i, choice in enumerate(self.choices)}

    @cached_property
    def student_place(self) -> int | None:
        """Position of the choice among student architectures, if there is one."""
        return self.index.get(_STUDENT)

    @property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of policies."""
        return sum(math.log10(len(c.levels)) for c in self.choices)

    @property
    def mildest(self) -> Assignment:
        """Level 0 everywhere: the most expensive policy."""
        return (0,) * len(self.choices)

    @property
    def hardest(self) -> Assignment:
        """The last level everywhere, of the model itself; not always the cheapest in time."""
        return tuple(choice.drawn_levels[-1] for choice in self.choices)

    def draw(self, source: random.Random) -> Assignment:
        """A random assignment, every level that samplers draw from as likely as any other.

        Args:
            source: of the randomness; one number per choice is taken from it, but for students.
        """
        return tuple(
            0 if choice.replaces else source.choice(choice.drawn_levels) for choice in self.choices
        )

    def decode(self, assignment: Sequence[int]) -> Policy:
        """From one level per choice to a policy."""
        if len(assignment) != len(self.choices):
            raise ValueError(f"{len(assignment)} levels for {len(self.choices)} choices")
        student = self._own(_STUDENT, assignment)
        distill = Distill() if self._own("distill", assignment) else None
        layers = {} if student else {n: self._layer(n, assignment) for n in self._knobs}
        return Policy(layers, distill, student)

    def _own(self, kind: str, assignment: Sequence[int]) -> Any:
        place = self.index.get(kind)
        return None if place is None else self.choices[place].levels[assignment[place]][kind]

    @cached_property
    def _knobs(self) -> Mapping[str, tuple[int, ...]]:
        """Layer name to the positions of the choices that set it."""
        found: dict[str, tuple[int, ...]] = {}
        for place, choice in enumerate(self.choices):
            for name in choice.layers:
                found[name] = (*found.get(name, ()), place)
        return found

    def _layer(self, name: str, assignment: Sequence[int]) -> LayerPolicy:
        """One layer's policy; a search decodes thousands of assignments of the same few."""
        key = (name, *(assignment[place] for place in self._knobs[name]))
        found = self._layers.get(key)
        if found is None:
            values: dict[str, Any] = {}
            for place in self._knobs[name]:
                values |= self.choices[place].levels[assignment[place]]
            found = self._layers[key] = LayerPolicy.from_dict(values)
        return found

    @cached_property
    def _layers(self) -> dict[tuple[object, ...], LayerPolicy]:
        return {}

    def set_by(
        self, assignment: Assignment, place: int, level: int
    ) -> Mapping[str, LayerPolicy] | None:
        """What an assignment would do to the layers of one choice at another of its levels.

        Returns:
            Layer name to its policy; ``None`` where the choice is not about layers.
        """
        choice = self.choices[place]
        if not choice.of_layers:
            return None
        changed = (*assignment[:place], level, *assignment[place + 1 :])
        return {name: self._layer(name, changed) for name in choice.layers}

    @cached_property
    def beside(self) -> tuple[tuple[int, ...], ...]:
        """For each choice, the others that have a say in what a level of it costs.

        Those of the same layers, of layers that put out or read the same channels, and of the next
        ones in order; what reaches further, as the weights of all together, counts little.
        """
        near: dict[str, set[str]] = {layer.name: set() for layer in self.inventory.layers}
        for group in self.inventory.channel_groups:
            for one in (members := {*group.producers, *group.consumers}):
                near.setdefault(one, set()).update(members)
        for one, other in pairwise(layer.name for layer in self.inventory.layers):
            near[one].add(other)
            near[other].add(one)
        found = []
        for place, choice in enumerate(self.choices):
            names = {*choice.layers, *(n for own in choice.layers for n in near.get(own, ()))}
            places = {i for name in names for i in self._knobs.get(name, ())}
            found.append(tuple(sorted(places - {place})))
        return tuple(found)

    def encode(self, policy: Policy) -> Assignment | None:
        """From a policy to the levels that give it, or ``None`` if it lies outside the space."""
        levels = []
        own_values = {"distill": policy.distill is not None, _STUDENT: policy.student}
        for choice in self.choices:
            if not choice.of_layers:
                wanted: Mapping[str, Any] = {choice.kind: own_values[choice.kind]}
            else:
                # layers that are gone say nothing of what they share with others
                own = (policy[name] for name in choice.layers)
                one = next((p for p in own if not p.absent or _removes(choice)), None)
                if one is None:
                    levels.append(0)
                    continue
                wanted = {k: one.value(k) for k in choice.levels[0]}
            if wanted not in choice.levels:
                # a knob that the policy leaves alone may be silent about its details
                return None
            levels.append(choice.levels.index(wanted))
        found = tuple(levels)
        return found if self.decode(found).digest == policy.digest else None

    def uniform(self, **values: Any) -> Assignment:
        """The nearest assignment to one value everywhere, where the space has that knob.

        Args:
            **values: ``LayerPolicy`` fields, e.g. ``prune_ratio=0.5, weight_bits=8``. Knobs that
                are not named stay at their mildest level.

        Raises:
            InputError: no choice of the space knows the field.
        """
        known = {field for c in self.choices for level in c.levels for field in level}
        for field in values:
            if field not in known:
                if field in field_names():
                    raise InputError(
                        f"Nothing can be chosen for {field!r}: no rule of the space offers it to a "
                        "layer that can be changed so. `profile` says what is left alone, and why."
                    )
                raise InputError(f"The space has no {field!r} to set; {nearest(field, known)}")
        return tuple(self._nearest_level(choice, values) for choice in self.choices)

    def _nearest_level(self, choice: Choice, values: Mapping[str, Any]) -> int:
        asked = {k: v for k, v in values.items() if k in choice.levels[0]}
        if not asked:
            return 0

        def distance(level: int) -> tuple[float, int]:
            total = 0.0
            for field, wanted in asked.items():
                has = choice.levels[level][field]
                if isinstance(wanted, int | float) and isinstance(has, int | float):
                    total += abs(float(wanted) - float(has))
                else:
                    total += 0.0 if wanted == has else 1e3
            return total, level

        return min(range(len(choice.levels)), key=distance)
