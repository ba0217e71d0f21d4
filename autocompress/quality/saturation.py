"""What follows where a runtime adds up 8-bit products in 16 bits, so that they can overflow.

x86 processors without VNNI multiply unsigned by signed bytes and add up pairs of products with
saturation at 2^15. Weights of -127 to 127 beside activations of 0 to 255 reach past that: the file
then computes something else than the quantized model. Weights of at most 64 cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocompress.policy.settings import CompressionSettings
from autocompress.targets.base import Target

if TYPE_CHECKING:
    from autocompress.techniques.compressed import Compressed


def overflow_problems(compressed: Compressed, overflows: bool) -> list[str]:
    """What to say of a file whose integer layers use the full range where products overflow.

    A recipe from another machine brings such a policy along.

    Args:
        compressed: what the file was written from.
        overflows: as ``Target.products_overflow`` says.
    """
    chosen = compressed.precisions.items()
    full = [n for n, p in chosen if p.integer and p.weight_bits == 8 and not p.reduced]
    if not overflows or not full:
        return []
    return [
        f"Sums of 8-bit products overflow on this processor, so that {len(full)} integer layers "
        "compute something else than elsewhere: accuracy may be lower. Search here with "
        "`settings.weight_range: auto`, or judge this file on the processor it is meant for."
    ]


def settled(settings: CompressionSettings, target: Target) -> CompressionSettings:
    """The settings with ``weight_range: auto`` replaced by what the target here needs."""
    if settings.weight_range != "auto":
        return settings
    chosen = "reduced" if target.products_overflow() else "full"
    return settings.model_copy(update={"weight_range": chosen})
