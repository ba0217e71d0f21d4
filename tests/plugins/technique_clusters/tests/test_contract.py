"""The technique keeps to what autocompress asks of every technique."""

from __future__ import annotations

import math

from autocompress_technique_clusters import Clusters
from torch import Tensor

from autocompress.policy.policy import LayerPolicy
from autocompress.testing.technique import TechniqueContract


class TestClusters(TechniqueContract):
    technique = Clusters()

    def counted_bytes(self, weight: Tensor, policy: LayerPolicy) -> int:
        """A table per channel, and an index per weight."""
        count = policy.value("cluster_count")
        assert all(len(row.unique()) <= count for row in weight.flatten(1))
        indices = math.ceil(weight.numel() * math.log2(count) / 8)
        return min(4 * weight.numel(), indices + 4 * count * len(weight))
