"""Clients of a small network, who answer in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_networks import data as small_data
from small_networks import example, make

from autocompress.federated.client import Client
from autocompress.federated.described import describe, made_up
from autocompress.federated.journal import RoundJournal
from autocompress.federated.local import InProcess
from autocompress.federated.rounds import Rounds
from autocompress.federated.server import FederatedPipeline, FederatedServer
from autocompress.federated.shares import part_of, shared_out
from autocompress.model.inventory import take_inventory
from autocompress.policy.federation import FederationSection
from autocompress.policy.settings import CompressionSettings
from autocompress.run.assembly import Assembly
from autocompress.run.study import StudyConfig, read_study
from autocompress.task.data import Data

SETTINGS = CompressionSettings(calibration_images=4096, equalization=False)
STUDY = read_study(
    {
        "name": "small",
        "model": {"factory": "small_networks:make"},
        "data": {"factory": "small_networks:data"},
        "recovery": {"schedule": {"lr": 0.01, "batch_size": 16, "device": "cpu"}},
    }
)


class Federation:
    """Clients of a small network, and the same samples in one place."""

    def __init__(
        self,
        folder: Path,
        name: str = "residual",
        *,
        study: StudyConfig = STUDY,
        **section: Any,
    ) -> None:
        self.section = FederationSection(**{"clients": 5, "calibration_images": 4096, **section})
        self.model = make(name)
        self.inventory = take_inventory(self.model, example(name))
        self.data = small_data(name)
        self.folder, self.study = folder, study
        parts = self._parts(self.data)
        self.shares = shared_out(self.data, self.section)
        self.parts_of = [part_of(self.data, share) for share in self.shares]
        transport = InProcess(
            range(len(self.parts_of)), lambda i: Client(parts, self.parts_of[i], folder / str(i))
        )
        identity = (self.inventory.architecture, self.inventory.weights)
        self.rounds = Rounds(transport, RoundJournal(folder / "rounds"), identity)
        about = {i: describe(part) for i, part in enumerate(self.parts_of)}
        invented = made_up(about, task=self.data.task)
        own = Client(self._parts(invented), invented, folder / "server")
        self.server = FederatedServer(self.rounds, self.section, len(self.data.train), own, folder)

    def _parts(self, own: Data) -> Assembly:
        return Assembly(self.study, self.model, own, self.inventory, self.folder)

    def pipeline(self, settings: CompressionSettings = SETTINGS) -> FederatedPipeline:
        bank = self.server.bank(settings)
        return FederatedPipeline(
            self.model,
            self.server.own.data,
            self.inventory,
            bank,
            settings,
            self.study.recovery.schedule,
            server=self.server,
        )
