"""Who speaks? An LSTM that turns speech into one vector per voice, on spoken digits.

The weights are those of the package ``Resemblyzer`` (Apache-2.0), which is not imported.

References:
    Wan et al., Generalized End-to-End Loss for Speaker Verification, ICASSP 2018.
"""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.task.data import Data, Split
from autocompress.task.ready_sets import embedding
from autocompress.workloads.models import load_state
from autocompress.workloads.packaged import packaged_weights, read_files

RATE = 16_000
"""Samples per second that the network was trained on."""
WINDOW, HOP, MELS = 400, 160, 40
"""Of the spectrogram: 25 ms, every 10 ms, in 40 bands."""
LOUDNESS = 10 ** (-30 / 20)
"""Root mean square that quieter speech is raised to."""

Sound = NDArray[np.float64]
_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>\w+)_(?P<index>\d+)\.wav")


class VoiceEncoder(nn.Module):
    """Three LSTM layers, a linear one, and vectors of length 1.

    Args:
        mels: bands of the spectrogram.
        hidden: size of each LSTM layer.
        width: of the vector.
        layers: of the LSTM.
    """

    def __init__(
        self, mels: int = MELS, hidden: int = 256, width: int = 256, layers: int = 3
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(mels, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, width)

    def forward(self, mels: Tensor) -> Tensor:
        """From spectrograms ``(N, T, mels)`` to vectors ``(N, width)``."""
        states, _ = self.lstm(mels)
        return F.normalize(self.linear(states[:, -1]).relu(), dim=1)


def resemblyzer() -> nn.Module:
    """Resemblyzer's voice encoder: 1.4 million parameters.

    Raises:
        InputError: the package is missing; the message says how to install it.
    """
    checkpoint = packaged_weights("Resemblyzer", "resemblyzer/pretrained.pt")
    kept: Mapping[str, Tensor] = checkpoint["model_state"]  # type: ignore[assignment]  # nested
    state = {n: t for n, t in kept.items() if n.startswith(("lstm.", "linear."))}
    return load_state(VoiceEncoder(), state, "Resemblyzer")


def spoken_digits(root: str, seconds: float = 1.6, repeats: int = 100, seed: int = 0) -> Data:
    """Utterances of a few digits by one speaker each; the speaker is the class.

    Recordings 0 to 4 of every digit and speaker are for test, 5 to 9 for val, the others for
    train. Digits of one speaker and split are put together in random order until they fill the
    time.

    Args:
        root: folder (or archive ``root.tar.xz`` beside it) with ``DIGIT_SPEAKER_INDEX.wav``, as in
            the Free Spoken Digit Dataset.
        seconds: of an utterance.
        repeats: utterances of each speaker in val and in test; twice as many in train.
        seed: of the order.

    Raises:
        InputError: no such folder, or files of another kind.
    """
    recordings = _recordings(read_files(root, ".wav"))
    speakers = sorted({speaker for speaker, _ in recordings})
    frames = round(seconds * RATE / HOP)
    generator = np.random.default_rng(seed)
    splits = []
    for split, count in (("train", 2 * repeats), ("val", repeats), ("test", repeats)):
        stored, targets = [], []
        for number, speaker in enumerate(speakers):
            for _ in range(count):
                sound = utterance(recordings[speaker, split], frames * HOP, generator)
                stored.append(mel_spectrogram(sound)[:frames])
                targets.append(number)
        splits.append(Split(torch.from_numpy(np.stack(stored)), torch.tensor(targets)))
    train, val, test = splits
    return Data(train, val, test, name="spoken digits", task=embedding("equal_error_rate"))


def digits_by_speaker(root: str, frames: int = 64) -> Data:
    """Which digit is spoken? Single recordings; ``extra["speaker"]`` tells who speaks.

    Recordings 0 to 4 of every digit and speaker are for test, 5 to 9 for val, the others for
    train.

    Args:
        root: as for ``spoken_digits``.
        frames: of the spectrogram, 10 ms each; recordings are cut or padded to it.

    Returns:
        Logarithms of mel spectrograms ``(N, 1, MELS, frames)``, ten classes.

    Raises:
        InputError: no such folder, or files of another kind.
    """
    stored: dict[str, list[NDArray[np.float32]]] = {"train": [], "val": [], "test": []}
    digits: dict[str, list[int]] = {name: [] for name in stored}
    speakers: dict[str, list[str]] = {name: [] for name in stored}
    for name, blob in read_files(root, ".wav").items():
        digit, speaker, split = _told_by(name)
        sound = _read_wav(name, blob)[: frames * HOP]
        heard = np.pad(sound, (0, frames * HOP - len(sound)))
        stored[split].append(np.log(mel_spectrogram(heard)[:frames].T + 1e-5))
        digits[split].append(digit)
        speakers[split].append(speaker)
    train, val, test = (
        Split(torch.from_numpy(np.stack(stored[n])[:, None] / 4 + 1.5), torch.tensor(digits[n]))
        for n in stored
    )
    return Data(train, val, test, 10, name="spoken digits", extra={"speaker": speakers})


def _told_by(name: str) -> tuple[int, str, str]:
    """Digit, speaker and split of a recording, from the name of its file."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise InputError(f"Recordings are named DIGIT_SPEAKER_INDEX.wav, found {name!r}.")
    index = int(parts["index"])
    split = "test" if index < 5 else "val" if index < 10 else "train"
    return int(parts["digit"]), parts["speaker"], split


def utterance(digits: Sequence[Sound], length: int, generator: np.random.Generator) -> Sound:
    """Recordings in random order, one after another, as loud as the network knows speech.

    Args:
        digits: to draw from.
        length: in samples.
        generator: of the order.
    """
    parts: list[Sound] = []
    while sum(len(p) for p in parts) < length:
        parts.append(digits[int(generator.integers(len(digits)))])
    sound = np.concatenate(parts)[:length]
    return sound * max(1.0, LOUDNESS / max(float(np.sqrt(np.mean(sound**2))), 1e-9))


def mel_spectrogram(sound: Sound) -> NDArray[np.float32]:
    """Power in mel bands, ``(1 + samples // HOP, MELS)``; not its logarithm.

    Args:
        sound: samples in -1..1, at ``RATE``.
    """
    padded = np.pad(sound, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    return (power @ mel_filters().T).astype(np.float32)


def mel_filters() -> NDArray[np.float64]:
    """Triangles ``(MELS, WINDOW // 2 + 1)`` of equal area on Slaney's mel scale.

    The scale is linear up to 1000 Hz and logarithmic above (Slaney, Auditory Toolbox, 1998).
    """
    edges = _to_hertz(np.linspace(0.0, _to_mel(RATE / 2), MELS + 2))
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (high - low))


_STEP, _BREAK = 200 / 3, 1000.0
_LOG_STEP = np.log(6.4) / 27


def _to_mel(hertz: float) -> float:
    return float(_BREAK / _STEP + np.log(hertz / _BREAK) / _LOG_STEP)


def _to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _BREAK * np.exp(_LOG_STEP * (mel - _BREAK / _STEP))
    return np.where(mel < _BREAK / _STEP, mel * _STEP, above)


def _recordings(files: Mapping[str, bytes]) -> dict[tuple[str, str], list[Sound]]:
    """Speaker and split to recordings, at ``RATE``."""
    found: dict[tuple[str, str], list[Sound]] = {}
    for name, blob in files.items():
        _, speaker, split = _told_by(name)
        found.setdefault((speaker, split), []).append(_read_wav(name, blob))
    for speaker in sorted({speaker for speaker, _ in found}):
        for split in ("train", "val", "test"):
            if (speaker, split) not in found:
                raise InputError(
                    f"Speaker {speaker!r} has no recording for {split}: indices 0 to 4 are for "
                    "test, 5 to 9 for val, the others for train."
                )
    return found


def _read_wav(name: str, blob: bytes) -> Sound:
    from scipy.signal import resample_poly

    try:
        with wave.open(io.BytesIO(blob)) as file:
            kind = (file.getnchannels(), file.getsampwidth())
            rate, raw = file.getframerate(), file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise InputError(f"{name} is not a readable wav file: {error}.") from None
    if kind != (1, 2):
        raise InputError(f"{name} must be mono with 16 bits, got {kind[0]} channels.")
    samples = np.frombuffer(raw, "<i2").astype(np.float64) / 2**15
    return samples if rate == RATE else np.asarray(resample_poly(samples, RATE, rate))
