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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.calibrate import calibrate
from autocompress.build.descent import Batch, Best, Descent, NoGradient
from autocompress.build.held_out import CHUNK, HeldOutDivergence, as_many_as_fit, finite_rows
from autocompress.build.refine_network import WholeNetwork
from autocompress.build.rounding import compensate
from autocompress.build.segments import Segment, common_segments, inside, reads_inputs, run_segment
from autocompress.build.walk import Steps, Walk
from autocompress.errors import UnsupportedModel
from autocompress.machine.progress import Progress
from autocompress.policy.recovery import Schedule
from autocompress.policy.registry import sets_weights
from autocompress.policy.settings import RefineConfig
from autocompress.recover.device import AnyOrder, Place
from autocompress.recover.distill import safe_temperature
from autocompress.task.data import Data
from autocompress.task.memory import Memory
from autocompress.task.task import Task
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import QuantizedLayer, simulate, trainable, trained

_CALIBRATING = 256
_FEWEST = 4
"""Training inputs that anything is learned from."""

_MEMORY = 1 << 30
"""Bytes that the values at one joint may take at most, and the original's answers that are kept."""

_PARTS = 8
"""Nor more than this part of the memory that data may take: there are several of these."""

_TEMPERATURE = 4.0
"""ResNet-20 at half its inner channels: 84.8 at 1, 85.7 at 4 (docs/measurements/recovery.md)."""

_ASTRAY = 2.0
"""Blocks so many times further from the original than before are no beginning."""

