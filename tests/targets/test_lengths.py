"""Latency of files with free axes: as long as asked, or as exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.exporters.write import export
from autocompress.measure.latency import paired_timing
from autocompress.measure.sampling import Plan
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import get_target, read_config
from autocompress.targets.base import Session, TensorSpec, random_inputs
from autocompress.targets.lengths import drawn_inputs, drawn_sizes
from autocompress.techniques.compressed import Compressed


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        return self.h((self.e(input_ids) * mask).sum(1) / mask.sum(1))


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def target(request: pytest.FixtureRequest) -> str:
    """A runtime whose files have free axes."""
    return str(request.param)


@pytest.fixture(scope="module")
def file(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = {"input_ids": torch.zeros(2, 6).long(), "attention_mask": torch.ones(2, 6).long()}
    axes = {name: {1: "sequence"} for name in inputs}
    plain = Compressed(Text().eval(), Policy(), CompressionSettings(), dynamic=axes)
    path = tmp_path_factory.mktemp("lengths") / f"text{get_target(target).suffix}"
    export(plain, path, inputs)
    return path


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [
        (None, [{}]),
        (16, [{"s": 16}]),
        ([4, 8, 8], [{"s": 4}, {"s": 8}, {"s": 8}]),
        ({4: 0.75, 8: 0.25}, [{"s": 4}] * 15 + [{"s": 8}] * 5),
        ({"4": 3, "8": 1}, [{"s": 4}] * 15 + [{"s": 8}] * 5),
        ({"s": [4, 8]}, [{"s": 4}, {"s": 8}]),
        ({"sequence": 4}, [{"s": 4}]),
    ],
)
def test_lengths_as_they_are_written(lengths: Any, wanted: list[dict[str, int]]) -> None:
    config = read_config({"lengths": lengths})
    assert read_config(config.model_dump(mode="json")) == config
    assert drawn_sizes(config.lengths, ["s"]) == wanted
    assert drawn_sizes(config.lengths, []) == [{}]


def test_every_axis_of_several_has_its_own() -> None:
    found = drawn_sizes({"height": [8, 16], "width": 4}, ["height", "width"])
    assert found == [{"height": 8, "width": 4}, {"height": 16, "width": 4}]


def test_a_file_is_run_on_the_lengths_that_are_asked_for(file: Path, target: str) -> None:
    for lengths, wanted in ((None, [6]), (9, [9]), ({"sequence": [2, 3]}, [2, 3])):
        runtime = get_target({"runtime": target, "lengths": lengths, "batch": 4})
        session = runtime.open(file)
        fed = drawn_inputs(session, runtime.config)
        assert [[a.shape for a in one] for one in fed] == [[(4, n)] * 2 for n in wanted]
        assert all((one[1] == 1).all() for one in fed), "nothing is masked"
        assert all(session.run(one)[0].shape == (4, 3) for one in fed)
        session.close()


def test_a_timing_runs_every_length_and_tells_their_mean(
    file: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    run = Session.run

    def noted(self: Session, inputs: Any) -> list[NDArray[Any]]:
        ran.append(inputs[0].shape[1])
        return run(self, inputs)

    monkeypatch.setattr(Session, "run", noted)
    plan = Plan(max_seconds=0.2, min_rounds=3, apart_s=0.0)
    runtime = get_target({"runtime": target, "lengths": [3, 50, 50, 3]})
    timing = paired_timing(runtime, file, file, plan=plan)
    assert ran[:4] == [3, 50, 50, 3]
    assert ran.count(3) == ran.count(50)
    assert timing.facts["target"]["lengths"] == [3, 50, 50, 3]
    # a call is four inferences: the mean is a quarter of it
    total = timing.latency_ms * len(ran) / 1e3
    assert total < 10 * timing.seconds


def test_a_free_axis_of_unknown_size_says_what_to_give() -> None:
    spec = TensorSpec("x", (None, None), "float32", ("batch", "sequence"))
    with pytest.raises(InputError, match=r"axis 1 \(sequence\) is.*lengths: 128"):
        random_inputs([spec])
    (found,) = random_inputs([spec], 2, sizes={"sequence": 5})
    assert found.shape == (2, 5)
    (mask,) = random_inputs([TensorSpec("attention_mask", (1, 3), "int64")])
    assert np.array_equal(mask, np.ones((1, 3)))
