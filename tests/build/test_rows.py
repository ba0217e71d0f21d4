"""Which rows of a table are read: against counting by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autocompress.build.bank import LayerBank
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.data import Split
from autocompress.task.memory import Memory
from autocompress.task.wrapping import wrap_split

SETTINGS = CompressionSettings(calibration_images=20)
IDS = torch.randint(30, (100, 6), generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """Words at the places that come in, neighbours one place further, and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.pairs = nn.Embedding(50, 8), nn.Embedding(60, 8)
        self.places, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)
        self.register_buffer("steps", torch.arange(6))

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.words(ids) + self.pairs(ids + 1) + self.places(self.steps)
        return self.head(rows.mean(1))


class Rows(Dataset[tuple[Tensor, int]]):
    """One text at a time."""

    def __len__(self) -> int:
        return len(IDS)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return IDS[place], 0


def bank_of(model: nn.Module, train: Split, folder: Path | None = None) -> LayerBank:
    return LayerBank.build(model, take_inventory(model, IDS[:1]), train, SETTINGS, folder)


def test_rows_read_at_the_inputs_places_are_counted_in_all_training_inputs() -> None:
    bank = bank_of(Reader().eval(), Split(IDS, torch.zeros(100, dtype=torch.long)))
    found = bank.rows["words"]
    assert found.samples == 100
    assert found.counts.tolist() == [int((word == IDS).sum()) for word in range(50)]
    spec = bank.inventory.layer("words")
    assert spec.unread_rows == 50 - len(IDS.unique())


def test_other_reads_are_counted_in_the_calibration_inputs() -> None:
    train = Split(IDS, torch.zeros(100, dtype=torch.long))
    bank = bank_of(Reader().eval(), train)
    read = train.sample(20, SETTINGS.seed).inputs() + 1
    assert bank.rows["pairs"].samples == 20
    assert bank.rows["pairs"].counts.tolist() == [int((read == row).sum()) for row in range(60)]
    assert (bank.rows["places"].counts > 0).tolist() == [True] * 6 + [False] * 3


def test_a_streamed_split_is_counted_where_it_is_read_anyway() -> None:
    train = wrap_split(Rows(), memory=Memory(100))
    assert type(train) is not Split
    assert bank_of(Reader().eval(), train).rows["words"].samples == 20


def test_the_cached_bank_knows_them_and_makes_the_same_factors(tmp_path: Path) -> None:
    model = Reader().eval()
    train = Split(IDS, torch.zeros(100, dtype=torch.long))
    first, again = (bank_of(model, train, tmp_path) for _ in range(2))
    assert again.moments is not first.moments
    policy = Policy({"words": LayerPolicy(rank_ratio=0.5)})
    assert torch.equal(again.rows["words"].counts, first.rows["words"].counts)
    assert again.inventory.layer("words") == first.inventory.layer("words")
    weights = [b.stitch(policy).module.words[0].weight for b in (first, again)]
    assert torch.equal(*weights)


def test_tables_with_many_unread_rows_are_named() -> None:
    bank = bank_of(Reader().eval(), Split(IDS, torch.zeros(100, dtype=torch.long)))
    sentences = bank.inventory.never_read
    assert sentences[0].startswith("words: 20 of 50 rows never occur in 100 training samples")
    assert any(text.startswith("pairs: 3") for text in sentences)
