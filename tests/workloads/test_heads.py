"""Linear heads that are trained on the spot: as good as scikit-learn's, and fit for few bits."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from autocompress.techniques.quantize import round_weight
from autocompress.workloads.minilm import fit_head


def test_a_feature_that_hardly_varies_leaves_the_others_their_bits() -> None:
    draws = torch.Generator().manual_seed(0)
    vectors = torch.randn(800, 20, generator=draws)
    targets = (vectors[:, :5].sum(1) + torch.randn(800, generator=draws) > 0).long()
    vectors[:, 7] = 0.3 + 1e-5 * torch.randn(800, generator=draws)
    train, test = slice(0, 400), slice(400, 800)
    head = nn.Linear(20, 2)
    fit_head(head, vectors[train].clone(), targets[train])
    peer = LogisticRegression(C=1.0).fit(vectors[train].numpy(), targets[train].numpy())
    expected = peer.score(vectors[test].numpy(), targets[test].numpy())
    with torch.no_grad():
        scores = [
            (((vectors[test] @ w.T + head.bias).argmax(1)) == targets[test]).float().mean().item()
            for w in (head.weight, round_weight(head.weight, 6))
        ]
    assert scores[0] >= expected - 0.03
    assert scores[1] >= scores[0] - 0.02
