"""Commands that take recipes and model files, and those that tell what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from autocompress.commands import options
from autocompress.commands.options import (
    Checkpoint,
    DataFactory,
    Factory,
    Json,
    RecipePath,
)
from autocompress.commands.printing import display, printed
from autocompress.errors import InputError
from autocompress.machine.output import answer
from autocompress.policy.defaults import DEFAULT_RUNTIME


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
    from autocompress.commands import recipes as showing
    from autocompress.run import replay

    found = replay.apply(recipe, output, model, checkpoint, data, trust=trust)
    printed(found, as_json, lambda console: showing.show_applied(found, console))


def verify(
    recipe: RecipePath,
    model: Factory = None,
    checkpoint: Checkpoint = None,
    data: DataFactory = None,
    trust: options.Trust = False,
    as_json: Json = False,
) -> None:
    """Apply a recipe in a fresh process and compare the result with what the recipe claims."""
    from autocompress.commands import recipes as showing
    from autocompress.run import replay

    found = replay.verify(recipe, model, checkpoint, data, trust=trust)
    printed(found, as_json, lambda console: showing.show_verification(found, console))
    if not found["ok"]:
        raise typer.Exit(1)


def bench(
    file: Annotated[Path, typer.Argument(metavar="A.onnx", help="The file to time.")],
    vs: Annotated[Path | None, typer.Option(help="A second file, timed in turn with it.")] = None,
    target: Annotated[
        str,
        typer.Option(help="Runtime; see `autocompress targets`. Or a device, `ssh://user@host`."),
    ] = DEFAULT_RUNTIME,
    python: options.DevicePython = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Time a file, or two interleaved: median, IQR, and the ratio with its interval."""
    from autocompress.commands import measuring

    options.check_python(target, python)
    found = measuring.bench(file, vs, target, threads, batch, python)
    printed(found, as_json, lambda console: measuring.show_bench(found, console))


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
    with display(as_json) as shown:
        found = judge_files(load_study(study), files, shown.preparing, split=split)
    printed(found, as_json, lambda console: measuring.show_judgement(found, console))


def targets(as_json: Json = False) -> None:
    """Show which runtimes and devices are available here, and why the others are not."""
    from autocompress.commands import measuring

    found = measuring.targets()
    printed(found, as_json, lambda console: measuring.show_targets(found, console))


def doctor(as_json: Json = False) -> None:
    """Show what on this machine will disturb measuring, and how to mend it."""
    from autocompress.commands import inspecting
    from autocompress.machine.doctor import examine

    with display(as_json) as shown:
        shown.preparing("timing the same work again and again", 0.0)
        findings = [finding.as_dict() for finding in examine()]
    found = {"ok": all(f["state"] != "bad" for f in findings), "findings": findings}
    printed(found, as_json, lambda console: inspecting.show_findings(findings, console))
    if not found["ok"]:
        raise typer.Exit(1)


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
