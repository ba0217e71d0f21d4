"""Networks of one output column: neither screening nor training nor importance is blind to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from measured_network import Small, images
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.guided.proposer import GuidedProposer
from autocompress.errors import InputError
from autocompress.execute.local import InProcessExecutor
from autocompress.model.inventory import take_inventory
from autocompress.policy.budget import Budget
from autocompress.policy.policy import Distill, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.quality.screening import Screening
from autocompress.recover.device import Place
from autocompress.recover.distill import Distillation, soft_loss
from autocompress.recover.finetune import fine_tune
from autocompress.run.evaluator import StudyEvaluator, make_evaluator
from autocompress.targets import get_target
from autocompress.task.data import Data, Split
from autocompress.task.divergence import GaussianKL, SigmoidKL
from autocompress.techniques.importance import taylor_scores
from autocompress.workloads.models import seeded

_COUNT = 96
_SCHEDULE = Schedule(
    epochs=6, batch_size=32, lr=0.05, optimizer="sgd", device="cpu", precision="fp32"
)


_EXACT = Place.of(_SCHEDULE)
_HERE = Place.of(Schedule(device="cpu"))
"""Screening computes in 16 bits where the processor has them; the order is that of 32 bits."""


def network() -> nn.Module:
    """One column, spread out so that the samples differ."""
    with seeded(3):
        model = Small().eval()
        model.head = nn.Linear(12, 1)
    with torch.no_grad():
        model.head.weight *= 360
        model.head.bias -= model(images(_COUNT)).mean()
    return model


def split(kind: str) -> Split:
    values = images(_COUNT).mean((1, 2, 3)) * 10
    targets = (values > 0).long() if kind == "binary" else values[:, None] + 0.25
    return Split(images(_COUNT), targets)


def less_error(outputs: Tensor, targets: Tensor) -> float:
    return -float((outputs - targets).square().mean())


def pipeline(kind: str, metric: Callable[[Tensor, Tensor], float] | None = None) -> Pipeline:
    """Nothing is repaired, so that levels differ by more than 16-bit arithmetic adds."""
    model, part = network(), split(kind)
    chosen = CompressionSettings(calibration_images=32, reconstruction="none")
    inventory = take_inventory(model, images())
    bank = LayerBank.build(model, inventory, part, chosen)
    data = Data(part, part, part, metric=metric)
    return Pipeline(model, data, inventory, bank, chosen, Schedule(epochs=0))


def evaluator(
    kind: str, folder: Path, metric: Callable[[Tensor, Tensor], float] | None = None
) -> StudyEvaluator:
    made = pipeline(kind, metric)
    return make_evaluator(made, get_target("onnxruntime"), folder, screen_images=64)


def by_torch(made: Pipeline, policy: Policy, kind: str, place: Place) -> float:
    """Mean divergence of a policy's outputs on the screening inputs, by torch's distributions."""
    inputs = made.data.train.sample(64, made.settings.seed + 1).inputs(64)
    with torch.inference_mode(), place.autocast():
        theirs, ours = made.model(inputs).float(), made.rough(policy)(inputs).float()
    if kind == "binary":
        found = kl_divergence(Bernoulli(logits=theirs), Bernoulli(logits=ours))
    else:
        spread = theirs.std(correction=0)
        found = kl_divergence(Normal(theirs, spread), Normal(ours, spread))
    return float(found.mean())


@pytest.mark.parametrize("kind", ["binary", "value"])
def test_guided_ranks_the_levels_of_every_pruned_layer(kind: str, tmp_path: Path) -> None:
    """In the order of the true divergences, and far above what it cannot tell apart."""
    made = evaluator(kind, tmp_path, None if kind == "binary" else less_error)
    rule = {"match": "*", "prune_ratio": [0, 0.25, 0.75]}
    space = SpaceConfig.read({"rules": [rule]}).bind(made.builder.pipeline.inventory)
    config = SearchConfig(objectives=("accuracy", "macs"), starts=False)
    context = Context(space, made, InProcessExecutor(made), Budget(), config, [])
    guided = GuidedProposer(context)
    guided.sensitivity.probe(lambda: True)
    count, hardest = len(space.choices), []
    assert count >= 2
    for i in range(count):
        levels = [tuple(level if j == i else 0 for j in range(count)) for level in range(3)]
        found = [context.screener(one).kl for one in levels]
        exact, wanted = (
            [by_torch(made.builder.pipeline, space.decode(one), kind, place) for one in levels]
            for place in (_EXACT, _HERE)
        )
        assert np.argsort(found).tolist() == np.argsort(exact).tolist()
        assert found == pytest.approx(wanted, rel=0.05, abs=1e-4)
        assert found[0] < 1e-5 < 5e-4 < min(found[1:])
        hardest.append(exact[-1])
    losses = [float(each[-1]) for each in guided.sensitivity.losses]
    assert np.argsort(losses).tolist() == np.argsort(hardest).tolist()
    assert max(losses) - min(losses) > 1e-2


def test_what_was_screened_blindly_is_not_taken_over() -> None:
    """Divergences of one column that an earlier version kept are all zero."""
    assert Screening(pipeline("value"), 64).depends_on["outputs"] == "value"
    assert Screening(pipeline("binary"), 64).depends_on["outputs"] == "binary"


@pytest.mark.parametrize("kind", ["binary", "value"])
def test_training_without_a_loss_of_ones_own_reaches_the_optimum(kind: str) -> None:
    """Logistic regression and least squares, as scikit-learn solves them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 + 3 * torch.randn(64, generator=generator)
    part = Split(x, (y > 0).long() if kind == "binary" else y)
    changes = {"epochs": 200, "batch_size": 64, "lr": 1.0 if kind == "binary" else 0.1}
    schedule = _SCHEDULE.model_copy(update={**changes, "weight_decay": 0.0})
    tuned = fine_tune(nn.Linear(3, 1), Data(part, part, part), schedule).module
    solver = LogisticRegression(C=1e9, tol=1e-8) if kind == "binary" else LinearRegression()
    solver.fit(x.numpy(), part.targets.numpy())
    wanted = [*np.ravel(solver.coef_), *np.ravel(solver.intercept_)]
    found = torch.cat([p.detach().flatten() for p in tuned.parameters()])
    assert found.tolist() == pytest.approx(wanted, rel=0.02, abs=0.005)


