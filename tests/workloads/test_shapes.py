"""Generated scenes, and the detector's outputs, against other ways to say the same."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from autocompress.workloads import detector, shapes


def scenes(count: int = 40) -> shapes.Scenes:
    return shapes.draw_scenes(count, np.random.default_rng(0))


def test_boxes_are_those_of_the_pixels() -> None:
    """Another library finds the same boxes; shapes that touch would be one of its."""
    drawn = scenes()
    for pixels, boxes in zip(drawn.pixels.numpy(), drawn.boxes, strict=True):
        wanted = {tuple(b.tolist()) for b in boxes if b[0] >= 0}
        found = set()
        for label in range(1, len(shapes.CLASSES) + 1):
            numbered, _ = ndimage.label(pixels == label, np.ones((3, 3)))
            for rows, columns in ndimage.find_objects(numbered):
                found.add((label - 1, columns.start, rows.start, columns.stop, rows.stop))
        assert found == wanted


def test_every_kind_of_scene_is_drawn() -> None:
    drawn = scenes(200)
    counts = (drawn.boxes[..., 0] >= 0).sum(1)
    assert set(counts.tolist()) == {1, 2, 3, 4}
    assert set(drawn.boxes[..., 0].unique().tolist()) == {-1, 0, 1, 2}
    again = scenes(200)
    assert torch.equal(again.images, drawn.images)


def spoken(boxes: torch.Tensor) -> torch.Tensor:
    """Outputs that say the boxes as sure as can be, written down box by box."""
    outputs = torch.zeros(len(boxes), 8, detector.GRID, detector.GRID)
    outputs[:, 0] = -20
    for image, given in enumerate(boxes.tolist()):
        for label, left, top, right, bottom in given:
            if label < 0:
                continue
            x, y = (left + right) / 2 / 8, (top + bottom) / 2 / 8
            place = outputs[image, :, int(y), int(x)]
            inside = torch.tensor([x % 1, y % 1]).clamp(1e-4, 1 - 1e-4)
            place[0] = 20
            place[1:3] = inside.logit()
            place[3:5] = torch.tensor([right - left, bottom - top]).div(8).log()
            place[5 + int(label)] = 20
    return outputs


def test_outputs_are_read_as_the_boxes_they_say() -> None:
    drawn = scenes()
    for found, wanted in zip(detector.find_boxes(spoken(drawn.boxes)), drawn.boxes, strict=True):
        real = wanted[wanted[:, 0] >= 0]
        boxes, scores, labels = found
        assert len(boxes) == len(real)
        assert (scores > 0.99).all()
        read = torch.cat([labels[:, None], boxes], 1)
        away = (read[:, None] - real[None]).abs().amax(2)
        assert (away.amin(0) < 0.01).all()


def test_the_loss_is_least_at_the_truth() -> None:
    boxes = scenes().boxes
    outputs = spoken(boxes)
    least = detector.detection_loss(outputs, boxes)
    assert least < 0.01
    for channel in range(8):
        moved = outputs.clone()
        moved[:, channel] += 1.0 if 0 < channel < 5 else 25.0
        assert detector.detection_loss(moved, boxes) > least + 0.1


def test_the_divergence_is_nil_at_the_same_outputs_and_grows_with_what_is_seen() -> None:
    boxes = scenes().boxes
    outputs = spoken(boxes)
    assert detector.detection_divergence(outputs, outputs).abs().max() < 1e-4
    lost = outputs.clone()
    lost[:, 0] = -20.0  # nothing is seen any more: 20 nats a shape
    counts = (boxes[..., 0] >= 0).sum(1)
    found = detector.detection_divergence(outputs, lost)
    torch.testing.assert_close(found, 20.0 * counts, rtol=0.01, atol=0.1)
    moved = outputs.clone()
    moved[:, 3] += 0.1  # wider by one standard deviation: half a nat a shape
    found = detector.detection_divergence(outputs, moved)
    torch.testing.assert_close(found, 0.5 * counts, rtol=0.01, atol=0.01)


def test_of_two_boxes_that_overlap_the_surer_stays() -> None:
    """Middles in two cells, an overlap of 15 x 15 pixels of 16 x 16."""
    both = torch.tensor([[[1.0, 8, 8, 24, 24], [1, 7, 7, 23, 23]]])
    outputs = spoken(both)
    outputs[:, 0, 1, 1] = 1.0
    ((boxes, _, _),) = detector.find_boxes(outputs)
    torch.testing.assert_close(boxes, both[0, :1, 1:], rtol=0, atol=0.01)
    both[0, 1, 0] = 2  # another class
    ((_, _, labels),) = detector.find_boxes(spoken(both))
    assert sorted(labels.tolist()) == [1, 2]


def test_networks_fit_the_images() -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert shapes.unet(4).eval()(images).shape == (2, 4, 64, 64)
        assert detector.detector(4).eval()(images).shape == (2, 8, 8, 8)
