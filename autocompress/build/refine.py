"""Repair without labels: a compressed network is trained toward the original's own outputs.

First block by block, which are the segments between which one value alone flows: the parameters of
each learn to give the original's output on inputs that are those of the compressed network, with
the statistics that batch norms have. Then the whole network learns to give the original's outputs,
and batch norms normalize by the batches at hand.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.calibrate import calibrate
from autocompress.build.held_out import CHUNK, HeldOutDivergence
from autocompress.build.rounding import compensate
from autocompress.build.segments import Segment, common_segments, inside, reads_inputs, run_segment
from autocompress.build.walk import Steps, Walk
from autocompress.errors import UnsupportedModel
from autocompress.machine.lock import after_timing
from autocompress.machine.progress import Progress
from autocompress.model.weights import load_tensors, state_tensors
from autocompress.policy.recovery import Schedule
from autocompress.policy.registry import sets_weights
from autocompress.policy.settings import RefineConfig
from autocompress.recover.device import AnyOrder, Place, in_float
from autocompress.task.calling import call
from autocompress.task.data import Data
from autocompress.task.divergence import Divergence
from autocompress.task.nested import tensors
from autocompress.task.task import Task
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import QuantizedLayer, simulate, trainable, trained

_NORM = nn.modules.batchnorm._BatchNorm
_CALIBRATING = 256
_MEMORY = 1 << 30
"""Bytes that the values at one joint may take, and the original's answers that are kept."""

_BOLDER = 3.0
"""How much higher a learning rate may be with batch norms (Ioffe and Szegedy, ICML 2015, 3.3)."""

_ASTRAY = 2.0
"""Blocks so many times further from the original than before are no beginning."""

_DRAWS = 4
"""Epochs that differ: after them batches and augmentations come again, with the same answers."""

_Batch = tuple[int, int]
"""Which epoch of those, and which batch of it."""


