"""Ready-made tasks against scikit-learn, closed forms and cases by hand."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, r2_score, roc_curve
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.task.measures import edit_distance, equal_error_rate, recall_at
from autocompress.task.ready import (
    READY,
    binary,
    causal_language_model,
    classification,
    ctc,
    detection,
    embedding,
    forecasting,
    image_to_image,
    multi_label,
    ready,
    regression,
    segmentation,
    token_classification,
)
from autocompress.task.task import Result, Task


def judged(task: Task, outputs: object, targets: Tensor, batch: int = 4) -> Result:
    """In batches, as evaluations do it."""
    judge = task.judge()
    for start in range(0, len(targets), batch):
        part = slice(start, start + batch)
        own = (
            {k: v[part] for k, v in outputs.items()} if isinstance(outputs, dict) else outputs[part]  # type: ignore[index]  # a tensor
        )
        judge.update(own, targets[part])
    return judge.result()


def value(task: Task, outputs: object, targets: Tensor) -> float:
    return judged(task, outputs, targets).scores[task.quality.name].value


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def test_accuracies_by_hand() -> None:
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    found = judged(classification(), outputs, torch.tensor([1, 0, 0, 1]))
    assert found.scores["accuracy"].value == 0.5
    assert found.scores["accuracy"].each.tolist() == [True, True, False, False]
    logit = torch.tensor([[2.0], [-1.0], [0.5]])
    assert value(binary(), logit, torch.tensor([1, 0, 0])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["classification", "binary"])
def test_label_losses_are_torchs(name: str) -> None:
    logits, targets = drawn(6, 3), whole(3, 6)
    if name == "classification":
        found = classification().criterion(logits, targets, 0.1)
        wanted = F.cross_entropy(logits, targets, label_smoothing=0.1)
    else:
        found = binary().criterion(logits[:, :1], targets % 2)
        wanted = F.binary_cross_entropy_with_logits(logits[:, 0], (targets % 2).float())
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


def test_multi_label_is_scikit_learns_micro_f1() -> None:
    logits, targets = drawn(40, 5), whole(2, 40, 5, seed=1)
    found = judged(multi_label(), logits, targets)
    wanted = f1_score(targets.numpy(), (logits > 0).numpy(), average="micro")
    assert found.scores["f1"].value == pytest.approx(wanted)
    right = ((logits > 0) == (targets == 1)).double().mean()
    assert found.scores["label_accuracy"].value == pytest.approx(float(right))
    empty = multi_label().judge()
    empty.update(-torch.ones(4, 5), torch.zeros(4, 5))
    with pytest.raises(InputError, match="no label is there"):
        empty.quality()


@pytest.mark.parametrize("metric", ["mse", "mae", "r2"])
def test_regression_is_numpys(metric: str) -> None:
    outputs, targets = drawn(30, 2), drawn(30, 2, seed=1)
    gaps = (outputs - targets).double().numpy()
    wanted = {
        "mse": (gaps**2).mean(),
        "mae": abs(gaps).mean(),
        "r2": r2_score(targets.numpy(), outputs.numpy(), multioutput="variance_weighted"),
    }[metric]
    task = regression(metric)  # type: ignore[arg-type]  # one of three
    assert value(task, outputs, targets) == pytest.approx(wanted, rel=1e-5)
    assert task.quality.goal == ("maximize" if metric == "r2" else "minimize")


def test_a_column_of_targets_is_not_spread_over_the_batch() -> None:
    """(N, 1) less (N,) is (N, N): once a silent error."""
    outputs, targets = drawn(8, 1), drawn(8, seed=1)
    wanted = float((outputs[:, 0] - targets).square().mean())
    assert value(regression(), outputs, targets) == pytest.approx(wanted)
    assert float(regression().criterion(outputs, targets)) == pytest.approx(wanted)


def test_forecasts_of_several_series() -> None:
    outputs, targets = drawn(6, 12, 3), drawn(6, 12, 3, seed=1)
    wanted = float((outputs - targets).abs().mean())
    assert value(forecasting(), outputs, targets) == pytest.approx(wanted)


def test_mean_iou_is_scikit_learns_over_pixels_that_count() -> None:
    logits, targets = drawn(8, 4, 6, 5), whole(3, 8, 6, 5, seed=1)  # class 3 has no pixel
    targets[:, 0] = 255
    kept = (targets != 255).flatten()
    guessed = logits.argmax(1).flatten()[kept].numpy()
    wanted = jaccard_score(
        targets.flatten()[kept].numpy(), guessed, labels=[0, 1, 2, 3], average="macro"
    )
    assert value(segmentation(), logits, targets) == pytest.approx(wanted)
    nested = {"aux": logits * 0, "out": logits}
    assert value(segmentation(output="out"), nested, targets) == pytest.approx(wanted)
    loss = segmentation().criterion(logits, targets)
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits, targets, ignore_index=255)))


def test_tokens_that_are_ignored_count_nowhere() -> None:
    logits, targets = drawn(6, 7, 3), whole(3, 6, 7, seed=1)
    targets[:, 4:] = -100
    table = confusion_matrix(targets[:, :4].flatten(), logits.argmax(-1)[:, :4].flatten())
    assert value(token_classification(), logits, targets) == pytest.approx(
        table.trace() / table.sum()
    )
    divergence = token_classification().compared
    other = logits.clone()
    other[:, 4:] = drawn(6, 3, 3, seed=2)
    assert float(divergence(logits, other, targets).abs().max()) < 1e-6
    assert float(divergence(logits, other).min()) > 1e-3


def test_perplexity_is_the_geometric_mean_of_inverse_probabilities() -> None:
    logits, tokens = drawn(5, 6, 9), whole(9, 5, 6, seed=1)
    tokens[2, 3:] = -100
    shares = []
    for i in range(5):
        for t in range(5):
            if tokens[i, t + 1] >= 0:
                p = np.exp(logits[i, t].double().numpy())
                shares.append(p[tokens[i, t + 1]] / p.sum())
    wanted = math.exp(-np.mean(np.log(shares)))
    task = causal_language_model()
    assert value(task, logits, tokens) == pytest.approx(wanted, rel=1e-5)
    assert math.exp(float(task.criterion(logits, tokens))) == pytest.approx(wanted, rel=1e-5)
    assert value(task, torch.zeros(5, 6, 9), tokens) == pytest.approx(9.0)  # knows nothing


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [
        ("intention", "execution", 5),
        ("", "abc", 3),
        ("flaw", "lawn", 2),
        ("abc", "abc", 0),
        ("a", "", 1),
    ],
)
def test_edit_distances_by_hand(first: str, second: str, edits: int) -> None:
    assert edit_distance([*map(ord, first)], [*map(ord, second)]) == edits


def test_ctc_spells_and_counts_by_hand() -> None:
    frames = [[0, 1, 1, 0, 1, 2, 2, 0], [3, 3, 0, 0, 0, 0, 0, 0]]  # spells 1 1 2 and 3
    logits = 20.0 * F.one_hot(torch.tensor(frames), 4)
    targets = torch.tensor([[1, 1, 2], [2, 3, -1]])
    assert value(ctc(), logits, targets) == pytest.approx(1 / 5)
    right = torch.tensor([[1, 1, 2], [3, -1, -1]])
    assert value(ctc(), logits, right) == 0.0
    # the only path that is not next to impossible
    assert float(ctc().criterion(logits, right)) == pytest.approx(0.0, abs=1e-4)


def test_psnr_by_its_definition() -> None:
    wanted = drawn(3, 1, 4, 4).sigmoid()
    found = wanted + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    each = judged(image_to_image(), found, wanted).scores["psnr"].each
    assert each == pytest.approx([20.0, 40.0, 100.0], rel=1e-4)
    each = judged(image_to_image(peak=255.0), 255 * found, 255 * wanted).scores["psnr"].each
    assert each[:2] == pytest.approx([20.0, 40.0], rel=1e-4)


def test_recall_by_brute_force() -> None:
    vectors, labels = drawn(30, 4), whole(8, 30, seed=1)
    near = F.normalize(vectors, dim=1) @ F.normalize(vectors, dim=1).T
    right = []
    for i in range(30):
        others = [j for j in range(30) if j != i]
        if any(labels[j] == labels[i] for j in others):
            first = sorted(others, key=lambda j: -float(near[i, j]))[:2]
            right.append(any(labels[j] == labels[i] for j in first))
    assert recall_at(vectors, labels, 2).tolist() == right
    assert value(embedding(k=2), vectors, labels) == pytest.approx(np.mean(right))


def test_the_equal_error_rate_lies_where_scikit_learns_curve_crosses() -> None:
    vectors, labels = drawn(60, 3), whole(4, 60, seed=1)
    vectors[:, 0] += labels
    unit = F.normalize(vectors, dim=1).double()
    i, j = np.triu_indices(60, 1)
    scores = (unit @ unit.T).numpy()[i, j]
    accepted, hit, _ = roc_curve((labels[i] == labels[j]).numpy(), scores, drop_intermediate=False)
    grid = np.linspace(0, 1, 200_001)
    crossing = grid[np.argmin(abs(1 - np.interp(grid, accepted, hit) - grid))]
    assert equal_error_rate(vectors, labels) == pytest.approx(crossing, abs=2e-3)
    apart = torch.eye(2)[torch.tensor([0, 0, 1, 1])]
    assert equal_error_rate(apart, torch.tensor([0, 0, 1, 1])) == 0.0


def test_the_contrastive_loss_by_its_sum() -> None:
    vectors, labels = drawn(6, 3), torch.tensor([0, 0, 1, 1, 1, 2])
    unit = F.normalize(vectors, dim=1).double()
    near = (unit @ unit.T / 0.1).numpy()
    each = []
    for i in range(5):  # the last has no partner
        total = sum(math.exp(near[i, a]) for a in range(6) if a != i)
        same = [p for p in range(6) if p != i and labels[p] == labels[i]]
        each.append(-np.mean([math.log(math.exp(near[i, p]) / total) for p in same]))
    found = embedding().criterion(vectors, labels)
    assert float(found) == pytest.approx(np.mean(each), rel=1e-4)


UNIT = [0.0, 0.0, 1.0, 1.0]


def boxes(*rows: list[float]) -> Tensor:
    """Targets of one image: class and corners, padded to three."""
    padding = [[-1.0, 0, 0, 0, 0]] * (3 - len(rows))
    return torch.tensor([*rows, *padding])


def shifted(x: float) -> list[float]:
    return [x, 0.0, x + 1.0, 1.0]


def found(*rows: tuple[list[float], float, int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([r[0] for r in rows]).view(-1, 4),
        "scores": torch.tensor([r[1] for r in rows]),
        "labels": torch.tensor([r[2] for r in rows], dtype=torch.long),
    }


CASES = {
    "all right": ([found((UNIT, 0.9, 0))], [boxes([0, *UNIT])], 1.0),
    "nothing found": ([found()], [boxes([0, *UNIT])], 0.0),
    "another class": ([found((UNIT, 0.9, 1))], [boxes([0, *UNIT])], 0.0),
    # half of the boxes at full precision: 51 of 101 recall points
    "half found": ([found((UNIT, 0.9, 0))], [boxes([0, *UNIT], [0, *shifted(5)])], 51 / 101),
    # the surer one is wrong: precision 1/2 at every recall
    "wrong first": ([found((shifted(9), 0.9, 0), (UNIT, 0.5, 0))], [boxes([0, *UNIT])], 0.5),
    # a box is found once; the second finding of it is wrong, but less sure
    "twice": ([found((UNIT, 0.9, 0), (UNIT, 0.8, 0))], [boxes([0, *UNIT])], 1.0),
    "two classes": (
        [found((UNIT, 0.9, 0), (shifted(9), 0.9, 1))],
        [boxes([0, *UNIT], [1, *shifted(5)])],
        0.5,
    ),
    # IoU 1/3 is no hit
    "too far": ([found((shifted(0.5), 0.9, 0))], [boxes([0, *UNIT])], 0.0),
    "two images": (
        [found((UNIT, 0.6, 0)), found((shifted(9), 0.9, 0))],
        [boxes([0, *UNIT]), boxes([0, *UNIT])],
        # order: wrong, right; recall 1/2 at precision 1/2
        0.5 * 51 / 101,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_mean_average_precision_by_hand(case: str) -> None:
    detections, targets, wanted = CASES[case]
    task = detection(lambda outputs: [detections[int(o)] for o in outputs], overlaps=(0.5,))
    judge = task.judge()
    for number, one in enumerate(targets):
        judge.update(torch.tensor([number]), one[None])
    assert judge.result().scores["map"].value == pytest.approx(wanted)


def test_overlaps_are_averaged() -> None:
    """IoU 0.8 is a hit of 7 of the 10 overlaps of COCO: 0.5 to 0.8."""
    box = [0.0, 0.0, 0.8, 1.0]
    task = detection(lambda outputs: [found((box, 0.9, 0))])
    judge = task.judge()
    judge.update(torch.zeros(1, 1), boxes([0, *UNIT])[None])
    assert judge.result().scores["map"].value == pytest.approx(0.7)


def test_every_ready_made_task_has_a_name_and_comes_back_from_a_pickle() -> None:
    for name in READY:
        if name == "detection":
            continue
        again = pickle.loads(pickle.dumps(ready(name)))
        assert again.quality == ready(name).quality
    kept = pickle.loads(pickle.dumps(regression("mae", unit="m")))
    assert (kept.quality.name, kept.quality.unit) == ("mae", "m")
    with pytest.raises(InputError, match="did you mean 'regression'"):
        ready("regresion")
    with pytest.raises(InputError, match="unexpected keyword"):
        ready("regression", metrik="mae")


def test_a_mask_of_one_logit_against_counting_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 1, 5, 7, generator=generator)
    masks = (torch.rand(6, 5, 7, generator=generator) < 0.4).long()
    masks[:, 0] = 255
    task = ready("binary_segmentation")
    for given, wanted in ((logits, masks), (logits[:, 0], masks), (logits, masks[:, None].float())):
        task.checked(given[:2], wanted)
        judge = task.judge()
        for i in range(0, 6, 2):
            judge.update(given[i : i + 2], wanted[i : i + 2])
        found, truth = (logits[:, 0, 1:] > 0).numpy(), (masks[:, 1:] == 1).numpy()
        iou = (found & truth).sum() / (found | truth).sum()
        assert judge.quality().value == pytest.approx(float(iou))
        # a pixel's loss is the cross-entropy of two classes with the logits 0 and x
        two = torch.cat([torch.zeros_like(logits), logits], 1)
        loss = torch.nn.functional.cross_entropy(two, masks, ignore_index=255)
        assert float(task.criterion(given, wanted)) == pytest.approx(float(loss), rel=1e-5)
    with pytest.raises(InputError, match=r"0 or 1 \(255 is ignored\), found 2.*target_fn"):
        task.checked(logits[:2], masks.where(masks != 1, 2))
    with pytest.raises(InputError, match="task: segmentation"):
        task.checked(torch.zeros(2, 3, 5, 7), masks)
    with pytest.raises(InputError, match="task: binary_segmentation"):
        ready("segmentation").checked(logits[:2], masks)


@pytest.mark.parametrize("channels", [1, 2])
def test_masks_of_0_and_255_judge_nothing_and_are_refused(channels: int) -> None:
    masks = (torch.arange(36).view(1, 6, 6).repeat(4, 1, 1) % 3 == 0).long()
    task = ready("binary_segmentation" if channels == 1 else "segmentation")
    outputs = torch.zeros(4, channels, 6, 6)
    outputs[:, 0] = -1.0
    judge = task.judge()
    judge.update(outputs, masks * 255)
    with pytest.raises(InputError, match=r"any network would do.*\(batch\[1\] > 0\).long\(\)"):
        judge.quality()
    assert any("33.3% of the pixels" in note for note in task.checked(outputs, masks * 255))


def test_frames_that_come_first_are_refused_by_ctc() -> None:
    task = ready("ctc")
    logits, wanted = torch.randn(4, 9, 5), torch.randint(1, 5, (4, 3))
    judge = task.judge()
    judge.update(logits.transpose(0, 1), wanted)
    with pytest.raises(InputError, match=r"\(N, frames, symbols\), got \(9, 4, 5\) for 4 samples"):
        judge.quality()
    with pytest.raises(InputError, match=r"transpose\(0, 1\)"):
        task.criterion(logits.transpose(0, 1), wanted)