@pytest.mark.parametrize("kind", ["binary", "value"])
def test_a_teacher_of_one_column_is_heard(kind: str) -> None:
    """By its outputs alone, a model comes nearer to it."""
    part = split(kind)
    teacher, model = network(), network()
    with torch.no_grad():
        model.head.weight *= 0.3
    taught = fine_tune(
        model,
        Data(part, part, part),
        _SCHEDULE.model_copy(update={"lr": 0.002}),
        distillation=Distillation([teacher], Distill(weight=1.0)),
    )
    with torch.inference_mode():
        wanted, before, after = (m(images(_COUNT)) for m in (teacher, model, taught.module))
    assert F.mse_loss(after, wanted) < 0.7 * F.mse_loss(before, wanted)


def test_soft_loss_of_one_logit_is_bernoullis_and_of_numbers_the_squared_difference() -> None:
    torch.manual_seed(0)
    model, teacher = torch.randn(9, 1), torch.randn(9, 1)
    wanted = kl_divergence(Bernoulli(logits=teacher / 2), Bernoulli(logits=model / 2)).mean()
    assert float(soft_loss(model, teacher, 2.0, SigmoidKL())) == pytest.approx(4 * float(wanted))
    found = soft_loss(model, teacher, 2.0, GaussianKL())
    assert float(found) == pytest.approx(float(((model - teacher) ** 2).mean()))
    with pytest.raises(InputError, match="always 1"):
        soft_loss(model, teacher, 2.0)


@pytest.mark.parametrize("kind", ["binary", "value"])
def test_taylor_importance_sees_one_column(kind: str) -> None:
    """Against the gradients of torch's own losses of one column."""
    model, part = network(), split(kind)
    found = taylor_scores(model, {"last": ["last"]}, {"last": 12}, part)
    weight = model.get_parameter("last.weight")
    outputs = model(part.inputs()).flatten()
    targets = part.targets.flatten().float()
    if kind == "binary":
        loss = F.binary_cross_entropy_with_logits(outputs, targets)
    else:
        loss = (outputs - targets).square().mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    wanted = (gradient * weight).flatten(1).sum(1) ** 2
    assert torch.allclose(found["last"], wanted, rtol=1e-3)
    assert bool((wanted > 0).any())


def test_accuracy_of_the_exported_file(tmp_path: Path) -> None:
    """Of one logit, the share on the right side of zero; of numbers, an error with the remedy."""
    made = evaluator("binary", tmp_path / "binary")
    part = split("binary")
    with torch.inference_mode():
        right = (network()(part.inputs()).flatten() > 0) == (part.targets == 1)
    assert made.baseline["accuracy"] == pytest.approx(float(right.float().mean()))
    assert 0 < float(right.float().mean()) < 1
    with pytest.raises(InputError, match="give the data a `metric`"):
        _ = evaluator("value", tmp_path / "value").baseline
