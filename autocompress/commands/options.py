"""The arguments and options of the command line that several commands share, or that are long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autocompress.errors import InputError
from autocompress.machine.ssh import SCHEME

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

DataFactory = Annotated[
    str | None,
    typer.Option("--data", metavar="PKG.MOD:FN", help="Its data, for a recipe found in Python."),
]

Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A storage of Optuna that trials are mirrored to: sqlite:///study.db, "
        "postgresql://..., journal:FILE. Searches that name the same one share their trials.",
    ),
]

Trust = Annotated[
    bool,
    typer.Option(
        help="Run whatever functions the file names; otherwise only those of autocompress, those "
        "given by --model and --data, and those that a study here has run before."
    ),
]

LatencyMs = Annotated[
    float | None,
    typer.Option(
        help="Latency target in milliseconds; takes the place of the study's latency limit."
    ),
]
BudgetLimits = Annotated[
    list[str] | None,
    typer.Option(
        help="A limit such as 'latency<=0.5x', 'macs<=40%', 'size<=1MB'; repeatable. Takes the "
        "place of the study's limits."
    ),
]
MaxAccuracyDrop = Annotated[
    float | None,
    typer.Option(
        help="In points of a classification's accuracy: the fastest policy that loses no more is "
        "the answer."
    ),
]
MaxQualityDrop = Annotated[
    str | None,
    typer.Option(
        help="The same for any task: in the metric's unit (0.3), or a share of the uncompressed "
        "model's value (2%)."
    ),
]
Trials = Annotated[int | None, typer.Option(min=1, help="Trials of the search phase.")]
Timeout = Annotated[
    str | None,
    typer.Option(
        help="Time for the whole study, from reading the model to the report: 90s, 20m, 2h. "
        "Search, recovery and verification are planned to end in time."
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(help="guided, tpe, nsga2, gp or random, or one that an installed package offers."),
]
WarmFrom = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        help="Begin with the front and the first looks of an earlier run on the same architecture.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Evaluations at once. Latency is still measured one at a time."),
]
Executor = Annotated[str | None, typer.Option(help="local, ray or ray_tune.")]
RayAddress = Annotated[str | None, typer.Option(help="A running Ray cluster.")]
Resume = Annotated[
    bool, typer.Option(help="Go on with the run in --out; finished trials are not repeated.")
]
NewBaseline = Annotated[
    bool,
    typer.Option(
        "--new-baseline",
        help="With --resume, where model, data, target or settings have changed: set the run's "
        "trials aside and measure the uncompressed model anew.",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run [runs/NAME].")]
DryRun = Annotated[
    bool,
    typer.Option(
        help="Show the resolved study, the space, and whether the budget can be met (exit code 2 "
        "if not)."
    ),
]
DevicePython = Annotated[
    str | None, typer.Option(help="Name or path of Python on a device; python3 by default.")
]
Retry = Annotated[
    bool,
    typer.Option(
        "--retry", help="With --target: try again what could not be timed there, which is kept."
    ),
]


def check_retry(target: str | None, retry: bool) -> None:
    """See that something can be tried again.

    Raises:
        InputError: nothing is timed.
    """
    if retry and (target is None or target.endswith(".json")):
        raise InputError(
            "--retry times policies again that could not be timed on another target. Give "
            "`--target` a runtime or a device, or leave it out."
        )


def check_python(target: str | None, python: str | None) -> None:
    """See that Python of a device is named with a device.

    Raises:
        InputError: it is named with a runtime or a table, or alone.
    """
    if python is not None and not (target or "").startswith(SCHEME):
        beside = "no --target is given" if target is None else f"the target is {target!r}"
        raise InputError(
            f"--python names Python on a device, and {beside}. Give `--target ssh://user@host`, or "
            "leave it out."
        )
