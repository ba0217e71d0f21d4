"""What the server asks, and what it makes of the answers: bank, statistics, ranges, weights.

It has the model and no data. Whatever a study asks of data it asks of the clients, as sums.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import Calibration, calibrate, mean_error
from autocompress.build.pipeline import Pipeline
from autocompress.build.ranges import range_of
from autocompress.build.rounding import compensating, round_by_moments
from autocompress.build.rows import RowCounts
from autocompress.build.statistics import Statistics, watched_layers
from autocompress.federated.batch_norms import (
    batch_norms,
    kept_channels,
    set_statistics,
    statistics,
)
from autocompress.federated.client import Client, cuts
from autocompress.federated.journal import RoundAnswer
from autocompress.federated.messages import Request, digest_of
from autocompress.federated.noise import noise_factor, positive
from autocompress.federated.own_rules import first_matrix, first_read
from autocompress.federated.rounds import Rounds
from autocompress.federated.triangles import whole
from autocompress.machine.progress import Progress, silent
from autocompress.model.attention import opened
from autocompress.model.groups import slicing_plan
from autocompress.model.weights import state_tensors
from autocompress.policy.federation import FederationSection
from autocompress.policy.settings import CompressionSettings
from autocompress.results.trial import Phase
from autocompress.techniques.compressed import Compressed, Range
from autocompress.techniques.moments import Moments, matrix_layer, moment_sums, moments_of
from autocompress.techniques.quantize import rounded_weight


@dataclass
class FederatedServer:
    """Asks clients on behalf of one study.

    Args:
        rounds: asks them.
        section: how.
        samples: training samples of all clients together.
        own: a client on samples that the server made up: what it answers has the shapes that the
            others' answers must have.
        folder: where the bank is kept.
    """

    rounds: Rounds
    section: FederationSection
    samples: int
    own: Client
    folder: Path

    def ask(
        self,
        kind: str,
        args: Mapping[str, Any],
        *,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        blobs: Mapping[str, bytes] | None = None,
        each: bool = False,
        expected: Mapping[str, Any] | None = None,
    ) -> RoundAnswer:
        """One round."""
        given, held = arrays or {}, blobs or {}
        if expected is None:
            expected = self.own.sums(kind, args, given, list(held)).shapes
        return self.rounds.ask(Request(kind, expected, args, given, held, each))

    def share(self, samples: int) -> float:
        """The share of its training samples that every client takes, for so many of all."""
        return min(1.0, samples / max(1, self.samples))

    def calibrating(self, settings: CompressionSettings) -> float:
        """The share of its training samples that every client takes to calibrate."""
        macs = self.own.parts.inventory.macs
        given = self.section.calibration_images
        return self.share(given or settings.calibrating(macs, self.samples))

    def bank(self, settings: CompressionSettings, progress: Progress = silent) -> LayerBank:
        """The layer bank that the clients' sums make."""
        parts = self.own.parts
        model, inventory = parts.model, parts.inventory
        plan = slicing_plan(model, self.own.data.train.inputs(2), inventory.groups_by_name)
        progress("input moments of the clients", 0.0)
        found = self._statistics(settings, watched_layers(model, inventory, plan))
        return LayerBank.of(model, inventory, plan, settings, found, progress=progress)

    def _statistics(self, settings: CompressionSettings, names: list[str]) -> Statistics:
        section = self.section
        without: list[str] = []
        if section.without_first_layer:  # its moments would be those of the samples
            inputs = self.own.data.train.inputs(2)
            without = first_read(opened(self.own.parts.model), names, inputs)
        args: dict[str, Any] = {"share": self.calibrating(settings), "seed": settings.seed}
        args |= {"without": without, "clip": {}, "noise": 0.0}
        if section.epsilon is not None:
            args["clip"] = self._limits([name for name in names if name not in without])
            args["noise"] = noise_factor(section.epsilon, section.delta)
        sums = self.ask("moments", args).sums
        seconds = {
            n.removeprefix("moments."): whole(a)
            for n, a in sums.arrays.items()
            if n.startswith("moments.")
        }
        if args["clip"]:
            seconds = {n: positive(second) for n, second in seconds.items()}
        rows = {
            n.removeprefix("rows."): RowCounts(torch.from_numpy(a), int(sums["samples"][0]))
            for n, a in sums.arrays.items()
            if n.startswith("rows.")
        }
        return Statistics(moments_of(seconds), rows)

    def _limits(self, names: list[str]) -> dict[str, float]:
        """What one sample may add to each layer's moments: twice what made-up samples add.

        They know nothing of any client's sample but the mean and the spread of all inputs.
        """
        inputs = self.own.data.train.inputs()
        found = moment_sums(opened(self.own.parts.model), names, inputs, kind=torch.float64)
        samples = len(self.own.data.train)
        traces = {n: float(s.diagonal(dim1=1, dim2=2).sum()) for n, s in found.items()}
        return {n: 2 * trace / samples for n, trace in traces.items()}


