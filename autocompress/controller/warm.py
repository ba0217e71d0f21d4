"""What a search takes over from an earlier one on the same architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autocompress.policy.policy import Policy
from autocompress.policy.space import Assignment, Space


@dataclass(frozen=True)
class WarmStart:
    """Policies that were good, and what was looked at; nothing by default.

    Args:
        policies: of the earlier front, the cheapest first.
        divergences: untrained digest of a policy to its divergence in nats, as screened on that
            run's weights.
    """

    policies: tuple[Policy, ...] = ()
    divergences: Mapping[str, float] = field(default_factory=dict)

    def assignments(self, space: Space) -> list[Assignment]:
        """Its policies, as far as a space has them."""
        found = (space.encode(policy) for policy in self.policies)
        return [levels for levels in found if levels is not None]

    def divergence(self, space: Space, levels: Assignment) -> float | None:
        """Of an assignment, if that run looked at it."""
        if not self.divergences:
            return None
        return self.divergences.get(space.decode(levels).untrained_digest)
