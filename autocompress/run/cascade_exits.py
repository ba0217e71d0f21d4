"""Early exits: networks of a run answer part-way, with heads that are solved and not trained.

A network's file is cut where one tensor alone flows on. Its beginning with a head is a member like
any other; where the rest of the same network is asked next, it goes on from the features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.cascade.chain import Index, Member
from autocompress.cascade.confidence import Floats, as_logits
from autocompress.cascade.heads import HeadMoments, LinearHead
from autocompress.cascade.sequence import time_sequence
from autocompress.errors import AutocompressError, ExportError
from autocompress.machine.facts import cores_to_use
from autocompress.machine.lock import after_timing
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.writing import replacing
from autocompress.run.cascade_kept import kept_answers, naming_damage
from autocompress.runtime import open_file

if TYPE_CHECKING:
    from autocompress.exporters.onnx_parts import Cut
    from autocompress.results.trial import Trial
    from autocompress.run.cascade_members import RunMembers
    from autocompress.task.split import Split

NETWORKS = 4
"""That exits are offered of: the best of those that no quicker one equals."""
EXITS = 5
"""Of each network, spread evenly over its multiply-adds."""
HEAD_SAMPLES = 4096
"""Of the train split, on which a head learns what its network answers."""
_TIMED = 200
_TIMED_S = 30.0
_PROVIDERS = ("CPUExecutionProvider",)
Ends = tuple[str | None, str | None]
"""Of a part: the cut that it takes, and the one at which it answers; ``None``: the network's."""


def with_exits(known: RunMembers, judged: Sequence[Member], fitted_on: Index) -> list[Member]:
    """Members and early exits of the best of them; the uncompressed model stays last.

    Args:
        known: of the run; why a network has none is added to its ``left_out``.
        judged: its members, on val.
        fitted_on: inputs that networks are chosen and temperatures are fitted on.
    """
    by_number: dict[int | None, Trial | None] = {t.number: t for t in known.trials()}
    by_number[None] = None
    found, wholes = [], list(judged)
    for place in _best(judged, fitted_on):
        member = judged[place]
        try:
            exits, wholes[place] = _exits(known, member, by_number[member.trial], fitted_on)
        except AutocompressError as error:
            known.left_out[f"early exits of {member.label}"] = str(error)
            continue
        found += exits
    return [*found, *wholes]


def _best(judged: Sequence[Member], fitted_on: Index) -> list[int]:
    """Members that no quicker one equals, those that are right most often."""
    right = [int(m.right[fitted_on].sum()) for m in judged]
    order = sorted(range(len(judged)), key=lambda i: (judged[i].latency_ms, -right[i]))
    front: list[int] = []
    for i in order:
        if not front or right[i] > right[front[-1]]:
            front.append(i)
    return front[-NETWORKS:]


def _exits(
    known: RunMembers, member: Member, trial: Trial | None, fitted_on: Index
) -> tuple[list[Member], Member]:
    """A network's exits, and the network, which goes on from any of them."""
    cuts = spread(cuts_of(known.file(trial)))
    known.progress(f"early exits of {member.label}", 0.0)
    ms = _latencies(known, trial, [cut.tensor for cut in cuts], member.latency_ms)
    targets, found = known.targets("val"), list[Member]()
    for i, (cut, name) in enumerate(zip(cuts, _names(cuts), strict=True)):
        logits = _part_logits(known, trial, cut.tensor, "val")
        label = f"{member.label} to {name}"
        made = Member.of(label, ms[None, cut.tensor], logits, targets, fitted_on, member.trial)
        after = {found[j].label: ms[cuts[j].tensor, cut.tensor] for j in range(i)}
        found.append(replace(made, exit=cut.tensor, share=cut.share, after=after))
    rest = {one.label: ms[cut.tensor, None] for one, cut in zip(found, cuts, strict=True)}
    return found, replace(member, after=rest)


def _names(cuts: Sequence[Cut]) -> list[str]:
    """A name of each cut that no other has: a module may run at several places."""
    modules = [cut.module for cut in cuts]
    return [
        f"{name} ({modules[: i + 1].count(name)})" if modules.count(name) > 1 else name
        for i, name in enumerate(modules)
    ]


