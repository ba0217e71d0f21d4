"""The command line: parse, call, print. The work stands in ``autocompress.run``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import autocompress
from autocompress.commands import inspecting, options, reading, searching
from autocompress.commands import recipes as showing
from autocompress.commands.options import (
    Checkpoint,
    DataFactory,
    Factory,
    Json,
    RecipePath,
    Run,
    StudyName,
)
from autocompress.controller.stop import answering
from autocompress.errors import AutocompressError, InfeasibleBudget, InputError
from autocompress.machine.output import answer, keep_for_answers
from autocompress.policy.files import as_ours
from autocompress.policy.values import DEFAULT_RUNTIME
from autocompress.report.display import Display, console
from autocompress.report.tables import summary_json
from autocompress.report.terminal import PlainConsole, write_anything
from autocompress.run import tracking
from autocompress.track.folder import RunFolder

if TYPE_CHECKING:
    from autocompress.run.study import StudyConfig

app = typer.Typer(
    name="autocompress",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autocompress {autocompress.__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Search compression policies for a PyTorch model under a hardware budget.

    Every number is measured on the exported file in the target runtime.
    """


def _print(data: Any, as_json: bool, show: Callable[[Console], None]) -> None:
    """One object for machines, or something readable for people."""
    if as_json:
        answer(json.dumps(data))
    else:
        show(console())


@app.command(epilog="Example: autocompress search quickstart --budget 'latency<=0.5x' --timeout 5m")
def search(
    study: StudyName,
    latency_ms: options.LatencyMs = None,
    budget: options.BudgetLimits = None,
    max_accuracy_drop: options.MaxAccuracyDrop = None,
    max_quality_drop: options.MaxQualityDrop = None,
    trials: options.Trials = None,
    timeout: options.Timeout = None,
    sampler: options.Sampler = None,
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
    from autocompress.commands.overrides import overrides
    from autocompress.run.session import run_study
    from autocompress.run.study import load_study

    config = overrides(
        load_study(study),
        latency_ms=latency_ms,
        budget=budget,
        max_accuracy_drop=max_accuracy_drop,
        max_quality_drop=max_quality_drop,
        trials=trials,
        timeout=timeout,
        sampler=sampler,
        workers=workers,
        executor=executor,
        storage=storage,
        ray_address=ray_address,
        seed=seed,
    )
    if dry_run:
        _dry_run(config, as_json)
        return
    with searching.interruptible(out or Path("runs") / config.name), Display(as_json) as shown:
        done = run_study(
            config,
            out,
            resume=resume,
            new_baseline=new_baseline,
            watcher=shown,
            give_up=searching.give_up,
        )
    _print(done.summary, as_json, lambda console: searching.show_result(done, console))
    if not done.summary["answered"] or done.summary["unfinished"] or done.summary["failed_phases"]:
        raise typer.Exit(1)


def _dry_run(config: StudyConfig, as_json: bool) -> None:
    from autocompress.run.feasibility import dry_run

    with Display(as_json) as shown:
        found = dry_run(config, shown.preparing)
    _print(found, as_json, lambda console: searching.show_dry_run(found, console))
    if not found["can_be_met"]:
        raise InfeasibleBudget(found["reason"])  # as `search` answers


@app.command(epilog="Example: autocompress profile quickstart")
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
    from autocompress.run import profile as profiling
    from autocompress.run.study import load_study

    with Display(as_json) as shown:
        found = profiling.profile(load_study(study), export_kernels, shown.preparing)
    _print(found, as_json, lambda console: inspecting.show_profile(found, console))


@app.command(
    epilog="Example: autocompress evaluate quickstart --uniform "
    "prune_ratio=0.5,weight_bits=8,activation_bits=8"
)
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
    from autocompress.run import evaluation
    from autocompress.run.study import load_study

    if (policy is None) == (uniform is None):
        raise InputError("Give either --policy FILE or --uniform prune_ratio=0.5,weight_bits=8.")
    with Display(as_json) as shown:
        found = evaluation.evaluate(
            load_study(study), policy, uniform, shown.preparing, epochs=epochs, quick=quick
        )
    _print(found, as_json, lambda console: inspecting.show_evaluation(found, console))


@app.command(epilog="Example: autocompress front runs/quickstart --open")
def front(
    run: Run,
    open_report: Annotated[bool, typer.Option("--open", help="Open the HTML report.")] = False,
    target: Annotated[
        str | None,
        typer.Option(
            help="Re-cost the stored trials for another runtime, or for a device's table.json."
        ),
    ] = None,
    trust: options.Trust = False,
    as_json: Json = False,
) -> None:
    """Show the Pareto front of a run."""
    view = reading.view_of(run, target, trust=trust, quiet=as_json)
    _print(summary_json(view), as_json, lambda console: reading.show_front(view, console))
    if open_report:
        typer.launch(str(RunFolder.open(run).report.resolve()))


@app.command(epilog="Example: autocompress export runs/quickstart --pick knee -o recipe.yaml")
def export(
    run: Run,
    pick: Annotated[
        str, typer.Option(help="best, knee, fastest, smallest, most-accurate, or a trial's number.")
    ] = "best",
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe to write.")] = Path(
        "recipe.yaml"
    ),
    as_json: Json = False,
) -> None:
    """Write a recipe that anyone can apply again."""
    from autocompress.run import recipes

    found = recipes.export(run, pick, output)
    _print(found, as_json, lambda console: showing.show_export(found, console))


