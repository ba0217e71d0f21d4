"""Which chain keeps to what is asked, so that it holds for inputs that were not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from autocompress.cascade.bound import (
    inputs_needed,
    largest_loss,
    latency_p_value,
    loss_p_value,
    score,
)
from autocompress.cascade.chain import Chain, Index, Member
from autocompress.cascade.confidence import OF_ONE, Floats
from autocompress.cascade.options import Option, best_options
from autocompress.errors import InputError, NoAnswer

ALPHA = 0.05
"""How often the choice may break what is asked: one minus the confidence."""
_STEP = 0.01
"""By what share a chain must be quicker than the one before to be tested: each further test is one
more chance to stop."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a chain is to keep to; one of the two.

    Args:
        most_lost: accuracy that may be lost against the uncompressed model, a fraction of 1.
        mean_ms: mean latency that is not to be exceeded; the accuracy is then to be the best.
        alpha: how often it may be broken by chance: one less the confidence.

    Raises:
        InputError: both, none, or a loss that is no fraction.
    """

    most_lost: float | None = None
    mean_ms: float | None = None
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        if (self.most_lost is None) == (self.mean_ms is None):
            raise InputError("Ask for either a largest loss of accuracy or a mean latency.")
        if self.most_lost is not None and not 0 < self.most_lost < 1:
            raise InputError(
                "The accuracy that may be lost must be above 0 and below 100 points, got "
                f"{100 * self.most_lost:g}."
            )

    def options(self, members: Sequence[Member], baseline: NDArray[np.bool_]) -> list[Option]:
        """The front of all chains; the first surely keeps to it, the last is the boldest."""
        if self.most_lost is None:
            return best_options(members, baseline, _accuracy)
        by_loss = partial(score, count=len(baseline), allowed=self.most_lost)
        return best_options(members, baseline, by_loss)[::-1]

    def p_value(
        self, chain: Chain, members: Sequence[Member], baseline: NDArray[np.bool_]
    ) -> float:
        """How likely inputs as good as these are, if the chain does not keep to it."""
        if self.most_lost is not None:
            return loss_p_value(*counts(chain, members, baseline), len(baseline), self.most_lost)
        assert self.mean_ms is not None
        stages = chain.stages_ms(members)
        if len(stages) == 1:
            return float(stages[0] > self.mean_ms)
        return latency_p_value(chain.handed(members), len(baseline), stages, self.mean_ms)

    def check_inputs(self, count: int) -> None:
        """Refuse so few inputs that nothing could be shown with them.

        Raises:
            InputError: says how many are needed.
        """
        if self.most_lost is None:
            return
        needed = inputs_needed(self.most_lost, self.alpha)
        if count < needed:
            raise InputError(
                f"A loss of at most {100 * self.most_lost:g} points cannot be shown with {count} "
                f"inputs, the half of val that thresholds are chosen on: {needed} are needed even "
                f"if none of them is answered worse, so {2 * needed} in val. Allow a larger loss, "
                "or give more."
            )


@dataclass(frozen=True, slots=True)
class Choice:
    """A chain, and what is known of it.

    Args:
        chain: of members.
        mean_ms: mean latency on the second half of the inputs, from the members' latencies.
        handed: share of the inputs that reach each stage but the first, there.
        lost: accuracy lost against the uncompressed model there, a fraction of 1; below 0, won.
        largest_loss: that is not exceeded with 95 %, had the chain been named beforehand.
        inputs: of the second half.
        tested: chains that were tested, the last but one of which is taken, or the last.
    """

    chain: Chain
    mean_ms: float
    handed: tuple[float, ...]
    lost: float
    largest_loss: float
    inputs: int
    tested: int


def halves(count: int, seed: int = 0) -> tuple[Index, Index]:
    """Two random halves of so many inputs, each sorted."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def choose(
    members: Sequence[Member],
    baseline: NDArray[np.bool_],
    first: Index,
    second: Index,
    asked: Asked,
) -> Choice:
    """The quickest chain that loses no more than asked, or the best within a mean latency.

    On the first half of the inputs, on which temperatures were fitted, the front of all chains and
    thresholds is found. On the second half its options are tested in the order of the front, each
    at level ``alpha``, from the one that surely keeps to what is asked towards the boldest; the
    last before the first failure is taken. However many options were looked at, what is asked is
    broken with probability ``alpha`` at most: all of them, and their order, are fixed before the
    second half is looked at, and a broken one can only be taken if the first broken one in that
    order passes its test.

    Args:
        members: with all inputs; the uncompressed model may be one of them.
        baseline: whether the uncompressed model is right, ``(N,)``.
        first, second: disjoint halves of the inputs.
        asked: what is to be kept to.

    Raises:
        InputError: nothing can be built of these members, or there are too few inputs.
        NoAnswer: no chain keeps to it, or none is better than a member alone.

    References:
        Laufer-Goldshtein et al., Efficiently Controlling Multiple Risks with Pareto Testing, ICLR
        2023; Angelopoulos et al., Learn then Test, arXiv:2110.01052 (fixed sequence testing).
    """
    check_members(members)
    asked.check_inputs(len(second))
    unseen, right = [m.on(second) for m in members], baseline[second]
    options = asked.options([m.on(first) for m in members], baseline[first])
    taken, tested = None, 0
    for option in _apart(options):
        tested += 1
        if asked.p_value(option.chain, unseen, right) > asked.alpha:
            break
        taken = option.chain
    if taken is None:
        raise NoAnswer(_none_kept(options[0], members, asked, len(second)))
    alone = _as_good(taken, options, unseen, asked)
    if alone is not None:
        raise NoAnswer(
            f"No cascade is better than one member alone: {members[alone].label} keeps to it with "
            f"{members[alone].latency_ms:.3f} ms."
        )
    return told(taken, unseen, right, asked.alpha, tested)


