"""What outputs mean, and labels, hits and losses that follow from it."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.task.outputs import hits, label_loss, output_kind

_BINARY = torch.tensor([0, 1, 1, 0, 1])
_LOGIT = torch.tensor([[-1.0], [2.0], [-0.5], [0.5], [3.0]])


@pytest.mark.parametrize(
    ("shape", "targets", "kind"),
    [
        ((4, 10), torch.tensor([0, 1, 1, 0]), "classes"),
        ((4, 7, 3), torch.zeros(4, 7), "classes"),
        ((4, 1), torch.tensor([0, 1, 1, 0]), "binary"),
        ((4, 1), torch.tensor([[0.0], [1.0], [1.0], [0.0]]), "binary"),
        ((4,), torch.tensor([True, False, True, True]), "binary"),
        ((4, 1), torch.tensor([0, 1, 2, 0]), "value"),
        ((4, 1), torch.tensor([0.0, 1.0, 0.5, 0.0]), "value"),
        ((4,), torch.randn(4), "value"),
    ],
)
def test_the_kind_follows_from_columns_and_targets(
    shape: tuple[int, ...], targets: Tensor, kind: str
) -> None:
    assert output_kind(torch.zeros(shape), targets) == kind


@pytest.mark.parametrize("targets", [_BINARY, _BINARY[:, None].float(), _BINARY.bool()])
@pytest.mark.parametrize("logit", [_LOGIT, _LOGIT[:, 0]])
def test_one_logit_has_accuracy_and_loss_as_scikit_learn_says(
    targets: Tensor, logit: Tensor
) -> None:
    sure = torch.sigmoid(logit.flatten()).numpy()
    found = hits(logit, targets)
    assert found.shape == (5,)
    assert float(found.double().mean()) == accuracy_score(_BINARY, sure > 0.5)
    loss = label_loss(logit, targets, "binary")
    assert float(loss) == pytest.approx(log_loss(_BINARY, sure), rel=1e-5)


def test_smoothing_of_one_logit_is_that_of_two_classes() -> None:
    smooth = _BINARY * 0.9 + 0.05
    wanted = F.binary_cross_entropy_with_logits(_LOGIT[:, 0], smooth)
    assert float(label_loss(_LOGIT, _BINARY, "binary", 0.1)) == pytest.approx(float(wanted))


@pytest.mark.parametrize("targets", [torch.arange(5.0), torch.arange(5)[:, None]])
def test_numbers_have_a_squared_error_and_no_accuracy(targets: Tensor) -> None:
    found = label_loss(_LOGIT, targets, "value")
    assert float(found) == pytest.approx(mean_squared_error(targets.flatten(), _LOGIT.flatten()))
    with pytest.raises(InputError, match="neither right nor wrong"):
        hits(_LOGIT, targets)


def test_classes_per_position_keep_their_loss_and_hits() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 0, 1]])
    wanted = F.cross_entropy(logits.permute(0, 2, 1), targets)
    assert float(label_loss(logits, targets, "classes")) == pytest.approx(float(wanted))
    assert torch.equal(hits(logits, targets), logits.argmax(2) == targets)


def test_targets_that_do_not_fit_one_column_are_said() -> None:
    with pytest.raises(InputError, match="one target each"):
        label_loss(_LOGIT, torch.zeros(5, 2), "value")
