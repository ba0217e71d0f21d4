"""Advice that starts from the hardware: what this runtime gains on this very model, then a space.

Each way to compress is carried out alone on the whole model, exported, and timed beside the
uncompressed file. Nothing is recommended that was not measured to gain here; where nothing gains,
channels are offered, and it says so. A study of limited time tries as much as fits into a share of
it: 8 bits, channels and ranks that it has no time to try are offered all the same, and named.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError, explained
from autocompress.policy.files import check_output
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import techniques
from autocompress.policy.space_config import SpaceConfig
from autocompress.policy.ways import BITS, BLOCKS, CHANNELS, LEVELS, RANK, ZEROS, space_of

if TYPE_CHECKING:
    from autocompress.policy.technique import Technique
    from autocompress.run.assembly import Assembly

GAIN = 0.97
"""The whole interval of the ratio lies below this: what is closer to 1 is not worth its choices."""
MILD, HARD = 0.5, 0.1
"""Shares of the cost: down to the first, bits come first; below the second, whole blocks and other
architectures."""
_INTEGERS = {"weight_bits": 8, "activation_bits": 8}
_JUDGED = ("latency_ms", "size_bytes", "macs", "params")
_TIME_SHARE = 0.15
"""Of a study's limited time, for trying the ways."""
_UNTRIED = (BITS, CHANNELS, RANK)
"""What is offered without being tried, where there is no time: the ways of most spaces."""
_TIMED_S = 2.0
_SCREENED = 128
_ALONE: dict[str, dict[str, Any]] = {
    BITS: _INTEGERS,
    CHANNELS: {"prune_ratio": 0.5},
    RANK: {"rank_ratio": 0.5},
    ZEROS: {"pattern": "2:4"},
}
_TOGETHER = "half of the channels, in 8 bits"


@dataclass(frozen=True, slots=True)
class Tried:
    """One way to compress the whole model, measured.

    Args:
        way: in words.
        latency_ratio, low, high: of the uncompressed file's latency, with its interval; ``None``
            where it could not be tried.
        size_ratio, macs_ratio, params_ratio: of the uncompressed model's.
        divergence: of its outputs, without training, by the quick reconstruction.
        why_not: why it could not be tried.
        untried: whether there was no time to.
    """

    way: str
    latency_ratio: float | None = None
    low: float | None = None
    high: float | None = None
    size_ratio: float | None = None
    macs_ratio: float | None = None
    params_ratio: float | None = None
    divergence: float | None = None
    why_not: str = ""
    untried: bool = False

    def gains(self, metric: str) -> bool:
        """Whether it lowers a cost."""
        found = self.high if metric == "latency_ms" else self.ratio(metric)
        return found is not None and found < GAIN

    def ratio(self, metric: str) -> float | None:
        """Its share of a cost of the uncompressed model."""
        told = {
            "latency_ms": self.latency_ratio,
            "size_bytes": self.size_ratio,
            "macs": self.macs_ratio,
            "params": self.params_ratio,
        }
        return told[metric]


def advice_for(parts: Assembly) -> dict[str, Any]:
    """A search space, with its reasons.

    Args:
        parts: of a study; its own space is not looked at. Its evaluator is used, and may be used
            on.

    Returns:
        ``tried`` (see ``Tried``), ``space`` (plain data of a search space), ``reasons`` and
        ``left_out`` in sentences, ``metric`` (the cost that counts), ``asked`` (its share), and
        ``seconds`` and ``cost``: what trying took, also in a sentence.
    """
    limit = parts.study.timeout_s
    # what every search needs in any case is no part of what trying costs
    _ = parts.evaluator.measurer.baseline_file
    began = time.monotonic()
    tried = [*_tried(parts, math.inf if limit is None else _TIME_SHARE * limit)]
    metric, asked = _asked(parts)
    seconds = time.monotonic() - began
    told = {"seconds": round(seconds, 1), "cost": _cost(tried, seconds)}
    chosen = choose(tried, metric, asked)
    return {"metric": metric, "asked": asked, "tried": [asdict(t) for t in tried], **told, **chosen}


def _cost(tried: list[Tried], seconds: float) -> str:
    untried = sum(one.untried for one in tried)
    less = f"; {untried} of {len(tried)} ways were not tried for lack of time" if untried else ""
    return (
        f"What each way to compress gains here was measured in {seconds:.0f} s{less}. A `space` "
        "that is named spares that."
    )


