"""Recovery by clients: what each trains on, and what their average is."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_federation import STUDY, Federation

from autocompress.federated.client import Client
from autocompress.federated.training import local_steps
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.recover.distill import Distillation
from autocompress.recover.finetune import fine_tune
from autocompress.results.trial import Phase
from autocompress.run.study import read_study


def test_averaged_weights_are_averaged_by_samples(tmp_path: Path) -> None:
    federation = Federation(tmp_path, split="dirichlet", alpha=0.3, rounds=1)
    pipeline = federation.pipeline()
    group = next(iter(pipeline.bank.orders))
    policy = Policy({group: LayerPolicy(0.5)})
    args = {**pipeline.common, "policy": policy.as_dict()}
    args |= {"samples": len(federation.data.train), "batch": 16, "steps": 6, "round": 0}
    args |= {"rounds": 1, "lr": 0.01, "seed": 3, "proximal": 0.0}
    compressed = pipeline.stitch(policy)
    sums, weights, counts = [], [], []
    for i, part in enumerate(federation.parts_of):
        client = Client(federation._parts(part), part, tmp_path / str(i))
        digest, blob = next(iter(pipeline.blobs.items()))
        client.sent.keep({f"blob.{digest}": np.frombuffer(blob, np.uint8)})
        own = client.sums("recover", args, {}, [digest])
        sums.append(own)
        weights.append(own["state." + group + ".weight"] / own["samples"][0])
        counts.append(len(part.train))
    expected = np.average(weights, axis=0, weights=counts)
    total = sums[0].wide()
    for one in sums[1:]:
        total = total + one.wide()
    found = total["state." + group + ".weight"] / total["samples"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(weights[0], weights[1])
    before = compressed.module.get_parameter(group + ".weight").detach().numpy()
    assert not np.allclose(found, before)


@pytest.mark.parametrize("sizes", [(16, 16, 16), (8, 24, 16)])
def test_averaged_steps_of_all_clients_are_steps_on_all_samples(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    """Exactly, where weights are averaged after every step and batches take all samples."""
    schedule = {"lr": 0.2, "batch_size": 48, "momentum": 0.0, "weight_decay": 0.0}
    schedule |= {"precision": "fp32"}
    recovery = {"schedule": {**schedule, "grad_clip": None, "augment": [], "device": "cpu"}}
    recovery["distillation"] = {"weight": 0.5}
    study = read_study({**STUDY.model_dump(mode="json"), "recovery": recovery})
    federation = Federation(tmp_path, "shared", study=study, clients=len(sizes), rounds=4)
    whole = federation.data.train.subset(torch.arange(48))
    for own, numbers in zip(federation.parts_of, torch.arange(48).split(sizes), strict=True):
        own.train = whole.subset(numbers)
    federation.server.samples = 48
    pipeline = federation.pipeline()
    policy = Policy({next(iter(pipeline.bank.orders)): LayerPolicy(0.5)})
    start = pipeline.stitch(policy).module
    trained = pipeline.train(pipeline.stitch(policy), Phase("recover", 4.0, 1), 0).module
    pooled = fine_tune(
        pipeline.stitch(policy),
        replace(federation.data, train=whole),
        study.recovery.schedule.model_copy(update={"epochs": 4.0}),
        distillation=Distillation([federation.model], Distill(weight=0.5)),
    ).module
    wanted = dict(pooled.named_parameters())
    for name, found in trained.named_parameters():
        assert torch.allclose(found, wanted[name], rtol=1e-4, atol=1e-6), name
    moved = [float((p - start.get_parameter(n)).detach().norm()) for n, p in wanted.items()]
    assert max(moved) > 1e-2


@pytest.mark.parametrize(
    ("samples", "total", "batch", "steps"), itertools.product([3, 40, 900], [1000], [32], [1, 31])
)
def test_no_client_trains_on_more_than_its_share(
    samples: int, total: int, batch: int, steps: int
) -> None:
    own, taken = local_steps(samples, total, batch, steps)
    assert 1 <= own <= samples
    assert 1 <= taken <= steps
    share = samples * batch * steps / total
    assert own * taken <= max(1.2 * share, 3)
    assert own * taken >= 0.7 * share - 3
