"""Every built-in technique keeps the contract."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from autocompress.policy.policy import LayerPolicy
from autocompress.techniques.builtin.blocks import Blocks
from autocompress.techniques.builtin.low_rank import LowRank
from autocompress.techniques.builtin.prune import Prune
from autocompress.techniques.builtin.quantize import Quantize
from autocompress.techniques.builtin.sparsify import Sparsify
from autocompress.techniques.quantize import round_weight
from autocompress.testing.technique import TechniqueContract


class TestBlocks(TechniqueContract):
    technique = Blocks()


class TestPrune(TechniqueContract):
    technique = Prune()


class TestLowRank(TechniqueContract):
    technique = LowRank()
    rule: ClassVar[dict[str, Any]] = {"rank_ratio": [None, 0.9, 0.5, 0.25]}


class TestSparsify(TechniqueContract):
    technique = Sparsify()
    rule: ClassVar[dict[str, Any]] = {"sparsity": [0, 0.25, 0.9], "pattern": [None, "2:4"]}

    def counted_bytes(self, weight: Tensor, policy: LayerPolicy) -> int:
        bitmap = math.ceil(weight.numel() / 8)
        if policy.pattern == "2:4":  # a short tail stays whole, the formula counts half of it
            return min(4 * weight.numel(), bitmap + 4 * math.ceil(weight.numel() / 2))
        return min(4 * weight.numel(), bitmap + 4 * int(weight.count_nonzero()))


class TestQuantize(TechniqueContract):
    technique = Quantize()
    rule: ClassVar[dict[str, Any]] = {
        "weight_bits": [32, 16, 8, 4, 2],
        "activation_bits": [32, 16, 8],
        "weight_only": True,
    }

    def counted_bytes(self, weight: Tensor, policy: LayerPolicy) -> int:
        bits = policy.weight_bits
        if bits == 16:
            return 2 * weight.numel()
        rows = round_weight(weight, bits).flatten(1)
        assert all(len(row.unique()) <= 2**bits for row in rows)
        return math.ceil(weight.numel() * bits / 8) + 4 * len(rows)
