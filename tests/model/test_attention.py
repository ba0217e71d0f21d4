"""Attention without some heads is the whole attention with those heads silenced."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from autocompress.errors import PolicyError
from autocompress.model.attention import without_heads
from autocompress.workloads.models import seeded

WIDTH, HEADS = 24, 4
HEAD = WIDTH // HEADS


def silenced(module: nn.Module, gone: list[int]) -> nn.Module:
    """A copy whose output projection does not listen to the heads that go."""
    copied = copy.deepcopy(module)
    projection = copied.out_proj if isinstance(copied, nn.MultiheadAttention) else copied.proj
    with torch.no_grad():
        projection.weight[:, gone] = 0
    return copied


def channels(*heads: int) -> list[int]:
    """Inner channels of some heads."""
    return [h * HEAD + i for h in heads for i in range(HEAD)]


def multihead(**options: object) -> nn.MultiheadAttention:
    """With biases that are not zero."""
    with seeded(0):
        module = nn.MultiheadAttention(WIDTH, HEADS, **options).eval()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return module


def draw(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks() -> dict[str, dict[str, Tensor]]:
    """Every kind of mask, for two samples of five queries and seven keys."""
    causal = torch.ones(5, 7, dtype=torch.bool).triu(1)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = True
    return {
        "none": {},
        "causal": {"attn_mask": causal},
        "added": {"attn_mask": draw(5, 7, seed=2)},
        "of each head": {"attn_mask": draw(2 * HEADS, 5, 7, seed=3)},
        "padding": {"key_padding_mask": padding},
        "both": {"key_padding_mask": padding, "attn_mask": causal},
    }


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("heads", [(0,), (1, 3), (0, 2, 3)])
def test_fewer_heads_are_silenced_heads(
    heads: tuple[int, ...], kind: str, bias: bool, batch_first: bool
) -> None:
    module = multihead(bias=bias, batch_first=batch_first)
    query, key, value = draw(2, 5, WIDTH), draw(2, 7, WIDTH, seed=4), draw(2, 7, WIDTH, seed=5)
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    gone = channels(*heads)
    small = without_heads(module, gone, "attention")
    found, shares = small(query, key, value, average_attn_weights=False, **masks()[kind])
    wanted, all_shares = silenced(module, gone)(
        query, key, value, average_attn_weights=False, **masks()[kind]
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    kept = [h for h in range(HEADS) if h not in heads]
    torch.testing.assert_close(shares, all_shares[:, kept], rtol=1e-4, atol=1e-5)
    assert small(query, key, value, need_weights=False)[1] is None
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())


def test_a_sample_without_batch_works_too() -> None:
    module = multihead()
    small = without_heads(module, channels(2), "attention")
    x = draw(5, WIDTH)
    torch.testing.assert_close(
        small(x, x, x)[0], silenced(module, channels(2))(x, x, x)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (4, 4), (3, 10)])
@pytest.mark.parametrize("shift", [[0, 0], [2, 2]])
@pytest.mark.parametrize("heads", [(1,), (0, 2, 3)])
def test_fewer_window_heads_are_silenced_heads(
    heads: tuple[int, ...], shift: list[int], size: tuple[int, int]
) -> None:
    with seeded(0):
        module = ShiftedWindowAttention(WIDTH, [4, 4], shift, HEADS).eval()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    x = draw(2, *size, WIDTH)
    small = without_heads(module, channels(*heads), "attention")
    wanted = silenced(module, channels(*heads))(x)
    torch.testing.assert_close(small(x), wanted, rtol=1e-4, atol=1e-5)


def test_the_last_head_stays() -> None:
    with pytest.raises(PolicyError, match="at least one head"):
        without_heads(multihead(), list(range(WIDTH)), "attention")
