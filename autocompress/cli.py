"""The command line: parse, call, print. The work stands in ``autocompress.commands``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from autocompress.errors import AutocompressError, InputError

app = typer.Typer(
    name="autocompress",
    help="Search compression policies for a PyTorch model under a hardware budget. Every number "
    "is measured on the exported file in the target runtime.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="A study file, or the name of a shipped one, e.g. quickstart."
    ),
]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="The folder of a run, e.g. runs/quickstart.")
]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Factory = Annotated[
    str | None,
    typer.Option("--model", metavar="PKG.MOD:FN", help="Another model of the same architecture."),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar="FILE", help="Its weights: safetensors or a torch state dict."
    ),
]


def _print(data: Any, as_json: bool, show: Callable[[Console], None]) -> None:
    """One object for machines, or something readable for people."""
    if as_json:
        sys.stdout.write(json.dumps(data) + "\n")
    else:
        from autocompress.commands.display import console

        show(console())


@app.command(epilog="Example: autocompress search quickstart --budget 'latency<=0.5x' --timeout 5m")
def search(
    study: StudyName,
    latency_ms: Annotated[
        float | None,
        typer.Option(
            help="Latency target in milliseconds; takes the place of the study's latency limit."
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="A limit such as 'latency<=0.5x', 'macs<=40%', 'size<=1MB'; repeatable. Takes the "
            "place of the study's limits."
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(help="In points: the fastest policy that loses no more is the answer."),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the search phase.")] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Time for the search phase: 90s, 20m, 2h. Ends cleanly.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="guided, tpe, nsga2, gp or random.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluations at once. Latency is still measured one at a time."),
    ] = None,
    executor: Annotated[str | None, typer.Option(help="local or ray.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster.")] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on with the run in --out; finished trials are not repeated.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run [runs/NAME].")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(help="Show the resolved study, the space, and whether the budget can be met."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a whole study: profile, search, recover, verify.

    Ctrl-C once finishes the running trial and writes the front; twice stops at once.
    """
    from autocompress.commands import overrides
    from autocompress.run import feasibility as planning
    from autocompress.run import session as searching
    from autocompress.run.study import load_study

    config = overrides(
        load_study(study),
        latency_ms=latency_ms,
        budget=budget,
        max_accuracy_drop=max_accuracy_drop,
        trials=trials,
        timeout=timeout,
        sampler=sampler,
        workers=workers,
        executor=executor,
        ray_address=ray_address,
        seed=seed,
    )
    if dry_run:
        found = planning.dry_run(config)
        _print(found, as_json, lambda console: planning.show_dry_run(found, console))
        return
    result = searching.search(config, out, resume=resume, quiet=as_json)
    _print(result, as_json, lambda console: None)
    if not result["feasible"]:
        raise typer.Exit(1)


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
    from autocompress.commands import inspecting
    from autocompress.run.study import load_study

    found = inspecting.profile(load_study(study), export_kernels, quiet=as_json)
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
    as_json: Json = False,
) -> None:
    """Measure one policy of yours: what would happen if."""
    from autocompress.commands import inspecting
    from autocompress.run.study import load_study

    if (policy is None) == (uniform is None):
        raise InputError("Give either --policy FILE or --uniform prune_ratio=0.5,weight_bits=8.")
    found = inspecting.evaluate(load_study(study), policy, uniform, epochs, quiet=as_json)
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
    as_json: Json = False,
) -> None:
    """Show the Pareto front of a run."""
    from autocompress.commands import reading

    if as_json:
        _print(reading.front(run, target, quiet=True), True, lambda console: None)
    else:
        _print(None, False, lambda console: reading.show_front(run, target, console))
    if open_report:
        from autocompress.track.folder import RunFolder

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
    from autocompress.run import replay as recipes

    found = recipes.export(run, pick, output)
    _print(
        found,
        as_json,
        lambda console: console.print(
            f"Trial {found['trial']} -> [bold]{found['recipe']}[/bold]\n"
            f"Apply it: autocompress apply {found['recipe']} -o model.onnx"
        ),
    )


@app.command(epilog="Example: autocompress apply recipe.yaml -o model.onnx")
def apply(
    recipe: RecipePath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="model.onnx, model.pt2 or model.safetensors.")
    ] = Path("model.onnx"),
    model: Factory = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Rebuild the compressed model from a recipe."""
    from autocompress.run import replay as recipes

    found = recipes.apply(recipe, output, model, checkpoint, quiet=as_json)
    _print(
        found,
        as_json,
        lambda console: console.print(
            f"[bold]{found['model']}[/bold]: {found['size_bytes'] / 1e3:,.1f} kB"
            + (f"\n{found['note']}" if found["note"] else "")
        ),
    )


@app.command(epilog="Example: autocompress verify recipe.yaml")
def verify(
    recipe: RecipePath,
    model: Factory = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Apply a recipe in a fresh process and compare the result with what the recipe claims."""
    from autocompress.run import replay as recipes

    found = recipes.verify(recipe, model, checkpoint)
    _print(found, as_json, lambda console: recipes.show_verification(found, console))
    if not found["ok"]:
        raise typer.Exit(1)


@app.command(epilog="Example: autocompress bench small.onnx --vs large.onnx --threads 1")
def bench(
    file: Annotated[Path, typer.Argument(metavar="A.onnx", help="The file to time.")],
    vs: Annotated[Path | None, typer.Option(help="A second file, timed in turn with it.")] = None,
    target: Annotated[
        str, typer.Option(help="Runtime; see `autocompress targets`.")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Time a file, or two interleaved: median, IQR, and the ratio with its interval."""
    from autocompress.commands import measuring

    found = measuring.bench(file, vs, target, threads, batch)
    _print(found, as_json, lambda console: measuring.show_bench(found, console))


@app.command()
def targets(as_json: Json = False) -> None:
    """Show which runtimes and devices are available here, and why the others are not."""
    from autocompress.commands import measuring

    found = measuring.targets()
    _print(found, as_json, lambda console: measuring.show_targets(found, console))


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
    from autocompress.commands import reading

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
    from autocompress.commands import schema as schemas

    if (what is None) != markdown:
        raise InputError("Give either study, space or recipe, or --markdown.")
    text = schemas.reference() if what is None else json.dumps(schemas.schema(what), indent=2)
    sys.stdout.write(text.rstrip() + "\n")


def main() -> None:
    """Entry point: prints an error of ours without a traceback and returns its exit code."""
    try:
        app()
    except AutocompressError as error:
        Console(stderr=True).print(
            f"[bold red]Error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(error.exit_code)