def cuts_of(file: Path) -> list[Cut]:
    """Where a file can be cut.

    Raises:
        ExportError: nowhere.
    """
    found: list[Cut] = _parts(file).cuts()
    if not found:
        raise ExportError("between its layers with weights no single tensor flows on")
    return found


def spread(cuts: Sequence[Cut], most: int = EXITS) -> list[Cut]:
    """At most so many, spread evenly over the multiply-adds."""
    wanted = [(i + 1) / (most + 1) for i in range(most)]
    near = {min(cuts, key=lambda cut: abs(cut.share - share)) for share in wanted}
    return sorted(near, key=lambda cut: cut.share)


def _parts(file: Path) -> Any:
    import onnx

    from autocompress.exporters.onnx_parts import Parts

    model = onnx.load(str(file))
    if len(model.graph.output) != 1:
        raise ExportError(f"it has {len(model.graph.output)} outputs, and a head gives one")
    return Parts(model)


def fit_heads(file: Path, cuts: Sequence[str], train: Split) -> dict[str, LinearHead]:
    """Heads at some cuts of a network's file, that answer as nearly as they can what it answers.

    Args:
        file: of the network.
        cuts: tensors.
        train: inputs; the first draw of ``HEAD_SAMPLES`` of them is taken.
    """
    import onnx

    sample = train.sample(min(HEAD_SAMPLES, len(train)), 0)
    sums: dict[str, HeadMoments] = {}
    with scratch_folder("heads") as folder:
        onnx.save(_parts(file).probes(cuts), str(folder / "probes.onnx"))
        session = open_file(folder / "probes.onnx", cores_to_use(), _PROVIDERS)
        for outputs in _answers(session, sample):
            wanted = outputs[0].reshape(len(outputs[0]), -1)
            for cut, features in zip(cuts, outputs[1:], strict=True):
                if cut not in sums:
                    sums[cut] = HeadMoments(features.shape[1], wanted.shape[1])
                sums[cut].add(features, wanted)
    return {cut: one.head() for cut, one in sums.items()}


def write_part(
    file: Path, path: Path, start: str | None, end: str | None, head: LinearHead | None
) -> Path:
    """Write the part of a network's file between two cuts; see ``Parts.part``.

    Raises:
        ExportError: it cannot be taken out.
    """
    import onnx

    try:
        made = _parts(file).part(start, end, head)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(f"its file cannot be cut: {str(error).splitlines()[0]}") from None
    with replacing(path) as partial_file:
        onnx.save(made, str(partial_file))
    return path


def part_file(known: RunMembers, trial: Trial | None, start: str | None, end: str | None) -> Path:
    """The file of a part of a member; of the whole member, where neither end is named."""
    file = known.file(trial)
    if start is None and end is None:
        return file
    path = known.place / "files" / f"{_stem(known, trial, start, end)}.onnx"
    if not path.is_file():
        head = None if end is None else _head(known, trial, end)
        write_part(file, path, start, end, head)
    return path


def _head(known: RunMembers, trial: Trial | None, cut: str) -> LinearHead:
    """The head at a cut; all heads of a network are fitted at once and kept."""
    path = known.place / "heads" / f"{known.stem(trial)}.npz"
    cuts = [one.tensor for one in spread(cuts_of(known.file(trial)))]
    if not path.is_file():
        heads = fit_heads(known.file(trial), cuts, known.parts.data.train)
        kept = {f"{_short(c)}.{n}": getattr(h, n) for c, h in heads.items() for n in _HEAD}
        with replacing(path) as partial_file, partial_file.open("wb") as stream:
            np.savez(stream, **kept)
    with naming_damage(path), np.load(path, allow_pickle=False) as kept:
        return LinearHead(*(kept[f"{_short(cut)}.{name}"] for name in _HEAD))


_HEAD = ("weight", "bias")


def logits_of(known: RunMembers, member: Member, split: str) -> Floats:
    """What a member answers on a split, ``(N, classes)``."""
    trial = next((t for t in known.trials() if t.number == member.trial), None)
    if member.exit is None:
        return known.logits(trial, split)
    return _part_logits(known, trial, member.exit, split)


