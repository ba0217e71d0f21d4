"""Accuracy and its error against counts by hand, and pairs against exact binomial sums."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from file_checks import file_accuracy
from torch import Tensor, nn

from autocompress.errors import InputError, MeasurementError
from autocompress.quality.answers import module_answers
from autocompress.quality.score import Accuracy, paired, score
from autocompress.targets import get_target
from autocompress.task.data import Split


def outcomes(only_first: int, only_second: int, both: int, neither: int) -> list[Accuracy]:
    """Two models with so many samples right."""
    first = np.repeat([True, False, True, False], [only_first, only_second, both, neither])
    second = np.repeat([False, True, True, False], [only_first, only_second, both, neither])
    return [Accuracy(float(c.mean()), 0.0, len(c), c) for c in (first, second)]


def test_top_1_by_hand() -> None:
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    found = score([(outputs, torch.tensor([1, 0, 0, 1]))])
    assert found.value == 0.5
    assert found.stderr == pytest.approx((0.5 * 0.5 / 4) ** 0.5)
    assert found.correct is not None
    assert found.correct.tolist() == [True, True, False, False]


def test_per_position_accuracy_counts_samples_not_positions() -> None:
    """Two samples of four positions: 3/4 and 1/4 right; the spread is that between samples."""
    targets = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0]])
    guessed = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 0]])
    found = score([(nn.functional.one_hot(guessed, 2).float(), targets)])
    assert found.value == 0.5
    assert found.stderr == pytest.approx(np.std([0.75, 0.25]) / 2**0.5)
    assert found.images == 2


def test_the_bootstrap_error_of_a_users_metric_is_that_of_the_mean() -> None:
    outputs = torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    found = score([(outputs, torch.zeros(400, 1))], lambda o, t: float(-((o - t) ** 2).mean()))
    each = -(outputs**2).flatten().numpy()
    assert found.value == pytest.approx(float(each.mean()))
    # 200 replications know a standard deviation to about 5 %
    assert found.stderr == pytest.approx(each.std() / 20, rel=0.2)
    assert found.correct is None


def test_a_metric_must_be_a_number() -> None:
    with pytest.raises(InputError, match="finite"):
        score([(torch.zeros(3, 2), torch.zeros(3))], lambda o, t: float("nan"))
    with pytest.raises(MeasurementError, match="empty"):
        score([(torch.zeros(0, 2), torch.zeros(0))])


@pytest.mark.parametrize(("gain", "loss"), [(12, 4), (0, 7), (9, 9), (1, 0)])
def test_mcnemar_is_the_exact_binomial_sum(gain: int, loss: int) -> None:
    found = paired(*outcomes(gain, loss, 30, 5))
    total = gain + loss
    tail = sum(comb(total, k) for k in range(min(gain, loss) + 1)) / 2**total
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    assert found.difference == pytest.approx((gain - loss) / (total + 35))


def test_the_paired_interval_is_scipys() -> None:
    first, second = outcomes(60, 35, 350, 55)
    assert first.correct is not None
    assert second.correct is not None
    found = paired(first, second, resamples=20_000)
    each = first.correct.astype(float) - second.correct.astype(float)
    wanted = scipy.stats.bootstrap(
        (each,),
        np.mean,
        method="percentile",
        n_resamples=20_000,
        random_state=np.random.default_rng(3),
    ).confidence_interval
    np.testing.assert_allclose([found.low, found.high], wanted, atol=0.003)


def test_equal_models_have_nothing_to_tell_apart() -> None:
    found = paired(*outcomes(0, 0, 10, 10))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_pairs_need_the_same_samples() -> None:
    first, _ = outcomes(1, 1, 1, 1)
    with pytest.raises(InputError, match="same samples"):
        paired(first, outcomes(1, 1, 1, 2)[0])
    with pytest.raises(InputError, match="top-1"):
        paired(first, Accuracy(0.5, 0.1, 4))


@pytest.fixture(scope="module")
def split(network: nn.Module) -> Split:
    """More images than a batch holds, half of them labelled as the network sees them."""
    stored = torch.randn(23, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    with torch.inference_mode():
        targets = network(stored).argmax(1)
    targets = targets.clone()
    targets[::2] = (targets[::2] + 1) % 5
    return Split(stored, targets)


def test_batches_and_limits_change_nothing_but_the_samples(
    network: nn.Module, split: Split
) -> None:
    whole = score(module_answers(network, split, batch=100))
    assert whole.value == pytest.approx(11 / 23)
    np.testing.assert_array_equal(
        score(module_answers(network, split, batch=4)).correct, whole.correct
    )
    assert score(module_answers(network, split, batch=4, limit=6)).images == 6
    assert score(module_answers(network, split, limit=6)).value == 0.5


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_file_scores_as_its_module(
    runtime: str, exported: dict[str, Path], network: nn.Module, split: Split
) -> None:
    target = get_target(runtime)
    found = file_accuracy(target, exported[target.suffix], split, batch=10, threads=1)
    wanted = score(module_answers(network, split))
    assert found.correct is not None
    np.testing.assert_array_equal(found.correct, wanted.correct)


def test_a_fixed_batch_is_padded_and_cut(tmp_path: Path, network: nn.Module, split: Split) -> None:
    path = tmp_path / "fixed.onnx"
    torch.onnx.export(network, (torch.zeros(4, 3, 8, 8),), path, dynamo=False)
    found = file_accuracy(get_target("onnxruntime"), path, split, threads=1)
    wanted = score(module_answers(network, split))
    assert found.images == 23
    np.testing.assert_array_equal(found.correct, wanted.correct)


def test_a_users_metric_sees_all_outputs(exported: dict[str, Path], split: Split) -> None:
    seen: list[tuple[int, ...]] = []

    def metric(outputs: Tensor, targets: Tensor) -> float:
        seen.append(tuple(outputs.shape))
        return float((outputs.argmax(1) == targets).float().mean())

    found = file_accuracy(get_target("onnxruntime"), exported[".onnx"], split, metric, batch=7)
    assert seen[0] == (23, 5)
    assert found.value == pytest.approx(11 / 23)
