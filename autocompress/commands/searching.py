"""The whole study: profile, search, recover, verify, report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from autocompress.commands.display import SearchDisplay, console, status
from autocompress.errors import InfeasibleBudget, InputError
from autocompress.policy.policy import Policy
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.search.config import RecoveryPlan, SearchConfig
from autocompress.study import StudyConfig
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal
from autocompress.track.view import RunView

if TYPE_CHECKING:
    from autocompress.assemble import Assembly
    from autocompress.model.cost import Cost
    from autocompress.policy.space import Assignment
    from autocompress.search.loop import Context
    from autocompress.search.protocols import Sink
    from autocompress.track.mlflow_sink import MlflowSink


@dataclass
class Finished:
    """A run that came to its end.

    Args:
        folder, view, parts: of the run.
        summary: the ``--json`` object.
        stopped: why the search phase ended.
    """

    folder: RunFolder
    view: RunView
    parts: Assembly
    summary: dict[str, Any]
    stopped: str


_COLOURS = {"good": "green", "unsure": "yellow", "bad": "red"}


def search(config: StudyConfig, out: Path | None, *, resume: bool, quiet: bool) -> dict[str, Any]:
    """Run a study from the command line and print its end."""
    done = run_study(config, out, resume=resume, quiet=quiet)
    if not quiet:
        show_result(done, console())
    return done.summary


def search_config(study: StudyConfig) -> SearchConfig:
    """The ``search`` section, checked."""
    found: SearchConfig = _section(SearchConfig, study.search, "search")
    return found


def _section(kind: Any, data: dict[str, Any], where: str) -> Any:
    from pydantic import ValidationError

    from autocompress.errors import nearest

    for key in data:
        if key not in kind.model_fields:
            raise InputError(
                f"`{where}` has an unknown key {key!r}; {nearest(key, kind.model_fields)}"
            )
    try:
        return kind(**data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise InputError(f"`{where}.{at}`: {first['msg']}, got {first['input']!r}.") from None


def run_study(
    study: StudyConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
    model: Any = None,
    data: Any = None,
) -> Finished:
    """Run a study to its end, or go on with one.

    Args:
        study: as read.
        out: folder of the run; ``runs/NAME`` by default.
        resume: take up the run in that folder; finished trials are not repeated.
        quiet: nothing on the terminal.
        model, data: objects in place of the study's factories.

    Raises:
        InputError: anything that cannot be used, before an existing run is touched.
        InfeasibleBudget: not even the cheapest policy meets the budget.
    """
    from autocompress.assemble import assemble

    config = search_config(study)
    root = out or Path("runs") / study.name
    if not resume and RunFolder(root).is_run:
        RunFolder.create(root)  # says that there is a run
    with status(quiet) as say:
        parts = assemble(study, root / "models", model=model, data=data, progress=say)
        check_formula_budget(parts)
        if resume:
            _check_same_model(RunFolder(root), parts)
        folder = RunFolder.create(root, resume=resume)
        folder.write_study(parts.study.model_dump(mode="json"))
        baseline = _baseline(folder, parts)
        say("latency table", 0.0)
        parts.predict_latency()
        check_latency_budget(parts)
    with Journal(folder) as journal:
        return _phases(
            folder, parts, config, journal, baseline, quiet=quiet, model=model, data=data
        )


def _baseline(folder: RunFolder, parts: Assembly) -> Measurement:
    """The uncompressed model: measured now, or taken from the run that goes on."""
    before = folder.read_baseline()
    if before is not None:
        parts.evaluator.set_baseline(before)
        return before
    found = parts.evaluator.baseline
    folder.write_baseline(found)
    return found


def _check_same_model(folder: RunFolder, parts: Assembly) -> None:
    before = folder.read_baseline() if folder.is_run else None
    if before is None:
        return
    inventory, known = parts.inventory, before.context.get("identity", {})
    if known and (known["architecture"], known["weights"]) != (
        inventory.architecture,
        inventory.weights,
    ):
        raise InputError(
            f"The run in {folder.root} was made on another model or other weights; "
            "choose another folder with --out."
        )


def check_formula_budget(parts: Assembly) -> None:
    """Refuse limits on MACs and parameters that not even the hardest policy meets.

    Raises:
        InfeasibleBudget: before any compute was spent.
    """
    from autocompress.model.cost import policy_cost
    from autocompress.pipeline import student_cost
    from autocompress.policy.budget import Budget

    settings = parts.study.settings
    hardest = policy_cost(parts.inventory, parts.space.decode(parts.space.hardest), settings)
    whole = policy_cost(parts.inventory, Policy(), settings)
    known = ("macs", "params")
    limits = Budget(*(x for x in parts.study.limits().limits if x.metric in known))

    def over(cost: Cost) -> dict[str, float]:
        return limits.violations(
            {n: float(getattr(cost, n)) for n in known},
            {n: float(getattr(whole, n)) for n in known},
        )

    example = parts.data.train.inputs(1)
    students = (student_cost(make(), example, settings) for make in parts.students.values())
    ends = [hardest, *students]
    cheapest = min(ends, key=lambda cost: max(over(cost).values(), default=0.0))
    _refuse(over(cheapest), {n: float(getattr(cheapest, n)) for n in known}, limits)


def _refuse(violations: dict[str, float], values: dict[str, float], limits: Any) -> None:
    over = {n: v for n, v in violations.items() if v > 0}
    if not over:
        return
    worst = max(over, key=lambda n: over[n])
    raise InfeasibleBudget(
        f"The budget ({limits}) cannot be met: the cheapest policy of this space still has "
        f"{worst} {values[worst]:.4g}, {over[worst]:.0%} over its limit. Loosen the budget, or "
        "give the space harder levels (higher prune ratios, 8 bits, prune_residual)."
    )


def check_latency_budget(parts: Assembly) -> None:
    """Refuse a latency or size that not even the cheapest policy reaches, measured.

    The estimate is asked first; only if it finds nothing within the budget, the cheapest
    candidates are built and timed.
    """
    budget, evaluator = parts.study.limits(), parts.evaluator
    if not budget.limits:
        return

    def over(values: Any) -> float:
        return max(budget.violations(values, evaluator.baseline.values).values())

    policies = [parts.space.decode(levels) for levels in cheap_ends(parts)]
    estimates = sorted(((over(evaluator.estimate(p).values), i) for i, p in enumerate(policies)))
    if estimates[0][0] <= 0:
        return
    measured = {i: evaluator.evaluate(policies[i]).values for _, i in estimates[:2]}
    best = min(measured, key=lambda i: over(measured[i]))
    violations = budget.violations(measured[best], evaluator.baseline.values)
    _refuse(violations, dict(measured[best]), budget)


def cheap_ends(parts: Assembly) -> list[Assignment]:
    """The cheapest assignment by estimate, then the hardest one and the uniform ladders.

    The hardest levels are not always the quickest: a factorized layer is two small ones. From the
    quickest ladder, one choice after another takes its quickest level until none gains.
    """
    from autocompress.search.seeds import ladders

    def cost(levels: Assignment) -> float:
        return parts.evaluator.estimate(parts.space.decode(levels))["latency_ms"]

    ends = [parts.space.hardest, *(levels for _, levels in ladders(parts.space))]
    best = min(ends, key=cost)
    for _ in range(3):
        before = best
        for i, choice in enumerate(parts.space.choices):
            if choice.kind in ("distill", "student"):
                continue
            options = [(*best[:i], k, *best[i + 1 :]) for k in range(len(choice.levels))]
            best = min(options, key=lambda levels: (cost(levels), levels != best))
        if best == before:
            break
    return [best, *(e for e in ends if e != best)]


def _phases(
    folder: RunFolder,
    parts: Assembly,
    config: SearchConfig,
    journal: Journal,
    baseline: Measurement,
    *,
    quiet: bool,
    model: Any,
    data: Any,
) -> Finished:
    from autocompress.search.loop import run_search
    from autocompress.search.phases import run_baselines, run_recovery, run_verify
    from autocompress.search.stop import stopping_on_interrupt

    mlflow = _mlflow(parts, journal, baseline, quiet)
    sinks: list[Sink] = [journal, *([mlflow] if mlflow is not None else [])]
    with SearchDisplay(quiet) as display, stopping_on_interrupt() as stop:
        context = _context(
            parts, config, sinks, journal.load(), stop, display.update, model=model, data=data
        )
        try:
            result = run_search(context, _proposer(context))
            baselines = run_baselines(context)
            recovery = parts.study.recovery
            run_recovery(
                context,
                RecoveryPlan(
                    epochs=recovery.epochs,
                    rungs=recovery.rungs,
                    candidates=recovery.candidates,
                    compare_distillation=recovery.compare_distillation,
                    seed=config.seed,
                ),
            )
            chosen = _answer(context, parts.study)
            run_verify(context, chosen or _nearest(context))
        finally:
            context.executor.close(cancel=bool(stop))
    return _finish(folder, parts, baselines, chosen, mlflow, result.stopped)


def _context(
    parts: Assembly,
    config: SearchConfig,
    sinks: list[Sink],
    trials: list[Trial],
    stop: Any,
    progress: Callable[[Any], None],
    *,
    model: Any,
    data: Any,
) -> Context:
    from autocompress.assemble import EvaluatorFactory
    from autocompress.execute import make_executor
    from autocompress.search.loop import Context

    study = parts.study
    factory = EvaluatorFactory(
        study.model_dump(mode="json"),
        str(parts.folder),
        parts.evaluator.baseline.as_dict(),
        model,
        data,
    )
    executor = make_executor(
        study.executor, study.workers, parts.evaluator, factory, ray_address=study.ray_address
    )
    return Context(
        parts.space,
        parts.evaluator,
        executor,
        study.limits(),
        config,
        sinks,
        _rejudged(trials, parts),
        stop,
        progress,
    )


def _rejudged(trials: list[Trial], parts: Assembly) -> list[Trial]:
    """Trials of earlier sessions under the budget of this one; rejections are reconsidered."""
    from dataclasses import replace

    budget, base = parts.study.limits(), parts.evaluator.baseline.values
    found = []
    for trial in trials:
        if trial.state == "COMPLETE" and trial.measurement is not None:
            violations = budget.violations(trial.measurement.values, base)
            found.append(replace(trial, violations=violations))
        elif trial.state == "REJECTED" and trial.measurement is not None:
            violations = budget.violations(trial.measurement.values, base)
            if any(v > 0 for v in violations.values()):
                found.append(replace(trial, violations=violations))
            else:
                found.append(
                    replace(
                        trial,
                        state=type(trial.state).DUPLICATE,
                        reason="rejected under an earlier budget",
                    )
                )
        else:
            found.append(trial)
    return found


def _proposer(context: Context) -> Any:
    if context.config.sampler == "guided":
        from autocompress.search.guided import GuidedProposer

        return GuidedProposer(context)
    from autocompress.search.plain import PlainProposer

    return PlainProposer(context)


def _answer(context: Context, study: StudyConfig) -> Trial | None:
    """The chosen trial: the most accurate within the budget.

    With a largest accuracy drop, it is the cheapest that keeps to it, and no trial if none does.
    """
    front = context.front()
    if not len(front):
        return None
    if study.max_accuracy_drop is None:
        return front.pick("best")
    least = context.evaluator.baseline["accuracy"] - study.max_accuracy_drop / 100
    keeping = [t for t in front if t.measurement and t.measurement["accuracy"] >= least]
    return keeping[0] if keeping else None


def _nearest(context: Context) -> Trial | None:
    done = [t for t in context.trials if t.state == "COMPLETE" and t.phase.kind != "verify"]
    return min(done, key=lambda t: max(t.violations.values(), default=0.0), default=None)


def _mlflow(
    parts: Assembly, journal: Journal, baseline: Measurement, quiet: bool
) -> MlflowSink | None:
    tracking = parts.study.tracking
    if not tracking.mlflow:
        return None
    from autocompress.measure.lock import machine_lock
    from autocompress.results.metric import metric
    from autocompress.track.mlflow_sink import MlflowSink

    objectives = tuple(metric(n) for n in search_config(parts.study).objectives)
    return MlflowSink(
        journal,
        baseline,
        experiment=tracking.experiment or parts.study.name,
        uri=tracking.uri,
        objectives=objectives,
        layers=[layer.name for layer in parts.inventory.layers],
        say=(lambda text: None) if quiet else Console(stderr=True).print,
        gate=lambda: machine_lock(exclusive=False),
    )


def _finish(
    folder: RunFolder,
    parts: Assembly,
    baselines: dict[str, int],
    chosen: Trial | None,
    mlflow: MlflowSink | None,
    stopped: str,
) -> Finished:
    """Write summary, report, recipe and model, and close MLflow."""
    from autocompress.commands.recipes import write_recipe
    from autocompress.results.metric import metric
    from autocompress.track.report import write_report
    from autocompress.track.tables import write_summary

    folder.write_baseline(parts.evaluator.baseline_test, "test")
    study = parts.study
    view = RunView.load(
        folder,
        baselines=baselines,
        chosen=chosen.number if chosen is not None else None,
        layers=tuple(layer.name for layer in parts.inventory.layers),
        budget=study.limits(),
        objectives=tuple(metric(n) for n in search_config(study).objectives),
    )
    model = _keep_models(folder, parts, view)
    summary = write_summary(folder, view, model if study.tracking.register_best else None)
    summary["stopped"] = stopped
    if view.best is not None:
        write_recipe(view, folder, view.best, folder.recipes / "best.yaml")
    write_report(folder, view)
    if mlflow is not None:
        mlflow.close(view, model if study.tracking.register_best else None)
    return Finished(folder, view, parts, summary, stopped)


def _keep_models(folder: RunFolder, parts: Assembly, view: RunView) -> Path | None:
    """Give the verified files readable names; the answer's becomes ``best``."""
    found = None
    for trial in view.front:
        check = view.verified(trial)
        if check is None:
            continue
        path = parts.evaluator.model_path(check.policy, check.phase)
        if not path.exists():
            continue
        named = folder.models / f"trial-{trial.number}{path.suffix}"
        shutil.copyfile(path, named)
        if view.best is not None and trial.number == view.best.number:
            found = folder.models / f"best{path.suffix}"
            shutil.copyfile(path, found)
    return found


