"""torchvision's detectors: whole ones are refused with the remedy, and the remedy works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.run.assembly import assemble
from autocompress.run.study import GIVEN, read_study
from autocompress.task.boxes import listed
from autocompress.task.ready import detection

pytest.importorskip("torchvision")

SIZE = 64
STUDY = read_study(
    {
        "name": "boxes",
        "model": {"factory": GIVEN},
        "data": {"factory": GIVEN},
        "space": "joint",
        "settings": {"calibration_images": 8, "sequential_images": 8},
    }
)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 16
        self.a, self.b = nn.Conv2d(3, 16, 3, 4, 1), nn.Conv2d(16, 16, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.b(self.a(x).relu()).relu()
        return {"fine": fine, "coarse": F.max_pool2d(fine, 2)}


def retinanet() -> Any:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    anchors = AnchorGenerator(((16, 28), (40, 52)), ((1.0,),) * 2)
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    sizes = {"min_size": SIZE, "max_size": SIZE}
    found = RetinaNet(Backbone(), 3, anchor_generator=anchors, score_thresh=0.0, **plain, **sizes)
    for module in found.head.modules():  # fresh heads say nearly the same everywhere
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return found.eval()


def rows(count: int) -> list[Any]:
    drawn = torch.Generator().manual_seed(0)
    found = []
    for place in range(count):
        corner = torch.rand(place % 3, 2, generator=drawn) * 40
        target = {"boxes": torch.cat([corner, corner + 16], 1), "labels": torch.ones(place % 3)}
        found.append((torch.rand(3, SIZE, SIZE, generator=drawn), target))
    return found


class Heads(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Any:
        return self.head(list(self.backbone(images).values()))


class Decode:
    """As docs/tasks.md has it."""

    def __init__(self, detector: Any) -> None:
        from torchvision.models.detection.image_list import ImageList

        self.detector = detector
        blank = torch.zeros(1, 3, SIZE, SIZE)
        maps = list(detector.backbone(blank).values())
        (self.anchors,) = detector.anchor_generator(ImageList(blank, [(SIZE, SIZE)]), maps)
        places = detector.anchor_generator.num_anchors_per_location()
        sizes = zip(maps, places, strict=True)
        self.per_map = [m.shape[2] * m.shape[3] * count for m, count in sizes]

    def __call__(self, outputs: dict[str, Tensor]) -> Any:
        count = len(outputs["cls_logits"])
        parts = {name: list(found.split(self.per_map, 1)) for name, found in outputs.items()}
        own = [list(self.anchors.split(self.per_map))] * count
        return self.detector.postprocess_detections(parts, own, [(SIZE, SIZE)] * count)


def test_a_whole_detector_is_refused_with_the_remedy(tmp_path: Path) -> None:
    task = detection(lambda outputs: outputs)
    with pytest.raises(InputError, match=r"as torchvision's detectors do.*task's `decode`"):
        assemble(STUDY, tmp_path, model=retinanet(), data={"train": rows(24), "task": task})


def test_what_its_heads_say_goes_all_the_way_to_a_judged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    detector = retinanet()
    images = torch.stack([image for image, _ in rows(3)])
    with torch.no_grad():
        wanted, found = detector(images), Decode(detector)(Heads(detector)(images))
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.allclose(one[key], other[key]) for key in wanted[0])

    task = detection(Decode(detector), overlaps=(0.25,))
    data = {"train": rows(40), "task": task}
    parts = assemble(STUDY, tmp_path / "models", model=Heads(detector).eval(), data=data)
    groups = [g for g in parts.inventory.channel_groups if not g.residual]
    assert "backbone.a" in {g.name for g in groups}
    half = LayerPolicy(prune_ratio=0.5)
    made = parts.pipeline.build(Policy(dict.fromkeys([g.name for g in groups], half)))
    measurer = parts.evaluator.measurer
    path = measurer.file("small")
    measurer.export(made, path)
    result = measurer.quality(path, "val")
    judge = task.judge()
    for inputs, targets in parts.data.val.batches(2):
        with torch.no_grad():
            judge.update(made.module(inputs), targets)
        assert len(listed(targets)) == len(targets)
    assert judge.quality().value > 0
    assert result.scores["map"].value == pytest.approx(judge.quality().value, abs=1e-6)
