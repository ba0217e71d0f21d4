"""The models of the examples learn what they are there for, so that there is something to lose."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_FOLDER = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", _FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@torch.no_grad()
def answers(model: torch.nn.Module, inputs: torch.Tensor) -> object:
    return model(inputs)


def test_the_detector_finds_squares() -> None:
    """A box of average size in the image's middle overlaps by a tenth."""
    detector = example("detector")
    model = detector.trained(*detector.squares(768, 0))
    images, boxes = detector.squares(128, 2)
    assert detector.overlap(answers(model, images), boxes).mean() > 0.6


def test_the_u_net_finds_discs() -> None:
    """Calling every pixel background is right on nine of ten, and finds no disc."""
    unet = example("unet")
    model = unet.trained(*unet.discs(384, 0))
    images, masks = unet.discs(64, 2)
    found = answers(model, images)
    assert isinstance(found, torch.Tensor)
    disc = found.argmax(1) == 1
    assert (disc & (masks == 1)).sum() / (disc | (masks == 1)).sum() > 0.6
