"""The gap to pooling: what the answer would be worth, had all samples been in one place.

Only a simulation has them in one place. There the answer's policy is built and trained as in any
study, for as many epochs, and scored on the same samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autocompress.machine.scratch import scratch_folder
from autocompress.quality.score import file_quality
from autocompress.results.trial import Phase
from autocompress.targets import get_target
from autocompress.task.calling import call

if TYPE_CHECKING:
    from autocompress.run.assembly import Assembly
    from autocompress.track.view import RunView


def pooled(view: RunView, parts: Assembly) -> dict[str, Any] | None:
    """The answer of a federated study beside the same policy on pooled samples.

    Args:
        view: of the run.
        parts: of the study, with all of its data.

    Returns:
        ``trial`` of the answer, ``metric``, the ``split`` it was told on, its value ``federated``
        and ``pooled``; ``None`` where the run has no answer, or its quality cannot be told.
    """
    import torch

    best = view.best
    if best is None:
        return None
    told, split = view.verified(best), "test"
    if told is None:
        told, split = best, "val"
    name = view.quality.name
    if told.measurement is None or name not in told.measurement:
        return None
    final = best.phase.kind != "search" or split == "test"
    phase = Phase("verify", best.phase.epochs, best.phase.rung) if final else Phase("search")
    built = parts.pipeline.build(best.policy, phase, best.seed)
    target = get_target(parts.study.target.config())
    with torch.inference_mode():
        like = call(parts.model, parts.data.train.inputs(2))
    with scratch_folder("pooled") as folder:
        path = folder / f"model{target.suffix}"
        target.export(built, path, parts.data.train.inputs(2))
        found = file_quality(target, path, getattr(parts.data, split), parts.task, like=like)
    score = found.scores.get(name)
    if score is None:
        return None
    return {
        "trial": best.number,
        "metric": name,
        "split": split,
        "federated": told.measurement[name],
        "pooled": score.value,
    }
