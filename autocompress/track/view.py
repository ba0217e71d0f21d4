"""One run as its reports see it: what was the best, what is the front, how did it grow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Policy
from autocompress.policy.registry import in_order, named_starts
from autocompress.results.answer import Decision, allowed, best_of, comparable, decide, judged
from autocompress.results.front import ParetoFront, reference_point
from autocompress.results.metric import ACCURACY, LATENCY, QUALITY, Measurement, Metric, objectives
from autocompress.results.trial import Trial, TrialState, confirmed, within
from autocompress.track.folder import RunFolder
from autocompress.track.forms import StudyForm, kept_channels, read_budget, trial_numbers
from autocompress.track.journal import Entry, read_entries


@dataclass(frozen=True, slots=True)
class Point:
    """The state of a study after one trial.

    Args:
        trial: number of that trial.
        elapsed_s: seconds that the study had been running.
        hypervolume: of the feasible front so far.
        best_quality: of the feasible trials so far; ``None`` before the first.
    """

    trial: int
    elapsed_s: float
    hypervolume: float
    best_quality: float | None


class Growth:
    """Follows the feasible front trial by trial, without looking at all of them each time.

    Args:
        objectives: quality first.
        reference: of the hypervolume, one value per objective.
    """

    def __init__(self, objectives: Sequence[Metric], reference: Sequence[float]) -> None:
        self.objectives = tuple(objectives)
        self.reference = tuple(reference)
        self.front = ParetoFront((), self.objectives)
        self.hypervolume = 0.0
        self.best_quality: float | None = None

    def add(self, trial: Trial, elapsed_s: float) -> Point | None:
        """Take a trial in; ``None`` where it cannot be compared with the others."""
        if not comparable(trial, self.objectives):
            return None
        if trial.feasible:
            front = self.front.with_trial(trial)
            if front is not self.front:
                self.front, self.hypervolume = front, front.hypervolume(self.reference)
            quality = self.objectives[0]
            found, best = value(trial, quality.name), self.best_quality
            if found is not None and (best is None or quality.better(found, best)):
                self.best_quality = found
        return Point(trial.number, elapsed_s, self.hypervolume, self.best_quality)


@dataclass(frozen=True)
class RunView:
    """A run and the questions that reports ask of it.

    The front is made of search and recovery trials, which were scored on the val split; a member's
    score on the test split is that of the verification trial that names it as its parent.

    Args:
        run: the run's folder, as people would type it.
        entries: finished trials with their times.
        baseline: the uncompressed model on val.
        budget: by which feasibility is judged.
        objectives: quality first, then the cost that orders the front.
        reference_policies: name of each to the number of the trial that shows its best.
        max_accuracy_drop: in points; the answer keeps to it.
        max_quality_drop: the same for any quality: in its unit, or a share such as ``2%``.
        baseline_test: the uncompressed model on the test split.
        layers: names in network order; without them, those that any policy names.
        study: the resolved study, as far as reports read it.
        cannot_prune: which share of the model pruning cannot touch, and why; empty if none.
        kept: per trial number and layer, the channels that it keeps and those that it had; of the
            trials that tables show, and of no run of an early version.
    """

    run: str
    entries: tuple[Entry, ...]
    baseline: Measurement
    budget: Budget = field(default_factory=Budget)
    objectives: tuple[Metric, ...] = (ACCURACY, LATENCY)
    reference_policies: Mapping[str, int] = field(default_factory=dict)
    max_accuracy_drop: float | None = None
    max_quality_drop: str | float | None = None
    baseline_test: Measurement | None = None
    layers: tuple[str, ...] = ()
    study: StudyForm = field(default_factory=StudyForm)
    cannot_prune: str = ""
    kept: Mapping[int, Mapping[str, tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, trials: Iterable[Trial], baseline: Measurement, *, run: str = "", **more: Any
    ) -> RunView:
        """A view of trials in memory; their times are the sums of their seconds."""
        entries, elapsed = [], 0.0
        for trial in trials:
            elapsed += trial.seconds
            entries.append(Entry(trial, elapsed))
        return cls(run, tuple(entries), baseline, **more)

    @classmethod
    def load(cls, run: str | Path | RunFolder, **more: Any) -> RunView:
        """Read a run from its folder, also one that is still being written.

        Args:
            run: the folder.
            more: fields that take the place of what ``front.json`` says.

        Raises:
            InputError: no run is there, or it ended before the uncompressed model was measured.
        """
        folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
        baseline = folder.read_baseline()
        if baseline is None:
            raise InputError(
                f"{folder.root} has no baseline.json: the run ended before the uncompressed model "
                "was measured. Continue it with --resume."
            )
        summary, study = folder.read_front(), StudyForm.read(folder.read_study())
        by_study = study.budget is not None  # `[]` is a budget: none
        limits = (study.budget if by_study else summary.get("budget")) or ()
        asked = summary.get("objectives") or study.search.objectives or ()
        given: dict[str, Any] = {
            "budget": read_budget(limits, folder.study if by_study else folder.front),
            "reference_policies": trial_numbers(summary.get("baselines") or {}),
            "max_accuracy_drop": study.max_accuracy_drop,
            "max_quality_drop": study.max_quality_drop,
            "layers": tuple(summary.get("layers") or ()),
            "objectives": objectives(asked or (QUALITY, LATENCY.name), baseline.metrics),
            "baseline_test": folder.read_baseline("test"),
            "study": study,
            "cannot_prune": str(summary.get("cannot_prune") or ""),
            "kept": kept_channels(summary.get("kept") or ()),
        }
        view = cls(str(folder.root), tuple(read_entries(folder)), baseline, **{**given, **more})
        return view.under(view.budget)

    def under(self, budget: Budget) -> RunView:
        """The same trials judged by another budget.

        Trials that were rejected on an estimate stay rejected: nothing of them was measured.
        """
        entries = tuple(
            replace(e, trial=judged(e.trial, budget, self.baseline)) for e in self.entries
        )
        return replace(self, entries=entries, budget=budget)

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """All finished trials, in the order in which they finished.

        What verification found over the budget is over it.
        """
        return tuple(confirmed(entry.trial for entry in self.entries))

    @cached_property
    def by_number(self) -> Mapping[int, Trial]:
        """Trials by their number."""
        return {trial.number: trial for trial in self.trials}

    @cached_property
    def compared(self) -> tuple[Trial, ...]:
        """Complete trials that were scored on val: those that may be compared with each other."""
        return tuple(t for t in self.trials if comparable(t, self.objectives))

    @cached_property
    def decision(self) -> Decision:
        """What the run answers with, or why it has no answer."""
        return decide(
            self.trials,
            self.baseline,
            self.objectives,
            self.budget,
            self.max_accuracy_drop,
            self.max_quality_drop,
        )

    @property
    def quality(self) -> Metric:
        """What the model is judged by."""
        return self.baseline.quality

    @property
    def baseline_within(self) -> bool:
        """Whether the uncompressed model is within the budget."""
        return within(self.budget.violations(self.baseline.values, self.baseline.values))

    @property
    def most_lost(self) -> float | None:
        """The largest loss of quality that was asked for, as ``drop`` tells it, or ``None``."""
        most = allowed(self.baseline, self.max_accuracy_drop, self.max_quality_drop)
        return None if most is None else self.quality.shown(most)

    @property
    def front(self) -> ParetoFront:
        """Feasible trials that no other beats in every objective."""
        return self.decision.front

    @property
    def best(self) -> Trial | None:
        """The answer."""
        return self.decision.best

    @property
    def nearest(self) -> Trial | None:
        """Where there is no answer: the trial that comes nearest to one."""
        return self.decision.nearest

    @cached_property
    def reference(self) -> list[float]:
        """The fixed reference point of the hypervolume."""
        return reference_point(self.baseline, self.objectives)

    @cached_property
    def hypervolume(self) -> float:
        """Of the feasible front."""
        return self.front.hypervolume(self.reference)

    @cached_property
    def seconds(self) -> float:
        """How long the study has been running, pauses left out."""
        return max((entry.elapsed_s for entry in self.entries), default=0.0)

    @cached_property
    def history(self) -> tuple[Point, ...]:
        """How the front grew, one point per trial that was compared."""
        growth = Growth(self.objectives, self.reference)
        pairs = zip(self.trials, self.entries, strict=True)
        found = (growth.add(trial, entry.elapsed_s) for trial, entry in pairs)
        return tuple(point for point in found if point is not None)

    def verified(self, trial: Trial) -> Trial | None:
        """The verification of a trial on the test split, or ``None``."""
        for check in self._checks:
            if check.parent == trial.number:
                return check
        of_no_trial = (check for check in self._checks if check.parent is None)
        return next((c for c in of_no_trial if c.policy.digest == trial.policy.digest), None)

    @cached_property
    def _checks(self) -> list[Trial]:
        done = (t for t in self.trials if t.phase.kind == "verify" and t.measurement)
        return [trial for trial in done if trial.state is TrialState.COMPLETE]

    @cached_property
    def builds_differ(self) -> bool:
        """Whether some trial stands with val of the search's quick reconstruction, and with test
        of the thorough one that verification is preceded by."""
        shown = (*self.front, *([self.best or self.nearest] if self.compared else []))
        return any(t is not None and self.rebuilt(t) for t in shown)

    def rebuilt(self, trial: Trial) -> bool:
        """Whether verification built it again, thoroughly: its val is that of a quick build."""
        searched = trial.phase.kind == "search" and trial.policy.repairable
        return searched and self.verified(trial) is not None

    @cached_property
    def test_baseline(self) -> Measurement | None:
        """The uncompressed model on the test split: its own file, or a verified identity policy."""
        if self.baseline_test is not None:
            return self.baseline_test
        for trial in self.trials:
            if trial.phase.kind == "verify" and trial.policy.identity and trial.measurement:
                return trial.measurement
        return None

    @cached_property
    def reference_trials(self) -> Mapping[str, Trial]:
        """Trials of the reference policies: those given, else the best feasible of each origin.

        Where an origin has no feasible trial, its nearest to the budget stands for it.
        """
        if self.reference_policies:
            given = self.reference_policies.items()
            return {name: self.by_number[i] for name, i in given if i in self.by_number}
        searched = [t for t in self.compared if t.phase.kind == "search"]
        found: dict[str, Trial] = {}
        for origin in ("uniform", *_named(searched), "random"):
            best = best_of((t for t in searched if t.origin == origin), self.objectives)
            if best is not None:
                found[origin] = best
        return found

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """Layers that policies may touch, in network order as far as it is known."""
        if self.layers:
            return self.layers
        named = {name for trial in self.trials for name in trial.policy.layers}
        return tuple(sorted(named, key=natural))

    def ratio(self, trial: Trial) -> float | None:
        """Latency as a share of the uncompressed model's."""
        return latency_ratio(trial.measurement, self.baseline)

    def origins(self) -> dict[str, tuple[int, int]]:
        """Per proposer: how many trials were compared, and how many of them are on the front.

        A recovered trial counts for whoever proposed the policy that it recovers.
        """
        members = {t.number for t in self.front}
        counts: dict[str, tuple[int, int]] = {}
        for trial in self.compared:
            origin = self.proposer(trial)
            tried, kept = counts.get(origin, (0, 0))
            counts[origin] = (
                tried + (trial.phase.kind == "search"),
                kept + (trial.number in members),
            )
        return dict(sorted(counts.items(), key=lambda item: (-item[1][1], -item[1][0], item[0])))

    def proposer(self, trial: Trial) -> str:
        """Origin of the policy: of the search trial that a later phase took up."""
        seen: set[int] = set()
        while trial.phase.kind != "search" and trial.parent is not None:
            before = self.by_number.get(trial.parent)
            if before is None or trial.number in seen:
                break
            seen.add(trial.number)
            trial = before
        return trial.origin or "unknown"


