"""A network that reads sequences."""

from __future__ import annotations

from torch import Tensor, nn


class SequenceLSTM(nn.Module):
    """Embeds every step of a sequence, reads it with an LSTM, and classifies the last state.

    Args:
        features: of one step of the input.
        embed: width of the two embedding layers.
        hidden: size of the LSTM's state.
        classes: size of the output.
    """

    def __init__(self, features: int, embed: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.embed1 = nn.Linear(features, embed)
        self.embed2 = nn.Linear(embed, embed)
        self.lstm = nn.LSTM(embed, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """From sequences ``(N, T, features)`` to logits ``(N, classes)``."""
        steps = self.embed2(self.embed1(x).relu()).relu()
        states, _ = self.lstm(steps)
        return self.head(states[:, -1])
