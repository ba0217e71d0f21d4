"""How a study runs where its data lie with many clients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from autocompress.policy.section import CONTRADICTION, Section


class FederationSection(Section):
    """The ``federation`` section of a study; read by ``federate`` alone.

    Args:
        clients: that a simulation makes of the study's data.
        split: how it shares them out: ``iid``; ``dirichlet``, by class, in shares drawn from a
            Dirichlet distribution; or ``column``.
        alpha: of the Dirichlet distribution; the smaller, the more unlike the clients.
        column: with ``split: column``, whose values make the clients: a key of the data's
            ``extra``, with one list of values for each split.
        seed: of the shares.
        least: share of the clients that every round must hear.
        timeout_s: seconds for one client's answer.
        at_once: clients that are asked at the same time.
        calibration_images: samples behind the layer bank, of all clients together; ``null`` takes
            as many as a study on data at hand.
        rounds: of recovery; its epochs are shared out among them.
        algorithm: ``fedavg``, or ``fedprox``, which holds clients near the common weights.
        proximal: the pull of ``fedprox``.
        epsilon: of the noise that every client adds to its second moments, so that single samples
            are hidden; ``null`` adds none.
        delta: of the same.
        without_first_layer: keep the second moments of the raw inputs where they are.
        trust_server: in a client's own study: open files of the server that are programs, as those
            of PyTorch (``.pt2``) are.
    """

    clients: int = Field(10, ge=1, le=1_000_000)
    split: Literal["iid", "dirichlet", "column"] = "iid"
    alpha: float = Field(0.5, gt=0)
    column: str | None = None
    seed: int = 0
    least: float = Field(0.5, gt=0, le=1)
    timeout_s: float = Field(600.0, gt=0)
    at_once: int = Field(16, ge=1)
    calibration_images: int | None = Field(None, ge=8)
    rounds: int = Field(20, ge=1)
    algorithm: Literal["fedavg", "fedprox"] = "fedavg"
    proximal: float = Field(0.01, gt=0)
    epsilon: float | None = Field(None, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)
    without_first_layer: bool = False
    trust_server: bool = False

    @model_validator(mode="after")
    def _named(self) -> FederationSection:
        if (self.split == "column") != (self.column is not None):
            said = "`split: column` and the name of a `column` belong together."
            raise PydanticCustomError(CONTRADICTION, "{said}", {"said": said})
        return self
