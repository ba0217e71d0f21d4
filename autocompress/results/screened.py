"""A quick look at a policy, without an export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Screened:
    """Mean KL divergence to the uncompressed outputs, in nats, and its standard error."""

    kl: float
    stderr: float
    images: int
