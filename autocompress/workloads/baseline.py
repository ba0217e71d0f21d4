"""Train a study's model on the spot; the weights are kept, so that it happens once."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from autocompress.errors import InputError
from autocompress.model.data import Data
from autocompress.recover.engine import EpochRecord, Progress, Trainer
from autocompress.recover.schedule import Schedule
from autocompress.recover.score import score
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
    """Train a model, or load what an earlier call with the same arguments trained.

    The file's name follows from the model's weights, the data, the schedule and the seed. An
    interrupted training goes on where it stopped.

    Args:
        model: with the weights to start from; not changed.
        data: trained on ``train``; ``val`` decides which round was best.
        schedule: of one round, annealed to zero.
        folder: where weights and checkpoints are kept.
        patience: ``None`` trains one round. Otherwise further rounds of the same schedule follow,
            each from the best weights so far (the given ones are the first to beat), until rounds
            of together at least so many epochs brought no better validation accuracy. Only annealed
            weights are compared: in the middle of a schedule accuracy swings by a point.
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
    from autocompress.model.fingerprint import fingerprint

    key = digest(fingerprint(model), data.fingerprint, schedule.model_dump_json(), patience, seed)
    if min_delta:
        key = digest(key, min_delta)
    if max_rounds is not None:
        key = digest(key, "rounds", max_rounds)
    path = Path(folder) / f"{key}.safetensors"
    trained = copy.deepcopy(model)
    if path.is_file():
        _load(path, trained)
        return trained.eval()
    rounds = _Rounds(trained, data, schedule, path, seed, progress)
    rounds.run(patience, min_delta, 1 if patience is None else max_rounds)
    return rounds.best.eval()


class _Rounds:
    """Rounds of training; a finished one is on disk at once."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        schedule: Schedule,
        path: Path,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.best = model
        self.data, self.schedule, self.path, self.seed = data, schedule, path, seed
        self.progress = progress
        self.log_path = path.with_suffix(".json")
        self.history: list[dict[str, object]] = []
        self.best_score = -float("inf")
        self.idle = 0.0

    def run(self, patience: float | None, min_delta: float, max_rounds: int | None) -> None:
        """Train until patience, or the number of rounds, is at its end."""
        self._resume()
        if patience is not None and not self.history:  # the given weights may be the best
            self.best_score = score(self.best, self.data.val, self.data.metric)
            _save(self._best_path, self.best)
        while not self._done(patience, max_rounds):
            number = len(self.history)
            module, records = self._round(number)
            found = score(module, self.data.val, self.data.metric)
            better = found > self.best_score
            helped = found > self.best_score + min_delta
            self.idle = 0.0 if helped else self.idle + self.schedule.epochs
            if better:
                self.best, self.best_score = module, found
                _save(self._best_path, module)
            self.history.append(
                {"round": number + 1, "score": found, "epochs": [asdict(r) for r in records]}
            )
            self._log()
            self._checkpoint(number).unlink(missing_ok=True)
        os.replace(self._best_path, self.path)

    def _done(self, patience: float | None, max_rounds: int | None) -> bool:
        if max_rounds is not None and len(self.history) >= max_rounds:
            return True
        return bool(self.history) and patience is not None and self.idle >= patience

    def _round(self, number: int) -> tuple[nn.Module, list[EpochRecord]]:
        trainer = Trainer(
            copy.deepcopy(self.best),
            self.data,
            self.schedule,
            seed=self.seed + number,
            identity=f"{self.path.stem}|{number}",
        )
        history = trainer.run(progress=self._tell(number), checkpoint=self._checkpoint(number))
        return trainer.result, history

    def _tell(self, number: int) -> Progress | None:
        if self.progress is None or number == 0:
            return self.progress
        told, best = self.progress, self.best_score
        return lambda text, done: told(f"round {number + 1} (best {best:.4f}), {text}", done)

    @property
    def _best_path(self) -> Path:
        return self.path.with_suffix(".best")

    def _checkpoint(self, number: int) -> Path:
        return self.path.with_suffix(f".round{number}")

    def _resume(self) -> None:
        if not (self.log_path.is_file() and self._best_path.is_file()):
            return
        state = json.loads(self.log_path.read_text(encoding="utf-8"))
        self.history, self.idle = state["rounds"], state["idle"]
        self.best_score = state["best_score"]
        _load(self._best_path, self.best)

    def _log(self) -> None:
        state = {"best_score": self.best_score, "idle": self.idle, "rounds": self.history}
        partial = self.log_path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(state, indent=1), encoding="utf-8")
        os.replace(partial, self.log_path)


def _save(path: Path, module: nn.Module) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.detach().contiguous().clone() for n, t in module.state_dict().items()}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    save_file(tensors, partial)
    os.replace(partial, path)


def _load(path: Path, module: nn.Module) -> None:
    from safetensors.torch import load_file

    with torch.no_grad():
        module.load_state_dict(load_file(path))