def show_result(done: Finished, console: Console) -> None:
    """The end of a study: front, verdict, where everything lies."""
    from autocompress.track.tables import front_table, verdict_table
    from autocompress.track.verdict import verdict

    view, folder = done.view, done.folder
    console.print(front_table(view))
    console.print(verdict_table(view))
    found = verdict(view)
    console.print(f"[bold {_COLOURS[found.tone]}]{found.headline}[/]")
    for sentence in found.sentences:
        console.print(f"  {sentence}", highlight=False)
    console.print(f"[dim]The search ended by: {done.stopped}.[/dim]")
    if view.best is not None:
        console.print(
            f"recipe  {folder.recipes / 'best.yaml'}\nmodel   {folder.models / 'best.onnx'}",
            soft_wrap=True,
        )
    console.print(f"report  {folder.report}", soft_wrap=True)
    if done.parts.study.tracking.mlflow:
        console.print(f"MLflow  autocompress ui {folder.root.parent}", soft_wrap=True)


def dry_run(study: StudyConfig) -> dict[str, Any]:
    """The resolved study, the size of its space, its ends, and whether the budget can be met."""
    import tempfile

    from autocompress.assemble import assemble

    search_config(study)
    with tempfile.TemporaryDirectory() as scratch, status(True) as say:
        # what a policy costs does not depend on trained weights: a baseline may take an hour
        untrained = study.model_copy(update={"baseline": None})
        parts = assemble(untrained, Path(scratch), progress=say)
        check_formula_budget(parts)
        evaluator = parts.evaluator
        parts.predict_latency()
        cheapest = parts.space.decode(cheap_ends(parts)[0])
        ends = {
            "dearest": {"policy": Policy().as_dict(), **evaluator.baseline.values},
            "cheapest": {"policy": cheapest.as_dict(), **evaluator.evaluate(cheapest).values},
        }
        try:
            check_latency_budget(parts)
            feasible, reason = True, ""
        except InfeasibleBudget as error:
            feasible, reason = False, str(error)
    return {
        "study": study.model_dump(mode="json"),
        "choices": len(parts.space.choices),
        "log10_policies": parts.space.log10_size,
        **ends,
        "budget": list(study.budget),
        "feasible": feasible,
        "reason": reason,
    }


def show_dry_run(found: dict[str, Any], console: Console) -> None:
    """The dry run for people."""
    import yaml

    console.print(yaml.safe_dump(found["study"], sort_keys=False), highlight=False)
    console.print(f"{found['choices']} choices, about 10^{found['log10_policies']:.0f} policies")
    for name in ("dearest", "cheapest"):
        end = found[name]
        console.print(
            f"{name}: {end['latency_ms']:.3f} ms, {end['macs'] / 1e6:.2f} M MACs, "
            f"{end['size_bytes'] / 1e3:.1f} kB"
        )
    budget = ", ".join(found["budget"]) or "none"
    console.print(f"budget ({budget}): " + ("can be met" if found["feasible"] else found["reason"]))
