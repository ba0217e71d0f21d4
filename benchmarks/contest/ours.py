"""autocompress itself, and the hardest baseline: uniform, int8, and the same recovery."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from autocompress import __version__
from autocompress.policy.policy import Distill, Policy
from autocompress.results.trial import Phase
from autocompress.run.assembly import assemble
from autocompress.run.session import run_study
from autocompress.run.study import StudyConfig, load_study
from contest.rows import mildest
from contest.task import MARGIN

STUDIES = {name: f"cifar10_{name}" for name in ("resnet20", "resnet56", "vgg16")}
_RESERVE_S = 15.0
_SLOWER = 1.15
_END_S = 6.0


class Own:
    """A study's work in place of ``Task``: nothing is loaded before the study does so.

    Args:
        network, latency, seconds, begun, folder: as for ``Task``.
    """

    def __init__(
        self, network: str, latency: float, seconds: float, begun: float, folder: Path
    ) -> None:
        self.network, self.latency, self.folder = network, latency, folder
        self.ends = begun + seconds
        self.said: list[str] = []

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return self.ends - time.time()

    def study(self) -> StudyConfig:
        """The shipped study for this budget, on the weights as they are."""
        study = load_study(STUDIES[self.network])
        return study.model_copy(update={"baseline": None, "max_accuracy_drop": None}).changed(
            budget=[f"latency<={self.latency:g}x"],
            search=study.search.model_copy(update={"trials": None, "timeout_s": None}),
            target={"runtime": "onnxruntime", "threads": 1, "batch": 1},
            tracking={"mlflow": False},
        )


def autocompress(own: Own) -> tuple[Path, dict[str, Any]]:
    """The shipped study with the whole time as its budget."""
    study = own.study().changed(timeout_s=own.left_s - _END_S)
    done = run_study(study, own.folder / "run")
    path, best = done.folder.best_model(), done.view.best
    if path is None or best is None:
        raise RuntimeError("the study ended without an answer")
    counts: dict[str, int] = {}
    for trial in done.view.trials:
        counts[trial.phase.kind] = counts.get(trial.phase.kind, 0) + 1
    trained = f"{best.phase.epochs:g} epochs" if best.phase.epochs else "not trained"
    own.said.append(", ".join(f"{n} {kind}" for kind, n in counts.items()) + f"; {trained}")
    settings = f"study {STUDIES[own.network]}, space {study.space_config().name}"
    return path, {"settings": settings, "version": f"autocompress {__version__}"}


def uniform_int8(own: Own) -> tuple[Path, dict[str, Any]]:
    """One ratio for all layers and int8, then reconstruction and training with a teacher."""
    study = own.study()
    parts = assemble(study, own.folder)
    evaluator, space = parts.evaluator, parts.space

    def policy_of(share: float) -> Policy:
        values = {"prune_ratio": share, "weight_bits": 8, "activation_bits": 8}
        return space.decode(space.uniform(**values))

    def ratio_of(share: float) -> float:
        path = evaluator.export_variant(policy_of(share))
        return evaluator.measurer.timing(path, max_seconds=2.0).ratio

    share, found = mildest(ratio_of, MARGIN * own.latency, 0.75, 5)
    own.said.append(f"share {share:.3f} by bisection (there {found:.3f}x)")
    plain = policy_of(share)
    policy = Policy(plain.layers, Distill(), None)
    epoch_s = evaluator.epoch_s(policy, 0.03 * own.left_s)
    epochs = max(0.0, int(100 * (own.left_s - _RESERVE_S) / (_SLOWER * epoch_s)) / 100)
    own.said.append(f"{epochs:.2f} epochs")
    phase = Phase("recover", epochs, 1)
    evaluator.score(policy, phase, 0)
    path = evaluator.model_path(policy, phase)
    settings = "nearest level of one ratio, int8, the study's reconstruction, a teacher"
    return path, {"settings": settings, "version": f"autocompress {__version__}"}
