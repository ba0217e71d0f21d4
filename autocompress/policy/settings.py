"""How compression is carried out, for a whole study: recorded in the recipe, so that it replays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from autocompress.policy.hooks import path_of
from autocompress.policy.section import Section
from autocompress.policy.values import Temperature

if TYPE_CHECKING:
    from autocompress.policy.policy import Policy

_IMAGES, _FEWEST = 512, 128
_AFFORDED = 200_000_000_000
"""Multiply-adds of all inputs that calibrate: seconds on one core."""


FORMER = {
    "weight_rounding": "nearest",
    "weight_range": "full",
    "equalization": False,
    "calibration_images": 512,
    "sequential_images": 1024,
}
"""What version 0.1 did by default where another default holds now, whether or not it had a word
for it."""


def as_written(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run or a recipe with what its file leaves unsaid.

    Every version writes all the settings that it knows, so that one that is missing was not known:
    what is built by such a file is what that version built. A study is another matter: what its
    author leaves open is today's default.
    """
    found = {**FORMER, **settings}
    if refine := settings.get("refine"):
        # the whole network was trained on the blocks' inputs, more slowly, with fixed batch norms,
        # and later at temperature 1
        former = {
            "network_images": refine.get("images", 4096),
            "network_lr": refine.get("lr", 1e-3) / 2,
            "batch_norms": "kept",
            "temperature": 1.0,
        }
        found["refine"] = {**former, **refine}
    return found


class RefineConfig(Section):
    """How ``finish: refine`` trains without labels.

    Args:
        images: training inputs that the blocks are trained on, but for an eighth (256 at most)
            that judge what comes of it; their labels are not looked at.
        network_images: the same for the whole network; ``auto`` takes so many that none comes
            twice, as far as there are so many.
        block_steps: optimizer steps for each block, toward the original block's output.
        steps: optimizer steps of the whole network, toward the original's outputs.
        batch_size: inputs per step.
        lr: the highest learning rate of the blocks, of Adam; annealed to zero.
        network_lr: the same of the whole network; ``auto`` is half of ``lr``, and three times as
            much where batch norms normalize by the batch, which allows it.
        temperature: softens the outputs that the whole network is taught, where they are
            distributions; ``null`` is the safe default: 4, and 1 where weights have 4 bits or
            fewer.
        batch_norms: by what batch norms normalize while the whole network is trained: ``batch``
            (the batch at hand, and their statistics follow), or ``kept`` (the statistics that
            they have, which stay).
        augment: let the whole network see augmented inputs, where the data bring an augmentation.
        seconds: time limit; both parts are annealed within it. ``null`` takes all steps. With a
            limit, how far it comes depends on the machine, and a replayed recipe with it.
    """

    images: int = Field(4096, ge=16)
    network_images: Annotated[int, Field(ge=16)] | Literal["auto"] = "auto"
    block_steps: int = Field(50, ge=0)
    steps: int = Field(700, ge=0)
    batch_size: int = Field(128, ge=1, le=1_000_000)
    lr: float = Field(1e-3, gt=0, le=1000)
    network_lr: Annotated[float, Field(gt=0, le=1000)] | Literal["auto"] = "auto"
    temperature: Temperature | None = None
    batch_norms: Literal["batch", "kept"] = "batch"
    augment: bool = True
    seconds: float | None = Field(None, gt=0)


