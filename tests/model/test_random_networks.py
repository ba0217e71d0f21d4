"""Random networks, cut at random: as the masked ones, or left alone with a reason."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masking import same_as_masked
from random_networks import KINDS, SIZE, RandomNetwork
from small_networks import enliven

from autocompress.model.groups import channel_groups


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
    literal=st.booleans(),
)
def test_cut_is_masked_or_left_alone(kinds: list[str], seed: int, literal: bool) -> None:
    torch.manual_seed(seed)
    model = enliven(RandomNetwork(kinds, seed, literal))
    x = torch.randn(3, 3, SIZE, SIZE)
    groups, plan = channel_groups(model, x[:2])
    assert all(plan.skipped.values())
    if groups:
        same_as_masked(model, plan, x, 0.5, seed)
