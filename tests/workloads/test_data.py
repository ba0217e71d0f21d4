"""Splits: disjoint, complete, stratified; the digits against scikit-learn's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from autocompress.errors import InputError
from autocompress.task.data import Split
from autocompress.workloads.crossmodal import digits_lstm, digits_sequence
from autocompress.workloads.data import digits, stratified


@given(st.lists(st.integers(0, 4), min_size=5, max_size=200), st.integers(0, 5))
def test_stratified_parts_hold_everything_once_and_every_class_alike(
    labels: list[int], seed: int
) -> None:
    targets, shares = torch.tensor(labels), (0.6, 0.2, 0.2)
    parts = stratified(targets, shares, seed)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    for part, share in zip(parts, shares, strict=True):
        for label in set(labels):
            expected = share * labels.count(label)
            assert abs(int((targets[part] == label).sum()) - expected) <= 1


def keys(split: Split) -> list[bytes]:
    assert isinstance(split.stored, Tensor)
    return [image.numpy().tobytes() for image in split.stored]


def test_digits_are_scikit_learns_in_three_parts() -> None:
    data = digits(size=8)
    bunch = load_digits()
    splits = (data.train, data.val, data.test)
    assert sum(map(len, splits)) == 1797
    found = [k for s in splits for k in keys(s)]
    original = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    assert sorted(found) == sorted(image.tobytes() for image in original)
    by_image = {image.tobytes(): label for image, label in zip(original, bunch.target, strict=True)}
    assert len(by_image) == 1797  # no two alike, so that the splits share no image
    for split, share in zip(splits, (0.6, 0.2, 0.2), strict=True):
        assert [by_image[k] for k in keys(split)] == split.targets.tolist()
        counts = np.bincount(split.targets.numpy())
        assert np.abs(counts - share * np.bincount(bunch.target)).max() <= 1


def test_digits_splits_follow_the_seed() -> None:
    first, same, other = digits(), digits(), digits(seed=1)
    assert first.fingerprint == same.fingerprint
    assert first.fingerprint != other.fingerprint
    stored = digits(dtype="float32").val.inputs()
    assert torch.allclose(stored, first.val.inputs(), atol=1e-6)
    with pytest.raises(InputError, match="at least 8"):
        digits(size=6)


def test_sequences_stand_beside_the_same_digits() -> None:
    sequences, pictures = digits_sequence(), digits()
    for split, whole in (
        (sequences.train, pictures.train),
        (sequences.val, pictures.val),
        (sequences.test, pictures.test),
    ):
        assert torch.equal(split.targets, whole.targets)
        stored, _ = split.take(slice(0, 20))
        seen = sequences.extra["teacher_view"](stored)
        assert torch.equal(seen, whole.inputs(20))
        rows = split.inputs(20)
        assert rows.shape == (20, 8, 8)
        by_hand = whole.stored[:20, 0].float().reshape(20, 8, 2, 8, 2).mean((2, 4)) / 255
        assert torch.allclose(rows, by_hand, atol=0.51 / 255)
    assert digits_lstm()(sequences.train.inputs(3)).shape == (3, 10)
