"""Networks with answers of other kinds than one tensor, and inputs of unlike kinds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class Answer(OrderedDict[str, Tensor]):
    """Keys are attributes as well, as in transformers' outputs."""

    def __getattr__(self, key: str) -> Tensor:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


@dataclass
class AnswerFields:
    """Outputs as a dataclass."""

    logits: Tensor
    aux: Tensor


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda logits, aux: (logits, aux),
    "list": lambda logits, aux: [logits, aux],
    "dict": lambda logits, aux: {"logits": logits, "aux": aux},
    "answer": lambda logits, aux: Answer(logits=logits, aux=aux),
    "dataclass": lambda logits, aux: AnswerFields(logits, aux),
}


class TwoOutputs(nn.Module):
    """Two heads; how their outputs are handed out is a key of ``OUTPUTS``."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.aux = nn.Linear(8, 5), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))
        return OUTPUTS[self.how](self.head(x), self.aux(x))


class UnlikeInputs(nn.Module):
    """Tokens and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.words = nn.Embedding(20, 8), nn.Linear(8, 16)
        self.numbers, self.head = nn.Linear(4, 16), nn.Linear(16, 5)

    def forward(self, tokens: Tensor, numbers: Tensor) -> Tensor:
        return self.head(F.relu(self.words(self.embed(tokens).mean(1)) + self.numbers(numbers)))
