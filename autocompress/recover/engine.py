"""The training loop behind fine-tuning and the training before a study.

Every random draw follows from the seed and the step's number alone, so that a run that was
interrupted goes on bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autocompress.errors import InputError, TrainingDiverged
from autocompress.machine.lock import after_timing
from autocompress.machine.progress import Progress
from autocompress.model.weights import state_tensors
from autocompress.policy.recovery import Schedule
from autocompress.recover.augment import Augment, mix
from autocompress.recover.checkpoint import load_checkpoint, save_checkpoint
from autocompress.recover.device import Place, in_float
from autocompress.recover.modes import answering_as_used, set_training, task_of
from autocompress.recover.optimizer import make_optimizer
from autocompress.task.calling import call
from autocompress.task.data import Data, Split
from autocompress.task.nested import tensors
from autocompress.task.streamed import StreamedSplit

if TYPE_CHECKING:
    from autocompress.recover.distill import Distillation, Teaching


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch (or its last, partial one) came to.

    Args:
        epoch: counted from 1.
        loss: mean training loss.
        lr: learning rate at its end.
        seconds: of training.
        score: on the validation split, where that was asked for.
    """

    epoch: int
    loss: float
    lr: float
    seconds: float
    score: float | None = None


@dataclass(frozen=True)
class TrainingPart:
    """One client's part in one round of a training that many share.

    Args:
        round, rounds: the learning rate goes on where the round before ended.
        proximal: half of it times the squared distance from where the round began is added to the
            loss (Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, eq. 2).
    """

    round: int = 0
    rounds: int = 1
    proximal: float = 0.0


WHOLE = TrainingPart()
"""A training that nobody shares."""


