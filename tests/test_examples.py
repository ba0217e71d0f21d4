"""The examples run, and their models learn what they are there for: there is something to lose."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_study import environment

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


SAYS = {
    "digits": r"chosen: \d+ report: runs/digits/report.html",
    "bert": r"bert.onnx",
    "unet": r"mean_iou",
    "detector": r"overlap",
    "train_further": r"of val, [\d,]+ bytes\n[01]\.\d+ of the time of the file before",
    "other_weights": r"0\.\d\d of the parameters\nholds what it claims: True",
    "quantize_onnx": r"right, [\d,]+ bytes: runs/quantize_onnx/models/best.onnx",
    "judge_files": r"theirs.onnx is not: ",
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_to_its_last_line(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(_FOLDER / f"{name}.py")],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout), done.stdout


def test_every_example_is_told_in_the_docs() -> None:
    text = (_FOLDER.parent / "docs" / "examples.md").read_text()
    told = re.findall(r"\]\(\.\./examples/(\w+)\.py\)", text)
    assert sorted(told) == sorted(path.stem for path in _FOLDER.glob("*.py")) == sorted(SAYS)
