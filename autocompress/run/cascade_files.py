"""Files of a cascade: written from its built members, timed on test inputs, and measured again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.cascade.manifest import MANIFEST, Manifest, Stage
from autocompress.cascade.sequence import SequenceTimes, time_sequence
from autocompress.errors import ExportError, InputError
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.files import check_output
from autocompress.policy.writing import replacing
from autocompress.results.metric import Measurement
from autocompress.run.cascade_exits import cuts_of, fit_heads, write_part
from autocompress.runtime import Cascade, open_file

if TYPE_CHECKING:
    from autocompress.policy.claims import CascadeClaim
    from autocompress.policy.recipe import Recipe
    from autocompress.run.assembly import Assembly
    from autocompress.techniques.compressed import Compressed

ONE_FILE = "cascade.onnx"
MEASURED = "measured.json"
_BYTES = 128_000_000
"""Of inputs that are held while they are timed."""


def one_file(manifest: Manifest, folder: Path) -> str:
    """Write the cascade as one file into the folder of its files, or say why there is none."""
    from autocompress.exporters.onnx_cascade import write_cascade

    try:
        write_cascade(manifest, folder, folder / ONE_FILE)
    except ExportError as error:
        return str(error)
    return ""


def write_built(
    recipe: Recipe, built: Mapping[str, Compressed], parts: Assembly, output: Path
) -> int:
    """Write a cascade from its members.

    Args:
        recipe: of the cascade.
        built: members by the names of their recipes.
        parts: of the study.
        output: an ``.onnx`` file for single inputs, or the folder of several files.

    Returns:
        Bytes of all files.

    Raises:
        ExportError: the members do not fit into one file.
    """
    from autocompress.exporters.onnx_cascade import write_cascade

    with scratch_folder("cascade") as scratch:
        manifest = _export(recipe, built, parts, scratch)
        if output.suffix == ".onnx":
            write_cascade(manifest, scratch, output)
            return output.stat().st_size
        one_file(manifest, scratch)
        settle(scratch, output)
    return _bytes(manifest, output)


def settle(made: Path, folder: Path) -> None:
    """Let the finished files of a cascade take their places.

    Names of parts recur from cascade to cascade: what is asked by them goes first and comes last,
    so that a folder never holds files of one cascade and the manifest of another.

    Args:
        made: folder of all files of the cascade and no others.
        folder: for them; members of an earlier cascade go, what else lies there stays.
    """
    earlier = _members(folder)
    for name in (MANIFEST, ONE_FILE, MEASURED):
        (folder / name).unlink(missing_ok=True)
    names = [path.name for path in made.iterdir() if path.name != MANIFEST]
    for name in (*names, MANIFEST):
        with replacing(folder / name) as partial:
            shutil.copyfile(made / name, partial)
    for name in earlier.difference(names):
        (folder / name).unlink(missing_ok=True)


def _members(folder: Path) -> set[str]:
    """ONNX files that a folder's manifest names; none where there is no readable one.

    Other files are no members, whatever a manifest that comes from anybody says.
    """
    try:
        stages = Manifest.load(folder).stages
    except InputError:  # none, or damaged: whose the files are, nobody can tell
        return set()
    names = (name for stage in stages for name in stage.files)
    return {name for name in names if name.endswith(".onnx") and (folder / name).is_file()}


def check_folder(output: Path, *, formats: Collection[str] = ()) -> None:
    """See that a cascade can be written at a path, before anything is built.

    Args:
        output: an ``.onnx`` file, or a folder; it may be there.
        formats: suffixes of other files, which no folder is meant by.

    Raises:
        InputError: something else is there, or a cascade is no such file.
    """
    if output.suffix in formats and output.suffix != ".onnx":
        raise InputError(
            f"A cascade is written as one .onnx file or as a folder of several, and {output} names "
            "neither. Give another path."
        )
    check_output(output if output.suffix == ".onnx" else output / MANIFEST)


def _bytes(manifest: Manifest, folder: Path) -> int:
    """Of the members' files."""
    return sum((folder / name).stat().st_size for s in manifest.stages for name in s.files)


def measure_built(
    recipe: Recipe, built: Mapping[str, Compressed], parts: Assembly, folder: Path
) -> Measurement:
    """Measure a cascade on test, as when it was made.

    Args:
        recipe, built, parts: as for ``write_built``.
        folder: for its files.
    """
    from autocompress.task.calling import rebuild
    from autocompress.task.nested import tensors
    from autocompress.task.task import Judge

    manifest = _export(recipe, built, parts, folder)
    runner, judge = Cascade(folder), Judge(parts.task)
    names = [spec.name for spec in runner.get_inputs()]
    like = parts.evaluator.measurer.answer
    for inputs, targets in parts.data.test.batches(250):
        arrays = (part.numpy(force=True) for part in tensors(inputs))
        outputs = runner.run(None, dict(zip(names, arrays, strict=True)))
        judge.update(rebuild(like, outputs), targets)
    score = judge.quality()
    ratio, low, high = timed(parts, manifest, folder).ratio(1)
    base = parts.evaluator.baseline
    values = {
        base.quality.name: score.value,
        "latency_ms": ratio * base["latency_ms"],
        "size_bytes": float(_bytes(manifest, folder)),
    }
    timing = {"ratio": ratio, "ratio_low": low, "ratio_high": high}
    return Measurement(values, context={"timing": timing}, metrics=base.metrics[:1])