def _part_logits(known: RunMembers, trial: Trial | None, cut: str, split: str) -> Floats:
    """What the beginning of a network answers; kept for the next time."""
    from autocompress.run.cascade_members import class_scores

    kind = class_scores(known.parts).kind
    path = known.place / "answers" / f"{_stem(known, trial, None, cut)}-{split}.npy"
    if not path.is_file():
        session = open_file(part_file(known, trial, None, cut), cores_to_use(), _PROVIDERS)
        rows = [outputs[0] for outputs in _answers(session, getattr(known.parts.data, split))]
        with replacing(path) as partial_file, partial_file.open("wb") as stream:
            np.save(stream, np.concatenate(rows).astype(np.float32), allow_pickle=False)
    return as_logits(kept_answers(path, known.count(split)), kind)


def _answers(session: Any, split: Split) -> Iterator[list[Any]]:
    from autocompress.task.nested import tensors

    names = [given.name for given in session.get_inputs()]
    for inputs, _ in split.batches(250):
        after_timing()
        arrays = (part.numpy(force=True) for part in tensors(inputs))
        yield session.run(None, dict(zip(names, arrays, strict=True)))


def _latencies(
    known: RunMembers, trial: Trial | None, cuts: Sequence[str], whole_ms: float
) -> dict[Ends, float]:
    """Latency of every part between two cuts, by its ends; kept for the next time.

    Parts take turns with the whole network, and are told as shares of its latency in the run.
    """
    path = known.place / "times" / f"{known.stem(trial)}.json"
    if not path.is_file():
        shares = _timed(known, trial, cuts)
        told = [{"start": a, "end": b, "share": share} for (a, b), share in shares.items()]
        with replacing(path) as partial_file:
            partial_file.write_text(json.dumps(told, indent=1), encoding="utf-8")
    with naming_damage(path):
        kept = json.loads(path.read_text(encoding="utf-8"))
        shares = {(one["start"], one["end"]): float(one["share"]) for one in kept}
        ends: list[str | None] = [None, *cuts, None]
        return {pair: whole_ms * shares[pair] for pair in combinations(ends, 2)}


def _timed(known: RunMembers, trial: Trial | None, cuts: Sequence[str]) -> dict[Ends, float]:
    """Median latency of every part, as a share of that of the whole network."""
    from autocompress.task.nested import tensors

    ends: list[str | None] = [None, *cuts, None]
    pairs = [(ends[i], ends[j]) for i, j in combinations(range(len(ends)), 2)]
    files = [part_file(known, trial, *pair) for pair in pairs]
    threads = known.parts.study.target.config().threads
    sessions = [open_file(file, threads, _PROVIDERS) for file in files]
    first = next(iter(known.parts.data.val.batches(_TIMED)))[0]
    arrays = [np.ascontiguousarray(part.numpy(force=True)) for part in tensors(first)]
    given = [[array[i : i + 1] for array in arrays] for i in range(len(arrays[0]))]
    handed: dict[str | None, list[list[Any]]] = {None: given}
    for (start, end), session in zip(pairs, sessions, strict=True):
        if start is None and end is not None:
            handed[end] = [[_run(session, one)[-1]] for one in given]

    calls: list[Callable[[Any], object]] = [
        partial(
            lambda i, run, feeds: run(feeds[i]), run=partial(_run, session), feeds=handed[start]
        )
        for (start, _), session in zip(pairs, sessions, strict=True)
    ]
    times = time_sequence(calls, [range(len(given))], max_seconds=_TIMED_S)
    middle = np.median(times.ms, axis=0)
    whole = middle[pairs.index((None, None))]
    return {pair: float(one / whole) for pair, one in zip(pairs, middle, strict=True)}


def _run(session: Any, arrays: Sequence[Any]) -> list[Any]:
    names = (given.name for given in session.get_inputs())
    found: list[Any] = session.run(None, dict(zip(names, arrays, strict=True)))
    return found


def _stem(known: RunMembers, trial: Trial | None, start: str | None, end: str | None) -> str:
    return f"{known.stem(trial)}-from-{_short(start)}-to-{_short(end)}"


def _short(cut: str | None) -> str:
    """A cut in a file's name."""
    return "end" if cut is None else hashlib.sha256(cut.encode()).hexdigest()[:12]
