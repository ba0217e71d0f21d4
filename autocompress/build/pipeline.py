"""The one order in which a policy becomes a model: here, and nowhere else.

prune -> leave blocks out -> factorize -> change weights -> reconstruct -> fine-tune -> quantize.
What comes before reconstruction is stitched from the layer bank, in the order of
``policy.technique.STAGES``; export comes after (``exporters.write``). Reconstruction is either the
sequential re-solve, which sets batch-norm statistics itself, or the bank's weights with statistics
re-estimated; never both (the re-estimation would undo the re-solve).
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from autocompress.build.lockstep import affordable
from autocompress.build.state import load_state
from autocompress.errors import InputError, UnsupportedModel
from autocompress.machine.progress import Progress
from autocompress.model.cost import Cost, policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.policy.attempt import attempt
from autocompress.policy.inventory import RE_SOLVE, Inventory
from autocompress.policy.policy import Distill, Policy
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.recover.device import Place
from autocompress.results.trial import SEARCH, Phase
from autocompress.task.calling import call
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import trainable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from autocompress.build.bank import LayerBank
    from autocompress.policy.recovery import Schedule
    from autocompress.recover.distill import Distillation
    from autocompress.task.data import Data, Split
    from autocompress.task.task import Task

_log = logging.getLogger(__name__)
_FEW, _MOST = 4, 100
"""Steps of the short trainings that tell what a step takes."""


def student_cost(module: nn.Module, example: Any, settings: CompressionSettings) -> Cost:
    """What another architecture costs, nothing done to it.

    Args:
        module: in eval mode.
        example: one batched input.
        settings: of the study.
    """
    return policy_cost(take_inventory(module, example), Policy(), settings)


def identity(inventory: Inventory, data: Data) -> dict[str, str]:
    """Fingerprints of a model and its data: what recipes and runs are held to."""
    return {
        "architecture": inventory.architecture,
        "weights": inventory.weights,
        "data": data.fingerprint,
    }


@dataclass
class Pipeline:
    """Everything that building a compressed model needs, the policy aside.

    Args:
        model: the uncompressed model, in eval mode; never changed.
        data: calibration and fine-tuning read the train split only.
        inventory: of ``model``.
        bank: of ``model`` and the calibration inputs.
        settings: how compression is carried out.
        schedule: of fine-tuning; its epochs are the phase's.
        qat: train quantized policies through fake quantization; ``auto`` where weights have
            fewer than 8 bits.
        distillation: builds the teachers' part of the loss for a policy that asks for it;
            ``None`` lets the uncompressed model teach.
        students: name to a factory of architectures that may take the model's place.
        refine: how ``finish: refine`` trains; ``None`` takes the settings'.
        own_statistics: whether batches are like all samples, so that screening may let batch norms
            normalize by them.
    """

    model: nn.Module
    data: Data
    inventory: Inventory
    bank: LayerBank
    settings: CompressionSettings
    schedule: Schedule
    qat: bool | Literal["auto"] = "auto"
    distillation: Callable[[Policy], Distillation] | None = None
    students: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)
    refine: RefineConfig | None = None
    own_statistics: bool = True
    _student_costs: dict[str, Cost] = field(default_factory=dict)

    @cached_property
    def task(self) -> Task:
        """What the model is for; where the data do not say, what the kind of outputs implies."""
        import torch

        from autocompress.task.settle import implied

        if self.data.task is not None:
            return self.data.task
        with torch.inference_mode():
            return implied(self.data, call(self.model, self.data.train.inputs(2)))

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of the model and the data, for recipes."""
        return identity(self.inventory, self.data)

    def calibration(self) -> Split:
        """The training inputs that ranges, moments and statistics are taken from."""
        train = self.data.train
        count = self.settings.calibrating(self.inventory.macs, len(train))
        return train.sample(count, self.settings.seed)

    def build(
        self,
        policy: Policy,
        phase: Phase = SEARCH,
        seed: int = 0,
        *,
        progress: Progress | None = None,
        checkpoint: Any = None,
    ) -> Compressed:
        """Build the compressed model of a policy, ready to export.

        Args:
            policy: what to do.
            phase: how much fine-tuning; 0 epochs trains nothing.
            seed: of fine-tuning.
            progress: told how far a fine-tune is.
            checkpoint: file that lets an interrupted fine-tune go on.
        """
        compressed = self.stitch(policy)
        final = phase.kind != "search"
        compressed = self.reconstruct(compressed, final=final, progress=progress)
        if phase.epochs > 0:
            compressed = self.train(
                compressed, phase, seed, progress=progress, checkpoint=checkpoint
            )
        return self.calibrated(compressed)

    def rough(self, policy: Policy) -> nn.Module:
        """A policy's network for screening only: nothing is calibrated, integers are simulated.

        Where reconstruction will repair batch norms, they normalize by each batch's own statistics:
        one pass instead of one that re-estimates and one that judges.
        """
        from torch import nn

        compressed = self.stitch(policy)
        module = trainable(compressed) if compressed.quantized else compressed.module
        module.eval()
        repaired = self.settings.reconstruction not in ("none", "bank")
        if self.own_statistics and repaired and policy.student is None and policy.repairable:
            for norm in module.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    norm.train()
        return module

    def restore(
        self,
        policy: Policy,
        weights: Path,
        written: Policy | None = None,
        now: Callable[[str], str] | None = None,
    ) -> Compressed:
        """Build a trained policy again from the weights that ``save_state`` wrote.

        Args:
            policy: what was done.
            weights: the file.
            written, now: see ``load_state``.

        Raises:
            InputError: no such file, or weights of another policy.
        """
        return self.calibrated(load_state(weights, self.stitch(policy), written, now))

    def calibrated(self, compressed: Compressed) -> Compressed:
        """Weights as the techniques allow them; ranges and biases, where a layer is quantized."""
        from autocompress.build.calibrate import calibrate

        if compressed.policy.student is None:
            compressed = self.bank.projected(compressed)
        if not compressed.quantized:
            return compressed
        return calibrate(compressed, self._calibration_inputs())

    def _calibration_inputs(self) -> Any:
        """Of ``calibration``, as one batch where they are small; read on the way otherwise."""
        from autocompress.task.data import feed

        return feed(self.calibration(), self.data.memory)

    def student_cost(self, name: str) -> Cost:
        """What a student costs; it is built once, and counted as it is."""
        if name not in self._student_costs:
            module = self.stitch(Policy(student=name)).module
            example = self.data.train.inputs(1)
            self._student_costs[name] = student_cost(module, example, self.settings)
        return self._student_costs[name]

    def stitch(self, policy: Policy) -> Compressed:
        """Pruned, factorized and sparse, with the bank's weights; a few milliseconds."""
        if policy.student is None:
            return self.bank.stitch(policy).with_(dynamic=self.data.dynamic)

        if policy.student not in self.students:
            raise InputError(
                f"The study has no student {policy.student!r}; list it under "
                "`students` of the search space."
            )
        module = self.students[policy.student]()
        return Compressed(module, policy, self.settings, dynamic=self.data.dynamic)

    def reconstruct(
        self, compressed: Compressed, *, final: bool, progress: Progress | None = None
    ) -> Compressed:
        """Repair weights or statistics without labels.

        Args:
            compressed: as stitched; its module is changed.
            final: use ``settings.finish`` in place of ``settings.reconstruction``.
            progress: told how far a refinement is.
        """
        how = self.settings.finish if final else self.settings.reconstruction
        if compressed.policy.student is not None or compressed.policy.identity:
            return compressed
        if compressed.policy.repairable:
            compressed = self._repaired(compressed, "sequential" if how == "refine" else how)
        if how != "refine" or not self.settings.refines(compressed.policy):
            return compressed
        from autocompress.build.refine import Refinement

        config, seed = self.refine or self.settings.refine, self.settings.seed
        place = Place.of(self.schedule)
        # both are judged as they will be calibrated: on other inputs another may be the nearer one
        inputs = self._calibration_inputs() if compressed.quantized else None
        return Refinement(
            self.model, compressed, self.data, self.task, config, seed, progress, place, inputs
        ).run()

    def _repaired(self, compressed: Compressed, how: str) -> Compressed:
        """Re-solved layer by layer, or batch norms re-estimated."""
        from autocompress.build.batch_norm import reestimate

        if how == "sequential":
            try:
                return self._resolved(compressed)
            except UnsupportedModel as error:  # says so before it changes anything
                note = f"No sequential re-solve, the bank's weights instead: {error}"
                _log.info(note)
                compressed = compressed.with_(notes=(*compressed.notes, note))
                how = "bank_batch_norm"
        if how in ("batch_norm", "bank_batch_norm"):
            reestimate(compressed.module, self._calibration_inputs())
        return compressed

    def _resolved(self, compressed: Compressed) -> Compressed:
        """Re-solved layer by layer, unless the bank's weights do better on inputs kept apart."""
        import torch

        from autocompress.build.sequential import sequential_resolve

        train, settings, macs = self.data.train, self.settings, self.inventory.macs
        apart = settings.judging(macs, len(train))
        wanted = min(settings.resolving(macs), len(train) - apart)
        count = self._affordable(wanted)
        if count < wanted:
            note = f"Re-solved on {count} samples: activations of more would not fit in memory."
            compressed = compressed.with_(notes=(*compressed.notes, note))
        order = torch.arange(wanted + apart)
        sample = train.sample(len(order), settings.seed)
        stitched = compressed.with_(module=copy.deepcopy(compressed.module))
        left = [n.name for n in self.inventory.layers if n.why_not(RE_SOLVE)]
        images = sample.subset(order[:count])
        solved = sequential_resolve(self.model, compressed, images.inputs(), left)
        if not apart:
            return solved
        plain = self._repaired(stitched, "bank_batch_norm")
        held = sample.subset(order[wanted:])
        nearer, reason = attempt(
            compressed.policy,
            "the judging of repairs",
            lambda: self._nearer(solved, plain, held),
            level=logging.INFO,
        )
        if nearer is None:
            note = f"The sequential re-solve was not judged on other inputs: {reason}"
            return solved.with_(notes=(*solved.notes, note))
        if nearer is plain:
            note = (
                f"No sequential re-solve: on {apart} training inputs that were kept apart, the "
                f"bank's weights are nearer to the original than what {count} others gave."
            )
            _log.info(note)
            nearer = plain.with_(notes=(*plain.notes, note))
        return nearer

    def _nearer(self, solved: Compressed, plain: Compressed, inputs: Split) -> Compressed:
        """The one whose outputs are nearer to the uncompressed model's; the first of equals."""
        import torch

        from autocompress.build.held_out import HeldOutDivergence, as_many_as_fit

        count = as_many_as_fit(self.model, inputs, len(inputs), self.data.memory)
        distance = HeldOutDivergence(self.model, inputs.subset(torch.arange(count)), self.task)
        return min(solved, plain, key=lambda compressed: distance(compressed.module))

    def _affordable(self, wanted: int) -> int:
        """Samples of the sequential re-solve, as far as memory allows."""
        widest = max((x.positions * x.out_channels for x in self.inventory.layers), default=1)
        return affordable(wanted, widest, self.data.memory)

    def trains_rounded(self, compressed: Compressed) -> bool:
        """Whether a model is trained through fake quantization.

        Eight bits cost training nothing that rounding afterwards costs, and take half of its steps.
        """
        if self.qat == "auto":
            return any(p.weight_bits < 8 for p in compressed.precisions.values())
        return self.qat and compressed.quantized

    def train(
        self,
        compressed: Compressed,
        phase: Phase,
        seed: int,
        *,
        progress: Progress | None = None,
        checkpoint: Any = None,
    ) -> Compressed:
        """Fine-tune, with the distillation that the policy asks for."""
        from autocompress.recover.finetune import fine_tune

        schedule = self.schedule.model_copy(update={"epochs": phase.epochs})
        distillation = self._distillation(compressed.policy)
        tuned = fine_tune(
            compressed,
            self.data,
            schedule,
            distillation=distillation,
            qat=self.trains_rounded(compressed),
            seed=seed,
            progress=progress,
            checkpoint_path=checkpoint,
        )
        assert tuned.compressed is not None
        return tuned.compressed

    def epoch_s(self, policy: Policy, seconds: float) -> float:
        """Seconds of one epoch of training a policy's model, from a few of its steps.

        Args:
            policy: that is to be trained.
            seconds: that looking may take, about.
        """
        compressed = self.stitch(policy)
        batch = min(self.schedule.batch_size, len(self.data.train))
        per_epoch = max(1, len(self.data.train) // batch)

        def spent(steps: int) -> float:
            start = time.perf_counter()
            self.train(compressed, Phase("recover", steps / per_epoch), seed=0)
            return time.perf_counter() - start

        # the first training of a process takes longer to begin, and what beginning takes is no step
        spent(1)
        one, few = spent(1), spent(_FEW)
        step = max(few - one, 0.2 * few) / (_FEW - 1)
        more = max(_FEW, min(_MOST, int(seconds / step)))
        return max(spent(more) - one, 0.2 * few) / (more - 1) * per_epoch

    def _distillation(self, policy: Policy) -> Distillation | None:
        if policy.distill is None and policy.student is None:
            return None
        if self.distillation is not None:
            return self.distillation(policy)
        from autocompress.recover.distill import Distillation

        return Distillation([self.model], policy.distill or Distill())