_WHOLE = "Refined as a whole, not block by block: {}."
_LEFT_OUT = "Refining came no nearer to the original {}; it is left out."


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
        place: where the networks are, and in which precision.
        calibration: what the model will be calibrated on, a batch or a split; by default some of
            the training inputs.
    """

    model: nn.Module
    compressed: Compressed
    data: Data
    task: Task
    config: RefineConfig
    seed: int = 0
    progress: Progress | None = None
    place: Place = field(default_factory=lambda: Place.of(Schedule()))
    calibration: Any = None
    _notes: tuple[str, ...] = ()

    def run(self) -> Compressed:
        """Refine, and keep what is nearer to the original on samples that were held back.

        References:
            Nagel et al., Up or Down? (AdaRound), ICML 2020, and Li et al., BRECQ, ICLR 2021
            (reconstruction block by block); Hinton et al. 2015 (the network's own outputs).
        """
        begin, config = time.monotonic(), self.config
        limit = math.inf if config.seconds is None else config.seconds
        if len(self.data.train) < _FEWEST:
            return self._unrefined(f"{len(self.data.train)} training inputs are too few.")
        count = min(config.images, len(self.data.train))
        held = self._judging(count)
        steps = held + config.steps * config.batch_size
        wanted = steps if config.network_images == "auto" else config.network_images
        train = self.data.train
        places = train.places(max(count, wanted), self.seed)
        self._images, self._held = train.subset(places[held:count]), train.subset(places[:held])
        original = self.place.put_module(copy.deepcopy(self.model))
        module = self.place.put_module(self._module())
        for parameter in module.parameters():  # whole numbers have no gradient
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        distance = HeldOutDivergence(original, self._held, self.task, self.place)
        if not distance.count:
            return self._unrefined("the original answers no number to what is held back.")
        best = Best(distance, module)
        segments = self._cut(original, module) if config.block_steps else []
        for part in module.modules():
            if isinstance(part, QuantizedLayer):
                part.train()  # its input range follows the data
        self._descent = Descent(config, self.seed, self._zeros(module))
        if segments:
            self._blocks(original, module, segments, begin + limit / 2)
            # nearer blocks may answer too surely at first, which the whole network mends
            if not best.offer(module) <= _ASTRAY * best.value:  # nor where it is no number
                best.restored(module)
        network = WholeNetwork(
            original,
            module,
            self.data,
            places[held : max(wanted, held + 1)],
            distance.divergence,
            self._temperature,
            self._descent,
            self.place,
            self._room,
        )
        try:
            network.train(begin + limit, lambda done: self._tell("whole network", 0.5 + done / 2))
        except UnsupportedModel as error:
            self._notes = (*self._notes, f"Not refined as a whole: {error}.")
        best.offer(module)
        if not best.improved and not self.compressed.quantized:
            return self._unrefined(_LEFT_OUT.format("on inputs that were held back"), whole=True)
        result = self._result(best.restored(module))
        return result if not self.compressed.quantized else self._nearer(result, best.distance)

    def _judging(self, count: int) -> int:
        """How many inputs of so many are held back, as far as answers to them fit into memory."""
        wanted = max(1, min(CHUNK * 2, count // 8))
        return min(wanted, as_many_as_fit(self.model, self.data.train, wanted, self.data.memory))

    @property
    def _room(self) -> int:
        """Bytes that values may take which are kept on the way."""
        return min(_MEMORY, (self.data.memory or Memory.of()).limit // _PARTS)

    def _unrefined(self, reason: str, *, whole: bool = False) -> Compressed:
        """What was to be refined, as it is, with a note that says why."""
        note = reason if whole else f"Not refined: {reason}"
        return self.compressed.with_(notes=(*self.compressed.notes, *self._notes, note))

    def _zeros(self, module: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Weights of which zeros are there on purpose, and which of them are none."""
        weights = [p for p in module.parameters() if p.dim() > 1] if self._sparse else []
        return [(p, p != 0) for p in weights]

    @property
    def _temperature(self) -> float:
        """Of what the whole network is taught; softened targets say more of each input."""
        widths = (p.weight_bits for p in self.compressed.precisions.values())
        return safe_temperature(self.config.temperature, min(widths, default=32), _TEMPERATURE)

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
        inputs = self.calibration
        if inputs is None:
            inputs = self._images.inputs(_CALIBRATING)
        found = [
            distance(self.place.put_module(simulate(calibrate(made, inputs))))
            for made in (refined, self.compressed)
        ]
        if found[0] <= found[1]:
            return refined
        return self._unrefined(_LEFT_OUT.format("in these bits"), whole=True)

    # -- block by block

    def _cut(self, original: nn.Module, module: nn.Module) -> list[Segment]:
        """The blocks of both networks, as far as they can be cut."""
        self._known: dict[tuple[int, int], Steps] = {}
        self._named = dict(module.named_parameters())
        try:
            with AnyOrder():
                self._walks = [self._walk(m) for m in (original, module)]
                return common_segments(self._steps(0, 2), self._steps(1, 2), original)
        except UnsupportedModel as error:
            self._notes = (_WHOLE.format(error),)
        return []

    def _blocks(
        self,
        original: nn.Module,
        module: nn.Module,
        segments: Sequence[Segment],
        deadline: float,
    ) -> None:
        """Train block by block, as long as the way is the same for all inputs."""
        try:
            self._each_segment(original, module, segments, deadline)
        except UnsupportedModel as error:
            self._notes = (_WHOLE.format(error),)

    def _each_segment(
        self, original: nn.Module, module: nn.Module, segments: Sequence[Segment], deadline: float
    ) -> None:
        """Train each segment that ends in as many channels as the original's."""
        old = new = None
        left = list(segments)
        while left and time.monotonic() < deadline:
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
        if segment.end not in steps.nodes or segment.start not in (None, *steps.nodes):
            raise UnsupportedModel("what runs depends on the values that come in")
        return run_segment(steps, segment, value, inputs, self._walks[which].module)

    def _steps(self, which: int, count: int) -> Steps:
        """What one of the two networks does with so many samples, which have the same shapes."""
        if (which, count) not in self._known:
            inputs = self.place.put(self._images.inputs(count))
            self._known[which, count] = self._walks[which].steps(inputs)
        return self._known[which, count]

    def _through(self, segment: Segment, values: Tensor | None, which: int) -> Tensor | None:
        """The segment's output for all samples, on the CPU.

        ``None`` for what is no batch, no plain numbers (places in a table, say), or too large.
        """
        out: list[Tensor] = []
        kinds = (torch.float32, *((torch.bfloat16,) if self.place.bf16 else ()))
        with torch.no_grad(), self.place.autocast():
            for index in torch.arange(len(self._images)).split(CHUNK):
                value = None if values is None else self.place.put(values[index])
                found = self._run(segment, value, index, which)
                if not isinstance(found, Tensor) or found.dtype not in kinds:
                    return None
                if found.shape[:1] != index.shape:
                    return None
                out.append(found.float().cpu())
                if sum(part.nbytes for part in out) > self._room:
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
        # what is no number can neither be learned nor learned from
        fine = finite_rows(goal)
        if inputs is not None:
            fine &= finite_rows(inputs)
        rows = fine.nonzero().flatten()
        scale = goal[rows].square().mean().clamp_min(1e-12).to(self.place.device)

        def loss(batch: Batch, index: Tensor) -> Tensor:
            chosen = rows[index]
            value = None if inputs is None else self.place.put(inputs[chosen])
            with self.place.autocast():
                found = self._run(segment, value, chosen, 1)
            wanted = self.place.put(goal[chosen])
            return (found.float() - wanted).square().mean() / scale

        config = self.config
        try:
            self._descent(parameters, loss, len(rows), config.block_steps, config.lr, deadline)
        except NoGradient:
            return  # what it gives follows from none of its weights, and stays

    def _parameters(self, segment: Segment, module: nn.Module) -> list[nn.Parameter]:
        """Of the layers that a segment runs, and of the forwards around them."""
        found: list[nn.Parameter] = []
        for node in inside(self._steps(1, 2), segment):
            if node.op == "call_module":
                found += module.get_submodule(str(node.target)).parameters()
            read = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
            found += [self._named[name] for name in read if name in self._named]
        return [p for p in dict.fromkeys(found) if p.requires_grad]

    def _tell(self, what: str, done: float) -> None:
        if self.progress is not None:
            self.progress(f"refine: {what}", done)
