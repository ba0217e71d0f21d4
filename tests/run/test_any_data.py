"""A study of rows as data sets give them: texts of any length, columns too many, no val or test."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import autocompress as ac
from autocompress.build.batch_norm import reestimate
from autocompress.errors import InputError
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.run.assembly import assemble
from autocompress.run.study import GIVEN, read_study
from autocompress.task.calling import call
from autocompress.task.data import Described
from autocompress.task.streamed import StreamedSplit

STUDY: dict[str, Any] = {
    "name": "rows",
    "model": {"factory": GIVEN},
    "data": {"factory": GIVEN, "dynamic": "auto"},
    "space": {"rules": [{"weight_bits": [8, 32], "activation_bits": [8, 32]}]},
    "target": {"lengths": [3, 9]},
    "settings": {"calibration_images": 32},
}


class Classifier(nn.Module):
    """Means of words' vectors, as a sentence classifier; batch normed."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.a, self.n = nn.Embedding(30, 12), nn.Linear(12, 16), nn.BatchNorm1d(16)
        self.h, self.config = nn.Linear(16, 2), None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Any]:
        mask = attention_mask[..., None].float()
        words = (self.e(input_ids) * mask).sum(1) / mask.sum(1)
        return {"logits": self.h(torch.relu(self.n(self.a(words)))), "past_key_values": (words,)}


def right(outputs: Any, targets: Tensor) -> float:
    """Of the structure that the model answers with, from the module and from the file."""
    return float((outputs["logits"].argmax(1) == targets).float().mean())


def rows(count: int = 100) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        ids = torch.randint(30, (3 + i % 5,), generator=draw).tolist()
        mask = [1] * len(ids)
        found.append(
            {"idx": i, "text": "left out", "input_ids": ids, "attention_mask": mask, "label": i % 2}
        )
    return found


def model() -> nn.Module:
    torch.manual_seed(0)
    return Classifier().eval()


def test_rows_go_all_the_way_to_a_measured_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    said: list[str] = []
    parts = assemble(
        read_study(STUDY),
        tmp_path / "models",
        model=model(),
        data={"train": rows(), "metric": right},
        progress=lambda text, done: said.append(text),
    )
    assert any("`val` (10 samples) and `test` (10 samples) were cut" in text for text in said)
    assert any("does not take were left out: idx" in text for text in said)
    axes = {"input_ids": {1: "sequence"}, "attention_mask": {1: "sequence"}}
    assert parts.data.dynamic == axes
    assert parts.data.train.inputs(2).keys() == axes.keys()
    integer = LayerPolicy(weight_bits=8, activation_bits=8)
    compressed = parts.pipeline.build(Policy({"a": integer, "h": integer}))
    measurer = parts.evaluator.measurer
    path = measurer.file("trial")
    measurer.export(compressed, path)
    result = measurer.quality(path, "val")
    inputs, targets = next(iter(parts.data.val.batches(100)))
    with torch.no_grad():
        exact = right(call(parts.model, inputs), targets)
    assert result.count == len(targets)
    assert result.scores[parts.task.quality.name].value == pytest.approx(exact, abs=0.11)
    with closing(measurer.target.open(path)) as session:
        assert session.sizes == {"sequence": 7}


def test_functions_that_a_call_or_a_study_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    source = [{"ids": r["input_ids"][:3], "kind": r["label"]} for r in rows()]
    study = read_study(
        {
            **STUDY,
            "target": {},
            "data": {
                "factory": GIVEN,
                "input_fn": f"{__name__}:inputs_of",
                "memory": "1KB",
            },
        }
    )
    given = Described({"train": source}, {"target_fn": lambda batch: batch["kind"]})
    parts = assemble(study, tmp_path / "models", model=model(), data=given)
    assert isinstance(parts.data.train, StreamedSplit)
    assert parts.data.train.inputs(2).keys() == {"input_ids", "attention_mask"}
    with pytest.raises(InputError, match="no targets among them"):
        assemble(study, tmp_path / "models", model=model(), data={"train": source})


def test_free_axes_of_a_study_may_have_no_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    listed = yaml.safe_load("{input_ids: [1], attention_mask: [1]}")
    study = read_study({**STUDY, "data": {"factory": GIVEN, "dynamic": listed}, "target": {}})
    assert study == read_study(study.model_dump(mode="json"))  # as recipes and runs keep it
    data = {"train": rows(), "metric": right}
    parts = assemble(study, tmp_path / "models", model=model(), data=data)
    axes = {"input_ids": {1: "input_ids_1"}, "attention_mask": {1: "attention_mask_1"}}
    assert parts.data.dynamic == axes == parts.pipeline.stitch(Policy()).dynamic


def inputs_of(batch: Any) -> dict[str, Tensor]:
    return {"input_ids": batch["ids"], "attention_mask": torch.ones_like(batch["ids"])}


def test_statistics_on_the_way_are_those_of_a_batch() -> None:
    data = ac.Data.wrap({"train": rows()}).fitted(model())
    found = []
    for inputs in (data.train.inputs(), data.train):
        module = model()
        reestimate(module, inputs, batch=32)
        found.append(module.n.running_mean)  # type: ignore[union-attr]  # a batch norm
    torch.testing.assert_close(found[0], found[1])


def test_a_model_that_takes_none_of_the_columns_says_which_it_takes() -> None:
    data = ac.Data.wrap({"train": [{"a": [1.0], "b": [2.0], "y": 0}] * 40})
    with pytest.raises(InputError, match=r"takes input_ids, attention_mask.*has a, b"):
        data.fitted(model())
