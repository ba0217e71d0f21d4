"""Members, and chains of two or three of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.cascade.confidence import (
    OF_ONE,
    Confidence,
    Floats,
    agreement,
    check_finite,
    confidence,
)
from autocompress.cascade.temperature import fit_temperature

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Member:
    """A measured model, and what it answers.

    Args:
        label: for people.
        latency_ms: of one input.
        answers: the class that it gives to each input, ``(N,)``.
        right: whether that is the input's class, ``(N,)``.
        sure: per kind of confidence, how sure it is of each answer, ``(N,)``.
        temperature: fitted.
        trial: its number; ``None`` for the uncompressed model.
        exit: of a member that is the beginning of a network with a head: where it ends.
        share: of the network's multiply-adds that it takes.
        after: label of a member that this one goes on from, by its features, to the latency that
            it then adds.
    """

    label: str
    latency_ms: float
    answers: NDArray[Any]
    right: NDArray[np.bool_]
    sure: Mapping[Confidence, Floats]
    temperature: float = 1.0
    trial: int | None = None
    exit: str | None = None
    share: float = 1.0
    after: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        label: str,
        latency_ms: float,
        logits: Floats,
        targets: NDArray[Any],
        fitted_on: Index,
        trial: int | None = None,
    ) -> Member:
        """A member from its logits ``(N, classes)``; the temperature is fitted on some inputs."""
        none = np.empty(0)
        blank = cls(label, latency_ms, none, none > 0, {}, trial=trial)
        return blank.fitted(logits, targets, fitted_on)

    def fitted(self, logits: Floats, targets: NDArray[Any], fitted_on: Index) -> Member:
        """The same with a temperature fitted on some inputs.

        Raises:
            InputError: a logit is not finite.
        """
        check_finite(logits)
        temperature = fit_temperature(logits[fitted_on], targets[fitted_on])
        return replace(self, temperature=temperature).answering(logits, targets)

    def answering(self, logits: Floats, targets: NDArray[Any]) -> Member:
        """The same on other inputs, with the temperature that it has."""
        answers = logits.argmax(axis=1)
        sure = {kind: confidence(kind, logits, self.temperature) for kind in OF_ONE}
        return replace(self, answers=answers, right=answers == targets, sure=sure)

    def added_ms(self, before: Member) -> float:
        """Latency that it adds to what another member has computed."""
        return self.after.get(before.label, self.latency_ms)

    def on(self, inputs: Index) -> Member:
        """The same on some of the inputs."""
        return replace(
            self,
            answers=self.answers[inputs],
            right=self.right[inputs],
            sure={kind: found[inputs] for kind, found in self.sure.items()},
        )


@dataclass(frozen=True, slots=True)
class Chain:
    """Members one after another, the last of which answers whatever is left.

    Args:
        members: places in a list of members, the first to be asked first.
        confidence: by which a stage answers or hands on. ``agreement``: the first two of three are
            always asked, and answer together.
        thresholds: a stage answers what it is so sure of, or surer; one less than the stages.
    """

    members: tuple[int, ...]
    confidence: Confidence
    thresholds: tuple[float, ...]

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The members that are asked at each stage."""
        if self.confidence == "agreement":
            return (self.members[:2], self.members[2:])
        return tuple((member,) for member in self.members)

    def stages_ms(self, members: Sequence[Member]) -> list[float]:
        """Latency that each stage adds."""
        found = [sum(members[i].latency_ms for i in stage) for stage in self.stages]
        if self.confidence != "agreement":
            for place, (before, now) in enumerate(pairwise(self.members), 1):
                found[place] = members[now].added_ms(members[before])
        return found

    def goes_on(self, place: int, members: Sequence[Member]) -> bool:
        """Whether a stage takes the features of the one before it."""
        if not 0 < place < len(self.stages) or self.confidence == "agreement":
            return False
        before, now = (members[self.members[i]] for i in (place - 1, place))
        return before.label in now.after

    def answered(self, members: Sequence[Member]) -> NDArray[np.int64]:
        """The stage that answers each input, ``(N,)``."""
        stage = np.full(len(members[self.members[0]].right), len(self.thresholds))
        for i in reversed(range(len(self.thresholds))):
            stage[self.sure(i, members) >= self.thresholds[i]] = i
        return stage

    def sure(self, stage: int, members: Sequence[Member]) -> Floats:
        """How sure a stage is of each input, ``(N,)``."""
        asked = [members[i] for i in self.stages[stage]]
        return together(asked[0], asked[1]) if len(asked) > 1 else asked[0].sure[self.confidence]

    def right(self, members: Sequence[Member]) -> NDArray[np.bool_]:
        """Whether each input is answered rightly, ``(N,)``."""
        each = np.stack([members[stage[-1]].right for stage in self.stages])
        found: NDArray[np.bool_] = np.take_along_axis(each, self.answered(members)[None], 0)[0]
        return found

    def handed(self, members: Sequence[Member]) -> list[int]:
        """How many inputs reach each stage but the first."""
        stage = self.answered(members)
        return [int((stage >= i).sum()) for i in range(1, len(self.stages))]

    def mean_ms(self, members: Sequence[Member]) -> float:
        """Mean latency over the inputs."""
        reach = [1.0, *(h / len(members[0].right) for h in self.handed(members))]
        return float(np.dot(reach, self.stages_ms(members)))


def together(first: Member, second: Member) -> Floats:
    """How sure two members are of one answer; see ``agreement``."""
    sure = (first.sure["probability"], second.sure["probability"])
    return agreement((first.answers, second.answers), sure)
