"""Boxes as detectors' data sets have them: another number in each image."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from autocompress.errors import InputError
from autocompress.task.boxes import as_boxes, is_boxes, listed
from autocompress.task.data import Data
from autocompress.task.memory import Memory
from autocompress.task.ready import detection
from autocompress.task.split import Split
from autocompress.task.streamed import StreamedSplit
from autocompress.task.wrapping import wrap_split

COUNT = 70


def sample(place: int) -> tuple[Tensor, dict[str, Any]]:
    """An image and up to five boxes of three classes, none in every sixth."""
    drawn = torch.Generator().manual_seed(place)
    corner = torch.rand(place % 6, 2, generator=drawn) * 20
    boxes = torch.cat([corner, corner + 1 + torch.rand(place % 6, 2, generator=drawn) * 9], 1)
    labels = torch.randint(3, (place % 6,), generator=drawn)
    target = {"boxes": boxes, "labels": labels, "image_id": place}
    return torch.randn(3, 8, 8, generator=drawn), target


class Images(Dataset[Any]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, place: int) -> tuple[Tensor, dict[str, Any]]:
        return sample(place)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        return (sample(i) for i in range(COUNT))


def pairs(batch: list[Any]) -> tuple[Any, ...]:
    """What torchvision's references collate with."""
    return tuple(zip(*batch, strict=True))


ROWS = [sample(i) for i in range(COUNT)]
SOURCES: dict[str, Any] = {
    "data set": Images(),
    "loader": DataLoader(Images(), 8, shuffle=True, collate_fn=pairs),
    "list of rows": ROWS,
    "rows with names": [{"image": x, "target": t} for x, t in ROWS],
    "pair": ([x for x, _ in ROWS], [t for _, t in ROWS]),
    "pair of a tensor": (torch.stack([x for x, _ in ROWS]), [t for _, t in ROWS]),
    "stream": Stream(),
    "loader of a stream": DataLoader(Stream(), 8, collate_fn=pairs),
}


@pytest.mark.parametrize("memory", [10**9, 3000])
@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_images_and_boxes(name: str, memory: int) -> None:
    split = wrap_split(SOURCES[name], memory=Memory(memory), length=COUNT)
    assert isinstance(split, StreamedSplit) == (memory < 10**6 and "pair" not in name)
    place = 0
    for inputs, targets in split.batches(16):
        images = inputs["image"] if "names" in name else inputs
        for image, boxes in zip(images, listed(targets), strict=True):
            wanted, target = sample(place)
            assert torch.equal(image, wanted)
            assert torch.equal(boxes["boxes"], target["boxes"])
            assert torch.equal(boxes["labels"], target["labels"])
            place += 1
    assert place == COUNT
    again = pickle.loads(pickle.dumps(split))
    whole = Split(torch.stack([x for x, _ in ROWS]), as_boxes([t for _, t in ROWS]))
    assert again.fingerprint == split.fingerprint == whole.fingerprint
    other = as_boxes([{**t, "labels": t["labels"] + 1} for _, t in ROWS])
    assert Split(whole.stored, other).fingerprint != whole.fingerprint


def test_missing_splits_are_cut_from_images_with_boxes() -> None:
    data = Data.wrap({"train": Images()})
    assert [len(s) for s in (data.train, data.val, data.test)] == [56, 7, 7]
    found = [tuple(t[t[:, 0] >= 0].flatten().tolist()) for t in data.val.targets]
    known = {tuple(as_boxes([t])[0].flatten().tolist()) for _, t in ROWS}
    assert set(found) <= known


@pytest.mark.parametrize("memory", [10**9, 3000])
def test_the_mean_average_precision_of_ragged_boxes_is_that_of_brute_force(memory: int) -> None:
    split = wrap_split(Images(), memory=Memory(memory))
    drawn = torch.Generator().manual_seed(5)
    answers = []
    for place in range(COUNT):
        wanted = sample(place)[1]["boxes"]
        extra = torch.rand(2, 2, generator=drawn) * 20
        around = wanted + torch.randn(wanted.shape, generator=drawn) * 0.6
        boxes = torch.cat([around, torch.cat([extra, extra + 5], 1)])
        kinds = torch.cat([sample(place)[1]["labels"], torch.randint(3, (2,), generator=drawn)])
        answers.append({"boxes": boxes, "scores": torch.rand(len(boxes), generator=drawn)})
        answers[-1]["labels"] = kinds
    task = detection(lambda outputs: [answers[int(i)] for i in outputs], overlaps=(0.5, 0.75))
    assert task.checked(None, split.targets) == ()
    judge, start = task.judge(), 0
    for _, targets in split.batches(16):
        judge.update(torch.arange(start, start + len(targets)), targets)
        start += len(targets)
    wanted = np.mean([brute_force(answers, least) for least in (0.5, 0.75)])
    assert 0.1 < wanted < 0.9
    assert judge.result().scores["map"].value == pytest.approx(wanted)


def brute_force(answers: list[dict[str, Tensor]], least: float) -> float:
    """COCO's average precision, by the definition: for each recall the best precision."""
    each = []
    for kind in range(3):
        ranked = sorted(
            (
                (float(s), i, box.tolist())
                for i, found in enumerate(answers)
                for s, box, k in zip(found["scores"], found["boxes"], found["labels"], strict=True)
                if int(k) == kind
            ),
            reverse=True,
        )
        truth = {
            (i, j): b.tolist()
            for i, (_, t) in enumerate(ROWS)
            for j, (b, k) in enumerate(zip(t["boxes"], t["labels"], strict=True))
            if int(k) == kind
        }
        count, right, curve = len(truth), 0, []
        for rank, (_, image, box) in enumerate(ranked, 1):
            near = [(overlap(box, b), key) for key, b in truth.items() if key[0] == image]
            if near and max(near)[0] >= least:
                del truth[max(near)[1]]
                right += 1
            curve.append((right / count, right / rank))
        points = [r / 100 for r in range(101)]
        each.append(
            sum(max((p for r, p in curve if r >= x), default=0.0) for x in points) / len(points)
        )
    return sum(each) / len(each)


def overlap(first: list[float], second: list[float]) -> float:
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    both = max(wide, 0.0) * max(high, 0.0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return both / (sum(areas) - both)


def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    unlike = [(torch.zeros(3, 8, 8 + i), t) for i, (_, t) in enumerate(ROWS[:3])]
    with pytest.raises(InputError, match=r"unlike sizes.*their boxes with them"):
        wrap_split(unlike)
    with pytest.raises(InputError, match="2 boxes and 1 labels"):
        as_boxes([{"boxes": torch.zeros(2, 4), "labels": [1]}])
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    corners = tv_tensors.BoundingBoxes([[0, 0, 2, 3]], format="XYXY", canvas_size=(8, 8))
    assert as_boxes([{"boxes": corners, "labels": [1]}]).tolist() == [[[1, 0, 0, 2, 3]]]
    middle = tv_tensors.BoundingBoxes([[1, 1, 2, 2]], format="CXCYWH", canvas_size=(8, 8))
    with pytest.raises(InputError, match="got the format CXCYWH"):
        as_boxes([{"boxes": middle, "labels": [1]}])


def test_five_series_are_no_boxes() -> None:
    series = torch.randn(6, 4, 5)
    assert not is_boxes(series)
    assert not is_boxes(series.long())
    pair = wrap_split((torch.zeros(6, 1), series))
    assert torch.equal(pair.targets, series)
