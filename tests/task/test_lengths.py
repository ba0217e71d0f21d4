"""Samples of unlike lengths, streamed and in memory: held against outputs of their own length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import InputError
from autocompress.task.data import Data
from autocompress.task.ready import ready
from autocompress.task.settle import settle, watched

WORDS = 20


class Text(nn.Module):
    """Tells the next word from a word."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.e, self.a = nn.Embedding(WORDS, 16), nn.Linear(16, 32)
            self.h = nn.Linear(32, WORDS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.h(torch.relu(self.a(self.e(input_ids))))


def texts(lengths: list[int]) -> list[dict[str, Any]]:
    """Rows of a data set, each as long as is said."""
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(WORDS, (length,), generator=draw) for length in lengths]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i} for i in ids]


def predict(inputs: dict[str, Tensor]) -> Tensor:
    return torch.zeros(*inputs["input_ids"].shape, WORDS)


SHORT_FIRST = [4, 3] + [5, 16, 9, 7] * 20
SPLITS = {"train": texts(SHORT_FIRST), "val": texts([6, 8] * 15), "test": texts([18] * 20)}


@pytest.mark.parametrize("memory", ["1GB", "1KB"])
def test_targets_are_held_against_outputs_of_their_own_length(memory: str) -> None:
    task = ready("causal_language_model")
    data = Data.wrap({**SPLITS, "task": task}, memory=memory, dynamic="auto")
    assert settle(data, predict)[0] is task
    assert len(list(watched(data, predict).train.batches(8))) == -(-len(SHORT_FIRST) // 8)


@pytest.mark.parametrize("memory", ["1GB", "1KB"])
def test_a_file_of_one_size_refuses_other_lengths_with_the_remedy(memory: str) -> None:
    data = Data.wrap({**SPLITS, "task": ready("causal_language_model")}, memory=memory)
    with pytest.raises(InputError, match=r"input_ids \(N, 4\)|input_ids \(N, 16\)") as told:
        settle(data, predict)
    assert 'dynamic="auto"' in str(told.value)
    with pytest.raises(InputError, match="tokenizers: `padding='max_length'`"):
        settle(data, predict)
    alike = {name: texts([9] * (20 + place)) for place, name in enumerate(SPLITS)}
    settle(Data.wrap({**alike, "task": data.task}, memory=memory), predict)


@pytest.mark.parametrize("place", [0, 8, 14])
def test_a_late_target_out_of_range_is_found_wherever_it_stands(place: int) -> None:
    """In rows shorter and longer than those that the outputs at hand are of."""
    rows = [*texts([5, 7] * 300), *texts([15] * 40)]
    rows[-1]["labels"] = rows[-1]["labels"].clone()
    rows[-1]["labels"][place] = 99
    task = ready("causal_language_model")
    source = {**SPLITS, "train": rows, "task": task}
    data = watched(Data.wrap(source, memory="1KB", dynamic="auto"), predict)
    with pytest.raises(InputError, match=r"targets of train do not fit.*99"):
        for _ in data.train.batches(8):
            pass


def test_streamed_texts_get_the_figures_of_those_in_memory() -> None:
    how: dict[str, Any] = {"task": "causal_language_model", "dynamic": "auto"}
    how["uniform"] = {"prune_ratio": 0.25}
    found = [ac.evaluate(Text(), SPLITS, memory=size, **how) for size in ("1GB", "1KB")]
    held, streamed = (f["trial"]["perplexity"] for f in found)
    assert streamed == pytest.approx(held, rel=1e-4)
