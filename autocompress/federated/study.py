"""A study whose data lie with clients, run to its end like any other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.build.bank import LayerBank
from autocompress.errors import InputError
from autocompress.federated.client import Client
from autocompress.federated.described import made_up, unlike
from autocompress.federated.evaluator import FederatedEvaluator, federated_evaluator, with_worst
from autocompress.federated.journal import RoundJournal, traffic
from autocompress.federated.messages import Request
from autocompress.federated.pooled import pooled
from autocompress.federated.rounds import Rounds, Transport
from autocompress.federated.server import FederatedPipeline, FederatedServer
from autocompress.federated.shares import part_of, shared_out
from autocompress.machine.progress import Progress, silent
from autocompress.model.fingerprint import fingerprint
from autocompress.model.prepare import prepare
from autocompress.policy.federation import FederationSection
from autocompress.policy.settings import CompressionSettings
from autocompress.report.html import write_report
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.loading import load_model
from autocompress.run.session import Watcher, run_study
from autocompress.run.variables import with_variables
from autocompress.targets import get_target
from autocompress.track.clients import clients_file, read_clients
from autocompress.track.folder import RunFolder, write_json
from autocompress.track.view import RunView
from autocompress.workloads.cache import cache_folder

if TYPE_CHECKING:
    from autocompress.run.ending import EndedRun
    from autocompress.run.study import StudyConfig

FOLDER = "federated"
"""In the folder of a run: the journal of its rounds."""
SENT = "sent"
"""In that folder: what is sent once. Clients clean up there, so that nothing else may lie in it."""
_log = logging.getLogger(__name__)


@dataclass
class FederatedAssembly(Assembly):
    """The parts of a study at the server.

    Args:
        server: asks the clients.
    """

    server: FederatedServer = field(kw_only=True)

    @cached_property
    def bank(self) -> LayerBank:
        """The layer bank that the clients' sums make."""
        return self.server.bank(self.study.settings, self.progress)

    @cached_property
    def pipeline(self) -> FederatedPipeline:
        """Builds compressed models; what it asks of data it asks of clients."""
        self.inventory = self.bank.inventory
        return FederatedPipeline(
            self.model,
            self.data,
            self.inventory,
            self.bank,
            self.study.settings,
            self.study.recovery.schedule,
            qat=self.study.recovery.qat,
            students=self.students,
            server=self.server,
        )

    @cached_property
    def evaluator(self) -> FederatedEvaluator:
        """Measures policies: files and times here, quality with the clients."""
        return federated_evaluator(
            self.pipeline,
            get_target(self.study.target.config()),
            self.folder,
            screen_images=self.study.search.screen_images,
            asked=self.study.extra_costs(),
            progress=self.progress,
        )


def run_federated(
    study: StudyConfig,
    transport: Transport,
    out: Path | None = None,
    *,
    resume: bool = False,
    model: Any = None,
    watcher: Watcher | None = None,
    give_up: Callable[[], object] | None = None,
    simulated: Simulated | None = None,
) -> EndedRun:
    """Run a study whose data lie with the clients that a transport reaches.

    Args:
        study: as read; its data are not read here.
        transport: reaches the clients.
        out, resume, watcher, give_up: as in ``run_study``.
        model: takes the place of the study's, trained where the study would train it first.
        simulated: has all samples in one place, so that the gap to pooling can be told.

    Raises:
        RoundFailed: too few clients answer.
        InputError: as in ``run_study``, and a study that the server cannot run without data.
    """
    if study.dynamic is not None:
        raise InputError(
            "A cascade is settled on samples, and the server of a federated study has none. Leave "
            "out `dynamic`."
        )
    if study.also_on:
        raise InputError("A federated study has one target. Leave out `also_on`.")
    ready = study.model_copy(update={"workers": 1, "executor": "local"})
    done = run_study(
        ready,
        out,
        resume=resume,
        model=model,
        watcher=watcher,
        give_up=give_up,
        assembled=partial(assembled, transport),
    )
    found = None
    if simulated is not None and done.view.best is not None:
        found = read_clients(done.folder.root).get("pooled")
        if not found or found["trial"] != done.view.best.number:
            found = pooled(done.view, simulated.parts)
    write_summary(done.folder, done.summary, found)
    write_report(done.folder, RunView.load(done.folder))
    return done