class CompressionSettings(Section):
    """Choices that are the same for every policy of a study.

    Args:
        importance: which channels go first: ``l1`` (smallest weights), ``taylor`` (gradient times
            weight), ``obs`` (least growth of the consumer's least-squares error; the default), or
            a function of yours as ``package.module:function``: from the model, the layers that
            make the channels, their number and a sample of the data to one score per channel, the
            lowest to go first.
        reconstruction: what repairs the layers after pruning or factorizing, without training:
            ``none``, ``batch_norm`` (statistics re-estimated), ``bank`` (consumers re-solved by
            least squares, from the bank), ``bank_batch_norm`` (both), ``sequential`` (block after
            block on already compressed inputs; never followed by batch norm re-estimation).
        finish: the reconstruction for policies that reach the recovery or the verification phase;
            beside those above ``refine``: the sequential re-solve, then training toward the
            uncompressed model's own outputs, without labels.
        refine: of ``finish: refine``.
        calibration_images: how many training inputs calibrate ranges and moments; ``auto`` takes
            512, of networks with more than 400 million multiply-adds fewer, down to 128.
        sequential_images: how many training inputs the sequential re-solve uses; ``auto`` takes
            twice as many.
        ridge: damping of the least squares, as a fraction of the mean diagonal.
        ranges: how activation ranges are chosen: ``minmax``, ``percentile`` or ``mse``.
        percentile: share of activations kept inside the range, in percent, with ``percentile``.
        bias_correction: whether the mean error that quantized weights leave is taken out of the
            bias.
        weight_rounding: ``nearest``; ``gptq``, with error compensation (Frantar et al. 2022); or
            ``auto``, which compensates in fewer than 8 bits, where it gains.
        equalization: whether scales are moved out of activations with outlier channels into the
            weights that read them, where that loses less in rounding (SmoothQuant, AWQ).
        weight_range: levels that 8-bit weights of integer layers use: ``full`` (-127 to 127),
            ``reduced`` (-64 to 64), or ``auto``: reduced where the target's processor adds up
            8-bit products in 16 bits, which overflow (x86 without VNNI), full elsewhere.
        half_format: of layers in 16 bits: ``float16``, or ``bfloat16`` (``.pt2`` files only),
            which recent x86 and Arm processors multiply in half the time or less.
        channel_multiple: kept channel counts are rounded to a multiple of this.
        prune_residual: whether residual streams may be pruned.
        sparsity_scope: ``layer`` (each layer reaches its own ratio) or ``global``.
        seed: of every random draw in calibration.
    """

    importance: Annotated[
        Literal["l1", "taylor", "obs"] | Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")],
        BeforeValidator(lambda given: path_of(given) if callable(given) else given),
    ] = "obs"
    reconstruction: Literal["none", "batch_norm", "bank", "bank_batch_norm", "sequential"] = (
        "bank_batch_norm"
    )
    finish: Literal["none", "batch_norm", "bank", "bank_batch_norm", "sequential", "refine"] = (
        "sequential"
    )
    refine: RefineConfig = RefineConfig()
    calibration_images: Annotated[int, Field(ge=8)] | Literal["auto"] = "auto"
    sequential_images: Annotated[int, Field(ge=8)] | Literal["auto"] = "auto"
    ridge: float = Field(0.01, gt=0)
    ranges: Literal["minmax", "percentile", "mse"] = "mse"
    percentile: float = Field(99.99, gt=50, le=100)
    bias_correction: bool = True
    weight_rounding: Literal["auto", "nearest", "gptq"] = "auto"
    equalization: bool = True
    weight_range: Literal["auto", "full", "reduced"] = "auto"
    half_format: Literal["float16", "bfloat16"] = "float16"
    channel_multiple: int = Field(1, ge=1)
    prune_residual: bool = False
    sparsity_scope: Literal["layer", "global"] = "layer"
    seed: int = 0

    def refines(self, policy: Policy) -> bool:
        """Whether the last phases train a policy toward the uncompressed model's own outputs.

        Bits from 8 up leave nothing to gain.
        """
        low = any(layer.weight_bits < 8 for layer in policy.layers.values())
        able = policy.student is None and (policy.repairable or low)
        return self.finish == "refine" and able

    @property
    def screening_depends_on(self) -> dict[str, Any]:
        """What a quick look at a policy may depend on, as plain data.

        Kept looks are known by all of it. How to refine has no part in them: what was added to it
        after the first ones were kept is left out, so that these stay known.
        """
        found = self.model_dump(mode="json")
        del found["refine"]["temperature"]
        return found

    def calibrating(self, macs: int, training: int) -> int:
        """How many inputs calibrate a network.

        Args:
            macs: its multiply-adds for one sample.
            training: how many training inputs there are.
        """
        given, usual = (
            self.calibration_images,
            min(_IMAGES, max(_FEWEST, _AFFORDED // max(1, macs))),
        )
        wanted = given if isinstance(given, int) else usual
        return min(wanted, training - self.judging(macs, training))

    def judging(self, macs: int, training: int) -> int:
        """How many training inputs judge a repair, and take part in none.

        Args:
            macs, training: as in ``calibrating``.
        """
        return min(max(_FEWEST, _AFFORDED // max(1, macs)) // 4, _IMAGES // 4, training // 5)

    def resolving(self, macs: int) -> int:
        """How many inputs the sequential re-solve of a network uses.

        Args:
            macs: its multiply-adds for one sample.
        """
        if self.sequential_images != "auto":
            return self.sequential_images
        return min(2 * _IMAGES, max(2 * _FEWEST, 2 * _AFFORDED // max(1, macs)))
