"""``federate``: a study whose data lie with clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autocompress.commands import options
from autocompress.commands.options import Json, StudyName
from autocompress.commands.printing import display, printed

if TYPE_CHECKING:
    from rich.console import Console

    from autocompress.federated.rounds import Transport
    from autocompress.federated.study import Simulated
    from autocompress.run.study import StudyConfig

Clients = Annotated[
    int | None,
    typer.Option(
        min=1, help="Clients of the simulation; with --superlink, as many are waited for."
    ),
]
Split = Annotated[
    str | None, typer.Option(help="How the study's data are shared out: iid, dirichlet, column.")
]
Alpha = Annotated[
    float | None, typer.Option(help="Of the Dirichlet shares; smaller makes clients more unlike.")
]
Column = Annotated[
    str | None, typer.Option(help="With --split column: whose values make the clients.")
]
SuperLink = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="A SuperLink on this machine (127.0.0.1:8000), or a connection's name in Flower's "
        "configuration: real clients instead of a simulation.",
    ),
]


def federate(
    study: StudyName,
    clients: Clients = None,
    split: Split = None,
    alpha: Alpha = None,
    column: Column = None,
    superlink: SuperLink = None,
    budget: options.BudgetLimits = None,
    trials: options.Trials = None,
    timeout: options.Timeout = None,
    seed: options.Seed = None,
    resume: options.Resume = False,
    out: options.Out = None,
    as_json: Json = False,
) -> None:
    """Run a study whose data stay with clients: sums are merged here, files are timed here.

    Flower carries the messages, in an environment of its own (`make federated-env`).
    """
    from autocompress.commands import searching
    from autocompress.commands.overrides import overrides
    from autocompress.federated.study import Simulated, run_federated
    from autocompress.run.study import load_study

    config = overrides(load_study(study), budget=budget, trials=trials, timeout=timeout, seed=seed)
    asked = {"clients": clients, "split": split, "alpha": alpha, "column": column}
    given = {key: value for key, value in asked.items() if value is not None}
    if column is not None and split is None:
        given["split"] = "column"
    now = {} if config.federation is None else config.federation.model_dump(mode="json")
    config = config.changed(federation={**now, **given})
    folder = out or Path("runs") / config.name
    with searching.interruptible(folder), display(as_json) as shown:
        shown.preparing("clients", 0.0)
        simulated = None if superlink is not None else Simulated(config)
        model = None
        if simulated is not None and config.baseline is not None:
            model = simulated.parts.model  # trained on all data, as somebody must have
        with _reached(config, simulated, superlink, folder) as transport:
            done = run_federated(
                config,
                transport,
                out,
                resume=resume,
                model=model,
                watcher=shown,
                give_up=searching.give_up,
                simulated=simulated,
            )

    def show(console: Console) -> None:
        searching.show_result(done, console)
        show_traffic(done.summary["federated"], console)

    printed(done.summary, as_json, show)
    if not done.summary["answered"] or done.summary["unfinished"] or done.summary["failed_phases"]:
        raise typer.Exit(1)


@contextmanager
def _reached(
    config: StudyConfig, simulated: Simulated | None, superlink: str | None, folder: Path
) -> Iterator[Transport]:
    from autocompress.flower import start

    log = folder.with_name(f"{folder.name}.flower.log")
    opened = (
        start.simulation(simulated, log)
        if simulated is not None
        else start.superlink(config, str(superlink), log)
    )
    with opened as transport:
        yield transport


def show_traffic(found: dict[str, Any], out: Console) -> None:
    """What clients were sent and sent back."""
    sent, received = found["sent_bytes"] / 1e6, found["received_bytes"] / 1e6
    most = found["most_bytes_of_a_client"] / 1e6
    out.print(
        f"rounds  {found['rounds']}: {sent:.1f} MB sent, {received:.1f} MB received, at most "
        f"{most:.1f} MB with one client",
    )
    told = found["pooled"]
    if told is not None:
        gap = told["pooled"] - told["federated"]
        out.print(
            f"pooled  the same policy on all samples in one place: {told['metric']} "
            f"{told['pooled']:.4g} on {told['split']} for {told['federated']:.4g} ({gap:+.4g})",
        )
    for client, why in sorted(found["left_out"].items()):
        out.print(
            f"client {client} was left out of {why['rounds']} rounds: {why['reason']}",
            markup=False,
        )