def _named(trials: Sequence[Trial]) -> Iterable[str]:
    """Names that techniques give to policies of the levels that the trials have."""
    policies = {p for trial in trials for p in trial.policy.layers.values()}
    each = [(technique.fields, policy) for technique in in_order() for policy in policies]
    return named_starts([{f.name: policy.value(f.name) for f in fields} for fields, policy in each])


def value(trial: Trial, name: str) -> float | None:
    """One measured value, or ``None``."""
    return trial.measurement.get(name) if trial.measurement else None


def latency_ratio(measurement: Measurement | None, baseline: Measurement) -> float | None:
    """Share of the baseline's latency: as timed side by side, else the quotient of the medians."""
    if measurement is None:
        return None
    # where a table of another device told the latency, the timing is of this machine
    elsewhere = "table" in (measurement.context.get("target") or {})
    ratio = None if elsewhere else measurement.timing.ratio
    if ratio is not None:
        return float(ratio)
    mine, theirs = measurement.get("latency_ms"), baseline.get("latency_ms")
    return mine / theirs if mine is not None and theirs else None


def policy_summary(policy: Policy, layers: Sequence[str]) -> dict[str, float | str]:
    """A handful of numbers that say what a policy does.

    Args:
        policy: any.
        layers: all layers that it might have touched; means are taken over them.

    Returns:
        What each technique tells of it (mean prune ratio, share of int8 layers, ...), and the
        techniques by name.
    """
    names = list(layers) or list(policy.layers) or [""]
    each = [policy[name] for name in names]
    words = [word for technique in in_order() for word in technique.words(each)]
    words += ["distill"] if policy.distill is not None else []
    words += ["student"] if policy.student is not None else []
    found: dict[str, float | str] = {"method": " + ".join(words) or "unchanged"}
    for technique in in_order():
        found |= technique.summary(each)
    return found


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts layer2 before layer10."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", name) if p]


def score(trial: Trial | None) -> float | None:
    """Quality of a trial, or ``None`` where it was not measured or could not be told."""
    found = trial.measurement if trial is not None else None
    return found.get(found.quality.name) if found is not None else None
