"""The space `joint` on networks of every kind: nothing that can be compressed is left out of it."""

from __future__ import annotations

import torch
from torch import nn

from autocompress.model.inventory import take_inventory
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.study import shipped


class _Reader(nn.Module):
    """Words through an attention, a recurrent layer and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
        self.cells = nn.LSTM(16, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(self.encoder(self.words(ids)))[0][:, -1])


def _choices(model: nn.Module, inputs: torch.Tensor) -> set[str]:
    space = SpaceConfig.load(shipped("search_spaces")["joint"])
    return {c.name for c in space.bind(take_inventory(model.eval(), inputs)).choices}


def test_joint_covers_attention_recurrent_layers_and_embeddings() -> None:
    found = _choices(_Reader(), torch.randint(0, 30, (2, 7)))
    assert {"encoder.self_attn/prune_ratio", "cells/prune_ratio"} <= found
    assert {"words/bits", "encoder.self_attn/bits", "cells/bits", "head/bits"} <= found
    assert {"encoder.linear1/rank_ratio", "head/rank_ratio"} <= found
