"""A small folder of images, and a cache folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing that a test decodes or trains reaches the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(folder))
    return folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """``{train,val,test}/{cat,dog}/*.png``: red cats, green dogs, numbered in blue."""
    root = tmp_path / "pets"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for channel, label in enumerate(("cat", "dog")):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.zeros((6, 8, 3), np.uint8)
                pixels[..., channel], pixels[..., 2] = 200, number
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return root
