"""What a run that goes on must have in common with the one that began it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError
from autocompress.machine.device import other_machine
from autocompress.machine.ssh import SCHEME
from autocompress.model.cost import policy_cost
from autocompress.policy.costs import BY_NAME, extra, said
from autocompress.policy.policy import Policy
from autocompress.policy.settings import FORMER
from autocompress.results.metric import Measurement
from autocompress.results.trial import TrialState
from autocompress.run.study import AUTO
from autocompress.run.target_section import TargetSection
from autocompress.run.tasks import judged_alike
from autocompress.track.folder import RunFolder
from autocompress.track.journal import read_entries

if TYPE_CHECKING:
    from autocompress.run.assembly import Assembly
    from autocompress.run.study import StudyConfig

_log = logging.getLogger(__name__)
_IDENTITY = {"weights": "other weights", "data": "other data"}


def as_begun(study: StudyConfig, folder: RunFolder) -> StudyConfig:
    """A study whose open settings, where their default has changed, are those its run began with.

    What a run of version 0.1 has measured was made with the defaults of its time; all else must be
    the same. It is known by all of them together, for each alone may have been chosen or, like
    ``weight_range``, be what ``auto`` comes to on another processor.

    Args:
        study: that is to go on.
        folder: of the run.
    """
    if not folder.is_run:
        return study
    if study.space == AUTO:
        study = study.changed(space=folder.read_study()["space"])
    defaults = type(study.settings)().model_dump(mode="json")
    now = study.settings.model_dump(mode="json")
    began = folder.read_study().get("settings") or {}
    kept = {key: former for key, former in FORMER.items() if now[key] == defaults[key]}
    if any(began.get(key) != former for key, former in kept.items()):
        return study
    for key, value in kept.items():
        _log.info("The run began with `settings.%s: %s` and goes on with it.", key, value)
    return study.changed(settings=kept) if kept else study


def known_baseline(
    folder: RunFolder, parts: Assembly, *, new_baseline: bool = False
) -> Measurement | None:
    """The uncompressed model as the run that goes on measured it.

    Args:
        folder: of the run.
        parts: of the study that is to go on.
        new_baseline: set that run's trials aside where the two cannot be mixed.

    Returns:
        ``None`` where there is no earlier measurement to go on from.

    Raises:
        InputError: that run was made on another model, other data, for another target or with other
            settings, and ``new_baseline`` is not set.
    """
    before = folder.read_baseline() if folder.is_run else None
    if before is None:
        return None
    changed = differences(before, folder.read_study(), parts) or _counted_otherwise(before, parts)
    if not changed and not judged_alike(before.quality, parts):
        now, was = parts.task.quality, before.quality
        changed = [f"another metric ({was.title}, {was.goal} it; now {now.title}, {now.goal} it)"]
    changed = changed or _unmeasured(before, folder, parts)
    if not changed:
        return before
    if not new_baseline:
        raise InputError(
            f"The run in {folder.root} was made on {'; '.join(changed)}. Its trials cannot stand "
            "beside new ones. Choose another folder with --out, or set them aside and begin with a "
            "new baseline: --resume --new-baseline."
        )
    folder.set_aside()
    return None


def _unmeasured(before: Measurement, folder: RunFolder, parts: Assembly) -> list[str]:
    """What the study judges by and a run did not measure, such as a throughput.

    Or measured of the uncompressed model alone, as the memory that no budget limits.
    """
    judging = {*parts.study.limits().metrics, *parts.study.search.objectives} & BY_NAME.keys()
    in_trials = extra(judging)  # all others are measured in each
    trials = (entry.trial for entry in read_entries(folder)) if in_trials else ()
    of_trials = (
        trial.measurement
        for trial in trials
        if trial.state is TrialState.COMPLETE and trial.phase.kind != "cascade"
        if trial.measurement is not None
    )
    lacking = {name for name in judging if name not in before}
    lacking |= {name for found in of_trials for name in in_trials if name not in found}
    absent = sorted(map(said, lacking))
    return [f"measurements without {' and '.join(absent)}"] if absent else []


def _counted_otherwise(before: Measurement, parts: Assembly) -> list[str]:
    """Whether a study on parameters began when those outside of layers were not counted.

    Where nothing is judged by them, the trials of such a run stand as they are.
    """
    if "params" not in {*parts.study.limits().metrics, *parts.study.search.objectives}:
        return []
    was = before.values.get("params")
    now = policy_cost(parts.inventory, Policy(), parts.study.settings).params
    return (
        [f"another count of parameters ({was:,.0f}, now {now:,})"] if was not in (None, now) else []
    )


def differences(before: Measurement, study: dict[str, Any], parts: Assembly) -> list[str]:
    """In what a run differs from a study so that their trials cannot be compared.

    Args:
        before: its uncompressed model.
        study: its resolved study, as plain data; runs of earlier versions may say less, and
            nothing is compared of which they say nothing.
        parts: of the study that is to go on.
    """
    known, now = before.context.get("identity") or {}, parts.identity
    if parts.earlier is not None and known.get("architecture") in parts.earlier.architectures:
        now = {**now, "weights": parts.earlier.weights}
    other = another_model(before, parts)
    found = [text for key, text in _IDENTITY.items() if known.get(key, now[key]) != now[key]]
    found = [other] if other else found
    if study.get("target") is not None:
        old, new = (
            TargetSection.of(t).config().model_dump(mode="json")
            for t in (study["target"], parts.study.target)
        )
        found += [
            f"another target ({key} {old.get(key)!r}, now {new.get(key)!r})"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
    others = [section.config() for section in parts.study.also_on]
    if [TargetSection.of(t).config() for t in study.get("also_on") or ()] != others:
        found.append("other further targets (`also_on`)")
    settings = parts.study.settings.model_dump(mode="json")
    found += [
        f"other settings ({key} {value!r}, now {settings[key]!r})"
        for key, value in (study.get("settings") or {}).items()
        if key in settings and settings[key] != value
        if key != "refine" or settings["finish"] == "refine"
    ]
    return found or _another_device(before, parts)


def another_model(before: Measurement, parts: Assembly) -> str:
    """What other model a run was made on, whatever its weights; empty where it is the same.

    Args:
        before: its uncompressed model.
        parts: of the study that is to go on, or that builds its policies again.
    """
    known, earlier = (before.context.get("identity") or {}).get("architecture"), parts.earlier
    if earlier is not None and known in earlier.architectures:
        wrapped = "a model that was handed over in a wrapper, whose layers have other names now"
        return wrapped if earlier.names else ""
    return "another model" if known not in (None, parts.identity["architecture"]) else ""


def _another_device(before: Measurement, parts: Assembly) -> list[str]:
    """Whether latencies are another device's by now, although the study says the same of it.

    Runs of earlier versions do not tell which table theirs were; of these nothing is compared.
    """
    config, was = parts.study.target.config(), before.context.get("target") or {}
    if config.table is None and not config.device.startswith(SCHEME):
        return []
    measurer = parts.evaluator.measurer
    if measurer.other_device is None:
        other = other_machine(was.get("machine") or {}, measurer.target.machine())
        return [f"another device at {config.device} ({other})"] if other else []
    now, then = measurer.other_device.facts, was.get("table") or {}
    if then.get("digest", now["digest"]) != now["digest"]:
        return [f"another table of a device: {config.table} has changed"]
    by, before_by = ((one.get("placed") or {}).get("by") for one in (now, then))
    if "digest" in then and by != before_by:
        return [f"a device placed by the kernel times of {before_by}, which now resembles {by}"]
    return []
