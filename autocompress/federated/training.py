"""A client's part of a training that all clients share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from autocompress.policy.recovery import Schedule
from autocompress.recover.distill import Distillation
from autocompress.recover.engine import TrainingPart
from autocompress.recover.finetune import fine_tune
from autocompress.task.data import Data
from autocompress.techniques.compressed import Compressed

_SMALLEST_BATCH = 2


def local_steps(samples: int, total: int, batch: int, steps: int) -> tuple[int, int]:
    """The size of a client's batches, and how many it trains on.

    All clients take as many steps, on batches as large as their share of the samples: averaged,
    these are steps on all samples. With batches of one size a large client would take more steps,
    and count for its samples twice (Wang et al., Tackling the Objective Inconsistency Problem in
    Heterogeneous Federated Optimization, NeurIPS 2020). A client that is too small for that takes
    fewer, and does not train on its samples more often than others do on theirs.

    Args:
        samples: of the client.
        total: of all clients.
        batch, steps: of all clients together.

    >>> local_steps(5000, 50_000, 128, 39)
    (13, 39)
    >>> local_steps(50, 50_000, 128, 39)
    (2, 2)
    """
    share = samples / total
    own = min(samples, max(_SMALLEST_BATCH, round(share * batch)))
    return own, max(1, min(steps, round(share * batch * steps / own)))


def train_part(
    compressed: Compressed,
    data: Data,
    schedule: Schedule,
    distillation: Distillation,
    args: Mapping[str, Any],
    qat: bool,
) -> nn.Module:
    """Train on a client's samples for one round.

    Args:
        compressed: as the server sent it; not changed.
        data: of the client.
        schedule: its study's; what ``args`` say takes the place of its own.
        distillation: from the uncompressed model.
        args: ``samples``, ``batch`` and ``steps`` of all clients together; ``lr``, ``seed``,
            ``round``, ``rounds``, ``proximal``.
        qat: train through fake quantization.
    """
    samples = len(data.train)
    batch, steps = local_steps(samples, args["samples"], args["batch"], args["steps"])
    own = {"batch_size": batch, "epochs": steps / (samples // batch)}
    tuned = fine_tune(
        compressed,
        data,
        schedule.model_copy(update={**own, "lr": args["lr"], "device": "cpu"}),
        distillation=distillation,
        qat=qat,
        seed=args["seed"],
        part=TrainingPart(args["round"], args["rounds"], args["proximal"]),
    )
    assert tuned.compressed is not None
    return tuned.compressed.module
