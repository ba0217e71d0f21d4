"""A cascade as a trial of its run: a phase of its own, and what its members cost together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocompress.cascade.chain import Chain, Member
from autocompress.policy.costs import P99
from autocompress.policy.policy import Policy
from autocompress.results.difference import HITS, pack_hits
from autocompress.results.metric import Measurement
from autocompress.results.trial import Phase, Trial

if TYPE_CHECKING:
    from autocompress.run.cascade_members import RunMembers
    from autocompress.track.view import RunView

PHASE = Phase("cascade")
_MEAN = ("macs", "bops")


def as_trial(
    found: dict[str, Any],
    view: RunView,
    known: RunMembers,
    chain: Chain,
    members: Sequence[Member],
    right: tuple[NDArray[np.bool_], NDArray[np.bool_]],
) -> Trial:
    """The trial that the journal keeps.

    Multiply-adds are means over the inputs of val, bytes are those of its files, weights those of
    its networks; the 99th percentile is over the inputs of test, as a share of the uncompressed
    model's. It has no policy of its own: its members are named in the measurement's context.

    Args:
        found: what was chosen and measured.
        view, known: of the run.
        chain: of ``members``.
        right: whether each input of val, and of test, is answered rightly.
    """
    latency = found["latency"]["cascade"]
    timing = {k: latency[k] for k in ("ratio", "ratio_low", "ratio_high")}
    target = view.baseline.context.get("target")
    size = float(sum(Path(file).stat().st_size for file in found["files"]))
    costs = _costs(view, known, chain, members)
    values = {"latency_ms": latency["latency_ms"], **costs, "size_bytes": size}
    if P99 in view.baseline:  # the run told it of its single models
        whole = found["latency"]["uncompressed"]["p99_ms"]
        values[P99] = view.baseline[P99] * latency["p99_ms"] / whole
    keys = ("asked", "confidence", "scores", "output", "stages", "val", "test", "kept", "no_gain")
    told = {key: found[key] for key in keys}
    on_val, on_test = right
    common = {"timing": timing, **({} if target is None else {"target": target})}
    test = _measurement(view, values, on_test, {**common, "split": "test"})
    context = {**common, "split": "val", "cascade": told, "on_test": test.as_dict()}
    measured = _measurement(view, values, on_val, context)
    return Trial(
        found["trial"],
        Policy(),
        PHASE,
        origin="cascade",
        measurement=measured,
        violations=view.budget.violations(measured.values, view.baseline.values),
        parent=next((t for t in (members[i].trial for i in chain.members) if t is not None), None),
    )


def _measurement(
    view: RunView, values: dict[str, float], right: NDArray[np.bool_], context: dict[str, Any]
) -> Measurement:
    name, share = view.quality.name, float(right.mean())
    error = math.sqrt(share * (1 - share) / len(right))
    return Measurement(
        {name: share, **values},
        {name: error},
        {**context, "images": len(right), HITS: pack_hits(right)},
        view.baseline.metrics[:1],
    )


def _costs(
    view: RunView, known: RunMembers, chain: Chain, members: Sequence[Member]
) -> dict[str, float]:
    """What the members cost: multiply-adds by how many inputs reach them, weights in all.

    A stage that goes on from features adds what its network does after them.
    """
    by_number = {trial.number: trial.measurement for trial in known.trials()}
    count = len(members[0].right)
    reached = [1.0, *(h / count for h in chain.handed(members))]
    found: dict[str, float] = {}
    networks: dict[int | None, Measurement | None] = {}
    for place, (share, stage) in enumerate(zip(reached, chain.stages, strict=True)):
        done = members[chain.members[place - 1]].share if chain.goes_on(place, members) else 0.0
        for i in stage:
            number = members[i].trial
            cost = networks[number] = view.baseline if number is None else by_number[number]
            for name in _MEAN:
                if cost is not None and name in cost:
                    one = cost[name] * share * (members[i].share - done)
                    found[name] = found.get(name, 0.0) + one
    weights = [cost["params"] for cost in networks.values() if cost and "params" in cost]
    return {**found, "params": sum(weights)} if weights else found
