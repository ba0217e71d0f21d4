"""Train a study's model on the spot; the weights are kept, so that it happens once."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from autocompress.errors import InputError
from autocompress.machine.progress import Progress
from autocompress.model.fingerprint import fingerprint
from autocompress.model.weights import load_tensors, state_tensors
from autocompress.policy.recovery import Schedule
from autocompress.policy.writing import replacing
from autocompress.recover.engine import Trainer
from autocompress.recover.score import score
from autocompress.task.calling import call
from autocompress.task.data import Data
from autocompress.task.settle import implied
from autocompress.task.task import Task
from autocompress.workloads.cache import digest


def train_baseline(
    model: nn.Module,
    data: Data,
    schedule: Schedule,
    folder: str | Path,
    *,
    patience: float | None = None,
    min_delta: float = 0.0,
    max_rounds: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> nn.Module:
    """Train a model, or load what an earlier call trained.

    The files' names follow from the model's weights, the data, the schedule and the seed. An
    interrupted training goes on where it stopped, and a call that asks for more rounds goes on
    after those of an earlier one.

    Args:
        model: with the weights to start from; not changed.
        data: trained on ``train``; ``val`` decides which round was best.
        schedule: of one round, annealed to zero.
        folder: where weights and checkpoints are kept.
        patience: ``None`` trains one round. Otherwise further rounds of the same schedule follow,
            each from the best weights so far (the given ones are the first to beat), until rounds
            of together at least so many epochs brought no better validation quality. Only annealed
            weights are compared: in the middle of a schedule quality swings.
        min_delta: a round that is better by no more than this counts for patience as if it were
            not; its weights are kept all the same. In the metric's unit (0.004 is 0.4 points of
            accuracy, about one standard error on 5,000 images).
        max_rounds: with patience, stop after so many rounds even if the last one still helped.
        seed: of the first round; later ones count up.
        progress: called with a text and the fraction done.

    Returns:
        The trained model, in eval mode.
    """
    if patience is not None and schedule.epochs <= 0:
        raise InputError("`baseline.patience` needs a schedule with more than 0 epochs.")

    # weights that earlier versions trained are of classifications, which say nothing of their task
    said = [] if data.task is None or "classification" in data.task.name else [data.task.name]
    key = digest(fingerprint(model), data.fingerprint, schedule.model_dump_json(), seed, *said)
    rounds = _Rounds(model, data, schedule, Path(folder) / key, seed, progress)
    if patience is None:
        rounds.score_of(1, start=0)
        return rounds.weights(1)
    return rounds.weights(rounds.best(patience, min_delta, max_rounds))


class _Rounds:
    """Rounds of training, counted from 1; 0 are the given weights.

    Each round follows from the ones before it alone, so that any patience and any number of rounds
    look at the same sequence, trained as far as one of them asked. A finished round is on disk at
    once.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        schedule: Schedule,
        stem: Path,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.given = model
        self.data, self.schedule, self.stem, self.seed = data, schedule, stem, seed
        self.progress = progress
        self.scores: list[float] = []
        self.epochs: list[list[dict[str, object]]] = []
        self.given_score = -math.inf
        self._resume()

    def best(self, patience: float, min_delta: float, max_rounds: int | None) -> int:
        """The round to take; trains what is missing."""
        if self.given_score == -math.inf:
            self.given_score = score(self._copy(), self.data.val, self.task)
        loss = self.task.quality.loss
        winner, top, idle = 0, loss(self.given_score), 0.0
        for number in itertools.count(1):
            if max_rounds is not None and number > max_rounds:
                break
            if number > 1 and idle >= patience:
                break
            found = loss(self.score_of(number, start=winner))
            idle = 0.0 if found < top - min_delta else idle + self.schedule.epochs
            if found < top:
                winner, top = number, found
        return winner

    def score_of(self, number: int, start: int) -> float:
        """Of a round's weights; trained from those of ``start`` if that has not happened yet."""
        if number <= len(self.scores):
            return self.scores[number - 1]
        checkpoint = self.stem.with_suffix(f".round{number}")
        trainer = Trainer(
            self.weights(start),
            self.data,
            self.schedule,
            seed=self.seed + number - 1,
            identity=f"{self.stem.name}|{number}",
        )
        records = trainer.run(progress=self._tell(number), checkpoint=checkpoint)
        found = score(trainer.result, self.data.val, self.task)
        _save(self._file(number), trainer.result)
        self.scores.append(found)
        self.epochs.append([asdict(r) for r in records])
        self._log()
        checkpoint.unlink(missing_ok=True)
        return found

    @cached_property
    def task(self) -> Task:
        """What the quality of a round is."""
        inputs, _ = next(iter(self.data.train.batches(2)))
        with torch.inference_mode():
            return implied(self.data, call(self._copy().eval(), inputs))

    def weights(self, number: int) -> nn.Module:
        """The model as it was after a round, in eval mode."""
        module = self._copy()
        if number > 0:
            _load(self._file(number), module)
        return module.eval()

    def _copy(self) -> nn.Module:
        return copy.deepcopy(self.given)

    def _tell(self, number: int) -> Progress | None:
        if self.progress is None or number == 1:
            return self.progress
        loss, told = self.task.quality.loss, self.progress
        best = min((self.given_score, *self.scores), key=loss)
        return lambda text, done: told(f"round {number} (best {best:.4f}), {text}", done)

    def _file(self, number: int) -> Path:
        return self.stem.with_suffix(f".{number}.safetensors")

    @property
    def _log_path(self) -> Path:
        return self.stem.with_suffix(".json")

    def _resume(self) -> None:
        if not self._log_path.is_file():
            return
        state = json.loads(self._log_path.read_text(encoding="utf-8"))
        for number, done in enumerate(state["rounds"], start=1):
            if not self._file(number).is_file():
                break
            self.scores.append(done["score"])
            self.epochs.append(done["epochs"])
        if state["given"] is not None:
            self.given_score = state["given"]

    def _log(self) -> None:
        rounds = [{"score": s, "epochs": e} for s, e in zip(self.scores, self.epochs, strict=True)]
        given = None if self.given_score == -math.inf else self.given_score
        with replacing(self._log_path) as partial:
            partial.write_text(json.dumps({"given": given, "rounds": rounds}, indent=1), "utf-8")


def _save(path: Path, module: nn.Module) -> None:
    from safetensors.torch import save_file

    tensors = {n: t.detach().contiguous().clone() for n, t in state_tensors(module).items()}
    with replacing(path) as partial:
        save_file(tensors, partial)


def _load(path: Path, module: nn.Module) -> None:
    from safetensors.torch import load_file

    with torch.no_grad():
        load_tensors(module, load_file(path))
