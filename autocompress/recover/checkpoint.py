"""Training under way, on disk: everything needed to go on bit for bit."""

from __future__ import annotations

import logging
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autocompress.policy.writing import replacing

if TYPE_CHECKING:
    from autocompress.recover.engine import Trainer

_log = logging.getLogger(__name__)
_VERSION = 1


def save_checkpoint(path: Path, trainer: Trainer) -> None:
    """Write the trainer's state atomically; parent folders are made."""
    state: dict[str, Any] = {
        "version": _VERSION,
        "identity": trainer.identity,
        "step": trainer.step,
        "seconds": trainer.seconds,
        "module": trainer.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "ema": trainer.ema.state_dict() if trainer.ema is not None else None,
        "projections": trainer.teaching.projections.state_dict() if trainer.teaching else None,
        "sum": trainer._sum,
        "count": trainer._count,
        "history": [asdict(record) for record in trainer.history],
    }
    with replacing(path) as partial:
        torch.save(state, partial)


def load_checkpoint(path: Path, trainer: Trainer) -> bool:
    """Take up a saved state, if there is one and it is of the same training.

    Args:
        path: written by ``save_checkpoint``; need not exist.
        trainer: made with the same arguments as the one that wrote it; changed in place.

    Returns:
        Whether training goes on from the file. A file that is broken or belongs to another
        training is left unused, with a warning: starting anew is right then.
    """
    if not path.is_file():
        return False
    try:
        # what is no archive at all would go to a reader of old formats, which fails in any way
        if not zipfile.is_zipfile(path):
            raise OSError("not an archive, or a torn one")
        state = torch.load(path, map_location=trainer.place.device, weights_only=True)
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        _log.warning("The checkpoint %s is not readable (%s); training anew.", path, error)
        return False
    if state.get("version") != _VERSION or state["identity"] != trainer.identity:
        _log.warning("The checkpoint %s is of another training; training anew.", path)
        return False
    from autocompress.recover.engine import EpochRecord

    trainer.module.load_state_dict(state["module"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.ema is not None:
        trainer.ema.load_state_dict(state["ema"])
    if trainer.teaching is not None:
        trainer.teaching.projections.load_state_dict(state["projections"])
    trainer.step, trainer.seconds = state["step"], state["seconds"]
    trainer._sum, trainer._count = state["sum"], state["count"]
    trainer.history = [EpochRecord(**record) for record in state["history"]]
    return True