@dataclass
class FederatedPipeline(Pipeline):
    """Builds compressed models whose data lie with clients.

    Args:
        server: asks them.
    """

    server: FederatedServer = field(kw_only=True)

    def ask(
        self, kind: str, about: Compressed, args: Mapping[str, Any], **more: Any
    ) -> RoundAnswer:
        """A round about one compressed model: its policy, and what differs from the bank's."""
        given = {**self.common, "policy": about.policy.as_dict(), **args}
        arrays = {**self._changed(about), **more.pop("arrays", {})}
        return self.server.ask(kind, given, arrays=arrays, blobs=self.blobs, **more)

    @cached_property
    def blobs(self) -> dict[str, bytes]:
        """The layer bank, as clients are sent it, once."""
        path = self.server.folder / "bank.safetensors"
        self.bank.write(path)
        blob = path.read_bytes()
        digest = digest_of(blob)
        own = self.server.own
        own.sent.keep({f"blob.{digest}": np.frombuffer(blob, np.uint8)})
        return {digest: blob}

    @cached_property
    def common(self) -> dict[str, Any]:
        """What every round about a compressed model says."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "cuts": cuts(self.inventory),
            "share": self.server.calibrating(self.settings),
            "seed": self.settings.seed,
        }

    def calibrated(self, compressed: Compressed) -> Compressed:
        """As on data at hand, but that scales of outlier channels stay where they are."""
        if compressed.policy.student is None:
            compressed = self.bank.projected(compressed)
        if not compressed.quantized:
            return compressed
        return calibrate(compressed, _ByClients(self, compressed))

    def train(
        self,
        compressed: Compressed,
        phase: Phase,
        seed: int,
        *,
        progress: Progress | None = None,
        checkpoint: Any = None,
    ) -> Compressed:
        """Rounds of local training, toward the uncompressed model's outputs, averaged."""
        section, samples = self.server.section, self.server.samples
        module, batch = compressed.module, min(self.schedule.batch_size, samples)
        steps = max(1, round(phase.epochs * (samples // batch)))
        rounds = min(section.rounds, steps)
        for number in range(rounds):
            if progress is not None:
                progress(f"recovery round {number + 1} of {rounds}", number / rounds)
            now = compressed.with_weights(module, qat=False)
            args = {
                "samples": samples,
                "batch": batch,
                "steps": steps * (number + 1) // rounds - steps * number // rounds,
                "round": number,
                "rounds": rounds,
                "lr": self.schedule.lr,
                "seed": seed * 1000 + number,
                "proximal": section.proximal if section.algorithm == "fedprox" else 0.0,
            }
            state = _floating(module)
            expected = {f"state.{n}": tuple(t.shape) for n, t in state.items()} | {"samples": (1,)}
            sums = self.ask("recover", now, args, expected=expected).sums
            with torch.no_grad():
                for name, tensor in state.items():
                    mean = sums[f"state.{name}"] / sums["samples"][0]
                    tensor.copy_(torch.from_numpy(mean))
        trained = compressed.with_weights(module.eval(), qat=self.trains_rounded(compressed))
        self._normalized(trained)
        return trained

    def _repaired(self, compressed: Compressed, how: str) -> Compressed:
        """Statistics of batch norms from the clients; weights as the bank has them."""
        if how not in ("none", "bank"):
            self._normalized(compressed)
        return compressed

    def _normalized(self, compressed: Compressed) -> None:
        """Statistics of batch norms, in place."""
        module = compressed.module
        if not batch_norms(module):
            return
        sums, policy, kept = self.ask("batch_norms", compressed, {}).sums, compressed.policy, {}
        if policy.student is None:
            gone, widths = self.bank.gone(policy), self.bank.widths(policy)
            kept = kept_channels(self.model, self.bank.plan, gone, widths)
        for name, (mean, variance) in statistics(sums.arrays, self.model, kept).items():
            set_statistics(batch_norms(module)[name], mean, variance)

    def _changed(self, compressed: Compressed) -> dict[str, NDArray[Any]]:
        """The tensors of a model that a client would not get by stitching its policy."""
        stitched = state_tensors(self.stitch(compressed.policy).module)
        return {
            f"state.{name}": tensor.detach().cpu().numpy()
            for name, tensor in _floating(compressed.module).items()
            if not torch.equal(tensor, stitched[name])
        }


def _floating(module: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in state_tensors(module).items() if t.is_floating_point()}


class _ByClients(Calibration):
    """What calibration asks of inputs, asked of clients.

    Args:
        pipeline: asks them.
        compressed: that is calibrated.
    """

    def __init__(self, pipeline: FederatedPipeline, compressed: Compressed) -> None:
        super().__init__(pipeline.data.train)
        self.pipeline = pipeline
        self.about = compressed

    def equalized(self, folded: nn.Module, compressed: Compressed) -> Sequence[str]:
        """Nothing is moved: it would take a round for each layer."""
        return []

    def compensated(self, folded: nn.Module, compressed: Compressed) -> set[str]:
        """Layers in few bits are rounded by the moments of their inputs in float.

        To the nearest where these moments would tell what the client hides.
        """
        section, wanted = self.pipeline.server.section, compensating(folded, compressed)
        if section.epsilon is not None:
            return set()
        if section.without_first_layer:
            for name in first_matrix(folded, self.two()):
                wanted.pop(name, None)
        if wanted:
            args = {"layers": list(wanted), "means": False}
            sums = self.pipeline.ask("inputs", self.about, args).sums
            seconds = {n.removeprefix("moments."): whole(a) for n, a in sums.arrays.items()}
            moments: dict[str, Moments] = moments_of(seconds)
            round_by_moments(folded, compressed, wanted, moments)
        return set()

    @torch.no_grad()
    def corrected(
        self, folded: nn.Module, compressed: Compressed, floats: Mapping[str, Tensor]
    ) -> None:
        """Biases make up for the mean error of each layer, on its inputs in float."""
        if not floats:
            return
        args = {"layers": list(floats), "means": True}
        sums = self.pipeline.ask("inputs", self.about, args).sums
        for name, (count, total) in sums.arrays.items():
            if not count.all():  # an expert that no sample of any client is sent to
                continue
            layer = matrix_layer(folded, name)
            error = floats[name] - rounded_weight(layer, compressed.precisions[name])
            mean = torch.from_numpy(total / count).to(error.dtype)
            assert layer.bias is not None
            layer.bias.add_(mean_error(layer, error, mean))

    def ranges(
        self,
        graph: Any,
        tensors: Collection[str],
        settings: CompressionSettings,
        whole: Collection[str],
    ) -> dict[str, Range]:
        """From histograms of all values."""
        if not tensors:
            return {}
        content = {"graph": np.frombuffer(graph.SerializeToString(), np.uint8)}
        args = {"tensors": list(dict.fromkeys(tensors))}
        common = {k: self.pipeline.common[k] for k in ("share", "seed")}
        found = self.pipeline.server.ask("ranges", {**common, **args}, arrays=content).sums
        unclipped = settings.model_copy(update={"ranges": "minmax"})
        return {
            name: range_of(histogram, unclipped if name in whole else settings)
            for name, histogram in found.histograms.items()
            if histogram.counts.any()
        }