def timed(
    parts: Assembly, manifest: Manifest, folder: Path, seed: int = 0, max_seconds: float = 120.0
) -> SequenceTimes:
    """The uncompressed model, the runner, and the one file, on the test inputs in turn."""
    providers = ("CPUExecutionProvider",)
    runner = Cascade(folder, threads=manifest.threads)
    baseline = open_file(parts.evaluator.measurer.baseline_file, manifest.threads, providers)
    calls: list[Callable[[Any], object]] = [
        lambda feed: baseline.run(None, feed),
        lambda feed: runner.run(None, feed),
    ]
    if (folder / ONE_FILE).is_file():
        one = open_file(folder / ONE_FILE, manifest.threads, providers)
        calls.append(lambda feed: one.run(None, feed))
    feeds = _feeds(parts, runner.get_inputs())
    return time_sequence(calls, feeds, seed=seed, max_seconds=max_seconds)


def _feeds(parts: Assembly, inputs: Sequence[Any]) -> Iterator[list[dict[str, Any]]]:
    """Single test inputs in their order, so many at a time as may be held."""
    from autocompress.task.nested import tensors

    each = sum(part.nbytes for part in tensors(parts.data.test.inputs(1)))
    for batch, _ in parts.data.test.batches(max(1, _BYTES // max(1, each))):
        arrays = [np.ascontiguousarray(part.numpy(force=True)) for part in tensors(batch)]
        named = dict(zip((spec.name for spec in inputs), arrays, strict=True))
        yield [{name: a[i : i + 1] for name, a in named.items()} for i in range(len(arrays[0]))]


def _export(
    recipe: Recipe, built: Mapping[str, Compressed], parts: Assembly, folder: Path
) -> Manifest:
    """The members' files and the manifest in a folder."""
    from autocompress.exporters.onnx_parts import drop_features

    claim = recipe.cascade
    assert claim is not None
    folder.mkdir(parents=True, exist_ok=True)
    files, before = list[list[str]](), None
    with scratch_folder("members") as scratch:
        for name in {name: None for stage in claim.stages for name in stage.recipes}:
            parts.evaluator.measurer.export(built[name], scratch / f"{Path(name).stem}.onnx")
        for place, stage in enumerate(claim.stages):
            start = before if stage.takes == "features" else None
            names = []
            for name in stage.recipes:
                whole = scratch / f"{Path(name).stem}.onnx"
                path = folder / whole.name
                if start is None and stage.exit is None:
                    shutil.copyfile(whole, path)
                else:
                    path = path.with_stem(f"{path.stem}-part-{place + 1}")
                    _part(whole, path, start, stage.exit, parts)
                    if stage.exit is not None and not _goes_on(claim, place + 1):
                        drop_features(path)
                names.append(path.name)
            files.append(names)
            before = stage.exit
    made = manifest_of(claim, files, parts.study.target.config().threads)
    made.save(folder)
    return made


def manifest_of(claim: CascadeClaim, files: Sequence[Sequence[str]], threads: int = 1) -> Manifest:
    """How a recipe says that files are asked.

    Args:
        claim: of the recipe.
        files: names, for each of its stages.
        threads: of one operator.

    Raises:
        InputError: no cascade can be asked so.
    """
    stages = tuple(
        Stage(tuple(names), tuple(one.temperatures), one.threshold, one.takes)
        for one, names in zip(claim.stages, files, strict=True)
    )
    return Manifest(claim.confidence, claim.scores, claim.output, stages, threads)


def check_claim(claim: CascadeClaim) -> None:
    """Refuse what no cascade can be made of, before its members are built.

    Raises:
        InputError: it cannot be asked so, or its members' files would be one.
    """
    files = [[f"{Path(name).stem}.onnx" for name in stage.recipes] for stage in claim.stages]
    manifest_of(claim, files)
    named = {name for stage in claim.stages for name in stage.recipes}
    made = {name for names in files for name in names} - {ONE_FILE}
    if len(made) < len(named):
        raise InputError(
            "`recipes` of members must differ in more than their suffixes, and none may be called "
            f"{Path(ONE_FILE).stem}, got {', '.join(sorted(named))}."
        )


def _goes_on(claim: CascadeClaim, place: int) -> bool:
    """Whether there is such a stage, and it takes the features of the one before it."""
    return place < len(claim.stages) and claim.stages[place].takes == "features"


def _part(whole: Path, path: Path, start: str | None, end: str | None, parts: Assembly) -> None:
    """Write a part of a member's file, with its head fitted again.

    Raises:
        InputError: the file has no such tensor.
    """
    known = {cut.tensor for cut in cuts_of(whole)}
    for cut in (start, end):
        if cut is not None and cut not in known:
            raise InputError(
                f"The recipe names an early exit at {cut!r}, where this model cannot be cut. "
                "Make the cascade again: `autocompress cascade RUN`."
            )
    head = None if end is None else fit_heads(whole, [end], parts.data.train)[end]
    write_part(whole, path, start, end, head)