def federation_of(study: StudyConfig) -> FederationSection:
    """How a study is federated; the defaults where it does not say."""
    return study.federation or FederationSection()


def assembled(
    transport: Transport,
    study: StudyConfig,
    folder: Path,
    *,
    model: Any = None,
    data: Any = None,
    progress: Progress = silent,
) -> FederatedAssembly:
    """The parts at the server; asks every client first what its samples look like."""
    if study.baseline is not None and model is None:
        raise InputError(
            "A federated study begins with a trained model, which every client has. Train it and "
            "give its `checkpoint`; a simulation trains it by itself."
        )
    section, place = federation_of(study), folder.parent / FOLDER
    raw = load_model(with_variables(study.model)) if model is None else model
    identity = fingerprint(prepare(raw).model)
    journal = RoundJournal(place)
    rounds = Rounds(transport, journal, identity, section.least, section.timeout_s, section.at_once)
    progress("the clients", 0.0)
    found = rounds.ask(Request("describe", {"samples": (3,)}))
    rounds.excluded = unlike(found.about)
    for client, reason in rounds.excluded.items():
        _log.warning("Client %d is left out of the study: %s.", client, reason)
    about = {c: told for c, told in found.about.items() if c not in rounds.excluded}
    samples = sum(told["samples"] for told in about.values())
    settings = server_settings(study.settings)
    ready = study.model_copy(update={"settings": settings, "baseline": None})
    parts = assemble(ready, folder, model=raw, data=made_up(about), progress=progress)
    own = Client(parts, parts.data, place / SENT, simulated=True)
    server = FederatedServer(rounds, section, samples, own, place)
    judged = replace(parts.data, task=with_worst(parts.task))
    fields = {name: getattr(parts, name) for name in parts.__dataclass_fields__}
    asked = parts.study.model_copy(update={"baseline": study.baseline})
    return FederatedAssembly(**{**fields, "study": asked, "data": judged}, server=server)


def server_settings(settings: CompressionSettings) -> CompressionSettings:
    """Settings with what takes inputs at hand replaced by what sums over inputs can do."""
    changes: dict[str, Any] = {"equalization": False}
    if settings.finish in ("sequential", "refine"):
        changes["finish"] = "bank_batch_norm"
    if settings.reconstruction == "sequential":
        changes["reconstruction"] = "bank_batch_norm"
    return settings.model_copy(update=changes)


def write_summary(
    folder: RunFolder, summary: dict[str, Any], in_one_place: dict[str, Any] | None
) -> dict[str, Any]:
    """Write what clients were sent and sent back, and add it to the summary of the run.

    Args:
        folder: of the run.
        summary: of the run; changed.
        in_one_place: the answer beside the same policy on pooled samples, if known.
    """
    rounds = RoundJournal(folder.root / FOLDER).rounds()
    left: dict[str, dict[str, Any]] = {}
    for one in rounds:
        for client, reason in one["left"].items():
            own = left.setdefault(client, {"rounds": 0, "reason": reason})
            own["rounds"] += 1
    told = {"rounds": len(rounds), **traffic(rounds), "left_out": left, "pooled": in_one_place}
    write_json(clients_file(folder.root), told)
    summary["federated"] = {k: v for k, v in told.items() if k != "bytes_by_client"}
    return summary


@dataclass
class Simulated:
    """The clients that a simulation makes of one study; made late, and each only when asked.

    Args:
        study: with its data, all of them.
        banks: layer banks that clients have read.
    """

    study: StudyConfig
    banks: dict[str, LayerBank] = field(default_factory=dict)

    @cached_property
    def parts(self) -> Assembly:
        """Of the whole study; its model is that of all clients."""
        return assemble(self.study, cache_folder() / FOLDER)

    @cached_property
    def shares(self) -> list[Any]:
        """The samples of each client."""
        return shared_out(self.parts.data, federation_of(self.study))

    @property
    def count(self) -> int:
        """How many there are; the data are read where they say it."""
        section = federation_of(self.study)
        return len(self.shares) if section.split == "column" else section.clients

    def client(self, number: int) -> Client:
        """One of them."""
        data = part_of(self.parts.data, self.shares[number])
        folder = cache_folder() / FOLDER
        return Client(self.parts, data, folder, simulated=True, banks=self.banks)
