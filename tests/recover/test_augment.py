"""Augmentation against loops over single images, and the label mass of mixed ones."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.recover import augment
from autocompress.recover.augment import Augment, mix, random_crop, random_erase, random_flip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, high: int = 6, wide: int = 7, seed: int = 1) -> Tensor:
    """Images in which no two pixels of a channel agree by system."""
    return torch.randint(1, 256, (count, 3, high, wide), generator=generator(seed)).to(torch.uint8)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """One image moved over a black ground, pixel by pixel."""
    out = torch.zeros_like(image)
    _, high, wide = image.shape
    for y in range(high):
        for x in range(wide):
            if 0 <= y + down < high and 0 <= x + right < wide:
                out[:, y, x] = image[:, y + down, x + right]
    return out


def test_crop_moves_each_image_by_an_offset_of_its_own() -> None:
    padding, images = 1, noise(60)
    seen = set()
    for image, found in zip(images, random_crop(images, padding, generator()), strict=True):
        matches = [
            (down, right)
            for down in range(-padding, padding + 1)
            for right in range(-padding, padding + 1)
            if torch.equal(found, shifted(image, down, right))
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 9  # every offset occurs among sixty images


def test_flip_mirrors_about_half_of_the_images_whole() -> None:
    images = noise(400)
    flipped = 0
    for image, found in zip(images, random_flip(images, generator()), strict=True):
        mirror = torch.stack([image[:, :, x] for x in reversed(range(image.shape[2]))], 2)
        assert torch.equal(found, image) or torch.equal(found, mirror)
        flipped += torch.equal(found, mirror)
    assert 150 < flipped < 250  # five standard deviations


def test_erase_leaves_one_gray_rectangle() -> None:
    images = noise(300, 16, 16)
    images[images == 124] = 125
    erased = random_erase(images, generator())
    changed = (erased != images).any(1)
    share = 0
    for mask, found, image in zip(changed, erased, images, strict=True):
        if not mask.any():
            assert torch.equal(found, image)
            continue
        share += 1
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert (found[box] == 124).all()
        assert int(mask.sum()) == len(rows) * len(columns)
        assert int(mask.sum()) <= 0.36 * 256  # a quarter of the area, up to rounded sides
    assert 100 < share < 200


def test_cutmix_counts_labels_by_pixels() -> None:
    count = 24
    inputs = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 2, 9, 11).contiguous()
    partial = 0
    for seed in range(30):
        mixed = mix(inputs, torch.arange(count), ["cutmix"], generator(seed))
        for i in range(count):
            own = mixed.inputs[i] == i
            other = mixed.inputs[i] == mixed.others[i]
            assert bool((own | other).all())
            if mixed.others[i] != i:
                assert float(own.float().mean()) == pytest.approx(mixed.keep, abs=1e-6)
                assert float(other.float().mean()) == pytest.approx(1 - mixed.keep, abs=1e-6)
        partial += 0.05 < mixed.keep < 0.95
    assert partial > 10


def test_mixup_mixes_images_and_labels_alike() -> None:
    inputs = torch.randn(8, 5, generator=generator(3))
    for seed in range(10):
        mixed = mix(inputs, torch.arange(8), ["mixup"], generator(seed))
        expected = mixed.keep * inputs + (1 - mixed.keep) * inputs[mixed.others]
        assert torch.allclose(mixed.inputs, expected, atol=1e-6)


def test_loss_of_a_mixed_batch_is_cross_entropy_with_soft_labels() -> None:
    outputs = torch.randn(8, 8, generator=generator(2))
    mixed = mix(torch.randn(8, 1, 4, 4), torch.arange(8), ["cutmix", "mixup"], generator(4))
    assert 0 < mixed.keep < 1
    soft = mixed.keep * F.one_hot(mixed.targets, 8) + (1 - mixed.keep) * F.one_hot(mixed.others, 8)
    assert torch.allclose(soft.sum(1), torch.ones(8))
    by_hand = -(soft * outputs.log_softmax(1)).sum(1).mean()
    assert float(mixed.loss(F.cross_entropy, outputs)) == pytest.approx(float(by_hand), rel=1e-5)


def test_mixup_draws_from_the_beta_distribution() -> None:
    source = generator(0)
    draws = [augment._beta(0.2, source) for _ in range(2000)]
    assert stats.kstest(draws, stats.beta(0.2, 0.2).cdf).pvalue > 0.01


@pytest.mark.parametrize("name", ["autoaugment", "randaugment", "trivialaugment"])
def test_learned_policies_follow_the_generator_alone(name: str) -> None:
    images = noise(20, 16, 16)
    change = Augment((name,))
    before = torch.get_rng_state()
    first, second, other = (change(images, generator(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == images.shape
    assert first.dtype == torch.uint8


def test_inputs_that_are_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="need images"):
        Augment(("flip",))(torch.zeros(4, 7), generator())
    with pytest.raises(InputError, match="uint8"):
        Augment(("autoaugment",))(torch.zeros(4, 3, 8, 8), generator())
    with pytest.raises(InputError, match="cutmix needs images"):
        mix(torch.zeros(4, 7), torch.zeros(4), ["cutmix"], generator())
    with pytest.raises(InputError, match="single tensors"):
        mix((torch.zeros(4, 7),), torch.zeros(4), ["mixup"], generator())