@dataclass
class Refinement:
    """One compressed model under repair.

    Args:
        model: uncompressed, in eval mode; not changed.
        compressed: as reconstructed; not changed.
        data: only inputs of the train split are read; of targets, where a position has none.
        task: its divergence is what the whole network comes nearer by.
        config: images, steps, limits.
        seed: of the order and of the augmentation.
        progress: told what is going on.
    """

    model: nn.Module
    compressed: Compressed
    data: Data
    task: Task
    config: RefineConfig
    seed: int = 0
    progress: Progress | None = None
    place: Place = field(default_factory=lambda: Place.of(Schedule()))
    _notes: tuple[str, ...] = ()

    def run(self) -> Compressed:
        """Refine, and keep what is nearer to the original on samples that were held back.

        References:
            Nagel et al., Up or Down? (AdaRound), ICML 2020, and Li et al., BRECQ, ICLR 2021
            (reconstruction block by block); Hinton et al. 2015 (the network's own outputs).
        """
        begin, config = time.monotonic(), self.config
        limit = math.inf if config.seconds is None else config.seconds
        count = min(config.images, len(self.data.train))
        held = max(1, min(CHUNK * 2, count // 8))
        steps = held + config.steps * config.batch_size
        wanted = steps if config.network_images == "auto" else config.network_images
        train = self.data.train
        places = train.places(max(count, wanted), self.seed)
        self._images, self._held = train.subset(places[held:count]), train.subset(places[:held])
        self._for_network = places[held : max(wanted, held + 1)]
        original = self.place.put_module(copy.deepcopy(self.model))
        module = self.place.put_module(self._module()).requires_grad_(True)
        distance = HeldOutDivergence(original, self._held, self.task, self.place)
        best = _Best(distance, module)
        segments: list[Segment] = []
        self._known: dict[tuple[int, int], Steps] = {}
        try:
            with AnyOrder():
                self._walks = [self._walk(m) for m in (original, module)]
                segments = common_segments(self._steps(0, 2), self._steps(1, 2), original)
        except UnsupportedModel as error:
            self._notes = (f"Refined as a whole, not block by block: {error}.",)
        for part in module.modules():
            if isinstance(part, QuantizedLayer):
                part.train()  # its input range follows the data
        self._named = dict(module.named_parameters())
        weights = [p for p in module.parameters() if p.dim() > 1] if self._sparse else []
        self._zeros = [(p, p != 0) for p in weights]
        self._each_segment(original, module, segments, begin + limit / 2)
        # blocks that are nearer may answer too surely at first, which the whole network mends
        if not best.offer(module) <= _ASTRAY * best.value:  # nor where it is no number
            best.restored(module)
        self._whole(original, module, distance.divergence, begin + limit)
        best.offer(module)
        result = self._result(best.restored(module))
        return result if not self.compressed.quantized else self._nearer(result, best.distance)

    @property
    def _sparse(self) -> bool:
        return any(map(sets_weights, self.compressed.policy.layers.values()))

    def _module(self) -> nn.Module:
        """What is trained: through its rounding, where layers are quantized."""
        module = copy.deepcopy(self.compressed.module).eval()
        if not self.compressed.quantized:
            return module
        if self.compressed.settings.weight_rounding != "nearest":
            # training goes on from weights that make up for their rounding
            compensate(module, self.compressed, self._images.inputs(512))
        return trainable(self.compressed.with_(module=module)).eval()

    def _walk(self, module: nn.Module) -> Walk:
        few = self.place.put(self._images.inputs(4))
        walk = Walk(module, self.compressed.parts, few, strict=False)
        if walk.varies:
            raise UnsupportedModel("what runs depends on the values that come in")
        return walk

    def _result(self, module: nn.Module) -> Compressed:
        notes = (*self.compressed.notes, *self._notes)
        plain = self.place.back(module).eval()
        if self.compressed.quantized:
            return trained(plain, self.compressed).with_(notes=notes)
        return self.compressed.with_weights(plain, qat=False).with_(notes=notes)

    def _nearer(self, refined: Compressed, distance: Callable[[nn.Module], float]) -> Compressed:
        """What was refined or what it began as, whichever is nearer once it is calibrated.

        Training goes through the rounding of weights; what calibration would have made up for
        besides (biases, clipped weights) is not in it.
        """
        inputs = self._images.inputs(_CALIBRATING)
        found = [
            distance(self.place.put_module(simulate(calibrate(made, inputs))))
            for made in (refined, self.compressed)
        ]
        if found[0] <= found[1]:
            return refined
        note = "Refining came no nearer to the original in these bits; it is left out."
        return self.compressed.with_(notes=(*self.compressed.notes, *self._notes, note))

    # -- block by block

    def _each_segment(
        self, original: nn.Module, module: nn.Module, segments: Sequence[Segment], deadline: float
    ) -> None:
        """Train each segment that ends in as many channels as the original's."""
        old = new = None
        left = list(segments)
        while left:
            segment = left.pop(0)
            goal = self._through(segment, old, 0)
            found = self._through(segment, new, 1)
            if goal is None or found is None or goal.shape != found.shape:
                if not left:
                    break
                left[0] = Segment(segment.start, left[0].end)
                continue
            parameters = self._parameters(segment, module)
            if parameters and not torch.equal(goal, found):
                now = time.monotonic()
                until = now + (deadline - now) / (1 + len(left))
                self._train_segment(segment, new, goal, parameters, until)
                found = self._through(segment, new, 1)
            old, new = goal, found
            self._tell("blocks", 0.5 * (1 - len(left) / max(1, len(segments))))

    def _run(self, segment: Segment, value: Tensor | None, index: Tensor, which: int) -> Any:
        """What a segment of one of the two networks gives for some of the samples."""
        steps, inputs = self._steps(which, len(index)), None
        if reads_inputs(steps, segment):
            inputs = self.place.put(self._images.prepare(self._images.take(index)[0]))
            steps = self._walks[which].steps(inputs)
        return run_segment(steps, segment, value, inputs, self._walks[which].module)

    def _steps(self, which: int, count: int) -> Steps:
        """What one of the two networks does with so many samples, which have the same shapes."""
        if (which, count) not in self._known:
            inputs = self.place.put(self._images.inputs(count))
            self._known[which, count] = self._walks[which].steps(inputs)
        return self._known[which, count]

    def _through(self, segment: Segment, values: Tensor | None, which: int) -> Tensor | None:
        """The segment's output for all samples, on the CPU; ``None`` for what is no batch."""
        out: list[Tensor] = []
        with torch.no_grad(), self.place.autocast():
            for index in torch.arange(len(self._images)).split(CHUNK):
                value = None if values is None else self.place.put(values[index])
                found = self._run(segment, value, index, which)
                if not isinstance(found, Tensor) or len(found) != len(index):
                    return None
                out.append(found.float().cpu())
                if sum(len(o) for o in out) * out[0][0].nbytes > _MEMORY:
                    return None
        return torch.cat(out)

    def _train_segment(
        self,
        segment: Segment,
        inputs: Tensor | None,
        goal: Tensor,
        parameters: list[nn.Parameter],
        deadline: float,
    ) -> None:
        scale = goal.square().mean().clamp_min(1e-12).to(self.place.device)

        def loss(batch: _Batch, index: Tensor) -> Tensor:
            value = None if inputs is None else self.place.put(inputs[index])
            with self.place.autocast():
                found = self._run(segment, value, index, 1)
            wanted = self.place.put(goal[index])
            return (found.float() - wanted).square().mean() / scale

        config = self.config
        self._descend(parameters, loss, len(goal), config.block_steps, config.lr, deadline)

    def _parameters(self, segment: Segment, module: nn.Module) -> list[nn.Parameter]:
        """Of the layers that a segment runs, and of the forwards around them."""
        found: list[nn.Parameter] = []
        for node in inside(self._steps(1, 2), segment):
            if node.op == "call_module":
                found += module.get_submodule(str(node.target)).parameters()
            read = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
            found += [self._named[name] for name in read if name in self._named]
        return [p for p in dict.fromkeys(found) if p.requires_grad]

    # -- the whole network

    def _whole(
        self, original: nn.Module, module: nn.Module, divergence: Divergence, deadline: float
    ) -> None:
        """Train all parameters toward the original's outputs."""
        images, config = self.data.train, self.config
        augment = self.data.augment if config.augment else None
        answers: dict[_Batch, Any] = {}
        room = _MEMORY

        def loss(batch: _Batch, index: Tensor) -> Tensor:
            nonlocal room
            stored, targets = images.take(self._for_network[index])
            if augment is not None:
                draws = torch.Generator().manual_seed(_mixed(self.seed, *batch))
                stored = augment(stored, draws)
            inputs = self.place.put(images.prepare(stored))
            with self.place.autocast():
                found = call(module, inputs)
                wanted = answers.get(batch)
                if wanted is None:
                    with torch.no_grad():
                        wanted = call(original, inputs)
            if batch not in answers and room > 0:
                answers[batch] = wanted
                room -= sum(t.nbytes for t in tensors(wanted))
            wanted, found, targets = in_float(wanted), in_float(found), self.place.move(targets)
            return divergence(wanted, found, targets).mean()

        parameters = [p for p in module.parameters() if p.requires_grad]
        count, lr = len(self._for_network), config.network_lr
        with self._normalizing(module) as by_batch:
            if lr == "auto":
                lr = config.lr / 2 * (_BOLDER if by_batch else 1)
            self._descend(parameters, loss, count, config.steps, lr, deadline, tell=True)

    @contextmanager
    def _normalizing(self, module: nn.Module) -> Iterator[bool]:
        """Let batch norms normalize by the batch at hand, if asked to; gives whether any can."""
        norms = [m for m in module.modules() if isinstance(m, _NORM) and m.track_running_stats]
        if self.config.batch_norms == "kept" or not norms:
            yield False
            return
        state = {n: t.detach().clone() for n, t in state_tensors(module).items()}
        train = self.data.train
        few, _ = train.take(self._for_network[: self.config.batch_size])
        batch = self.place.put(train.prepare(few))
        try:
            for norm in norms:
                norm.train()
            with torch.no_grad():
                call(module, batch)
        except ValueError:  # torch: a single value for each channel, as of one sample by itself
            for norm in norms:
                norm.eval()
        finally:
            load_tensors(module, state)
        try:
            yield any(norm.training for norm in norms)
        finally:
            for norm in norms:
                norm.eval()

    def _descend(
        self,
        parameters: list[nn.Parameter],
        loss: Callable[[_Batch, Tensor], Tensor],
        count: int,
        steps: int,
        lr: float,
        deadline: float,
        *,
        tell: bool = False,
    ) -> None:
        """Adam, annealed by a cosine over the steps, or over the time if that is over sooner."""
        optimizer = torch.optim.Adam(parameters, lr=lr)
        begin = time.monotonic()
        with torch.enable_grad():
            order = _order(count, self.config.batch_size, steps, self.seed)
            for step, (batch, index) in enumerate(order):
                after_timing()
                spent = (time.monotonic() - begin) / max(1e-9, deadline - begin)
                done = max(step / steps, min(1.0, spent))
                if done >= 1:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 + math.cos(math.pi * done)) / 2
                optimizer.zero_grad(set_to_none=True)
                loss(batch, index).backward()
                nn.utils.clip_grad_norm_(parameters, 5.0)
                optimizer.step()
                with torch.no_grad():
                    for parameter, kept in self._zeros:
                        parameter.mul_(kept)
                if tell:
                    self._tell("whole network", 0.5 + done / 2)

    def _tell(self, what: str, done: float) -> None:
        if self.progress is not None:
            self.progress(f"refine: {what}", done)


class _Best:
    """The best weights so far, by a distance."""

    def __init__(self, distance: Callable[[nn.Module], float], module: nn.Module) -> None:
        self.distance = distance
        self.value = math.inf
        self.state: dict[str, Any] = {}
        self.offer(module)

    def offer(self, module: nn.Module) -> float:
        """Remember the module's weights if they are nearer than all before; how far they are."""
        found = self.distance(module)
        if found < self.value or not self.state:
            self.value = found
            self.state = {n: t.detach().clone() for n, t in state_tensors(module).items()}
        return found

    def restored(self, module: nn.Module) -> nn.Module:
        """The module with the best weights."""
        load_tensors(module, self.state)
        return module


def _mixed(seed: int, epoch: int, number: int) -> int:
    """A seed of its own for each batch, the same on every machine."""
    return (seed * _DRAWS + epoch) * 1_000_003 + number


def _order(count: int, batch: int, steps: int, seed: int) -> Iterator[tuple[_Batch, Tensor]]:
    """Indices of so many batches, epoch after epoch; they come again after a few epochs."""
    size = min(batch, count)
    for epoch in range(steps):
        generator = torch.Generator().manual_seed(seed + epoch % _DRAWS)
        for number in range(count // size):
            if epoch * (count // size) + number >= steps:
                return
            if number == 0:
                mixed = torch.randperm(count, generator=generator)
            yield (epoch % _DRAWS, number), mixed[number * size : (number + 1) * size]
