"""A client: it holds data that stay with it, and answers questions about them with sums.

It builds compressed models itself, from the layer bank and a policy, so that a policy costs a
message of a few hundred bytes. What it is sent are numbers and text (``messages``); the functions
that make its model and read its data are those of its own study.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.build.ranges import tensor_histograms
from autocompress.build.rows import watched
from autocompress.build.statistics import watched_layers, watched_tables
from autocompress.errors import AutocompressError, InputError, explained
from autocompress.federated import described
from autocompress.federated.batch_norms import batch_norm_sums, following, kept_channels
from autocompress.federated.messages import digest_of, pack, unpack
from autocompress.federated.noise import clipped, noisy
from autocompress.federated.own_rules import (
    check_file,
    check_kept,
    first_matrix,
    first_read,
    own_noise,
    told_once,
)
from autocompress.federated.sent import Sent
from autocompress.federated.sums import ClientSums
from autocompress.federated.training import train_part
from autocompress.federated.triangles import triangle
from autocompress.machine.scratch import scratch_folder
from autocompress.model.attention import opened
from autocompress.model.groups import slicing_plan
from autocompress.model.weights import load_tensors, state_tensors
from autocompress.policy.federation import FederationSection
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Distill, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.score import file_quality
from autocompress.quality.screening import Screening
from autocompress.recover.distill import Distillation
from autocompress.targets import get_target
from autocompress.task.calling import call
from autocompress.task.data import Data, Split
from autocompress.techniques.fold import fold_batch_norms
from autocompress.techniques.moments import MatrixLayer, moment_sums

if TYPE_CHECKING:
    from autocompress.run.assembly import Assembly
    from autocompress.techniques.compressed import Compressed

_log = logging.getLogger(__name__)
_FEWEST = 8
"""Samples that a client takes at least, where it is asked for a share of them."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass
class Client:
    """Answers for the samples of one place.

    Args:
        parts: model, task, target and recovery of the client's study.
        data: its own.
        folder: where it keeps what it is sent once.
        simulated: whether it belongs to the server: nothing is hidden from itself.
        banks: layer banks that were read, by digest; clients of one simulation share them.
    """

    parts: Assembly
    data: Data
    folder: Path
    simulated: bool = False
    banks: dict[str, LayerBank] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str]:
        """Fingerprints of its model."""
        return self.parts.inventory.architecture, self.parts.inventory.weights

    @property
    def section(self) -> FederationSection:
        """What its own study says of federation."""
        return self.parts.study.federation or FederationSection()

    def answer(self, message: bytes) -> bytes:
        """Answer a message with sums, or with why there are none."""
        head, arrays = unpack(message)
        about: dict[str, Any] = {"key": head["key"], "model": list(self.identity)}
        if tuple(head["model"]) != self.identity:
            return pack({**about, "problem": "this client has another model"}, {})
        try:
            self.sent.keep(arrays, head["blobs"])
            missing = [name for name in head["blobs"] if not self.sent.path(name).exists()]
            if missing:
                return pack({**about, "missing": missing}, {})
            sums = self.sums(head["kind"], head["args"], arrays, head["blobs"])
        except AutocompressError as error:
            return pack({**about, "problem": str(error)}, {})
        except Exception as error:  # a client's own data, task or loader may raise anything
            _log.warning("A round (%s) failed here.", head["kind"], exc_info=True)
            return pack({**about, "problem": explained(error)}, {})
        if head["kind"] == "describe":
            about["about"] = described.describe(self.data)
        return pack(about, sums.to_arrays())

    def sums(
        self, kind: str, args: Mapping[str, Any], arrays: Arrays, blobs: list[str]
    ) -> ClientSums:
        """What it says of its samples.

        Args:
            kind: one of ``KINDS``.
            args, arrays: of the request.
            blobs: what was sent once and is kept.

        Raises:
            InputError: a kind that it does not know.
        """
        if kind not in KINDS:
            raise InputError(f"This client knows no round {kind!r}; install the same version.")
        return KINDS[kind](self, _Asked(args, arrays, blobs))

    def pipeline(self, bank: str, settings: Mapping[str, Any]) -> Pipeline:
        """Builds models from a layer bank that was sent.

        Args:
            bank: its digest.
            settings: that it was made with.
        """
        chosen = CompressionSettings.model_validate(dict(settings))
        made = self.banks.get(bank)
        if made is None or made.settings != chosen:
            model, inventory = self.parts.model, self.parts.inventory
            plan = slicing_plan(model, self.data.train.inputs(2), inventory.groups_by_name)
            made = LayerBank.read(self.sent.path(bank), model, inventory, plan, chosen)
            self.banks.clear()
            self.banks[bank] = made
        recovery = self.parts.study.recovery
        return Pipeline(
            self.parts.model,
            self.data,
            made.inventory,
            made,
            chosen,
            recovery.schedule,
            qat=recovery.qat,
            students=self.parts.students,
            own_statistics=False,
        )

    @property
    def sent(self) -> Sent:
        """What it was sent once."""
        return Sent(self.folder)

    @cached_property
    def like(self) -> Any:
        """What the uncompressed model answers, as which outputs of files are built."""
        with torch.inference_mode():
            return call(self.parts.model, self.data.train.inputs(2))

    def share(self, share: float, seed: int) -> Split:
        """A share of its training samples, a few at least."""
        train = self.data.train
        return train.sample(min(len(train), max(_FEWEST, round(share * len(train)))), seed)


