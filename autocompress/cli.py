"""The command line: parse, call, print. The work stands in ``autocompress.run``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

import autocompress
from autocompress.commands import federating, files, runs, studies
from autocompress.controller.stop import answering, interrupting
from autocompress.errors import AutocompressError
from autocompress.machine.output import keep_for_answers
from autocompress.policy.files import as_ours
from autocompress.report.terminal import PlainConsole, shown, write_anything


class _Commands(TyperGroup):
    """The commands; what they were given is shown in errors, and never sent to the terminal."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # Click's, by two names
        """See ``typer``."""
        try:
            return super().invoke(ctx)
        except _Wrong as error:
            error.message = shown(error.message)
            raise


_Wrong: Any = typer.BadParameter.__bases__[0]
"""``UsageError`` of Click, which some versions of Typer bring along and others import."""

app = typer.Typer(
    name="autocompress",
    cls=_Commands,
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


_EXAMPLES: dict[Callable[..., None], str] = {
    studies.init: "init my_package.models:make --data my_package.data:splits -o mine.yaml",
    studies.advise: "advise mine.yaml --budget 'latency<=0.5x' -o space.yaml",
    studies.search: "search quickstart --budget 'latency<=0.5x' --timeout 5m",
    federating.federate: "federate quickstart --clients 10 --split dirichlet --alpha 0.1",
    studies.profile: "profile quickstart",
    studies.evaluate: "evaluate quickstart --uniform "
    "prune_ratio=0.5,weight_bits=8,activation_bits=8",
    runs.front: "front runs/quickstart --open",
    runs.export: "export runs/quickstart --pick knee -o recipe.yaml",
    files.apply: "apply recipe.yaml -o model.onnx",
    files.verify: "verify recipe.yaml",
    files.bench: "bench small.onnx --vs large.onnx --threads 1",
    files.judge: "judge mine.onnx theirs.onnx --study cifar10_resnet20",
    files.targets: "targets",
    runs.cascade: "cascade runs/cifar10_resnet20 --min-accuracy 0.5%",
    files.doctor: "doctor",
    runs.track: "track runs/quickstart --uri http://mlflow:5000",
    runs.ui: "ui runs --open",
    files.schema: "schema study > study.schema.json",
}
for _function, _example in _EXAMPLES.items():
    app.command(epilog=f"Example: autocompress {_example}")(_function)

_INTERRUPTED = 130
"""As shells call it; what Typer makes of Ctrl-C."""


def main() -> None:
    """Entry point: prints an error of ours, or of a file; all else is a bug, with its traceback."""
    write_anything()
    if "--json" in sys.argv:
        keep_for_answers()
    try:
        with answering(interrupting()):
            app()
    except (AutocompressError, OSError, MemoryError) as error:
        told = as_ours(error)
        if told is None:
            raise
        text = f"[bold red]Error:[/bold red] {escape(str(told))}"
        PlainConsole(stderr=True).print(text, soft_wrap=True)
        sys.exit(told.exit_code)
    except (KeyboardInterrupt, SystemExit) as ended:
        code = getattr(ended, "code", _INTERRUPTED)
        if code == _INTERRUPTED:
            sys.stderr.write("Interrupted before the end. No file was left half written.\n")
        sys.exit(code)
