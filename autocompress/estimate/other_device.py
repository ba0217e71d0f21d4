"""Latency models of devices that are not here, from the table that each of them wrote.

A table with kernels is a device's own. One with whole models only, which takes a minute to time,
is placed: of all known devices that one's kernel times are taken by which the models are predicted
best.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from autocompress.errors import InputError
from autocompress.estimate.kernel_table import (
    LONGEST_MS,
    TABLE_VERSION,
    Facts,
    KernelTable,
    KernelTimes,
    StoredTable,
    keep,
    load_table,
    nominal_ms,
    parse_key,
)
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import LatencyModel, Measured
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Policy
from autocompress.policy.reading import read_mapping
from autocompress.policy.section import Section
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space
from autocompress.targets.config import TargetConfig

_log = logging.getLogger(__name__)
_FEWEST, _MOST = 4, 50
"""Whole models that a device must have timed to be placed by them; it is by so many of more."""
Milliseconds = Annotated[float, Field(gt=0, le=LONGEST_MS, allow_inf_nan=False, strict=True)]
"""Latency of a whole model."""


class TimedModel(Section):
    """A whole model that another device timed.

    Args:
        policy: what it was compressed by.
        ms: its latency.
    """

    policy: Policy
    ms: Milliseconds


class DeviceTable(StoredTable):
    """What the packed runner writes on another device: its ``table.json``.

    Args:
        architecture: of the packed model; empty where nobody said.
        facts: target and machine that the times were taken on.
        kernels: milliseconds by ``Kernel.key``; none where only whole models were timed.
        baseline_ms: latency of the uncompressed model; without one, the sum of the layers is the
            latency as it stands.
        models: whole models, timed beside the uncompressed one.
    """

    architecture: str = ""
    facts: Facts = Field(default_factory=dict)
    kernels: KernelTimes = Field(default_factory=dict)
    baseline_ms: Milliseconds | None = None
    models: tuple[TimedModel, ...] = ()

    @property
    def digest(self) -> str:
        """Of all that it says."""
        models = [[model.policy.as_dict(), model.ms] for model in self.models]
        return _digest([self.architecture, self.facts, self.kernels, self.baseline_ms, models])

    @classmethod
    def load(cls, path: str | Path) -> DeviceTable:
        """Read the file.

        Raises:
            InputError: no such file, or not a table.
        """
        run = "run the packed runner on the device (`python run_kernels.py`)"
        missing = f"{run[0].upper()}{run[1:]}; it writes table.json."
        data = read_mapping(path, "kernel table", form="JSON", missing=missing)
        version = data.get("version", TABLE_VERSION)
        if version != TABLE_VERSION:
            raise InputError(
                f"{path} is of version {version!r}, this autocompress reads {TABLE_VERSION}. Pack "
                f"the kernels again and {run}."
            )
        found = cls.read(data, where=f"The kernel table {path}")
        if found.kernels and not any(found.kernels.values()):
            raise InputError(f"In the kernel table {path} no kernel takes any time: {run}.")
        if not found.kernels and (found.baseline_ms is None or len(found.models) < _FEWEST):
            raise InputError(
                f"The kernel table {path} holds no kernel, and fewer than {_FEWEST} whole models "
                f"beside the uncompressed one: {run}."
            )
        return found


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Resemblance:
    """How well the kernel times of a known device predict a new one's whole models.

    Args:
        table: of the known device, as if it took as long for the uncompressed model's kernels as
            the new one does for the model.
        error: mean error of each model, predicted from the others, as a share of the uncompressed
            latency.
    """

    table: KernelTable
    error: float

    @property
    def name(self) -> str:
        """The known device in words."""
        facts = self.table.facts
        machine, target = facts.get("machine") or {}, facts.get("target") or {}
        where = machine.get("cpu") or "multiply-adds at one speed"
        if not target:
            return where
        return f"{where} ({target.get('runtime')}, threads: {target.get('threads')})"


def device_model(
    path: str | Path,
    inventory: Inventory,
    settings: CompressionSettings | None,
    cache_dir: str | Path,
) -> LatencyModel:
    """The latency model of a device from the ``table.json`` that its packed runner wrote.

    Args:
        path: of the table.
        inventory: of the uncompressed model.
        settings: rounding of channel counts.
        cache_dir: of known devices' kernel tables; a table with kernels is kept there.

    Returns:
        The model; where the device was placed, ``facts["placed"]`` says ``by`` which device's
        kernels, and the ``error``; ``facts["architecture"]`` is what the table says of its model,
        ``facts["digest"]`` is that of the table.

    Raises:
        InputError: no such file, or not a table, or one of another model.
    """
    found = DeviceTable.load(path)
    plan = LayerPlan(inventory, settings or CompressionSettings())
    _check_model(found, plan, path)
    facts = {**found.facts, "architecture": found.architecture, "digest": found.digest}
    base = found.baseline_ms or 1.0
    timed = found.models if found.baseline_ms else ()
    measured = [Measured(model.policy, model.ms / base) for model in timed]
    if found.kernels:
        table = KernelTable(found.kernels, found.facts)
        name = f"kernels-elsewhere-{_digest(table.as_dict())}.json"
        try:
            keep(Path(cache_dir) / name, table.as_dict())
        except (OSError, InputError) as error:
            _log.warning("No later device can be placed by this one: %s", error)
        return LatencyModel(plan, KernelTable(found.kernels, facts), base, base, measured)
    best = min(places(plan, base, measured, cache_dir), key=lambda place: place.error)
    facts |= {"placed": {"by": best.name, "error": best.error}, "footprint": best.table.footprint}
    return LatencyModel(plan, KernelTable(best.table.times, facts), base, base, measured)


def _check_model(found: DeviceTable, plan: LayerPlan, path: str | Path) -> None:
    """See that a table can be this model's.

    Raises:
        InputError: it cannot: it says so, or names layers or shapes that this model lacks.
    """
    inventory = plan.inventory
    if found.architecture not in ("", inventory.architecture):
        raise InputError(
            f"{path} was taken for another model (architecture {found.architecture}, this "
            f"one is {inventory.architecture}). Pack and run this model's kernels."
        )
    try:
        for policy in (model.policy for model in found.models):
            for name in policy:
                inventory.layer(name)
            if policy.student is not None:
                raise InputError(f"The table timed a student, {policy.student!r}.")
    except InputError as error:
        raise InputError(
            f"{path} was taken for another model. {error} Pack and run this model's kernels."
        ) from None
    held = {parse_key(key).template for key in found.kernels}
    own = plan.kernels([Policy()])
    if held and own and not any(kernel.template in held for kernel in own):
        raise InputError(
            f"{path} was taken for another model: it holds none of this one's kernels, such as "
            f"{own[0].key}. Pack and run this model's kernels."
        )


def remarks(model: LatencyModel, config: TargetConfig | None = None) -> list[str]:
    """What is to be said of a device's table before anybody relies on it: sentences.

    Args:
        model: of the device.
        config: with the threads and the batch that are asked for.
    """
    said, timed_with = [], model.facts.get("target") or {}
    for name in ("threads", "batch"):
        asked, there = getattr(config, name, None), timed_with.get(name)
        if asked is not None and there not in (None, asked):
            said.append(
                f"The table was timed with `{name}: {there}`, and the study says `{name}: {asked}`:"
                " its latencies are those of the table."
            )
    if not model.facts.get("architecture"):
        own = model.plan.kernels([Policy()])
        exact = sum(kernel.key in model.table.times for kernel in own)
        timed = "" if "placed" in model.facts else f" It holds {exact} of its {len(own)} kernels."
        said.append(
            "The table does not say which model it was taken on (`architecture`), so that nothing "
            f"shows that it is this one.{timed}"
        )
    if found := model.facts.get("placed"):
        said.append(
            f"The device timed whole models only. It resembles {found['by']}: by the kernel times "
            f"of that, each model is predicted from the others within {100 * found['error']:.1f} % "
            "of the uncompressed latency. For more, time the kernels there as well: `python "
            "run_kernels.py`."
        )
    return said


def check_foretold(model: LatencyModel, space: Space) -> None:
    """See that a device's table can tell of every arithmetic that a space may ask for.

    Raises:
        InputError: nothing of one of them was timed there.
    """
    for kernel in model.plan.space_kernels(space):
        model.table.ms(kernel)


def places(
    plan: LayerPlan, base_ms: float, measured: Sequence[Measured], cache_dir: str | Path
) -> Iterator[Resemblance]:
    """Every known device, with how well it predicts.

    Args:
        plan: of the model.
        base_ms: latency of the uncompressed model on the new device.
        measured: whole models there.
        cache_dir: as for ``device_model``.
    """
    kernels = plan.kernels([Policy(), *(one.policy for one in measured)])
    shown = {kernel.precision for kernel in kernels}
    yield _place(plan, KernelTable({k.key: nominal_ms(k) for k in kernels}), base_ms, measured)
    for path in sorted(Path(cache_dir).glob("kernels-*.json")):
        try:
            table = load_table(path)
        except InputError as error:
            _log.warning("A known device is left out: %s", error)
            continue
        try:
            for kernel in kernels:
                table.ms(kernel)
        except InputError:  # it holds nothing of that precision
            continue
        # how quick the new device is at any other arithmetic, none of its models tells
        times = {k: ms for k, ms in table.times.items() if parse_key(k).precision in shown}
        yield _place(plan, KernelTable(times, table.facts), base_ms, measured)


def _place(
    plan: LayerPlan, table: KernelTable, base_ms: float, measured: Sequence[Measured]
) -> Resemblance:
    whole_ms = sum(plan.row(Policy(), table.ms, table.footprint).kernels.values())
    speed = base_ms / whole_ms if whole_ms else 1.0  # recurrent layers are no kernels
    table = KernelTable({key: speed * ms for key, ms in table.times.items()}, table.facts)
    measured = measured[:_MOST]
    whole = LatencyModel(plan, table, base_ms, base_ms, list(measured))
    errors = []
    for i, one in enumerate(measured):
        rest = replace(whole, measured=[*measured[:i], *measured[i + 1 :]], _rows=[], _fit=None)
        errors.append(abs(rest.predict(one.policy)[0] / base_ms - one.ratio))
    return Resemblance(table, float(np.mean(errors)))