class Trainer:
    """Trains one module in place.

    Args:
        module: moved to the schedule's device and trained; see ``result``.
        data: the train split is read; the task's loss and ``data.augment`` are used where the
            schedule says nothing else.
        schedule: how long and how.
        seed: of order, augmentation and dropout.
        distillation: teachers, or ``None``.
        lowest_bits: of the weights, for the distillation's default temperature.
        keep_zeros: weights that are exactly zero stay so (sparse policies).
        identity: what is trained, e.g. a policy's digest; a checkpoint of something else is not
            taken up.
        part: in a training that many share; the whole of it by default.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        schedule: Schedule,
        *,
        seed: int = 0,
        distillation: Distillation | None = None,
        lowest_bits: int = 32,
        keep_zeros: bool = False,
        identity: str = "",
        part: TrainingPart = WHOLE,
    ) -> None:
        self.data, self.schedule, self.seed = data, schedule, seed
        self.augment, self.mixing = _augmentation(data, schedule)
        self.task = task_of(module, data)
        self.place = Place.of(schedule)
        self._as_used = answering_as_used(module, data, self.task, distillation is not None)
        self.module = self.place.put_module(module)
        self.train = _on_device(data.train, self.place)
        self.batch = min(schedule.batch_size, len(data.train))
        self.per_epoch = len(data.train) // self.batch
        steps = round(schedule.epochs * self.per_epoch)
        self.total = max(1, steps) if schedule.epochs > 0 else 0
        self.draws = distillation.cached_draws if distillation is not None else 0
        order = (data.train.fingerprint, seed, self.batch, self.augment, self.mixing)
        self.teaching: Teaching | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "projections"))
            if distillation is not None:
                self.teaching = distillation.attach(
                    self.module, data, self.place, lowest_bits=lowest_bits, key=order
                )
        extra = list(self.teaching.projections.parameters()) if self.teaching else []
        self.optimizer = make_optimizer(schedule, self.module, extra)
        self.ema = (
            AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema))
            if schedule.ema is not None
            else None
        )
        self._zeros = (
            [(p, p != 0) for p in self.module.parameters() if p.dim() > 1] if keep_zeros else []
        )
        self._part = part
        self._began = [
            (p, p.detach().clone())
            for p in self.module.parameters()
            if part.proximal and p.requires_grad
        ]
        self._trained = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.step = 0
        self.history: list[EpochRecord] = []
        self.seconds = 0.0
        self._sum = torch.zeros((), dtype=torch.float64, device=self.place.device)
        self._count = 0
        self.identity = f"{identity}|{schedule.model_dump_json()}|{seed}|{data.train.fingerprint}"

    @property
    def result(self) -> nn.Module:
        """The trained module, or its moving average, in eval mode on the CPU."""
        module = self.module if self.ema is None else self.ema.module
        return self.place.back(module).eval()

    def run(
        self,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        checkpoint_every: float = 60.0,
        validate: Callable[[nn.Module], float] | None = None,
    ) -> list[EpochRecord]:
        """Train to the schedule's end, or go on from a checkpoint.

        Args:
            progress: told how far training is.
            checkpoint: written every so often and at the end of every epoch, read if it is there.
            checkpoint_every: seconds.
            validate: scores the module after every epoch.

        Raises:
            TrainingDiverged: the loss or a weight is no longer finite.
        """
        if checkpoint is not None:
            load_checkpoint(checkpoint, self)
        watch = _Watch(self, progress)
        # dropout and the like draw from the global generators: leave them as they were found
        with torch.random.fork_rng(), torch.autograd.set_grad_enabled(True):
            set_training(self.module, self._as_used)
            saved = time.perf_counter()
            while self.step < self.total:
                start = time.perf_counter()
                for batch in self._epoch():
                    self._one_step(*batch)
                    watch.tell()
                    due = time.perf_counter() - saved >= checkpoint_every
                    # an epoch's last step is saved below, once the epoch has its record
                    inside = self.step % self.per_epoch > 0 and self.step < self.total
                    if checkpoint is not None and due and inside:
                        self.seconds += time.perf_counter() - start
                        save_checkpoint(checkpoint, self)
                        start = saved = time.perf_counter()
                self.seconds += time.perf_counter() - start
                self._end_epoch(validate)
                if checkpoint is not None:
                    save_checkpoint(checkpoint, self)
        self._check_weights()
        if self.teaching is not None:
            self.teaching.close()
        return self.history

    def _epoch(self) -> Iterator[tuple[int, int, Tensor]]:
        """What is left of the current epoch: draw, number of the batch, sample indices."""
        epoch, done = divmod(self.step, self.per_epoch)
        draw = epoch % self.draws if self.draws else epoch
        order = torch.randperm(len(self.train), generator=stream(self.seed, "order", draw))
        numbers = list(range(self.per_epoch))
        if self.draws:  # the same batches as in an earlier epoch, but in another order
            numbers = torch.randperm(
                self.per_epoch, generator=stream(self.seed, "batches", epoch)
            ).tolist()
        left = min(self.per_epoch, self.total - epoch * self.per_epoch)
        for number in numbers[done:left]:
            yield draw, number, order[number * self.batch : (number + 1) * self.batch]

    def _one_step(self, draw: int, number: int, index: Tensor) -> None:
        generator = stream(self.seed, "augment", draw, number)
        stored, targets = self.train.take(index.to(self.train.device))
        after_timing()
        if self.augment is not None:
            stored = self.augment(stored, generator)
        inputs = self.place.put(self.train.prepare(stored))
        mixed = mix(inputs, self.place.move(targets), self.mixing, generator)
        torch.manual_seed(stream_seed(self.seed, "dropout", self.step))
        with self.place.autocast():
            outputs = call(self.module, mixed.inputs)
        outputs = in_float(outputs)
        loss = mixed.loss(self._criterion, outputs)
        if self.teaching is not None:
            batch = (draw, number)
            loss = self.teaching.loss(loss, outputs, mixed.inputs, stored, batch, mixed.targets)
        for parameter, began in self._began:
            loss = loss + 0.5 * self._part.proximal * (parameter - began).square().sum()
        before = self._part.round * self.total
        lr = self.schedule.lr_at(before + self.step, self._part.rounds * self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.schedule.grad_clip is not None:
            nn.utils.clip_grad_norm_(self._trained, self.schedule.grad_clip)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, kept in self._zeros:
                parameter.mul_(kept)
        if self.ema is not None:
            self.ema.update_parameters(self.module)
        self.step += 1
        self._sum += loss.detach()
        self._count += 1
        # reading the loss waits for a CUDA device, so not in every step there
        if self.place.device.type == "cpu" or self.step % 50 == 0:
            self._check_loss()

    def _criterion(self, outputs: Any, targets: Any) -> Tensor:
        return self.task.criterion(outputs, targets, self.schedule.label_smoothing)

    def _check_loss(self) -> None:
        if not math.isfinite(float(self._sum)):
            raise TrainingDiverged(
                f"The training loss became {float(self._sum)} in step {self.step} of {self.total} "
                f"at learning rate {self.optimizer.param_groups[0]['lr']:.2g}. Lower `lr`, or set "
                "`grad_clip`."
            )

    def _check_weights(self) -> None:
        for name, tensor in state_tensors(self.module).items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise TrainingDiverged(
                    f"The weights of {name!r} are no longer finite after {self.step} steps. Lower "
                    "`lr`, or set `grad_clip`."
                )

    def _end_epoch(self, validate: Callable[[nn.Module], float] | None) -> None:
        self._check_loss()
        found = None
        if validate is not None:
            found = validate(self.module if self.ema is None else self.ema.module)
            set_training(self.module, self._as_used)
        spent = self.seconds - sum(r.seconds for r in self.history)
        loss = float(self._sum) / max(1, self._count)
        lr = self.optimizer.param_groups[0]["lr"]
        self.history.append(EpochRecord(len(self.history) + 1, loss, lr, spent, found))
        self._sum.zero_()
        self._count = 0


class _Watch:
    """Tells progress, at most five times per second."""

    def __init__(self, trainer: Trainer, progress: Progress | None) -> None:
        self.trainer, self.progress = trainer, progress
        self.start, self.first, self.last = time.perf_counter(), trainer.step, 0.0

    def tell(self) -> None:
        """Say where training is, if it is time to."""
        now = time.perf_counter()
        if self.progress is None or (
            now - self.last < 0.2 and self.trainer.step < self.trainer.total
        ):
            return
        self.last = now
        trainer = self.trainer
        share = trainer.step / trainer.total
        left = (now - self.start) / (trainer.step - self.first) * (trainer.total - trainer.step)
        epoch = trainer.step / trainer.per_epoch
        loss = float(trainer._sum) / max(1, trainer._count)
        self.progress(
            f"epoch {epoch:.1f} of {trainer.schedule.epochs:g}, loss {loss:.3f}, {left:.0f} s left",
            share,
        )


def stream_seed(seed: int, *names: object) -> int:
    """A seed for one purpose, from the study's."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:7], "big")