def _asked(parts: Assembly) -> tuple[str, float]:
    """The limit that asks for most: its cost, and the share of the uncompressed model's.

    Latency where it is limited, and where nothing is that can be told of a file.
    """
    base, limits = parts.evaluator.baseline, parts.study.limits().limits
    shares = {
        limit.metric: limit.value if limit.relative else limit.value / base[limit.metric]
        for limit in limits
        if limit.metric in _JUDGED and (limit.relative or limit.metric in base)
    }
    if "latency_ms" in shares or not shares:
        return "latency_ms", shares.get("latency_ms", 1.0)
    return min(shares.items(), key=lambda item: item[1])


def _tried(parts: Assembly, most_s: float) -> Iterator[Tried]:
    """Export every way that there is for this model, and time the files in turns.

    Args:
        parts: of the study.
        most_s: seconds that it may take; ways that would take longer are not tried.
    """
    evaluator, failed = parts.evaluator, list[Tried]()
    policies: dict[str, tuple[Policy, Path]] = {}
    end, longest = time.monotonic() + most_s, 0.0
    whole = evaluator.estimator.cost(Policy())
    for way, policy, why_not in _policies(parts):
        if policy is None:
            failed.append(Tried(way, why_not=why_not))
            continue
        began, timing_s = time.monotonic(), _TIMED_S * (2 + len(policies)) / 2
        if began + longest + timing_s > end:
            failed.append(Tried(way, untried=True))
            continue
        parts.progress(f"trying {way}", 0.0)
        try:
            policies[way] = (policy, evaluator.export_variant(policy))
        except Exception as error:  # of an exporter, of a runtime: this way is not to be had here
            failed.append(Tried(way, why_not=explained(error)))
        longest = max(longest, time.monotonic() - began)
    parts.progress("timing", 0.0)
    files = [file for _, file in policies.values()]
    try:
        timings = evaluator.measurer.timings(files, max_seconds=_TIMED_S) if files else []
    finally:  # a study keeps the files of its trials alone
        for file in files:
            file.unlink(missing_ok=True)
    for (way, (policy, _)), timing in zip(policies.items(), timings, strict=True):
        yield Tried(
            way,
            timing.ratio,
            timing.ratio_low,
            timing.ratio_high,
            timing.size_bytes / timing.baseline_size_bytes,
            _share((cost := evaluator.estimator.cost(policy)).macs, whole.macs),
            _share(cost.params, whole.params),
            evaluator.screen(policy, _SCREENED).kl,
        )
    yield from failed


def _share(cost: float, whole: float) -> float:
    """Of nothing, nothing is gained: an embedding multiplies nothing."""
    return cost / whole if whole > 0 else 1.0


def _policies(parts: Assembly) -> Iterator[tuple[str, Policy | None, str]]:
    for way, values in _ALONE.items():
        yield way, *_uniform(parts, values)
    yield _TOGETHER, *_uniform(parts, {**_ALONE[CHANNELS], **_INTEGERS})
    gone = [name for block in parts.inventory.blocks[1::2] for name in block.layers]
    leave = LayerPolicy.from_dict({"block": "gone"})
    policy = Policy(dict.fromkeys(gone, leave)) if gone else None
    yield BLOCKS, policy, "" if gone else "no block of this model can go"


def _uniform(parts: Assembly, values: Mapping[str, Any]) -> tuple[Policy | None, str]:
    """The same for every layer that it may be done to, or why for none."""
    target = type(parts.evaluator.measurer.target)
    for technique in _of(values):
        if reason := technique.unsupported(target, LayerPolicy.from_dict(values)):
            return None, reason
    rule = {"match": "*", **{field: [_plain(field), value] for field, value in values.items()}}
    try:
        config = SpaceConfig.read({"name": "one way", "rules": [rule]}, where="")
        space = config.bind(parts.inventory, channel_multiple=parts.study.settings.channel_multiple)
        return space.decode(space.uniform(**values)), ""
    except InputError as error:
        return None, str(error)


def _of(values: Mapping[str, Any]) -> list[Technique]:
    return [t for t in techniques() if {field.name for field in t.fields} & set(values)]


def _plain(field: str) -> Any:
    """What leaves a layer as it is."""
    return getattr(LayerPolicy(), field)


