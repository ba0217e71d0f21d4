"""A policy's model, built once: trained weights are kept on disk and loaded again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.build.pipeline import Pipeline
from autocompress.build.state import save_state, state_file, weights_kept
from autocompress.machine.progress import Progress
from autocompress.policy.policy import Policy
from autocompress.results.trial import SEARCH, Phase

if TYPE_CHECKING:
    from autocompress.techniques.compressed import Compressed


@dataclass
class Builder:
    """Builds the models of a study.

    Args:
        pipeline: carries policies out.
        folder: trained weights are kept here.
        progress: told how far a fine-tune is.
    """

    pipeline: Pipeline
    folder: Path
    progress: Progress | None = None

    def __call__(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Compressed:
        """The compressed model, ready to export.

        The ``verify`` phase asks for the same epochs and seed as the recovery before it, and so
        judges the very weights that the recovery trained or refined.

        Args:
            policy: what to do.
            phase: how much fine-tuning, and whether the finish or the quick reconstruction.
            seed: of fine-tuning.
        """
        if not weights_kept(self.pipeline.settings, policy, phase):
            return self.pipeline.build(policy, phase, seed, progress=self.progress)
        found = self.trained(policy, phase, seed)
        if found is not None:
            return found
        state = state_file(self.folder, policy, phase.epochs, seed)
        compressed = self.pipeline.build(
            policy, phase, seed, progress=self.progress, checkpoint=state.with_suffix(".partial")
        )
        save_state(state, compressed)
        return compressed

    def trained(self, policy: Policy, phase: Phase, seed: int) -> Compressed | None:
        """The model that was trained before, or ``None`` where its weights were not kept."""
        state = state_file(self.folder, policy, phase.epochs, seed)
        return self.pipeline.restore(policy, state) if state.exists() else None

    def for_timing(self, policy: Policy) -> Compressed:
        """A model whose speed alone matters: sliced weights, ranges from a few inputs."""
        from autocompress.build.calibrate import calibrate

        if policy.student is not None:
            return self.pipeline.stitch(policy)
        compressed = self.pipeline.bank.stitch(policy, solve=False)
        compressed = compressed.with_(dynamic=self.pipeline.data.dynamic)
        if not compressed.quantized:
            return compressed
        return calibrate(compressed, self.pipeline.data.train.inputs(16))
