"""The layer bank: what every policy of a study shares, computed once and kept on disk.

It holds the second moments of layer inputs, per channel group one nested order in which channels
go, and per layer which factors err least. Any policy is then stitched from slices, re-solved
weights and factors, which are remembered once they were needed. Memory: the moments,
``4 (d + 1)^2`` bytes for a layer with d input features (read lazily), and a ``Memo``.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.memo import Memo
from autocompress.build.orders import removal_orders
from autocompress.build.rows import RowCounts
from autocompress.build.solve import solve_without
from autocompress.build.statistics import Statistics
from autocompress.build.stored import Factors, read_bank, write_bank
from autocompress.errors import InputError, PolicyError
from autocompress.machine.progress import Progress, silent
from autocompress.model.attention import projection_of
from autocompress.model.groups import SlicingPlan, slicing_plan
from autocompress.model.shapes import resolver
from autocompress.model.sides import ModuleSide
from autocompress.model.slicing import remove
from autocompress.model.tied import holders, shared_parameters
from autocompress.model.tracing_stubs import unfuse
from autocompress.model.weights import state_tensors
from autocompress.policy.hooks import load
from autocompress.policy.inventory import Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import in_order, techniques
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.technique import Technique
from autocompress.task.data import Split
from autocompress.task.task import Loss
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.moments import Moments, check_inputs, matrix_layer
from autocompress.techniques.narrow import Turn, turn, turns
from autocompress.techniques.stitching import Stitching
from autocompress.techniques.tables import smoothed

_VERSION = 7
"""Of the file's content; a change makes old files stale."""