@app.command(epilog="Example: autocompress apply recipe.yaml -o model.onnx")
def apply(
    recipe: RecipePath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="model.onnx, model.pt2, model.safetensors, ...")
    ] = Path("model.onnx"),
    model: Factory = None,
    checkpoint: Checkpoint = None,
    data: DataFactory = None,
    trust: options.Trust = False,
    as_json: Json = False,
) -> None:
    """Rebuild the compressed model from a recipe."""
    from autocompress.run import replay

    found = replay.apply(recipe, output, model, checkpoint, data, trust=trust)
    _print(found, as_json, lambda console: showing.show_applied(found, console))


@app.command(epilog="Example: autocompress verify recipe.yaml")
def verify(
    recipe: RecipePath,
    model: Factory = None,
    checkpoint: Checkpoint = None,
    data: DataFactory = None,
    trust: options.Trust = False,
    as_json: Json = False,
) -> None:
    """Apply a recipe in a fresh process and compare the result with what the recipe claims."""
    from autocompress.run import replay

    found = replay.verify(recipe, model, checkpoint, data, trust=trust)
    _print(found, as_json, lambda console: showing.show_verification(found, console))
    if not found["ok"]:
        raise typer.Exit(1)


@app.command(epilog="Example: autocompress bench small.onnx --vs large.onnx --threads 1")
def bench(
    file: Annotated[Path, typer.Argument(metavar="A.onnx", help="The file to time.")],
    vs: Annotated[Path | None, typer.Option(help="A second file, timed in turn with it.")] = None,
    target: Annotated[
        str, typer.Option(help="Runtime; see `autocompress targets`.")
    ] = DEFAULT_RUNTIME,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Time a file, or two interleaved: median, IQR, and the ratio with its interval."""
    from autocompress.commands import measuring

    found = measuring.bench(file, vs, target, threads, batch)
    _print(found, as_json, lambda console: measuring.show_bench(found, console))


@app.command(epilog="Example: autocompress judge mine.onnx theirs.onnx --study cifar10_resnet20")
def judge(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Files for the target.")],
    study: Annotated[
        str, typer.Option(help="Says the data, the metric, the target and the uncompressed model.")
    ],
    split: Annotated[str, typer.Option(help="That they are scored on: val or test.")] = "val",
    as_json: Json = False,
) -> None:
    """Score and time anyone's files beside a study's uncompressed model; check what really ran."""
    from autocompress.commands import measuring
    from autocompress.run.judge import judge as judge_files
    from autocompress.run.study import load_study

    if split not in ("val", "test"):
        raise InputError(f"--split must be val or test, got {split!r}.")
    with Display(as_json) as shown:
        found = judge_files(load_study(study), files, shown.preparing, split=split)
    _print(found, as_json, lambda console: measuring.show_judgement(found, console))


@app.command()
def targets(as_json: Json = False) -> None:
    """Show which runtimes and devices are available here, and why the others are not."""
    from autocompress.commands import measuring

    found = measuring.targets()
    _print(found, as_json, lambda console: measuring.show_targets(found, console))


@app.command(epilog="Example: autocompress track runs/quickstart --uri http://mlflow:5000")
def track(
    run: Run,
    uri: Annotated[
        str | None, typer.Option(help="Tracking URI; the file beside the run by default.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Its name; the study's by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring MLflow up to date with a run; repeating it changes nothing."""
    found = tracking.track(run, uri, experiment)
    _print(found, as_json, lambda console: reading.show_tracked(found, console))


@app.command(epilog="Example: autocompress ui runs")
def ui(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="The folder of the runs.")] = Path(
        "runs"
    ),
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 5000,
    as_json: Json = False,
) -> None:
    """Start the MLflow server on the runs' store and print links to the right pages."""
    reading.ui(runs, host, port, as_json=as_json)


@app.command(epilog="Example: autocompress schema study > study.schema.json")
def schema(
    what: Annotated[
        str | None, typer.Argument(metavar="study|space|recipe", help="The kind of file.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="A reference of all kinds, to read.")
    ] = False,
) -> None:
    """Print the JSON Schema of a file, from which an editor completes and checks it."""
    from autocompress.run import schema as schemas

    if (what is None) != markdown:
        raise InputError("Give either study, space or recipe, or --markdown.")
    text = schemas.reference() if what is None else json.dumps(schemas.schema(what), indent=2)
    answer(text.rstrip())


_INTERRUPTED = 130
"""As shells call it; what Typer makes of Ctrl-C."""


def main() -> None:
    """Entry point: prints an error of ours, or of a file; all else is a bug, with its traceback."""
    write_anything()
    if "--json" in sys.argv:
        keep_for_answers()
    try:
        with answering(signal.default_int_handler):  # which raises KeyboardInterrupt
            app()
    except (AutocompressError, OSError, MemoryError) as error:
        told = as_ours(error)
        if told is None:
            raise
        text = f"[bold red]Error:[/bold red] {escape(str(told))}"
        PlainConsole(stderr=True).print(text, highlight=False, soft_wrap=True)
        sys.exit(told.exit_code)
    except (KeyboardInterrupt, SystemExit) as ended:
        code = getattr(ended, "code", _INTERRUPTED)
        if code == _INTERRUPTED:
            sys.stderr.write("Interrupted before the end. No file was left half written.\n")
        sys.exit(code)
