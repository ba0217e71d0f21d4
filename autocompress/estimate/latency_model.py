"""Predicts the latency of any policy of a space in a millisecond, from a table of layer times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import PolicyError
from autocompress.estimate.kernel_table import (
    KernelTable,
    keep,
    load_table,
    measure_kernels,
    table_path,
    typical_footprint,
)
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_fit import Fit, fit
from autocompress.estimate.latency_row import Row
from autocompress.estimate.whole_models import ExportVariant, time_variants
from autocompress.machine.progress import Progress, silent
from autocompress.measure.quiet import QuietSpeed
from autocompress.model.shapes import LayerShape
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Policy
from autocompress.policy.registry import by_knob
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space
from autocompress.targets.base import Target

_VERSION = 3
#: models that a fit rests on, as its time grows with their cube: the first ones lie all over the
#: space, the latest near what is asked for next
_FIRST, _LATEST = 50, 350


@dataclass(frozen=True, slots=True)
class Measured:
    """A whole model that was timed: its policy and its share of the uncompressed latency."""

    policy: Policy
    ratio: float


@dataclass
class LatencyModel:
    """Latency = intercept + scale x (sum of layer times) + what lies between the layers.

    The times of the layers come from the runtime's own profiler; the few coefficients, and how far
    each layer's time is off, are fitted on whole models, measured interleaved with the uncompressed
    one.

    Args:
        plan: arithmetic on the inventory.
        table: times of single layers.
        baseline_ms: the uncompressed latency that predictions are scaled to; may be set anew when
            the uncompressed model is measured again.
        reference_ms: the uncompressed latency at the time when the layers were measured.
        measured: whole models that the fit rests on.
        students: latency of other architectures, as shares of the uncompressed latency.
    """

    plan: LayerPlan
    table: KernelTable
    baseline_ms: float
    reference_ms: float
    measured: list[Measured] = field(default_factory=list)
    students: dict[str, float] = field(default_factory=dict)
    _fit: Fit | None = None
    _rows: list[Row] = field(default_factory=list)

    @classmethod
    def build(
        cls,
        target: Target,
        inventory: Inventory,
        space: Space,
        export_variant: ExportVariant,
        cache_dir: str | Path,
        *,
        settings: CompressionSettings | None = None,
        baseline: str | Path | None = None,
        variants: int = 24,
        seed: int = 0,
        quiet: QuietSpeed | None = None,
        progress: Progress = silent,
    ) -> LatencyModel:
        """Measure the layers of a space and a few whole models; read from the cache if possible.

        Args:
            target: where the models run.
            inventory: of the uncompressed model.
            space: which widths, bits and ranks are needed.
            export_variant: builds and exports a policy's model; the files are deleted when timed.
            cache_dir: kept here by target, machine and architecture.
            settings: rounding of channel counts.
            baseline: the exported uncompressed model, not deleted; ``None`` exports one.
            variants: how many whole models to time.
            seed: of the choice of these.
            quiet: told how quickly the uncompressed model ran, also where that is read.
            progress: told how far it is.

        Raises:
            ExportError: the uncompressed model, or every compressed one, cannot be exported.
        """
        quiet = quiet if quiet is not None else QuietSpeed()
        settings = settings or CompressionSettings()
        plan = LayerPlan(inventory, settings)
        chosen = choose_variants(space, variants, seed)
        footprint = typical_footprint(map(plan.weight_bytes, chosen))
        path = _cache_path(target, inventory, space, settings, variants, Path(cache_dir))
        if path.is_file():
            found = cls._load(path, plan, load_table(table_path(target, cache_dir, footprint)))
            if found is not None:
                quiet.note(found.reference_ms)
                return found
        needed = [*plan.space_kernels(space), *plan.kernels([Policy(), *chosen])]
        table = measure_kernels(target, needed, cache_dir, footprint=footprint, progress=progress)
        own = baseline is None
        base = Path(baseline) if baseline is not None else Path(export_variant(Policy()))
        ratios, baseline_ms = time_variants(target, chosen, base, export_variant, quiet, progress)
        measured = [Measured(policy, ratio) for policy, ratio in ratios.items()]
        if own:
            base.unlink(missing_ok=True)
        model = cls(plan, table, baseline_ms, baseline_ms, measured)
        keep(path, model.as_dict())
        return model

    @staticmethod
    def is_kept(
        target: Target,
        inventory: Inventory,
        space: Space,
        cache_dir: str | Path,
        *,
        settings: CompressionSettings,
        variants: int = 24,
    ) -> bool:
        """Whether ``build`` has measured before what it would be asked for; arguments as there."""
        path = _cache_path(target, inventory, space, settings, variants, Path(cache_dir))
        return path.is_file()

    @property
    def facts(self) -> Mapping[str, Any]:
        """Target and machine that the kernels were timed on."""
        return self.table.facts

    @property
    def fit(self) -> Fit:
        """The coefficients; fitted anew after ``observe``."""
        if self._fit is None:
            known = [Measured(Policy(), 1.0), *self.measured] if self.measured else []
            # a study measures by the thousand; rows of a policy stay what they are
            self._rows += [self._row(m.policy) for m in known[len(self._rows) :]]
            chosen = [*range(len(known))[:_FIRST], *range(_FIRST, len(known))[-_LATEST:]]
            self._fit = fit(
                [self._rows[i] for i in chosen],
                [known[i].ratio * self.reference_ms for i in chosen],
                self._row(Policy()).features,
            )
        return self._fit

    def predict(self, policy: Policy) -> tuple[float, float]:
        """Latency in ms and one standard deviation of the prediction's error.

        Raises:
            PolicyError: a student whose latency nobody gave.
        """
        if policy.student is not None:
            if policy.student not in self.students:
                raise PolicyError(
                    f"The latency of the student {policy.student!r} is not known. Measure it and "
                    "put it into `LatencyModel.students`."
                )
            return self.students[policy.student] * self.baseline_ms, 0.02 * self.baseline_ms
        ms, sigma = self.fit.predict(self._row(policy))
        scale = self.baseline_ms / self.reference_ms
        return ms * scale, sigma * scale

    def changes(self, policy: Policy) -> Callable[[Mapping[int, LayerShape]], tuple[float, float]]:
        """Predictions for policies that differ from one in a few layers, in time of these alone.

        Args:
            policy: to start from; no student.

        Returns:
            From what ``Resolver.changes`` finds to what ``predict`` gives.
        """
        rows = self.plan.row_changes(policy, self.table.ms, self.table.footprint)
        predicted, scale = self.fit.changes(self._row(policy)), self.baseline_ms / self.reference_ms

        def changed(found: Mapping[int, LayerShape]) -> tuple[float, float]:
            ms, sigma = predicted(rows(found))
            return ms * scale, sigma * scale

        return changed

    def copy(self) -> LatencyModel:
        """One that learns on its own from here on."""
        return replace(self, measured=list(self.measured), _rows=list(self._rows))

    def observe(self, policy: Policy, ratio: float) -> None:
        """Learn from another measured model: its latency / the uncompressed latency."""
        self.measured.append(Measured(Policy(policy.layers), float(ratio)))
        self._fit = None

    def _row(self, policy: Policy) -> Row:
        return self.plan.row(policy, self.table.ms, self.table.footprint)

    def as_dict(self) -> dict[str, Any]:
        """Plain data without the table, which has its own file."""
        return {
            "version": _VERSION,
            "baseline_ms": self.reference_ms,
            "measured": [{"policy": m.policy.as_dict(), "ratio": m.ratio} for m in self.measured],
            "students": self.students,
        }

    @classmethod
    def _load(cls, path: Path, plan: LayerPlan, table: KernelTable) -> LatencyModel | None:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("version") != _VERSION or not table.times:
            return None
        return cls(
            plan,
            table,
            data["baseline_ms"],
            data["baseline_ms"],
            [Measured(Policy.from_dict(m["policy"]), m["ratio"]) for m in data["measured"]],
            dict(data.get("students", {})),
        )


def choose_variants(space: Space, count: int, seed: int = 0) -> list[Policy]:
    """Policies whose whole models are worth timing: uniform ones at the ends, random ones between.

    Args:
        space: of the study.
        count: how many at most.
        seed: of the random ones.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Policy] = {}

    def add(assignment: Sequence[int]) -> None:
        policy = Policy(space.decode(assignment).layers)
        if policy.layers and len(found) < count:
            found.setdefault(policy.digest, policy)

    known = by_knob()
    timed = {
        c.kind: levels
        for c in space.choices
        if c.kind in known and (levels := known[c.kind].timed_levels(len(c.levels)))
    }
    kinds = sorted(timed, key=lambda kind: len(timed[kind]))
    for corner in product(*(timed[kind] for kind in kinds)):
        if len(found) >= count // 2:
            break
        place = dict(zip(kinds, corner, strict=True))
        add([min(place.get(c.kind, 0), len(c.levels) - 1) for c in space.choices])
    for i in range(20 * count):
        if len(found) >= count:
            break
        # how far each policy goes differs, so that its cost does too
        strength = rng.uniform(0.3, 3.0) if i % 2 else 1.0
        add(
            [
                int(rng.uniform() ** strength * len(c.levels)) if c.kind in timed else 0
                for c in space.choices
            ]
        )
    return list(found.values())


def _cache_path(
    target: Target,
    inventory: Inventory,
    space: Space,
    settings: CompressionSettings,
    variants: int,
    folder: Path,
) -> Path:
    parts = [
        inventory.architecture,
        [[c.name, [dict(level) for level in c.levels]] for c in space.choices],
        settings.channel_multiple,
        variants,
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    name = table_path(target, folder).stem.replace("kernels-", "model-", 1)
    return folder / f"{name}-{digest}.json"
