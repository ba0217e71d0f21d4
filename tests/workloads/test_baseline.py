"""A study's own baseline: trained once, resumed where it stopped, kept until more does not help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.policy.recovery import Schedule
from autocompress.recover.score import score
from autocompress.task.data import Data, Split
from autocompress.workloads.baseline import train_baseline

SCHEDULE = Schedule(epochs=2, batch_size=16, lr=0.05, precision="fp32", device="cpu")


def problem() -> Data:
    """Four noisy points in the plane."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        targets = torch.arange(count) % 4
        corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        return Split(corners[targets] + torch.randn(count, 2, generator=generator), targets)

    return Data(split(64), split(80), split(80), classes=4)


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(2, 4)


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(t, other[n]) for n, t in a.state_dict().items())


def test_trained_once(tmp_path: Path) -> None:
    data, given = problem(), model()
    trained = train_baseline(given, data, SCHEDULE, tmp_path)
    assert same(given, model())
    assert score(trained, data.val) > score(given, data.val)

    def refuses(outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("trained again")

    data.loss = refuses
    assert same(train_baseline(given, data, SCHEDULE, tmp_path), trained)
    with pytest.raises(AssertionError, match="trained again"):
        train_baseline(given, data, SCHEDULE, tmp_path, seed=1)


def test_rounds_go_on_until_patience_is_spent(tmp_path: Path) -> None:
    data = problem()
    trained = train_baseline(model(), data, SCHEDULE, tmp_path, patience=4)
    (log,) = tmp_path.glob("*.json")
    rounds = json.loads(log.read_text())["rounds"]
    scores = [r["score"] for r in rounds]
    assert score(trained, data.val) == max(scores)
    best = scores.index(max(scores))
    assert len(scores) - 1 - best == 2  # two rounds of two epochs brought nothing better
    for number in range(best):  # and never before that
        window = scores[number + 1 : number + 3]
        assert len(window) < 2 or max(window) > max(scores[: number + 1])
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_no_more_rounds_than_allowed(tmp_path: Path) -> None:
    """Patience for twenty epochs without a gain, but two rounds at most; later three."""
    data, steps = problem(), 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return F.cross_entropy(outputs, targets)

    def train(most: int) -> nn.Module:
        return train_baseline(model(), data, SCHEDULE, tmp_path, patience=20, max_rounds=most)

    def scores() -> list[float]:
        (log,) = tmp_path.glob("*.json")
        return [r["score"] for r in json.loads(log.read_text())["rounds"]]

    data.loss = loss
    two = train(2)
    assert len(scores()) == 2
    assert score(two, data.val) == max(score(model(), data.val), *scores())
    taken = steps
    three = train(3)
    assert steps == taken * 3 // 2  # the first two rounds were there
    assert len(scores()) == 3
    assert same(
        train_baseline(model(), data, SCHEDULE, tmp_path / "anew", patience=20, max_rounds=3), three
    )
    assert same(train(2), two)  # also after three


def test_lost_weights_are_trained_again(tmp_path: Path) -> None:
    data = problem()
    trained = train_baseline(model(), data, SCHEDULE, tmp_path, patience=20, max_rounds=2)
    for path in tmp_path.glob("*.1.safetensors"):
        path.unlink()
    again = train_baseline(model(), data, SCHEDULE, tmp_path, patience=20, max_rounds=2)
    assert same(trained, again)


def test_small_gains_are_kept_but_do_not_count(tmp_path: Path) -> None:
    """With a delta that nothing exceeds, patience is spent at once; the best weights still win."""
    data = problem()
    trained = train_baseline(model(), data, SCHEDULE, tmp_path, patience=4, min_delta=1.0)
    (log,) = tmp_path.glob("*.json")
    scores = [r["score"] for r in json.loads(log.read_text())["rounds"]]
    assert len(scores) == 2
    assert score(trained, data.val) == max(scores)


def test_given_weights_that_no_round_beats_are_returned(tmp_path: Path) -> None:
    data, good = problem(), train_baseline(model(), problem(), SCHEDULE, tmp_path / "first")
    data.loss = lambda outputs, targets: -F.cross_entropy(outputs, targets)
    assert same(train_baseline(good, data, SCHEDULE, tmp_path / "second", patience=2), good)


@pytest.mark.parametrize("stop", [3, 10, 17])
def test_interrupted_rounds_end_at_the_same_weights(tmp_path: Path, stop: int) -> None:
    def train(folder: str, at: int | None) -> nn.Module:
        data, calls = problem(), 0

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return F.cross_entropy(outputs, targets)

        data.loss = loss
        return train_baseline(model(), data, SCHEDULE, tmp_path / folder, patience=4)

    whole = train("whole", None)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop)
    assert same(train("stopped", None), whole)


def test_patience_without_epochs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than 0 epochs"):
        train_baseline(
            model(), problem(), SCHEDULE.model_copy(update={"epochs": 0}), tmp_path, patience=1
        )
