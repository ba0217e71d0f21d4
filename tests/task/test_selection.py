"""Which columns a model with free keywords takes: those that its answer depends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.task.calling import call
from autocompress.task.data import Data
from autocompress.task.selection import Selection

IDS, MASK = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.ones(2, 3).long()


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, unread: Any = None
    ) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.table(input_ids) * mask[..., None]
        return self.head(x.sum(1) / mask.sum(1, keepdim=True).clamp_min(1))


class Named(nn.Module):
    """Names one column and hands the others on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, input_ids: Tensor, **more: Any) -> Tensor:
        return self.inner(input_ids, **more)


class Free(Named):
    """Names none."""

    def forward(self, **columns: Any) -> Tensor:
        return self.inner(**columns)


class Ignoring(Named):
    """Takes whatever comes, and reads one column."""

    def forward(self, input_ids: Tensor, **more: Any) -> Tensor:
        return self.inner(input_ids)


ALL = {"input_ids": IDS, "attention_mask": MASK}


@pytest.mark.parametrize("kind", [Named, Free])
def test_a_column_behind_free_keywords_is_kept(kind: Any) -> None:
    """A mask of ones changes no answer by being there, but it does by its values."""
    model = kind().eval()
    assert Selection.of(model, ALL) is None
    more = {**ALL, "idx": torch.arange(2)}
    selection = Selection.of(model, more)
    assert selection is not None
    assert selection.names == ("input_ids", "attention_mask")
    assert selection.dropped == ("idx",)
    assert "idx" in selection.notes[0]
    half = {**more, "attention_mask": torch.tensor([[1, 0, 0], [1, 1, 0]])}
    assert torch.equal(call(model, selection(half)), model.inner(IDS, half["attention_mask"]))


@pytest.mark.parametrize(
    ("model", "columns"), [(Ignoring(), ALL), (Named(), {"input_ids": IDS, "unread": MASK})]
)
def test_a_column_that_is_taken_and_not_read_is_left_out(
    model: nn.Module, columns: dict[str, Tensor]
) -> None:
    selection = Selection.of(model.eval(), columns)
    assert selection is not None
    assert selection.names == ("input_ids",)


def test_a_column_that_fails_is_asked_for() -> None:
    columns = {"input_ids": IDS, "attention_mask": torch.ones(2, 5)}
    with pytest.raises(InputError, match=r"'attention_mask'.*input_fn"):
        Selection.of(Named().eval(), columns)


def test_where_nothing_runs_all_is_left_to_be_said_there() -> None:
    columns = {"input_ids": IDS.float(), "attention_mask": MASK}
    assert Selection.of(Named().eval(), columns) is None


def test_a_mask_reaches_the_model() -> None:
    """The whole way from rows of a data set, against calls by hand."""
    torch.manual_seed(1)
    ids, mask = torch.randint(1, 10, (8, 3)), torch.tensor([[1, 1, 0]]).repeat(8, 1)
    rows = [
        {"input_ids": i, "attention_mask": a, "labels": n % 2}
        for n, (i, a) in enumerate(zip(ids, mask, strict=True))
    ]
    model = Named().eval()
    data = Data.wrap({"train": rows, "val": rows[:4], "test": rows[4:]}).fitted(model)
    found = call(model, data.train.inputs(8))
    assert torch.equal(found, model.inner(ids, mask))
    assert not torch.equal(found, model.inner(ids))


class Batches(nn.Module):
    """Takes the whole batch, and looks for its columns by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.inner(batch["input_ids"], batch["attention_mask"])


def test_a_model_that_takes_a_mapping_gets_it() -> None:
    model = Batches().eval()
    pairs = zip(IDS, MASK, strict=True)
    rows = [{"input_ids": i, "attention_mask": m, "label": 1} for i, m in pairs]
    data = Data.wrap({"train": rows, "val": rows, "test": rows}).fitted(model)
    torch.testing.assert_close(call(model, data.train.inputs()), model.inner(IDS, MASK))
    with pytest.raises(InputError, match="Rename the columns"):
        Selection.of(Batches().eval(), {"ids": IDS, "mask": MASK})
