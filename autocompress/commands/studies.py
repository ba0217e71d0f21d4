"""Commands that take a study: ``init``, ``search``, ``profile``, ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autocompress.commands import options
from autocompress.commands.options import Checkpoint, Json, StudyName
from autocompress.commands.printing import display, printed
from autocompress.errors import InfeasibleBudget, InputError

if TYPE_CHECKING:
    from autocompress.run.study import StudyConfig


def search(
    study: StudyName,
    latency_ms: options.LatencyMs = None,
    budget: options.BudgetLimits = None,
    max_accuracy_drop: options.MaxAccuracyDrop = None,
    max_quality_drop: options.MaxQualityDrop = None,
    trials: options.Trials = None,
    timeout: options.Timeout = None,
    sampler: options.Sampler = None,
    warm_from: options.WarmFrom = None,
    workers: options.Workers = None,
    executor: options.Executor = None,
    storage: options.Storage = None,
    ray_address: options.RayAddress = None,
    resume: options.Resume = False,
    new_baseline: options.NewBaseline = False,
    seed: options.Seed = None,
    out: options.Out = None,
    dry_run: options.DryRun = False,
    as_json: Json = False,
) -> None:
    """Run a whole study: profile, search, recover, verify.

    Ctrl-C once finishes the running trial and writes the front; twice stops at once.
    """
    from autocompress.commands import overrides, searching
    from autocompress.run.session import run_study
    from autocompress.run.study import load_study

    config = overrides.overrides(
        load_study(study),
        latency_ms=latency_ms,
        budget=budget,
        max_accuracy_drop=max_accuracy_drop,
        max_quality_drop=max_quality_drop,
        trials=trials,
        timeout=timeout,
        sampler=sampler,
        warm_from=warm_from,
        workers=workers,
        executor=executor,
        storage=storage,
        ray_address=ray_address,
        seed=seed,
    )
    if dry_run:
        _dry_run(config, as_json)
        return
    with searching.interruptible(out or Path("runs") / config.name), display(as_json) as shown:
        done = run_study(
            config,
            out,
            resume=resume,
            new_baseline=new_baseline,
            watcher=shown,
            give_up=searching.give_up,
        )
    printed(done.summary, as_json, lambda console: searching.show_result(done, console))
    if not done.summary["answered"] or done.summary["unfinished"] or done.summary["failed_phases"]:
        raise typer.Exit(1)


def _dry_run(config: StudyConfig, as_json: bool) -> None:
    from autocompress.commands import searching
    from autocompress.run.feasibility import dry_run

    with display(as_json) as shown:
        found = dry_run(config, shown.preparing)
    printed(found, as_json, lambda console: searching.show_dry_run(found, console))
    if not found["can_be_met"]:
        raise InfeasibleBudget(found["reason"])  # as `search` answers


def init(
    model: Annotated[
        str, typer.Argument(metavar="PKG.MOD:FN", help="Returns the trained nn.Module.")
    ],
    data: Annotated[
        str,
        typer.Option("--data", metavar="PKG.MOD:FN", help="Returns the data; see docs/data.md."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The study to write.")] = Path(
        "study.yaml"
    ),
    checkpoint: Checkpoint = None,
    task: Annotated[
        str | None, typer.Option(help="A ready-made task's name, where targets leave a doubt.")
    ] = None,
    budget: options.BudgetLimits = None,
    space: Annotated[str, typer.Option(help="auto, a shipped space's name, or a file.")] = "auto",
    as_json: Json = False,
) -> None:
    """Write a commented study for a model and data of yours, and check that it can be run."""
    from autocompress.commands import inspecting
    from autocompress.run.first import write_first

    with display(as_json) as shown:
        found = write_first(
            output,
            model,
            data,
            shown.preparing,
            checkpoint=checkpoint,
            task=task,
            budget=tuple(budget or ()),
            space=space,
        )
    printed(found, as_json, lambda console: inspecting.show_first(found, console))


def advise(
    study: StudyName,
    budget: options.BudgetLimits = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the space to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what each way to compress gains here, and give a search space with its reasons."""
    from autocompress.commands import inspecting
    from autocompress.commands.overrides import overrides
    from autocompress.run.advice import check_new, write_space
    from autocompress.run.profile import advise
    from autocompress.run.study import load_study

    if output is not None:
        check_new(output)
    with display(as_json) as shown:
        found = advise(overrides(load_study(study), budget=budget), shown.preparing)
    if output is not None:
        write_space(found, output)
    printed(found, as_json, lambda console: inspecting.show_advice(found, output, console))


def profile(
    study: StudyName,
    export_kernels: Annotated[
        Path | None,
        typer.Option(
            help="Also pack the kernel models and a runner for another device into this zip."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show per layer: MACs, params, latency, sensitivity, and which layers prune together."""
    from autocompress.commands import inspecting
    from autocompress.run import profile as profiling
    from autocompress.run.study import load_study

    with display(as_json) as shown:
        found = profiling.profile(load_study(study), export_kernels, shown.preparing)
    printed(found, as_json, lambda console: inspecting.show_profile(found, console))


def evaluate(
    study: StudyName,
    policy: Annotated[
        Path | None, typer.Option(help="A policy (YAML or JSON), or a recipe.")
    ] = None,
    uniform: Annotated[
        str | None,
        typer.Option(
            help="The same values for every layer that the space may touch: prune_ratio=0.5,..."
        ),
    ] = None,
    epochs: Annotated[float, typer.Option(min=0, help="Fine-tuning epochs before measuring.")] = 0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Build it as the search does for its trials, not as a study hands it over.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure one policy of yours, built as a study would hand it over: what would happen if."""
    from autocompress.commands import inspecting
    from autocompress.run import evaluation
    from autocompress.run.study import load_study

    if (policy is None) == (uniform is None):
        raise InputError("Give either --policy FILE or --uniform prune_ratio=0.5,weight_bits=8.")
    with display(as_json) as shown:
        found = evaluation.evaluate(
            load_study(study), policy, uniform, shown.preparing, epochs=epochs, quick=quick
        )
    printed(found, as_json, lambda console: inspecting.show_evaluation(found, console))