def stream(seed: int, *names: object) -> torch.Generator:
    """A generator for one purpose, on the CPU, so that draws agree on every device."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))


def _augmentation(
    data: Data, schedule: Schedule
) -> tuple[Callable[[Tensor, torch.Generator], Tensor] | None, tuple[str, ...]]:
    """The per-image augmentation, and the ways to mix images."""
    if schedule.augment is None:
        return data.augment, getattr(data.augment, "mixing", ())
    if not schedule.augment:
        return None, ()
    stored, _ = data.train.take(slice(0, 1))
    if not isinstance(stored, Tensor):
        raise InputError(
            "The named augmentations change one tensor of images, but each sample of "
            f"{data.name!r} has several stored inputs. Set `augment: []`, or give the data an "
            "`augment` of their own."
        )
    padding = getattr(data.augment, "padding", None)
    if padding is None:
        padding = max(1, stored.shape[-1] // 8)
    return Augment(schedule.augment, padding), Augment(schedule.augment).mixing


def _on_device(split: Split, place: Place) -> Split:
    """The split with its stored inputs on the device, where they fit in half of its memory."""
    if place.device.type != "cuda" or isinstance(split, StreamedSplit):
        return split
    parts = tensors(split.stored)
    free, _ = torch.cuda.mem_get_info(place.device)
    # one number per sample means samples that are read from disk when they are needed
    lazy = any(part.dim() < 2 for part in parts)
    if lazy or sum(part.nbytes for part in parts) > free / 2:
        return split
    return Split(place.move(split.stored), place.move(split.targets), split.preprocess)
