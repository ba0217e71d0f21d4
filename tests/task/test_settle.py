"""The task is read where it is certain, targets are converted or refused, and the rest is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.task.data import Data, Split
from autocompress.task.memory import Memory
from autocompress.task.ready import READY, ready
from autocompress.task.settle import implied, settle, watched
from autocompress.task.task import Task
from autocompress.task.wrapping import wrap_split

LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
LOGITS = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


def data(targets: Any, inputs: Tensor | None = None, **more: Any) -> Data:
    """The same split thrice."""
    part = Split(torch.zeros(len(targets), 3) if inputs is None else inputs, targets)
    return Data(part, part, part, **more)


def settled(outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> tuple[Task, str]:
    task, notes = settle(data(targets, inputs), lambda inputs: outputs[: len(inputs)])
    return task, " ".join(notes)


def test_integer_targets_in_range_are_a_classification() -> None:
    task, notes = settled(LOGITS, LABELS)
    assert str(task) == "classification into 5 classes (from integer targets 0 to 4)"
    assert notes == ""


FORMS = {
    "column": (LABELS[:, None], "read as (N,)"),
    "one-hot": (F.one_hot(LABELS, 5), "read as one-hot"),
    "float one-hot": (F.one_hot(LABELS, 5).float(), "read as one-hot"),
    "float": (LABELS.float(), "read as class indices"),
    "float column": (LABELS.float()[:, None], "(N, 1)"),
    "int32": (LABELS.int(), ""),
    "uint8": (LABELS.to(torch.uint8), ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_unambiguous_targets_are_converted_with_a_note(form: str) -> None:
    """Value, loss and per-sample answers are those of plain indices."""
    targets, said = FORMS[form]
    task, notes = settled(LOGITS, targets)
    assert said in notes
    plain, _ = settled(LOGITS, LABELS)
    judges = [t.judge() for t in (task, plain)]
    for judge, own in zip(judges, (targets, LABELS), strict=True):
        judge.update(LOGITS, own)
    found, wanted = (j.quality() for j in judges)
    assert found.each is not None
    assert found.each.tolist() == (LOGITS.argmax(1) == LABELS).tolist()
    assert found.value == wanted.value
    assert float(task.criterion(LOGITS, targets)) == pytest.approx(
        float(F.cross_entropy(LOGITS, LABELS))
    )


REFUSED = {
    "from one": (LOGITS, LABELS + 1, "1 to 5, but the outputs have 5 classes.*begin at 1"),
    "negative": (LOGITS, LABELS - 1, "-1 to 3"),
    "not a number": (LOGITS, torch.tensor([0.0, float("nan"), *[1.0] * 6]), "1 of 8 targets"),
    "fractions": (LOGITS, LABELS + 0.5, "task: regression"),
    "several": (LOGITS, torch.ones(8, 5).long(), "task: multi_label"),
    "numbers": (LOGITS, torch.randn(8, 5), "task: regression"),
    "one number": (LOGITS[:, :1], torch.arange(8.0), "task: regression"),
    "too many": (LOGITS, torch.zeros(8, 3).long(), r"need targets of shape \(N,\)"),
    "pixels": (torch.zeros(8, 4, 6, 6), torch.zeros(8, 6, 6).long(), "task: segmentation"),
    "ignored": (torch.zeros(8, 6, 4), torch.full((8, 6), -100), "task: token_classification"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_with_the_line_to_write(case: str) -> None:
    outputs, targets, says = REFUSED[case]
    with pytest.raises(InputError, match=says):
        settled(outputs, targets)


def test_targets_that_are_the_inputs_are_no_token_classification() -> None:
    tokens = torch.randint(4, (8, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="task: causal_language_model"):
        settled(torch.zeros(8, 6, 4), tokens, tokens)
    task, _ = settled(torch.zeros(8, 6, 4), tokens, torch.zeros(8, 6).long())
    assert task.name == "classification"


def test_several_outputs_are_asked_about() -> None:
    def predict(inputs: Tensor) -> dict[str, Tensor]:
        return {"a": LOGITS[: len(inputs)], "b": LOGITS[: len(inputs)]}

    with pytest.raises(InputError, match=r"a \(2, 5\), b \(2, 5\)"):
        settle(data(LABELS), predict)
    own = ready("classification", output="b")
    assert settle(data(LABELS, task=own), predict)[0] is own


def test_a_split_that_does_not_fit_is_named() -> None:
    good, bad = (Split(torch.zeros(8, 3), t) for t in (LABELS, LABELS + 3))
    with pytest.raises(InputError, match="targets of val do not fit"):
        settle(Data(good, bad, good), lambda inputs: LOGITS[: len(inputs)])


def test_a_metric_of_the_datas_own_is_a_task_under_its_name() -> None:
    def less_error(outputs: Tensor, targets: Tensor) -> float:
        return -float((outputs - targets).square().mean())

    numbers = torch.randn(8, 1)
    task, _ = settle(data(torch.randn(8, 1), metric=less_error), lambda x: numbers[: len(x)])
    assert (task.quality.name, task.quality.goal) == ("less_error", "maximize")
    assert task.compared.name == "value"
    named, _ = settle(data(LABELS, metric=lambda o, t: 1.0), lambda x: LOGITS[: len(x)])
    assert named.quality.name == "metric"
    assert named.compared.name == "classes"


def test_what_is_only_trained_needs_no_metric() -> None:
    task = implied(data(torch.randn(8)), torch.zeros(2, 1))
    assert float(task.criterion(torch.zeros(4, 1), torch.ones(4))) == 1.0
    judge = task.judge()
    judge.update(torch.zeros(4, 1), torch.ones(4))
    with pytest.raises(InputError, match="neither right nor wrong"):
        judge.quality()


@pytest.mark.parametrize("name", sorted(set(READY) - {"detection"}))
def test_every_ready_made_task_checks_its_targets(name: str) -> None:
    outputs = torch.zeros(2, 5, 6, 6) if name == "segmentation" else torch.zeros(2, 6, 5)
    task = ready(name)
    assert task.check is not None
    with pytest.raises(InputError):
        task.checked(outputs, torch.full((4, 7), float("nan")))


IDS = torch.randint(3, 20, (40, 10), generator=torch.Generator().manual_seed(0))
REAL = torch.arange(10)[None] < torch.arange(40)[:, None] % 6 + 4
HIDDEN = torch.rand(40, 10, generator=torch.Generator().manual_seed(1)) < 0.15
TEXTS = {
    "causal_language_model": (IDS, torch.where(REAL, IDS, -100)),
    "masked_language_model": (
        torch.where(HIDDEN & (IDS > 4), 1, IDS),  # now and then the token itself is left
        torch.where(HIDDEN & REAL, IDS, -100),
    ),
    "token_classification": (IDS, torch.where(REAL, IDS % 5, -100)),
}


@pytest.mark.parametrize("task", TEXTS)
def test_padded_labels_are_compared_with_the_texts(task: str) -> None:
    shown, labels = TEXTS[task]
    part = Split({"input_ids": shown, "attention_mask": REAL.long()}, labels)

    def predict(inputs: Any) -> Tensor:
        return torch.zeros(*inputs["input_ids"].shape, 20)

    with pytest.raises(InputError, match=f"Say it with `task: {task}`"):
        settle(Data(part, part, part), predict)
    ready(task).checked(predict({"input_ids": shown[:2]}), labels)


MASKS = (torch.rand(8, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.3).long()


@pytest.mark.parametrize("masks", [MASKS, MASKS[:, None], MASKS.float(), MASKS * 255])
def test_one_channel_and_masks_are_offered_as_a_binary_segmentation(masks: Tensor) -> None:
    for channels in (1, 2):
        if channels == 2 and masks.dim() == 4:
            continue
        name = "binary_segmentation" if channels == 1 else "segmentation"
        with pytest.raises(InputError, match=f"Say it with `task: {name}`") as said:
            settled(torch.zeros(8, channels, 6, 6), masks)
        if channels == 1:
            assert (int(masks.max()) == 255) == ("(batch[1] > 0).long()" in str(said.value))


def test_how_much_of_a_split_says_little_is_noted() -> None:
    some = MASKS.clone()
    some[:, 0] = 255
    whole, bare = (Split(torch.zeros(8, 3), m) for m in (some, torch.zeros_like(MASKS)))
    given = Data(whole, bare, whole, task=ready("segmentation"))
    _, notes = settle(given, lambda inputs: torch.zeros(len(inputs), 2, 6, 6))
    assert notes == (
        "16.7% of the pixels have the target 255 and count nowhere (train, test)",
        "all pixels that count are of class 0 (val)",
    )


def test_samples_in_second_place_are_refused() -> None:
    recurrent = torch.nn.LSTM(3, 5)  # its batch is the second axis, unless it is told

    def predict(inputs: Tensor) -> Tensor:
        return recurrent(inputs.transpose(0, 1))[0]

    frames = torch.zeros(8, 6, 3)
    labels = torch.ones(8, 2).long()
    with pytest.raises(InputError, match=r"\(6, 2, 5\) for 2 samples.*transpose\(0, 1\)"):
        settle(data(labels, frames, task=ready("ctc")), predict)
    turned = settle(data(labels, frames, task=ready("ctc")), lambda x: predict(x).transpose(0, 1))
    assert turned[0].name == "sequence with CTC"


@pytest.mark.parametrize("place", [100, 700])
@pytest.mark.parametrize("wrong", [99, float("nan")])
def test_targets_that_come_late_are_held_against_the_outputs_too(place: int, wrong: float) -> None:
    labels = (torch.arange(800) % 5).float()
    labels[place] = wrong
    rows = [(torch.zeros(3), label) for label in labels]
    split = wrap_split(rows, memory=Memory(1))
    whole = Data(split, data(LABELS).val, data(LABELS).test, task=ready("classification"))

    def predict(inputs: Tensor) -> Tensor:
        return torch.zeros(len(inputs), 5)

    def read() -> None:
        settle(whole, predict)
        for _ in watched(whole, predict).train.batches(32):
            pass

    with pytest.raises(InputError, match=r"targets of train do not fit the task.*(99|NaN)"):
        read()
