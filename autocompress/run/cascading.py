"""A cascade of a finished run's members: chosen on val, measured on test, written as files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.cascade.amounts import asked_amounts
from autocompress.cascade.bound import clopper_pearson
from autocompress.cascade.chain import Chain, Member
from autocompress.cascade.choose import Asked, Choice, choose, counts, halves, told
from autocompress.cascade.manifest import MANIFEST, Manifest, Stage, Takes
from autocompress.cascade.sequence import SequenceTimes
from autocompress.controller.time_budget import CascadePlan
from autocompress.errors import InputError
from autocompress.exporters.onnx_parts import drop_features
from autocompress.machine.progress import Progress, silent
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.files import check_output
from autocompress.report.html import write_report
from autocompress.report.tables import write_summary
from autocompress.results.trial import Trial
from autocompress.run.assembly import Assembly
from autocompress.run.cascade_exits import logits_of, part_file, with_exits
from autocompress.run.cascade_files import (
    MEASURED,
    ONE_FILE,
    one_file,
    settle,
    timed,
)
from autocompress.run.cascade_members import RunMembers, class_scores
from autocompress.run.cascade_trial import as_trial
from autocompress.run.factories import from_elsewhere
from autocompress.run.reopened import reopened, study_of
from autocompress.run.study import StudyConfig
from autocompress.targets.config import TargetConfig
from autocompress.track.folder import RunFolder, write_json
from autocompress.track.journal import Journal
from autocompress.track.lock import RunLock, writer_of
from autocompress.track.view import RunView

_WHOLE = CascadePlan()


def cascade(
    run: str,
    asked: Asked,
    output: Path | None = None,
    progress: Progress = silent,
    *,
    early_exits: bool = True,
    trust: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Choose, write and measure a cascade.

    Args:
        run: folder of the run; answers of its members are kept in its ``cascade``.
        asked: what it is to keep to.
        output: folder of the files; ``cascade/best`` of the run by default.
        progress: told what is going on.
        early_exits: let networks answer part-way, too.
        trust: import whatever functions the run's study names.
        seed: of the halves of val, and of the order of timing.

    Returns:
        Plain data: what was asked and chosen, ``val``, ``test`` and ``latency`` as measured, and
        whether test bears out what was asked (``kept``).

    Raises:
        InputError: a run, a task or a target of which no cascade can be made.
        NoAnswer: no cascade keeps to what is asked.
    """
    folder = RunFolder.open(run)
    if output is not None:
        check_output(output / MANIFEST)
    place, writer = folder.root / "cascade", writer_of(folder)
    if writer is not None:
        raise InputError(f"Process {writer} is writing {folder.root}. Wait for its end.")
    # held before anything is read: two at once would write the same files and numbers
    with RunLock(folder) as lock, from_elsewhere(f"run {folder.root}", trust=trust):
        view = RunView.load(folder)
        check_target(study_of(folder).target.config())
        plan = CascadePlan(early_exits=early_exits)
        parts = reopened(folder, view, place, progress)
        found, trial = make_cascade(
            folder, view, parts, asked, output, progress, plan=plan, seed=seed
        )
        with Journal(folder, lock) as journal:
            journal.record(trial)
    view = RunView.load(folder)
    write_summary(folder, view, folder.best_model())
    write_report(folder, view)
    return found


def make_cascade(
    folder: RunFolder,
    view: RunView,
    parts: Assembly,
    asked: Asked,
    output: Path | None = None,
    progress: Progress = silent,
    *,
    plan: CascadePlan = _WHOLE,
    seed: int = 0,
) -> tuple[dict[str, Any], Trial]:
    """The same for a run that is open: what was found, and the trial to record.

    Args:
        folder, view, parts: of the run.
        asked, output, progress, seed: see ``cascade``.
        plan: what there is time for.
    """
    check_data(parts, asked)
    began, place = time.perf_counter(), folder.root / "cascade"
    known = RunMembers(folder, view, parts, place, progress, most=plan.members)
    first, second = halves(len(parts.data.val), seed)
    members = known.judged(first)
    if plan.early_exits:
        members = with_exits(known, members, first)
    progress("choosing", 0.0)
    choice = choose(members, members[-1].right, first, second, asked)
    files = output or place / "best"
    with scratch_folder("cascade") as scratch:
        manifest = _write(known, choice.chain, members, scratch)
        reason = one_file(manifest, scratch)
        progress("measuring on test", 0.0)
        test, right = _on_test(known, choice.chain, members)
        times = timed(parts, manifest, scratch, seed, plan.timing_s)
        settle(scratch, files)
    found = {
        "run": str(folder.root),
        "trial": 1 + max((t.number for t in view.trials), default=-1),
        "asked": _asked(asked),
        "scores": manifest.scores,
        "output": manifest.output,
        **_told(choice, members, second, view),
        "left_out": known.left_out,
        "test": test,
        "latency": _latency(times, view.baseline["latency_ms"]),
        "files": [str(files / name) for stage in manifest.stages for name in stage.files],
        "manifest": str(files / MANIFEST),
        "one_file": None if reason else str(files / ONE_FILE),
        "no_one_file": reason,
    }
    found["kept"] = _kept(asked, found)
    found["no_gain"] = _no_gain(found)
    write_json(files / MEASURED, found)
    on_val = choice.chain.right(members)
    trial = as_trial(found, view, known, choice.chain, members, (on_val, right))
    return found, replace(trial, seed=seed, seconds=time.perf_counter() - began)