class LayerBank:
    """Stitches any policy of a space in milliseconds; made by ``build``.

    Args:
        model: uncompressed, in eval mode; never changed.
        inventory: of the model; ``build`` adds the factors that suit each layer best.
        plan: how to slice it.
        settings: how compression is carried out.
        orders: group name to channels, the first to go first.
        moments: layer name to input moments.
        rows: name of a table to how often its rows are read.
        factors: layer name to the factors that suit it best, which ``inventory`` knows already.
    """

    def __init__(
        self,
        model: nn.Module,
        inventory: Inventory,
        plan: SlicingPlan,
        settings: CompressionSettings,
        orders: Mapping[str, list[int]],
        moments: Mapping[str, Moments],
        rows: Mapping[str, RowCounts] | None = None,
        factors: Factors | None = None,
    ) -> None:
        self.model = model
        self.rows = {} if rows is None else dict(rows)
        self.factors = {} if factors is None else factors
        unread = {name: (found.unread, found.samples) for name, found in self.rows.items()}
        self.inventory = inventory.with_unread(unread)
        self.plan = plan
        self.settings = settings
        self.orders = orders
        self.moments = moments
        self._memo = Memo()
        self._shared = shared_parameters(model)

    @classmethod
    def build(
        cls,
        model: nn.Module,
        inventory: Inventory,
        train: Split,
        settings: CompressionSettings,
        cache_dir: Path | None = None,
        progress: Progress = silent,
        loss: Loss | None = None,
    ) -> LayerBank:
        """Compute the bank, or read it from the cache.

        Args:
            model: in eval mode.
            inventory: of the model.
            train: calibration inputs (and targets, for ``taylor``) are drawn from it.
            settings: importance, calibration images, ridge, seed.
            cache_dir: folder of the cache; ``None`` keeps nothing.
            progress: told the layer at work.
            loss: for ``taylor``; another one needs a cache of its own.

        Raises:
            CalibrationError: calibration inputs are empty, not finite or of the wrong shape.
        """
        sample = train.sample(settings.calibrating(inventory.macs, len(train)), settings.seed)
        check_inputs(sample.inputs(64))
        check_inputs(train.inputs(2), inventory.input_shape)  # others may be longer: free axes
        plan = slicing_plan(model, train.inputs(2), inventory.groups_by_name)
        path = cls._path(inventory, train, settings, cache_dir)
        if path is not None and path.exists():
            return cls.read(path, model, inventory, plan, settings)
        progress("input moments", 0.0)
        statistics = Statistics.of(model, inventory, plan, sample, train, settings.seed)
        bank = cls.of(model, inventory, plan, settings, statistics, sample, progress, loss)
        if path is not None:
            bank.write(path)
        return bank

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inventory: Inventory,
        plan: SlicingPlan,
        settings: CompressionSettings,
        statistics: Statistics,
        sample: Split | None = None,
        progress: Progress = silent,
        loss: Loss | None = None,
    ) -> LayerBank:
        """The bank that given statistics make, wherever the data lie that they were taken of.

        Args:
            model, inventory, settings, progress, loss: as in ``build``.
            plan: how the model is sliced.
            statistics: of the inputs.
            sample: inputs and targets, for importances that are no function of the statistics.

        Raises:
            InputError: such an importance, and no sample.
        """
        groups = [g for g in inventory.channel_groups if settings.prune_residual or not g.residual]
        moments = statistics.moments
        orders = removal_orders(model, groups, plan, settings, moments, sample, progress, loss)
        progress("factors", 1.0)
        factors = {
            name: kinds
            for technique in techniques()
            for name, kinds in technique.settle(model, inventory, moments).items()
        }
        known = inventory.with_factors(factors)
        return cls(model, known, plan, settings, orders, moments, statistics.rows, factors)

    @classmethod
    def read(
        cls,
        path: Path,
        model: nn.Module,
        inventory: Inventory,
        plan: SlicingPlan,
        settings: CompressionSettings,
    ) -> LayerBank:
        """The bank of a file, for the model and the settings that it was made with."""
        orders, moments, factors, rows = read_bank(path)
        known = inventory.with_factors(factors)
        return cls(model, known, plan, settings, orders, moments, rows, factors)

    def write(self, path: Path) -> None:
        """Keep it in a file."""
        write_bank(path, (dict(self.orders), self.moments, self.factors, self.rows))

    @staticmethod
    def _path(
        inventory: Inventory, train: Split, settings: CompressionSettings, cache_dir: Path | None
    ) -> Path | None:
        if cache_dir is None:
            return None
        shared = settings.model_dump(include={"importance", "ridge", "seed", "prune_residual"})
        shared["calibration_images"] = settings.calibrating(inventory.macs, len(train))
        told: list[Any] = [_VERSION, inventory.fingerprint, train.fingerprint, shared]
        if ":" in settings.importance:  # a function of the user's, which may have changed
            told.append(inspect.getsource(load(settings.importance)))
        key = json.dumps(told)
        return cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"

    def stitch(self, policy: Policy, *, solve: bool | None = None) -> Compressed:
        """The float module of a policy, every technique applied in its turn.

        Args:
            policy: any policy on this model.
            solve: re-solve the consumers of pruned channels; ``None`` asks the settings.

        Raises:
            InputError: a layer of the policy is not in the model.
            PolicyError: a layer cannot do what is asked.
        """
        for name, own in policy.layers.items():
            self._check(self.inventory.layer(name), own)
        if solve is None:
            solve = self.settings.reconstruction not in ("none", "batch_norm")
        module = copy.deepcopy(self.model)
        unfuse(module)
        gone, widths = self.gone(policy), self.widths(policy)
        removals = self.plan.removals(gone, widths)
        with torch.no_grad():
            # once, whichever techniques leave the channels out
            self._prepare(module, gone, widths, solve)
            remove(module, removals)
        work = Stitching(
            module,
            policy,
            self.settings,
            self.inventory,
            removals,
            lambda name: self._sliced_moments(name, removals.get((name, "in"), []), widths),
            self._shares,
            lambda key, make: self._memo.get((solve, *key), make, _module_bytes),
        )
        with torch.no_grad():
            for technique in filter(work.asks, in_order()):
                technique.apply(work)
        return Compressed(
            module.eval(),
            policy,
            self.settings,
            work.precisions,
            parts=work.parts,
            architecture=self.inventory.architecture,
        )

    def _check(self, layer: LayerSpec, policy: LayerPolicy) -> None:
        """Refuse what a layer cannot do, with the reason."""
        for technique in in_order():
            reason = technique.why_not(layer, policy, self.inventory)
            if technique.active(policy) and reason:
                raise PolicyError(
                    f"`{technique.fields[0].name}` cannot be used on {layer.name!r}: {reason}. "
                    f"{_remedy(technique, layer, policy, self.inventory)}"
                )

    def projected(self, compressed: Compressed) -> Compressed:
        """The same model, its weights brought back to what the techniques of its policy allow.

        Args:
            compressed: after reconstruction or training; its module is changed.
        """
        work = Stitching(
            compressed.module,
            compressed.policy,
            self.settings,
            self.inventory,
            parts=dict(compressed.parts),
        )
        with torch.no_grad():
            for technique in filter(work.asks, in_order()):
                if technique.projects:
                    technique.project(work)
        return compressed

    def widths(self, policy: Policy) -> dict[str, int]:
        """Group name to the channels that each of its heads keeps where heads get narrower."""
        return resolver(self.inventory, self.settings).narrowed(policy)

    def gone(self, policy: Policy) -> dict[str, list[int]]:
        """Group name to the channels that a policy removes; not of heads that get narrower."""
        kept, narrower = resolver(self.inventory, self.settings).kept(policy), self.widths(policy)
        found = {}
        for group in self.inventory.channel_groups:
            count = group.channels - kept[group.name]
            if count == 0 or group.name in narrower:
                continue
            if group.name not in self.orders:
                raise InputError(
                    f"The residual stream {group.name!r} can only be pruned with "
                    "`prune_residual: true` in the search space."
                )
            found[group.name] = self.orders[group.name][:count]
        return found

    def _prepare(
        self,
        module: nn.Module,
        gone: Mapping[str, list[int]],
        widths: Mapping[str, int],
        solve: bool,
    ) -> None:
        """Let what stays do the most that it can; slicing drops the rest."""
        if solve:
            self._place_solved(module, self.plan.removals(gone))
        for group, width in widths.items():
            turn(module, self.plan.narrowings[group], self.turns(group), width)

    def turns(self, group: str) -> list[Turn]:
        """How the heads of a group are turned before they get narrower."""

        def seen(name: str) -> Tensor | None:
            found = self.moments.get(name)
            return None if found is None else found.second[0]

        found: list[Turn] = self._memo.get(
            ("turns", group),
            lambda: turns(self.model, self.plan.narrowings[group], seen),
            lambda made: 4 * len(made) * made[0].query.nbytes,
        )
        return found

    def _place_solved(self, module: nn.Module, removals: Mapping[ModuleSide, list[int]]) -> None:
        """Put re-solved weights into the features that stay; slicing drops the others."""
        reads = dict(self._reads(removals))
        for name, gone in reads.items():
            if not self._solves(name, gone, reads):
                continue
            layer = matrix_layer(module, name)
            weight, bias = self.solved(name, gone)
            with torch.no_grad():
                layer.weight.copy_(weight)
                if layer.bias is not None and bias is not None:
                    layer.bias.copy_(bias)

    def _reads(self, removals: Mapping[ModuleSide, list[int]]) -> Iterator[tuple[str, list[int]]]:
        """Layers that read channels that go, with these; of an attention, what reads its heads."""
        for (name, side), gone in removals.items():
            if side == "in":
                yield name, gone
            elif side == "heads":
                yield projection_of(self.model, name), gone

    def _solves(self, name: str, gone: list[int], reads: Mapping[str, list[int]]) -> bool:
        """Whether a layer can be solved, and with it all that hold the same weight."""
        return all(
            holder in self.moments and reads.get(holder) == gone
            for holder in holders(self._shared, name)
        )

    def solved(self, name: str, gone: list[int]) -> tuple[Tensor, Tensor | None]:
        """Weights of a layer, all outputs, re-solved without some input channels (left at zero)."""
        found: tuple[Tensor, Tensor | None] = self._memo.get(
            ("solved", name, tuple(gone)),
            lambda: solve_without(
                self.model, self.moments, self._shared, name, gone, self.settings.ridge
            ),
            lambda made: made[0].nbytes,
        )
        return found

    def _shares(self, name: str) -> Tensor | None:
        """The share of each row of a table in what is read."""
        found = self.rows.get(name)
        return None if found is None else smoothed(found.counts)

    def _sliced_moments(
        self, name: str, gone: list[int], widths: Mapping[str, int]
    ) -> Tensor | None:
        found = self.moments.get(name)
        if found is None or len(found.second) > 1:
            return None
        if any(self.plan.narrowings[group].heads[0].reader == name for group in widths):
            return None  # it reads heads that were turned
        weight = matrix_layer(self.model, name).weight
        mask = torch.ones(weight.shape[1], dtype=torch.bool)
        mask[gone] = False
        kept = mask.repeat_interleave(weight[0, 0].numel()).nonzero().flatten()
        return found.second[0][kept][:, kept]


def _remedy(
    technique: Technique, layer: LayerSpec, policy: LayerPolicy, inventory: Inventory
) -> str:
    """What to write where a technique cannot do what a policy asks: the least that helps."""
    asked = {f.name: f.default for f in technique.fields if policy.value(f.name) != f.default}
    for name in asked:
        others = {key: value for key, value in policy.as_dict().items() if key != name}
        try:
            milder = LayerPolicy.from_dict(others)
        except PolicyError:  # the others mean nothing without it
            continue
        if not technique.why_not(layer, milder, inventory):
            asked = {name: asked[name]}
            break
    values = (f"`{name}: {'null' if v is None else v}`" for name, v in asked.items())
    return f"Use {' and '.join(values)} there."


def _module_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in state_tensors(module).values())
