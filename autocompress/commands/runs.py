"""Commands that take runs: ``front``, ``export``, ``cascade``, ``track``, ``ui``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from autocompress.cascade.amounts import asked_amounts
from autocompress.commands import cascading, options
from autocompress.commands.options import Json, Run
from autocompress.commands.printing import display, printed
from autocompress.errors import InputError


def front(
    run: Run,
    open_report: Annotated[bool, typer.Option("--open", help="Open the HTML report.")] = False,
    target: Annotated[
        str | None,
        typer.Option(
            help="The front on another runtime, a device (`ssh://user@host`) or by its table.json. "
            "What was never timed there is timed first, and kept."
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="A budget such as 'latency<=0.3x' instead of the run's; repeatable. Answered from "
            "what the run knows: the best measured policy, and the best to expect."
        ),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="What to expect at each budget, the cheapest first."),
    ] = False,
    python: options.DevicePython = None,
    retry: options.Retry = False,
    by: Annotated[
        str | None,
        typer.Option(
            help="Another cost that the front trades quality for, such as latency_2 (the second "
            "target), latency_p99, memory or size."
        ),
    ] = None,
    trust: options.Trust = False,
    as_json: Json = False,
) -> None:
    """Show the Pareto front of a run, or what it knows of other budgets, here or elsewhere."""
    options.check_python(target, python)
    options.check_retry(target, retry)
    if budget or sweep:
        if open_report or by or (budget and sweep):
            raise InputError(
                "--budget and --sweep stand alone or with --target: leave --open, --by and the "
                "other one out."
            )
        from autocompress.commands import forecasting

        asked = partial(forecasting.show, run, budget or (), target=target, python=python)
        asked(retry=retry, trust=trust, as_json=as_json)
        return
    from autocompress.commands import reading
    from autocompress.report.tables import summary_json
    from autocompress.track.by_cost import by_cost

    view = reading.view_of(run, target, python=python, retry=retry, trust=trust, quiet=as_json)
    view = view if by is None else by_cost(view, by)
    printed(summary_json(view), as_json, lambda console: reading.show_front(view, console))
    if open_report:
        reading.open_report(run, view)


def export(
    run: Run,
    pick: Annotated[
        str, typer.Option(help="best, knee, fastest, smallest, most-accurate, or a trial's number.")
    ] = "best",
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe to write.")] = Path(
        "recipe.yaml"
    ),
    target: Annotated[
        str | None,
        typer.Option(help="Claim the costs on another runtime or device, as `front --target`."),
    ] = None,
    python: options.DevicePython = None,
    trust: options.Trust = False,
    as_json: Json = False,
) -> None:
    """Write a recipe that anyone can apply again."""
    options.check_python(target, python)
    from autocompress.commands import recipes as showing
    from autocompress.run import recipes

    with display(as_json) as shown:
        there = partial(recipes.export, target=target, python=python, trust=trust)
        found = there(run, pick, output, shown.preparing)
    printed(found, as_json, lambda console: showing.show_export(found, console))


def cascade(
    run: Run,
    min_accuracy: Annotated[
        str | None,
        typer.Option(
            metavar="POINTS",
            help="At most so many points of accuracy below the uncompressed model, with 95 % "
            "confidence on inputs that were not seen: 0.2%. The quickest cascade is taken.",
        ),
    ] = None,
    mean_latency: Annotated[
        str | None,
        typer.Option(
            metavar="MS",
            help="A mean latency that is not exceeded, with the same confidence: 0.3ms. The most "
            "accurate cascade is taken.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the files [RUN/cascade/best]."),
    ] = None,
    early_exits: Annotated[
        bool,
        typer.Option(
            "--early-exits/--no-early-exits",
            help="Let networks answer part-way as well, with linear heads that need no training.",
        ),
    ] = True,
    trust: options.Trust = False,
    as_json: Json = False,
) -> None:
    """Let a small member answer what it is sure of, and hand the rest to a larger one."""
    asked = asked_amounts(min_accuracy, mean_latency)
    from autocompress.cascade.choose import Asked
    from autocompress.run.cascading import cascade as make

    with display(as_json) as shown:
        found = make(
            run, Asked(**asked), output, shown.preparing, early_exits=early_exits, trust=trust
        )
    printed(found, as_json, lambda console: cascading.show_cascade(found, console))


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
    from autocompress.commands import reading
    from autocompress.run import tracking

    found = tracking.track(run, uri, experiment)
    printed(found, as_json, lambda console: reading.show_tracked(found, console))


def ui(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="The folder of the runs.")] = Path(
        "runs"
    ),
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="If it is taken, the next free one; 0 takes any.")
    ] = 5000,
    opened: Annotated[
        bool, typer.Option("--open", help="Open the latest run's pages in the browser.")
    ] = False,
    dashboard: Annotated[
        bool, typer.Option(help="Start optuna-dashboard on the same trials instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the MLflow server on the runs' store and print links to the right pages."""
    from autocompress.commands import reading

    reading.ui(runs, host, port, dashboard=dashboard, opened=opened, as_json=as_json)