def check_target(target: TargetConfig) -> None:
    """Refuse a target that cascades do not run in.

    Raises:
        InputError: it is another runtime or device, or times batches.
    """
    if target.runtime != "onnxruntime" or target.device != "cpu" or target.table is not None:
        raise InputError(
            "Cascades run in ONNX Runtime on this machine's CPU, and the run's target is "
            f"{target.runtime} on {target.device}. Make the run with `target: {{runtime: "
            "onnxruntime}`."
        )
    if target.batch != 1:
        raise InputError(
            f"A cascade's latency is told for single inputs, and the run was timed with batches of "
            f"{target.batch}. Make it with `target: {{batch: 1}}`."
        )


def asked_of(study: StudyConfig) -> Asked | None:
    """What a study asks of a cascade; ``None`` where it asks for none."""
    given = study.dynamic
    if given is None:
        return None
    return Asked(**asked_amounts(given.min_accuracy, given.mean_latency))


def check_data(parts: Assembly, asked: Asked | None) -> None:
    """Refuse a task and a val of which no cascade can be made, before anything is built.

    Args:
        parts: of the study.
        asked: of the cascade; ``None``: none is to be made.

    Raises:
        InputError: the task does not say how sure a model is, or val is too small.
    """
    if asked is None:
        return
    class_scores(parts)
    _, second = halves(len(parts.data.val))
    asked.check_inputs(len(second))


def _write(found: RunMembers, chain: Chain, members: Sequence[Member], folder: Path) -> Manifest:
    """The members' files and the manifest, in a folder of their own."""
    by_number = {trial.number: trial for trial in found.trials()}
    stages = []
    for place, asked in enumerate(chain.stages):
        names = []
        goes_on = chain.goes_on(place, members)
        start = members[chain.members[place - 1]].exit if goes_on else None
        for i in asked:
            number = members[i].trial
            trial = None if number is None else by_number[number]
            name = "uncompressed" if number is None else f"trial-{number}"
            if goes_on or members[i].exit is not None:
                name += f"-part-{place + 1}"
            shutil.copyfile(
                part_file(found, trial, start, members[i].exit), folder / f"{name}.onnx"
            )
            names.append(f"{name}.onnx")
            if members[i].exit is not None and not chain.goes_on(place + 1, members):
                drop_features(folder / names[-1])
        heat = tuple(members[i].temperature for i in asked)
        threshold = None if place == len(chain.thresholds) else chain.thresholds[place]
        takes: Takes = "features" if goes_on else "inputs"
        stages.append(Stage(tuple(names), heat, threshold, takes))
    scores = class_scores(found.parts)
    threads = found.parts.study.target.config().threads
    made = Manifest(chain.confidence, scores.kind, found.output, tuple(stages), threads)
    made.save(folder)
    return made