def choose(tried: list[Tried], metric: str, asked: float) -> dict[str, Any]:
    """A space from what was measured.

    Bits first; down to half of the cost they are often all that is needed. Below, narrower layers
    and lower ranks where they gain, with distillation; below a tenth, whole blocks as well, and
    students are worth a thought.

    Args:
        tried: each way, measured alone.
        metric: the cost that counts.
        asked: its share that the budget allows; 1 without one.

    Raises:
        InputError: nothing can be done to the model.
    """
    found = {one.way: one for one in tried}
    reasons, left_out, ways = [], [], []
    bits = found[BITS]
    alone = bits.gains(metric) and (bits.ratio(metric) or 1.0) <= asked
    for way in LEVELS:
        one = found.get(way)
        if one is None:
            continue
        told = _told(one, metric)
        if one.untried and way in _UNTRIED:
            ways.append(way)
            reasons.append(f"{way}: {told}; offered all the same.")
        elif not one.gains(metric):
            left_out.append(f"{way}: {told}")
        elif way == BITS:
            enough = " That alone meets the budget." if alone and asked < 1 else ""
            ways.append(way)
            reasons.append(f"{way}: {told}.{enough}")
        elif alone and MILD <= asked < 1 and way != CHANNELS:
            left_out.append(f"{way}: {told}, but 8 bits alone meet a budget of {asked:.2f}x")
        elif way == BLOCKS and asked >= MILD and not _needs_blocks(found, metric, asked):
            left_out.append(f"{way}: {told}, which a budget of {asked:.2f}x does not ask for")
        else:
            reasons.append(f"{way}: {told}.{_beaten(one, [found[w] for w in ways], metric)}")
            ways.append(way)
    if not ways:
        ways = _still_to_be_had(found)
        offered = "channels" if ways == [CHANNELS] else f"{', '.join(ways)}"
        reasons.append(
            f"Nothing gains here; offered all the same: {offered}. Other costs may fall."
        )
    more = {"distill": [False, True]} if asked < MILD else {}
    if more:
        reasons.append(f"Distillation: {asked:.2f}x takes training, which a teacher may help.")
    if asked < HARD:
        reasons.append(
            f"{asked:.2f}x is far: other architectures may reach it sooner; name `students`."
        )
    return {"space": space_of(ways, **more), "reasons": reasons, "left_out": left_out}


def _still_to_be_had(found: Mapping[str, Tried]) -> list[str]:
    """What is offered where nothing gains: channels, and where none can go all that can be done.

    Raises:
        InputError: nothing can be done to this model.
    """
    ways = [way for way in LEVELS if way in found and not found[way].why_not]
    if not ways:
        told = "; ".join(f"{way}: {one.why_not}" for way, one in found.items())
        raise InputError(
            f"No way to compress is to be had for this model in this runtime ({told}). `profile` "
            "says which layers are left alone, and why; `targets` shows other runtimes."
        )
    return [CHANNELS] if CHANNELS in ways else ways


def _needs_blocks(found: Mapping[str, Tried], metric: str, asked: float) -> bool:
    """Whether half the width in 8 bits does not go far enough."""
    together = found.get(_TOGETHER)
    ratio = together.ratio(metric) if together is not None else None
    return ratio is not None and ratio > asked


def _beaten(one: Tried, others: Iterable[Tried], metric: str) -> str:
    """Why a way is offered although another one goes further and errs less; empty if none does."""
    for other in others:
        pairs = (other.ratio(metric), one.ratio(metric)), (other.divergence, one.divergence)
        if all(mine is not None and its is not None and mine < its for mine, its in pairs):
            return (
                f" On the whole model {other.way} go further and err less; in single layers, or on "
                "top of that, this may still pay."
            )
    return ""


def _told(one: Tried, metric: str) -> str:
    if one.untried:
        return "not tried, for lack of time"
    if one.why_not:
        return f"not to be had here ({one.why_not})"
    what = {"latency_ms": "latency", "size_bytes": "file size"}.get(metric, metric)
    ratio = one.ratio(metric)
    interval = f" ({one.low:.2f} to {one.high:.2f})" if metric == "latency_ms" else ""
    gained = "" if one.gains(metric) else ", which gains nothing"
    return f"{ratio:.2f} of the {what}{interval}, divergence {one.divergence:.2g}{gained}"


def check_new(path: Path) -> None:
    """Refuse a file that is there already, before anything is measured for it."""
    if path.exists():
        raise InputError(f"{path} is there already. Choose another with -o, or delete it.")
    check_output(path)


def write_space(found: Mapping[str, Any], path: Path) -> None:
    """The advised space as a file, with its reasons as comments.

    Raises:
        InputError: the file is there already.
    """
    import yaml

    check_new(path)
    lines = [f"# {text}" for text in found["reasons"]]
    lines += [f"# Left out: {text}" for text in found["left_out"]]
    text = yaml.safe_dump(found["space"], sort_keys=False)
    path.write_text("\n".join(lines) + "\n" + text, encoding="utf-8")