def told(
    chain: Chain,
    members: Sequence[Member],
    baseline: NDArray[np.bool_],
    alpha: float = ALPHA,
    tested: int = 0,
) -> Choice:
    """What some inputs say of a chain."""
    losses, gains = counts(chain, members, baseline)
    count = len(baseline)
    return Choice(
        chain,
        chain.mean_ms(members),
        tuple(h / count for h in chain.handed(members)),
        (losses - gains) / count,
        largest_loss(losses, gains, count, alpha),
        count,
        tested,
    )


def counts(chain: Chain, members: Sequence[Member], baseline: NDArray[np.bool_]) -> tuple[int, int]:
    """Inputs on which only the uncompressed model is right, and on which only the chain is."""
    right = chain.right(members)
    return int((baseline & ~right).sum()), int((~baseline & right).sum())


def check_members(members: Sequence[Member]) -> None:
    """Refuse members of which no cascade can be built.

    Raises:
        InputError: one member only, members that always agree, or confidences that do not tell
            inputs apart.
    """
    if len(members) < 2:
        raise InputError(
            f"A cascade needs two members, and the run has {len(members)}. Search for longer."
        )
    first = members[0].answers
    if all(np.array_equal(first, m.answers) for m in members[1:]):
        raise InputError(
            "All members give the same answer to every input, so that handing inputs on changes "
            "nothing. Use the quickest one alone."
        )
    slowest = max(m.latency_ms for m in members)
    quick = [m for m in members if m.latency_ms < slowest]
    if not any(np.ptp(m.sure[kind]) > 0 for m in quick for kind in OF_ONE):
        raise InputError(
            "No member's confidence tells one input from another: it is "
            f"{members[0].sure['probability'][0]:.3g} for all of them at any temperature. Let the "
            "model give logits, not decisions."
        )


def _as_good(
    taken: Chain, options: Sequence[Option], unseen: Sequence[Member], asked: Asked
) -> int | None:
    """A member that does alone what the chain does, or ``None``."""
    if len(taken.members) == 1:
        return taken.members[0]
    if asked.mean_ms is None:
        return None
    alone = (o.chain.members[0] for o in options if len(o.chain.members) == 1)
    quick = [i for i in alone if unseen[i].latency_ms <= asked.mean_ms]
    right = int(taken.right(unseen).sum())
    return next((i for i in quick if int(unseen[i].right.sum()) >= right), None)


def _accuracy(losses: Floats, gains: Floats) -> Floats:
    return gains - losses


def _apart(options: Sequence[Option]) -> list[Option]:
    """Those that differ in latency by a step from the one before, and single members."""
    found: list[Option] = []
    for option in options:
        before = found[-1].latency_ms if found else 0.0
        far = not before or abs(math.log(option.latency_ms / before)) >= _STEP
        if far or len(option.chain.members) == 1:
            found.append(option)
    return found


def _none_kept(best: Option, members: Sequence[Member], asked: Asked, count: int) -> str:
    if asked.most_lost is None:
        assert asked.mean_ms is not None
        took = f"the quickest takes {best.latency_ms:.3f} ms"
        if best.latency_ms > asked.mean_ms:
            return f"No member and no cascade is as quick as {asked.mean_ms:g} ms; {took}."
        return (
            f"A mean latency of {asked.mean_ms:g} ms is not shown for any cascade with the {count} "
            f"inputs that thresholds are chosen on; {took} there. Allow more, or give more."
        )
    loss = f"{100 * asked.most_lost:g} points"
    if best.score <= 0:
        return (
            f"No member and no cascade loses as little as {loss} on the inputs that it was looked "
            "for on. Allow a larger loss."
        )
    normal = 1.645  # of a test at 5 %
    more = math.ceil(count * max(1.1, (1.3 * normal / best.score) ** 2) / 100) * 100
    return (
        f"A loss of at most {loss} is not shown for any cascade with the {count} inputs that "
        f"thresholds are chosen on; about {more} would be needed, so {2 * more} in val. Allow a "
        "larger loss, or give more."
    )
