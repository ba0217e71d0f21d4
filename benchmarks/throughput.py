"""Training speed of ``fine_tune`` against a bare hand-written loop, interleaved.

The bare loop indexes, normalizes, runs forward, backward and the optimizer in the same precision
and memory format: no augmentation, no clipping, no checks, no progress. Ratios of one interleaved
run mean something; steps per second depend on the machine.

    python benchmarks/throughput.py --json [--quick]

On two cores it takes about five minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from autocompress.policy.recovery import Schedule
from autocompress.recover.augment import Augment
from autocompress.recover.device import Place
from autocompress.recover.engine import Trainer
from autocompress.task.data import Data, Split
from autocompress.workloads.data import IMAGENET_MEAN, IMAGENET_STD, Normalize
from autocompress.workloads.models import resnet20, resnet56, vgg16_bn


def random_images(count: int) -> Data:
    """Noise in the shape of CIFAR-10: speed does not depend on what the images show."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.randint(10, (count,)), Normalize(IMAGENET_MEAN, IMAGENET_STD))
    return Data(split, split, split, classes=10, augment=Augment(("crop", "flip")))


def bare_loop(model: nn.Module, data: Data, schedule: Schedule) -> Callable[[int], None]:
    """What one would write by hand."""
    place = Place.of(schedule)
    model = place.put_module(model).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=schedule.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    assert isinstance(data.train.stored, torch.Tensor)
    images, targets = data.train.stored.to(place.device), data.train.targets.to(place.device)
    mean = torch.tensor(IMAGENET_MEAN, device=place.device).view(-1, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=place.device).view(-1, 1, 1) * 255

    def steps(count: int) -> None:
        for _ in range(count):
            index = torch.randint(len(images), (schedule.batch_size,), device=place.device)
            batch = images[index].float().sub_(mean).div_(std)
            batch = batch.contiguous(memory_format=torch.channels_last)
            with place.autocast():
                loss = F.cross_entropy(model(batch), targets[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return steps


def ours(model: nn.Module, data: Data, schedule: Schedule) -> Callable[[int], None]:
    """The same number of steps through the trainer."""
    trainer = Trainer(model, data, schedule)

    def steps(count: int) -> None:
        trainer.total = trainer.step + count
        trainer.run(progress=lambda text, done: None)
        trainer.total = 10**9

    return steps


def timed(run: Callable[[int], None], count: int) -> float:
    """Seconds of some steps, the device's work included."""
    start = time.perf_counter()
    run(count)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 only, few steps")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    models = {"resnet20": resnet20}
    if not args.quick:
        models |= {"resnet56": resnet56, "vgg16_bn": vgg16_bn}
    rounds = 7 if args.quick else 11
    schedule = Schedule(epochs=1000, batch_size=128)
    data = random_images(128 * 64)
    result: dict[str, object] = {
        "threads": torch.get_num_threads(),
        "bf16": Place.of(schedule).bf16,
        "device": str(Place.of(schedule).device),
    }
    for name, make in models.items():
        bare, full = bare_loop(make(), data, schedule), ours(make(), data, schedule)
        steps = 20 if name == "resnet20" and not args.quick else 8
        bare(2), full(2)
        pairs = [(timed(bare, steps), timed(full, steps)) for _ in range(rounds)]
        share = [b / f for b, f in pairs]
        result[name] = {
            "bare_steps_per_s": round(steps / statistics.median(b for b, _ in pairs), 2),
            "steps_per_s": round(steps / statistics.median(f for _, f in pairs), 2),
            "share_of_bare": round(statistics.median(share), 3),
            "share_iqr": [round(q, 3) for q in statistics.quantiles(share, n=4)[::2]],
        }
    print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
