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
    assert settings.calibrating(macs) == calibrating
    assert settings.resolving(macs) == resolving


def test_what_is_asked_for_is_taken() -> None:
    settings = CompressionSettings(calibration_images=3000, sequential_images=40)
    assert settings.calibrating(10**12) == 3000
    assert settings.resolving(10**12) == 40


@pytest.mark.parametrize("count", [7, "many", 1.5])
def test_other_values_are_refused(count: object) -> None:
    with pytest.raises(InputError, match="calibration_images"):
        CompressionSettings.read({"calibration_images": count})
