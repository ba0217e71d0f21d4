"""Weight clustering: every output channel keeps a few distinct weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autocompress.policy.technique import Field, Technique

if TYPE_CHECKING:
    from torch import Tensor

    from autocompress.policy.inventory import LayerSpec
    from autocompress.policy.policy import LayerPolicy
    from autocompress.targets import Target
    from autocompress.techniques.stitching import Stitching


class Clusters(Technique):
    """A file could store an index per weight and a short table per channel."""

    name = "clusters"
    fields = (
        Field(
            "cluster_count",
            0,
            "distinct weights per output channel, zeros aside; 0 leaves them as they are.",
            values=(0, 64, 16, 4),
        ),
    )
    knob = "clusters"
    stage = "weights"
    projects = True

    def usable(self, layer: LayerSpec) -> bool:
        """Layers with one weight."""
        return layer.kind in ("conv", "linear")

    def named_starts(self, levels: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Every search tries the 16 that fit into four bits, and tells how well they do."""
        sixteen = {"cluster_count": 16}
        return {"sixteen": sixteen} if sixteen in levels else {}

    def no_gain(self, target: type[Target]) -> str:
        """No runtime that we know reads such tables."""
        return "its files hold every weight as a float, so that neither time nor bytes are gained"

    def stored_bytes(self, before: int, weights: int, channels: int, policy: LayerPolicy) -> int:
        """Indices and tables, where they are smaller."""
        count = policy.value("cluster_count")
        return min(before, math.ceil(weights * math.log2(count) / 8) + 4 * count * channels)

    def apply(self, work: Stitching) -> None:
        """Change the weights in place; called without gradients."""
        for _, (module, policy) in work.weighted(self):
            module.weight.copy_(clustered(module.weight, policy.value("cluster_count")))


def clustered(weight: Tensor, count: int) -> Tensor:
    """Equally large clusters by value; each becomes its middle weight, and zeros stay zeros."""
    import torch

    values, places = weight.flatten(1).sort(dim=1)
    middles = [
        part[:, part.shape[1] // 2 :][:, :1].expand_as(part)
        for part in values.tensor_split(count, dim=1)
        if part.shape[1]
    ]
    found = torch.zeros_like(values).scatter(1, places, torch.cat(middles, 1)).view_as(weight)
    return torch.where(weight == 0, weight, found)
