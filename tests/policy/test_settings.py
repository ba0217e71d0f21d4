"""How many inputs calibrate a network: as many as asked, or what the network can afford."""

from __future__ import annotations

import pytest

from autocompress.errors import InputError
from autocompress.policy.settings import CompressionSettings


@pytest.mark.parametrize(
    ("macs", "calibrating", "resolving"),
    [
        (0, 512, 1024),
        (41_000_000, 512, 1024),  # ResNet-20
        (390_000_000, 512, 1024),  # EfficientNet-Lite0
        (1_430_000_000, 139, 279),  # MiniLM at 128 tokens
        (10**12, 128, 256),
    ],
)
def test_large_networks_are_calibrated_by_fewer(
    macs: int, calibrating: int, resolving: int
) -> None:
    settings = CompressionSettings()
    assert settings.calibrating(macs, 50_000) == calibrating
    assert settings.resolving(macs) == resolving


@pytest.mark.parametrize(
    ("training", "calibrating", "judging"),
    [(50_000, 512, 128), (700, 512, 128), (400, 320, 80), (6, 5, 1), (4, 4, 0), (1, 1, 0)],
)
def test_of_few_training_inputs_some_are_kept_apart(
    training: int, calibrating: int, judging: int
) -> None:
    settings = CompressionSettings()
    assert settings.calibrating(1, training) == calibrating
    assert settings.judging(1, training) == judging
    assert calibrating + judging <= training


def test_what_is_asked_for_is_taken() -> None:
    settings = CompressionSettings(calibration_images=3000, sequential_images=40)
    assert settings.calibrating(10**12, 50_000) == 3000
    assert settings.resolving(10**12) == 40


@pytest.mark.parametrize("count", [7, "many", 1.5])
def test_other_values_are_refused(count: object) -> None:
    with pytest.raises(InputError, match="calibration_images"):
        CompressionSettings.read({"calibration_images": count})
