"""Rows of several parts and loaders of ready batches: read, or refused with a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

import autocompress as ac
from autocompress.errors import InputError
from autocompress.task.calling import call
from autocompress.task.data import Data, Split

COUNT = 103
X = torch.arange(float(COUNT))[:, None].repeat(1, 4)
Y = torch.arange(COUNT) % 3


class Rows(Dataset[Any]):
    """Whatever a function makes of a sample."""

    def __init__(self, row: Callable[[Tensor, int, int], Any]) -> None:
        self.row = row

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: Any) -> Any:
        return self.row(X[index], Y[index], index)


class Batches(Dataset[Any]):
    """Ten samples an item; three the last."""

    def __len__(self) -> int:
        return -(-COUNT // 10)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index >= len(self):
            raise IndexError
        part = slice(10 * index, 10 * index + 10)
        return X[part], Y[part]


class BatchStream(IterableDataset[Any]):
    """The same as a stream."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([Batches()[i] for i in range(len(Batches()))])


PAIRS = Rows(lambda x, y, i: (x, y))
TENS = BatchSampler(SequentialSampler(range(COUNT)), 10, drop_last=False)
READY: dict[str, tuple[Callable[[], DataLoader[Any]], int | None]] = {
    "items are batches": (lambda: DataLoader(Batches(), batch_size=None), None),
    "sampler of batches": (lambda: DataLoader(PAIRS, batch_size=None, sampler=TENS), None),
    "batch sampler": (lambda: DataLoader(PAIRS, batch_sampler=TENS), None),
    "stream of batches": (lambda: DataLoader(BatchStream(), batch_size=None), COUNT),
}


@pytest.mark.parametrize("memory", ["1GB", "1KB"])
@pytest.mark.parametrize("name", READY)
def test_ready_batches_are_taken_apart_into_samples(name: str, memory: str) -> None:
    make, length = READY[name]
    data = Data.wrap({"train": make()}, memory=memory, length=length)
    found = [s.inputs()[:, 0].tolist() for s in (data.train, data.val, data.test)]
    assert sorted(i for part in found for i in part) == list(range(COUNT))
    assert all(bool((s.targets == s.inputs()[:, 0] % 3).all()) for s in (data.train, data.val))


REFUSED: dict[str, tuple[Any, str]] = {
    "single samples": (DataLoader(PAIRS, batch_size=None), "Give the loader a `batch_size`"),
    "batches as samples": (Batches(), r"DataLoader\(data, batch_size=None\)"),
    "batches of batches": (BatchStream(), r"DataLoader\(data, batch_size=None\)"),
    "another error": (
        Rows(lambda x, y, i: {}["x"]),
        r"Sample 0 of Rows cannot be read: .*\(KeyError: 'x'\)",
    ),
    "pictures": (Rows(lambda x, y, i: (object(), y)), "inputs of a batch hold no tensor"),
    "texts": (Rows(lambda x, y, i: (x, y, f"file {i}")), r"`input_fn=lambda batch: batch\[0\], ta"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_batch_is_refused_with_the_remedy(name: str) -> None:
    source, says = REFUSED[name]
    with pytest.raises(InputError, match=says):
        Data.wrap({"train": source}, length=COUNT if name == "batches of batches" else None)


def plain() -> nn.Module:
    """Takes one input."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Optional(nn.Module):
    """Takes a second input, which a label might be taken for."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return self.inner(x if shift is None else x + shift[:, None])


FORMS: dict[str, Callable[[Tensor, int, int], Any]] = {
    "index last": lambda x, y, i: (x, y, i),
    "index first": lambda x, y, i: (i, x, y),
    "facts last": lambda x, y, i: (x, y, {"id": i, "file": f"{i}.png", "box": None}),
    "named": lambda x, y, i: {"picture": x, "label": y, "index": i},
}


@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("model", [plain, Optional])
@pytest.mark.parametrize("form", FORMS)
def test_rows_with_more_than_inputs_and_targets_say_what_to_write(
    form: str, model: Callable[[], nn.Module], loader: bool
) -> None:
    """What the message says is then done, and gives what plain pairs give."""
    rows = Rows(FORMS[form])
    source = {"train": DataLoader(rows, batch_size=8) if loader else rows}
    network = model()
    with pytest.raises(InputError) as told:
        ac.evaluate(network, source)
    remedy = re.search(r"`(input_fn=.*?)`", str(told.value))
    assert remedy is not None, told.value
    functions = eval(f"dict({remedy[1]})")
    wrapped = Data.wrap(source, **functions).fitted(network)
    assert torch.equal(wrapped.train.inputs(), Data.wrap({"train": PAIRS}).train.inputs())
    assert torch.equal(wrapped.train.targets, wrapped.train.inputs()[:, 0].long() % 3)


def test_samples_of_one_group_need_splits_of_their_own() -> None:
    with pytest.raises(InputError, match="Give the data `val` and `test` of their own"):
        Data.wrap({"train": PAIRS}, groups=[0] * COUNT)


class Tagged(nn.Module):
    """Reads a mapping inside of the mapping of its inputs, where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.tags = plain(), nn.Embedding(3, 4)

    def forward(self, x: Tensor, extra: dict[str, Tensor] | None = None) -> Tensor:
        return self.inner(x if extra is None else x + self.tags(extra["tag"]))


@pytest.mark.parametrize("loader", [False, True])
def test_mappings_in_rows_reach_the_model(loader: bool) -> None:
    rows = Rows(lambda x, y, i: {"x": x, "extra": {"tag": y, "file": f"{i}.png"}, "label": y})
    source = {"train": DataLoader(rows, batch_size=8) if loader else rows}
    model = Tagged().eval()
    wrapped = Data.wrap(source).fitted(model)
    inputs, targets = wrapped.train.inputs(), wrapped.train.targets
    assert list(inputs) == ["x", "extra"]
    assert list(inputs["extra"]) == ["tag"]
    assert torch.equal(inputs["extra"]["tag"], targets)
    assert torch.equal(call(model, inputs), model(inputs["x"], {"tag": targets}))


@pytest.mark.parametrize("streamed", [False, True])
def test_functions_read_a_pair_as_they_read_a_loaders_batches(streamed: bool) -> None:
    images, labels = torch.randint(256, (60, 3, 4, 4), dtype=torch.uint8), torch.arange(60) % 3
    pair = (images, labels)
    source = DataLoader(TensorDataset(*pair), batch_size=7) if streamed else pair
    data = Data.wrap(
        {"train": source},
        input_fn=lambda batch: batch[0].float() / 255,
        target_fn=lambda batch: batch[1] + 1,
    )
    whole = Data.wrap({"train": (images.float() / 255, labels + 1)})
    assert torch.equal(data.train.inputs(), whole.train.inputs())
    assert torch.equal(data.train.targets, whole.train.targets)


def test_functions_for_a_split_that_is_read_already_are_refused() -> None:
    split = Split(torch.randn(60, 2), torch.arange(60) % 2)
    with pytest.raises(InputError, match="`Split` is read already"):
        Data.wrap({"train": split}, input_fn=len)


def test_a_split_that_is_named_wrongly_is_not_cut_from_train_in_silence() -> None:
    pair = (torch.randn(60, 2), torch.arange(60) % 2)
    with pytest.raises(InputError, match="`tset` is no split; did you mean 'test'"):
        Data.wrap({"train": pair, "tset": pair})
    data = Data.wrap({"train": pair, "unsupervised": pair})
    assert "Left out, for they are no splits: unsupervised." in data.notes
