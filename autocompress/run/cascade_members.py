"""The members of a run that cascades are made of: rebuilt where their answers are not known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocompress.build.builder import Builder
from autocompress.cascade.chain import Index, Member
from autocompress.cascade.confidence import Floats, as_logits
from autocompress.errors import AutocompressError, InputError
from autocompress.machine.progress import Progress, silent
from autocompress.policy.policy import Policy
from autocompress.policy.writing import replacing
from autocompress.quality.answers import file_answers
from autocompress.results.difference import hits_of
from autocompress.results.trial import Trial
from autocompress.run.cascade_kept import kept_answers
from autocompress.task.nested import tensors
from autocompress.task.pick import the_tensor
from autocompress.task.targets import class_targets, flag_targets
from autocompress.track.view import RunView, score

if TYPE_CHECKING:
    from autocompress.run.assembly import Assembly
    from autocompress.task.task import ClassScores
    from autocompress.track.folder import RunFolder

_DIFFERS = 0.01
"""Share of inputs that a member may answer otherwise than it was measured, rebuilt: the same
weights, rounded and summed by another build of the runtime."""


def class_scores(parts: Assembly) -> ClassScores:
    """Where the task says how likely each class is.

    Raises:
        InputError: it does not say.
    """
    found = parts.task.class_scores
    if found is None:
        raise InputError(
            f"A cascade hands on what a model is not sure of, and the task ({parts.task}) does not "
            "say how sure it is of an answer. Classifications do, of one class (or yes or no) per "
            "sample; a task of your own does with `Task(class_scores=ClassScores(...))`."
        )
    return found


@dataclass
class RunMembers:
    """All measured trials of a run, and the uncompressed model.

    Args:
        folder, view, parts: of the run.
        place: folder for what is computed of them.
        progress: told how far it is.
        most: so many trials at most, those of the front and then the most accurate ones; ``None``
            is all.
        left_out: reasons, by label.
    """

    folder: RunFolder
    view: RunView
    parts: Assembly
    place: Path
    progress: Progress = silent
    most: int | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def trials(self) -> list[Trial]:
        """Those that were measured on val, each policy and training once."""
        found: dict[tuple[Any, ...], Trial] = {}
        for trial in self.view.compared:
            if trial.phase.kind in ("search", "recover"):
                found.setdefault((trial.policy.digest, trial.phase, trial.seed), trial)
        front = {t.number for t in self.view.front}
        # classifications alone make cascades: more is better
        order = sorted(found.values(), key=lambda t: (t.number not in front, -(score(t) or 0.0)))
        taken = {t.number for t in order[: self.most]}
        return [t for t in found.values() if t.number in taken]

    def judged(self, fitted_on: Index) -> list[Member]:
        """Every member on val, the uncompressed model last.

        Args:
            fitted_on: inputs that temperatures are fitted on.
        """
        targets = self.targets("val")
        trials: list[Trial | None] = [*self.trials(), None]
        found = []
        for done, trial in enumerate(trials):
            label = self.label(trial)
            self.progress(f"answers of {label}", done / len(trials))
            try:
                logits = self.logits(trial, "val")
                number = None if trial is None else trial.number
                latency = self.latency_ms(trial)
                member = Member.of(label, latency, logits, targets, fitted_on, number)
            except AutocompressError as error:
                if trial is None:
                    raise
                self.left_out[label] = str(error)
                continue
            if trial is not None and (reason := _other(trial, member)):
                self.left_out[label] = reason
                continue
            found.append(member)
        return found

    @staticmethod
    def label(trial: Trial | None) -> str:
        """For people."""
        return "the uncompressed model" if trial is None else f"trial {trial.number}"

    def latency_ms(self, trial: Trial | None) -> float:
        """Of one input, as timed beside the uncompressed model."""
        base = self.view.baseline["latency_ms"]
        if trial is None:
            return base
        ratio = self.view.ratio(trial)
        assert ratio is not None  # it was measured
        return ratio * base

    def logits(self, trial: Trial | None, split: str) -> Floats:
        """What a member's file answers on a split, ``(N, classes)``; kept for the next time."""
        scores = class_scores(self.parts)
        path = self.place / "answers" / f"{self.stem(trial)}-{split}.npy"
        if path.is_file():
            return as_logits(kept_answers(path, self.count(split)), scores.kind)
        measurer = self.parts.evaluator.measurer
        rows = [
            the_tensor(outputs, scores.output).numpy(force=True)
            for outputs, _ in file_answers(
                measurer.target,
                self.file(trial),
                getattr(self.parts.data, split),
                like=measurer.answer,
            )
        ]
        found = np.concatenate(rows).astype(np.float32)
        with replacing(path) as partial, partial.open("wb") as stream:
            np.save(stream, found, allow_pickle=False)
        return as_logits(found, scores.kind)

    def count(self, split: str) -> int:
        """Inputs of a split."""
        return len(getattr(self.parts.data, split))

    def targets(self, split: str) -> NDArray[Any]:
        """Class of each input of a split, ``(N,)``."""
        import torch

        scores = class_scores(self.parts)
        logit = the_tensor(self.parts.evaluator.measurer.answer, scores.output)
        given = getattr(self.parts.data, split).targets
        if scores.kind == "sigmoid":
            like = torch.zeros((len(given), *logit.shape[1:]))
            return np.asarray(flag_targets(given, like)[0].flatten().numpy().astype(np.int64))
        return np.asarray(class_targets(given, logit.shape[-1])[0].numpy())

    @property
    def output(self) -> int:
        """Place of the logits among the outputs of a file."""
        like = self.parts.evaluator.measurer.answer
        wanted = the_tensor(like, class_scores(self.parts).output)
        return next(i for i, part in enumerate(tensors(like)) if part is wanted)

    def file(self, trial: Trial | None) -> Path:
        """A member's file: the one that was measured, where it was kept, or built again.

        Raises:
            InputError: its trained weights were not kept.
        """
        measurer = self.parts.evaluator.measurer
        path = self.place / "files" / f"{self.stem(trial)}{measurer.target.suffix}"
        if path.is_file():
            return path
        policy = Policy() if trial is None else trial.policy
        if trial is None:
            measurer.export(self.parts.pipeline.stitch(policy), path)
            return path
        kept = self.folder.models / self.parts.evaluator.model_path(policy, trial.phase).name
        if kept.is_file():
            return kept
        builder = Builder(self.parts.pipeline, self.folder.models)
        if trial.phase.epochs > 0:
            compressed = builder.trained(policy, trial.phase, trial.seed)
            if compressed is None:
                raise InputError("its trained weights are gone from the run's `models`")
        else:
            compressed = builder(policy, trial.phase, trial.seed)
        measurer.export(compressed, path)
        return path

    @staticmethod
    def stem(trial: Trial | None) -> str:
        """A name that no other member's files have."""
        if trial is None:
            return "uncompressed"
        phase = trial.phase
        return f"{trial.policy.digest[:16]}-{phase.kind}-e{phase.epochs:g}-s{trial.seed}"


def _other(trial: Trial, member: Member) -> str:
    """Why a rebuilt member is not the one that was measured; empty where it is."""
    measured = hits_of(trial.measurement) if trial.measurement is not None else None
    if measured is None or len(measured) != len(member.right):
        return ""
    share = float((measured != member.right).mean())
    if share <= _DIFFERS:
        return ""
    return f"rebuilt, it answers {share:.1%} of val otherwise than it was measured"
