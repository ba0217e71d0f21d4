"""A model is the same one in every version of the libraries: recipes outlive them."""

from __future__ import annotations

import re

import pytest
from torch import nn

from autocompress.model.fingerprint import fingerprint

#: as told by PyTorch 2.14.1, digested when that was installed
KNOWN = [
    (nn.BatchNorm2d(4), "00442ea07ff87265"),
    (nn.BatchNorm2d(4, affine=False), "c580f75d79cfe9f9"),
    (nn.LayerNorm(4), "0ae7df07e459eaa6"),
    (nn.LayerNorm(4, bias=False), "d675578c446a2a97"),
    (nn.LayerNorm(4, elementwise_affine=False), "9c0e30ce8feeb652"),
    (nn.GroupNorm(2, 4), "3a2d303306d7678f"),
    (nn.GroupNorm(2, 4, affine=False), "a2faf9f48a67e635"),
    (nn.InstanceNorm2d(4), "6a30d016ca0d2f18"),
    (nn.InstanceNorm2d(4, affine=True), "8db97491d7275ab9"),
    (nn.RMSNorm(4), "1f4f2bd5980c4362"),
]


@pytest.mark.parametrize(("module", "digest"), KNOWN, ids=lambda one: str(one)[:40])
def test_a_norm_is_the_same_in_every_version(
    monkeypatch: pytest.MonkeyPatch, module: nn.Module, digest: str
) -> None:
    assert fingerprint(module)[0] == digest
    earlier = re.sub(", bias=(True|False)", "", module.extra_repr())
    monkeypatch.setattr(module, "extra_repr", lambda: earlier)
    assert fingerprint(module)[0] == digest


def test_a_norm_that_tells_of_itself_in_another_way_keeps_its_words() -> None:
    class Own(nn.LayerNorm):
        def extra_repr(self) -> str:
            return "mine, bias=maybe"

    class Plain(nn.LayerNorm):
        def extra_repr(self) -> str:
            return "mine"

    assert fingerprint(Own(4))[0] != fingerprint(Plain(4))[0]