def cuts(inventory: Inventory) -> str:
    """Digest of what can be cut from a model; both sides must agree on it."""
    told = repr((inventory.channel_groups, inventory.blocks))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Asked:
    """What a round asks of one client."""

    args: Mapping[str, Any]
    arrays: Arrays
    blobs: list[str]

    def pipeline(self, client: Client) -> Pipeline:
        if self.args["cuts"] != cuts(client.parts.inventory):
            raise InputError(
                "this client found other channels to cut in the model than the server; install the "
                "same versions of autocompress and torch"
            )
        return client.pipeline(self.blobs[0], self.args["settings"])

    @property
    def policy(self) -> Policy:
        return Policy.from_dict(self.args["policy"])

    def kept(self, client: Client) -> dict[str, torch.Tensor]:
        """Channels that batch norms keep of those of the uncompressed model; a student has none."""
        bank, policy = self.pipeline(client).bank, self.policy
        if policy.student is not None:
            return {}
        return kept_channels(client.parts.model, bank.plan, bank.gone(policy), bank.widths(policy))

    def compressed(self, client: Client) -> Compressed:
        """The model that the round is about: stitched, with what was sent in place of its own."""
        found = self.pipeline(client).stitch(self.policy)
        changed = {
            n.removeprefix("state."): torch.from_numpy(a.copy())
            for n, a in self.arrays.items()
            if n.startswith("state.")
        }
        if changed:
            load_tensors(found.module, {**state_tensors(found.module), **changed})
        return found


def _describe(client: Client, asked: _Asked) -> ClientSums:
    """How many samples there are."""
    splits = (client.data.train, client.data.val, client.data.test)
    return ClientSums({"samples": np.array([len(split) for split in splits], np.int64)})


def _moments(client: Client, asked: _Asked) -> ClientSums:
    """Second moments of layers' inputs in the uncompressed model, and how often rows are read."""
    args, model, inventory = asked.args, client.parts.model, client.parts.inventory
    sample = client.share(args["share"], args["seed"])
    plan = slicing_plan(model, sample.inputs(2), inventory.groups_by_name)
    running = opened(model)
    every = watched_layers(model, inventory, plan)
    names = [n for n in every if n not in args["without"]]
    check_kept(client.section, first_read(running, every, sample.inputs(2)), names)
    clip, noise = own_noise(client.section, names, args)
    if clip:

        def hidden() -> Mapping[str, NDArray[Any]]:
            return noisy(_second(running, names, sample, clip), clip, noise)

        if client.simulated or client.section.epsilon is None:
            return ClientSums(dict(hidden()))
        about = digest_of("".join((*client.identity, client.data.fingerprint)).encode())
        path = client.folder / f"told_{about}.safetensors"
        return ClientSums(dict(told_once(path, args, hidden)))
    with watched(running, watched_tables(model, inventory)) as reads:
        found = _second(running, names, sample)
    rows = {f"rows.{n}": r.counts.numpy() for n, r in reads.result(len(sample), sample).items()}
    return ClientSums({**found, **rows, "samples": np.array([len(sample)], np.int64)})


def _second(
    module: torch.nn.Module,
    names: list[str],
    sample: Split,
    clip: Mapping[str, float] | None = None,
) -> dict[str, NDArray[Any]]:
    if not clip:
        sums = moment_sums(module, names, sample, kind=torch.float64)
    else:  # each layer has a limit of its own
        sums = {}
        for name in names:
            own = clipped(clip[name])
            sums |= moment_sums(module, [name], sample, choose=own, kind=torch.float64)
    return {f"moments.{name}": triangle(second) for name, second in sums.items()}


