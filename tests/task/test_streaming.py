"""Splits that are streamed answer as those in memory do, and hold no more than they may."""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset

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
    assert counts[0] == 3  # its size was asked for, and whether it is always the same
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


class Cropped(Dataset[Any]):
    """Changes its samples at random, with the generators that transforms use."""

    targets = LABELS.tolist()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(3, 2, 2) + random.random() + float(np.random.rand())
        return IMAGES[index] + noise, int(LABELS[index])


def masked(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Hides some of a batch, as collators of language models do."""
    images = torch.stack([row[0] for row in rows])
    hidden = torch.rand(images.shape) < 0.5
    return images.masked_fill(hidden, -1.0), torch.tensor([row[1] for row in rows])


@pytest.mark.parametrize(
    "source",
    [Cropped(), DataLoader(Cropped(), collate_fn=masked), DataLoader(Lazy(), collate_fn=masked)],
)
def test_what_is_drawn_at_random_is_drawn_once_for_each_sample(source: Any) -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    split = streamed(source)
    first = split.inputs()
    assert not torch.equal(first, IMAGES)
    places = torch.tensor([30, 3, 30, 17])
    for _ in range(2):  # alone, among others, held and not
        assert torch.equal(split.inputs(), first)
        assert torch.equal(split.take(places)[0], first[places])
    whole = wrap_split(source, memory=Memory(10**9))
    assert torch.equal(whole.inputs(), first)
    assert whole.fingerprint == split.fingerprint
    # two samples are changed in two ways
    assert not torch.equal(first[0] - IMAGES[0], first[1] - IMAGES[1])
    now = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(states[0], now[0])
    assert states[1:] == now[1:]


def test_a_stream_that_draws_is_the_same_in_every_process() -> None:
    class Noise(Stream):
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            for image, label in super().__iter__():
                yield image + torch.rand(1), label

    for memory in (10**9, 10 * BYTES):
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(wrap_split(Noise(None), memory=Memory(memory), length=COUNT).fingerprint)
        assert found[0] == found[1]


def test_a_sample_that_cannot_be_read_twice_is_warned_about() -> None:
    class Own(Lazy):
        generator = torch.Generator().manual_seed(0)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return IMAGES[index] + torch.rand(1, generator=self.generator), int(LABELS[index])

    with pytest.warns(UserWarning, match="Own is another one each time it is read"):
        streamed(Own())


class Forever(Sampler[int]):
    """Goes on, or ends after some rounds; says nothing of it."""

    def __init__(self, rounds: int | None) -> None:
        self.rounds = rounds

    def __iter__(self) -> Iterator[int]:
        for place in itertools.count():
            if self.rounds is not None and place >= self.rounds * COUNT:
                return
            yield place * 7 % COUNT


class SizedForever(Forever):
    def __len__(self) -> int:
        return COUNT


def test_an_endless_sampler_is_taken_as_far_as_is_said() -> None:
    def loader(sampler: Sampler[int]) -> DataLoader[Any]:
        return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8, sampler=sampler)

    with pytest.raises(InputError, match=r"Forever has no length.*length={'train': 40}"):
        wrap_split(loader(Forever(None)))
    wanted = IMAGES[torch.arange(60) * 7 % COUNT]
    assert same(wrap_split(loader(Forever(None)), length=60).stored, wanted)
    assert same(wrap_split(loader(SizedForever(None))).stored, wanted[:40])
    assert same(wrap_split(loader(Forever(2))).stored[:60], wanted)
    assert len(wrap_split(loader(Forever(2)))) == 2 * COUNT


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.bool])
def test_any_type_is_held_streamed_and_spooled_alike(kind: torch.dtype) -> None:
    class Typed(SizedStream):
        def __iter__(self) -> Iterator[Any]:
            yield from zip(images, targets, strict=True)

    images = (IMAGES % 5 > 1 if kind is torch.bool else IMAGES).to(kind)
    targets = (LABELS > 1).to(kind)
    held = Split(images, targets)
    rows = list(zip(images, targets, strict=True))
    for split in (streamed(rows, 300), streamed(Typed(COUNT), 300), wrap_split(rows)):
        assert split.fingerprint == held.fingerprint
        index = torch.tensor([7, 0, 39, 7])
        assert same(split.take(index), held.take(index))
        assert split.take(index)[0].dtype is kind
    assert held.fingerprint != Split(images.flip(0), targets).fingerprint


def test_targets_are_looked_at_when_they_are_read_and_once() -> None:
    seen: list[list[int]] = []

    def check(targets: Tensor) -> None:
        seen.append(targets.tolist())
        if 99 in targets:
            raise InputError("out of range")

    labels = LABELS.clone()
    labels[33] = 99
    split = streamed(list(zip(IMAGES, labels, strict=True))).checked_by(check)
    part = split.prepared_by(lambda x: x).subset(torch.arange(10, 40))
    part.take(slice(0, 10))
    split.take(slice(5, 20))
    split.take(slice(5, 20))
    assert seen == [labels[10:20].tolist(), labels[5:10].tolist()]
    with pytest.raises(InputError, match="out of range"):
        list(part.batches(10))
    assert pickle.loads(pickle.dumps(split)).take(slice(33, 34))[1].tolist() == [99]
