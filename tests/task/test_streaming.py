"""Splits that are streamed answer as those in memory do, and hold no more than they may."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from autocompress.errors import InputError
from autocompress.task.data import Data
from autocompress.task.memory import Memory, available, read_size
from autocompress.task.nested import tensors
from autocompress.task.split import Split, feed, portions
from autocompress.task.streamed import CachedRows, StreamedSplit
from autocompress.task.wrapping import wrap_split

COUNT = 40
IMAGES = torch.arange(COUNT * 12, dtype=torch.float32).view(COUNT, 3, 2, 2)
LABELS = torch.arange(COUNT) % 4
BYTES = 12 * 4 + 8
"""Of one sample."""


class Lazy(Dataset[Any]):
    """Counts what is read of it."""

    def __init__(self, known: bool = False) -> None:
        self.reads: list[int] = []
        self.targets: list[int] | None = None
        if known:
            self.targets = LABELS.tolist()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads.append(index)
        return IMAGES[index].clone(), int(LABELS[index])


class Stream(IterableDataset[Any]):
    def __init__(self, count: int | None) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for i in range(self.count or 10**9):
            yield IMAGES[i % COUNT], int(LABELS[i % COUNT])


class SizedStream(Stream):
    def __len__(self) -> int:
        assert self.count is not None
        return self.count


def streamed(source: Any, memory: int = 10 * BYTES, **more: Any) -> StreamedSplit:
    split = wrap_split(source, memory=Memory(memory), **more)
    assert isinstance(split, StreamedSplit)
    return split


def same(first: Any, second: Any) -> bool:
    pairs = zip(tensors(first), tensors(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


HELD = Split(IMAGES, LABELS)


@pytest.mark.parametrize("source", [Lazy(), DataLoader(Lazy(), batch_size=7), SizedStream(COUNT)])
def test_a_streamed_split_answers_as_one_in_memory(source: Any) -> None:
    split = streamed(source)
    assert len(split) == COUNT
    assert split.fingerprint == HELD.fingerprint
    assert same(split.inputs(5), IMAGES[:5])
    assert same(split.targets, LABELS)
    for shuffled in (False, True):
        found, wanted = (
            list(s.batches(7, generator=torch.Generator().manual_seed(1) if shuffled else None))
            for s in (split, HELD)
        )
        assert same(found, wanted)
    part = split.sample(25, seed=3)
    assert same(part.take(slice(None)), HELD.sample(25, seed=3).take(slice(None)))
    assert part.fingerprint == HELD.sample(25, seed=3).fingerprint
    assert same(split.take(torch.tensor([5, 2, 5])), HELD.take(torch.tensor([5, 2, 5])))
    assert same(list(portions(split, 16)), list(portions(IMAGES, 16)))


def test_no_more_is_held_than_the_budget_and_nothing_is_read_twice_that_is_held() -> None:
    source = Lazy()
    split = streamed(source, 10 * BYTES)
    rows = split.rows
    assert isinstance(rows, CachedRows)
    for _ in range(3):
        list(split.batches(8))
        held = sum(t.nbytes for row in rows.held.values() for t in tensors(row))
        assert held <= 10 * BYTES
        assert held == rows.memory.taken
        # a view of a batch would keep all of it in memory
        bases = [t.untyped_storage().nbytes() for row in rows.held.values() for t in tensors(row)]
        assert sum(bases) == held
    assert len(rows.held) == 10
    counts = [source.reads.count(i) for i in range(COUNT)]
    assert counts[0] == 2  # its size was asked for
    assert {counts[i] for i in rows.held if i > 0} == {1}
    assert min(counts[i] for i in range(COUNT) if i not in rows.held) == 3


def test_splits_of_one_budget_share_it() -> None:
    memory = Memory(COUNT * BYTES + 5 * BYTES)
    first = wrap_split(Lazy(), memory=memory)
    second = wrap_split(Lazy(), memory=memory)
    assert type(first) is Split
    assert isinstance(second, StreamedSplit)
    list(second.batches(8))
    assert len(second.rows.held) == 5  # type: ignore[attr-defined]  # cached


def test_what_lies_in_memory_is_not_copied() -> None:
    for source in (
        (IMAGES, LABELS),
        TensorDataset(IMAGES, LABELS),
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3, shuffle=True),
        (IMAGES.numpy(), LABELS.numpy()),
    ):
        split = wrap_split(source, memory=Memory(0))
        assert type(split) is Split
        assert split.stored.data_ptr() == IMAGES.data_ptr()
        assert split.targets.data_ptr() == LABELS.data_ptr()
    subset = wrap_split(Subset(TensorDataset(IMAGES, LABELS), [3, 1]), memory=Memory(0))
    assert same(subset.stored, IMAGES[[3, 1]])


def test_a_shuffling_loader_gives_the_same_split_every_time() -> None:
    prints = {
        wrap_split(DataLoader(Lazy(), batch_size=8, shuffle=True)).fingerprint for _ in range(3)
    }
    assert prints == {HELD.fingerprint}
    chosen = DataLoader(Lazy(), batch_size=2, sampler=[4, 1, 7])
    assert same(wrap_split(chosen).stored, IMAGES[[4, 1, 7]])


def test_a_stream_without_a_length_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"Stream is a stream without a length.*`length`"):
        wrap_split(Stream(None))
    split = wrap_split(DataLoader(Stream(None), batch_size=7), length=20)
    assert same(split.stored, IMAGES[:20])
    with pytest.raises(InputError, match="20 samples ended after 12"):
        wrap_split(Stream(12), length=20)


class Batches(Dataset[Any]):
    """Gives whole batches."""

    def __len__(self) -> int:
        return COUNT // 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        part = slice(8 * index, 8 * index + 8)
        return IMAGES[part], LABELS[part]


def test_a_loader_of_ready_batches() -> None:
    loader = DataLoader(Batches(), batch_size=None)
    split = wrap_split(loader)
    assert same((split.stored, split.targets), (IMAGES, LABELS))
    assert streamed(loader).fingerprint == HELD.fingerprint


def test_a_long_stream_is_kept_on_disk_and_removed() -> None:
    split = streamed(SizedStream(COUNT), memory=3 * BYTES)
    folder = split.rows.rows.folder  # type: ignore[attr-defined]  # spooled
    assert sum(f.stat().st_size for f in folder.iterdir()) == COUNT * BYTES
    assert same(split.take(torch.tensor([30, 2])), HELD.take(torch.tensor([30, 2])))
    del split
    assert not folder.exists()


def test_labels_that_a_data_set_keeps_are_not_read() -> None:
    source = Lazy(known=True)
    split = streamed(source)
    reads = len(source.reads)
    assert split.labels is not None
    assert torch.equal(split.targets, LABELS)
    assert len(source.reads) == reads
    wrong = Lazy()
    wrong.targets = (LABELS + 1).tolist()  # before a transform of the targets
    assert streamed(wrong).labels is None


def test_another_process_gets_the_source_without_what_is_held() -> None:
    split = streamed(Lazy())
    list(split.batches(8))
    again = pickle.loads(pickle.dumps(split))
    assert not again.rows.held
    assert same(again.inputs(4), IMAGES[:4])


def test_nothing_holds_all_of_a_streamed_split() -> None:
    with pytest.raises(InputError, match="never in memory as a whole"):
        _ = streamed(Lazy()).stored


def test_small_inputs_are_fed_whole_and_large_ones_on_the_way() -> None:
    assert isinstance(feed(HELD, Memory(10**9)), Tensor)
    assert feed(HELD, Memory(1000)) is HELD


def test_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [read_size(s) for s in ("2GB", "1.5 MB", "10", 7)] == [2 * 10**9, 1_500_000, 10, 7]
    with pytest.raises(InputError, match="'2GB' or '500MB', got 'much'"):
        read_size("much")
    monkeypatch.delenv("AUTOCOMPRESS_DATA_MEMORY", raising=False)
    assert Memory.of().limit == pytest.approx(available() / 4, rel=0.3)
    monkeypatch.setenv("AUTOCOMPRESS_DATA_MEMORY", "3MB")
    assert Memory.of().limit == 3_000_000
    assert Memory.of("1MB").limit == 1_000_000


def test_a_sample_holds_every_class_that_it_has_room_for() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    labels[:3] = torch.tensor([1, 2, 3])
    split = Split(torch.arange(1000), labels)
    for seed in range(5):
        part = split.sample(20, seed)
        assert part.labels is not None
        assert set(part.labels.tolist()) == {0, 1, 2, 3}
        assert len(set(part.stored.tolist())) == 20
    # where nothing is missing, the draw is the plain one
    even = Split(torch.arange(1000), torch.arange(1000) % 2)
    plain = torch.randperm(1000, generator=torch.Generator().manual_seed(4))[:50]
    assert torch.equal(even.sample(50, 4).stored, plain)


def test_data_that_are_read_already_are_not_read_in_another_way() -> None:
    splits = Data.wrap({"train": (torch.randn(40, 2), torch.arange(40) % 2)})
    assert Data.wrap(splits) is splits
    with pytest.raises(InputError, match="read already"):
        Data.wrap(splits, input_fn=len)