def _inputs(client: Client, asked: _Asked) -> ClientSums:
    """Second moments of layers' inputs, or their means alone, in a compressed model, folded."""
    folded = fold_batch_norms(asked.compressed(client).module)
    sample = client.share(asked.args["share"], asked.args["seed"])
    names = asked.args["layers"]
    if asked.args["means"]:
        return ClientSums(described.channel_sums(folded, names, sample))
    if client.section.epsilon is not None:
        raise InputError(
            "this client tells second moments with noise alone (`federation.epsilon`), and only "
            "those of the uncompressed model"
        )
    others = [n for n in names if not isinstance(folded.get_submodule(n), MatrixLayer)]
    check_kept(client.section, [*first_matrix(folded, sample.inputs(2)), *others], names)
    return ClientSums(_second(folded, names, sample))


def _batch_norms(client: Client, asked: _Asked) -> ClientSums:
    """What the batch norms of a compressed model see."""
    sample = client.share(asked.args["share"], asked.args["seed"])
    model, kept = client.parts.model, asked.kept(client)
    return ClientSums(batch_norm_sums(asked.compressed(client).module, model, kept, sample))


def _ranges(client: Client, asked: _Asked) -> ClientSums:
    """Histograms of some tensors of a float ONNX graph."""
    import onnx

    sample = client.share(asked.args["share"], asked.args["seed"])
    graph = onnx.load_from_string(asked.arrays["graph"].tobytes())
    return ClientSums({}, tensor_histograms(graph, asked.args["tensors"], sample))


def _screen(client: Client, asked: _Asked) -> ClientSums:
    """Divergences of several policies: samples, sum, and sum of squares."""
    pipeline, args = asked.pipeline(client), asked.args
    train = client.data.train
    images = min(len(train), max(_FEWEST, round(args["share"] * len(train))))
    screening = Screening(pipeline, images)
    rows = []
    for policy in args["policies"]:
        found = screening(Policy.from_dict(policy), images)
        count, variance = found.images, found.stderr**2 * found.images
        squares = variance * (count - 1) + count * found.kl**2
        rows.append([count, count * found.kl, squares])
    return ClientSums({"divergence": np.array(rows, np.float64)})


def _evaluate(client: Client, asked: _Asked) -> ClientSums:
    """The metrics of an exported file on one split: samples, sum, and sum of squares."""
    target = get_target(client.parts.study.target.config())
    if not client.simulated:
        check_file(type(target), client.section)
    split: Split = getattr(client.data, asked.args["split"])
    with scratch_folder("client") as folder:
        path = folder / f"model{target.suffix}"
        path.write_bytes(asked.arrays["file"].tobytes())
        found = file_quality(target, path, split, client.parts.task, like=client.like)
    told = {}
    for metric in client.parts.task.figures:
        score = found.scores.get(metric.name)
        if score is None:
            raise InputError(f"{metric.name} cannot be told: {' '.join(found.problems)}")
        if score.each is None:
            raise InputError(
                f"{metric.name} is no mean over samples, so that the clients' values do not add up "
                "to one of all. Give the study a task whose metrics are told per sample."
            )
        each = score.each.astype(np.float64)
        told[metric.name] = np.array([len(each), each.sum(), (each**2).sum()])
    return ClientSums(told)


def _recover(client: Client, asked: _Asked) -> ClientSums:
    """Weights after local training toward the uncompressed model's outputs, times the samples."""
    pipeline, compressed = asked.pipeline(client), asked.compressed(client)
    config, samples = client.parts.study.recovery.distillation, len(client.data.train)
    # labels of a few classes would pull away from the others
    asked_for = compressed.policy.distill or Distill(weight=1.0)
    distillation = Distillation.of(config, [client.parts.model], asked_for)
    rounded = pipeline.trains_rounded(compressed)
    with following(compressed.module, client.parts.model, asked.kept(client)):
        trained = train_part(
            compressed, client.data, pipeline.schedule, distillation, asked.args, rounded
        )
    state = state_tensors(trained)
    found = {
        f"state.{n}": samples * t.detach().cpu().numpy()
        for n, t in state.items()
        if t.is_floating_point()
    }
    return ClientSums({**found, "samples": np.array([samples], np.int64)})


KINDS: dict[str, Callable[[Client, _Asked], ClientSums]] = {
    "describe": _describe,
    "moments": _moments,
    "inputs": _inputs,
    "batch_norms": _batch_norms,
    "ranges": _ranges,
    "screen": _screen,
    "evaluate": _evaluate,
    "recover": _recover,
}
"""What a client answers."""