def _on_test(
    found: RunMembers, chain: Chain, members: Sequence[Member]
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Accuracy on the test split, and which stage answered what."""
    targets = found.targets("test")
    judged = list(members)
    for i in {*chain.members, len(members) - 1}:
        judged[i] = members[i].answering(logits_of(found, members[i], "test"), targets)
    baseline = judged[-1].right
    choice = told(chain, judged, baseline)
    right, stage = chain.right(judged), chain.answered(judged)
    losses, gains = counts(chain, judged, baseline)
    low, high = clopper_pearson(int(right.sum()), len(right), 0.95)
    spread = 1.96 * float(np.sqrt(losses + gains - (losses - gains) ** 2 / len(right))) / len(right)
    stages = range(len(chain.stages))
    told_of_test = {
        "inputs": len(right),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "baseline_accuracy": float(baseline.mean()),
        "lost": choice.lost,
        "lost_low": choice.lost - spread,
        "lost_high": choice.lost + spread,
        "mean_ms": choice.mean_ms,
        "answered": [float((stage == i).mean()) for i in stages],
        "answered_by_class": {
            str(label): [float((stage[targets == label] == i).mean()) for i in stages]
            for label in np.unique(targets)
        },
    }
    return told_of_test, right


def _asked(asked: Asked) -> dict[str, Any]:
    lost = None if asked.most_lost is None else 100 * asked.most_lost
    return {"most_lost_points": lost, "mean_ms": asked.mean_ms, "confidence": 1 - asked.alpha}


def _stages(choice: Choice, members: Sequence[Member]) -> list[dict[str, Any]]:
    chain = choice.chain
    reached, ms = (1.0, *choice.handed), chain.stages_ms(members)
    return [
        {
            "members": [members[i].label for i in asked],
            "trials": [members[i].trial for i in asked],
            "exit": members[asked[-1]].exit,
            "takes": "features" if chain.goes_on(place, members) else "inputs",
            "latency_ms": ms[place],
            "temperatures": [members[i].temperature for i in asked],
            "threshold": chain.thresholds[place] if place < len(chain.thresholds) else None,
            "reached": reached[place],
        }
        for place, asked in enumerate(chain.stages)
    ]


def _told(choice: Choice, members: Sequence[Member], second: Any, view: RunView) -> dict[str, Any]:
    """What was chosen, and what val says of it."""
    return {
        "confidence": choice.chain.confidence,
        "stages": _stages(choice, members),
        "val": {
            "inputs": choice.inputs,
            "mean_ms": choice.mean_ms,
            "ratio": choice.mean_ms / view.baseline["latency_ms"],
            "lost": choice.lost,
            "largest_loss": choice.largest_loss,
            "tested": choice.tested,
        },
        "members": len(members),
        "alone": _alone(members, second, choice),
    }


def _alone(members: Sequence[Member], second: Any, choice: Choice) -> dict[str, Any]:
    """Single members beside the cascade, on the inputs that thresholds were chosen on."""
    base = members[-1].right[second]
    lost = [float(base.mean() - m.right[second].mean()) for m in members]
    whole = [i for i, m in enumerate(members) if m.exit is None]
    as_good = [i for i in whole if lost[i] <= choice.lost]
    as_quick = [i for i in whole if members[i].latency_ms <= choice.mean_ms]
    found: dict[str, Any] = {"as_good": None, "as_quick": None}
    for name, places in (("as_good", as_good), ("as_quick", as_quick)):
        if places:
            best = min(
                places,
                key=lambda i: members[i].latency_ms if name == "as_good" else lost[i],
            )
            found[name] = {
                "trial": members[best].trial,
                "label": members[best].label,
                "latency_ms": members[best].latency_ms,
                "lost": lost[best],
            }
    return found


def _latency(times: SequenceTimes, baseline_ms: float) -> dict[str, Any]:
    names = ("uncompressed", "cascade", "one_file")[: times.ms.shape[1]]
    found: dict[str, Any] = {"inputs": len(times.ms)}
    for model, name in enumerate(names):
        ratio, low, high = times.ratio(model)
        found[name] = {
            **times.told(model),
            "ratio": ratio,
            "ratio_low": low,
            "ratio_high": high,
            "latency_ms": ratio * baseline_ms,
        }
    return found


def _kept(asked: Asked, result: dict[str, Any]) -> bool:
    """Whether test bears out what was asked."""
    if asked.most_lost is not None:
        return bool(result["test"]["lost"] <= asked.most_lost)
    assert asked.mean_ms is not None
    return bool(result["latency"]["cascade"]["latency_ms"] <= asked.mean_ms)


def _no_gain(result: dict[str, Any]) -> str:
    """That a single member as accurate is as quick, where both forms were measured to be slower.

    The choice goes by what the members take, to which asking them in turn adds some.
    """
    alone, latency = result["alone"]["as_good"], result["latency"]
    forms = {
        name: latency[name]["latency_ms"] for name in ("cascade", "one_file") if name in latency
    }
    if alone is None or min(forms.values()) < alone["latency_ms"]:
        return ""
    told = " and ".join(f"{ms:.3f} ms {_FORMS[name]}" for name, ms in forms.items())
    return (
        f"It is not quicker than {alone['label']} alone, which is as accurate: measured, it takes "
        f"{told}, and {alone['label']} {alone['latency_ms']:.3f} ms. Use that."
    )


_FORMS = {"cascade": "in the runner", "one_file": "as one file"}
