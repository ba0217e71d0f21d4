"""What each way to compress gains in each runtime: the file's latency beside the float file's.

Three small networks with random weights, every layer alike, batch 1, one thread; all files of a
network are timed in the same rounds of one runtime, interleaved. A way that the runtime only
simulates is not timed. `space: auto` measures the same on your own model and leaves out what gains
nothing there.

    python benchmarks/targets_table.py --markdown [--quick] [--target litert] [--network mobilenet]

The whole table takes about five minutes on two cores. Nothing waits for a quiet machine with
AUTOCOMPRESS_QUIET_WAIT_S=0 in the environment.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.errors import AutocompressError
from autocompress.measure.latency import paired_timings
from autocompress.measure.sampling import Plan
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.advice import GAIN
from autocompress.targets import Availability, Target, available_targets, get_target
from autocompress.task.data import Split
from autocompress.techniques.compressed import Compressed
from autocompress.workloads.models import BasicBlock, seeded

#: way to the values of a rule, the one that every layer gets last, and the technique
WAYS: dict[str, tuple[dict[str, list[Any]], str]] = {
    "int8 static": ({"weight_bits": [32, 8], "activation_bits": [32, 8]}, "quantize"),
    "int8 dynamic": (
        {
            "weight_bits": [32, 8],
            "activation_bits": [32, 8],
            "activation_scaling": ["dynamic"],
        },
        "quantize",
    ),
    "weight-only": ({"weight_bits": [32, 8]}, ""),
    "half": ({"weight_bits": [32, 16], "activation_bits": [32, 16]}, ""),
    "structured": ({"prune_ratio": [0, 0.5]}, "prune"),
    "low rank": ({"rank_ratio": [None, 0.5]}, "low_rank"),
    "2:4": ({"pattern": [None, "2:4"]}, ""),
}
SIMULATED = "simulated"


class ResNet(nn.Module):
    """Two basic blocks in each of four stages, as ResNet-18 has them, at half its width."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        blocks = []
        before = 32
        for stage, width in enumerate(widths):
            blocks += [BasicBlock(before, width, 2 if stage else 1), BasicBlock(width, width, 1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(batch, 3, 32, 32)`` to ``(batch, 10)``."""
        found: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return found


class Sequences(nn.Module):
    """Two encoder layers of 128 features and four heads, on 64 words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(500, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, words: Tensor) -> Tensor:
        """From ``(batch, 64)`` to ``(batch, 10)``."""
        found: Tensor = self.head(self.encoder(self.words(words)).mean(1))
        return found


def mobilenet() -> nn.Module:
    """Seven of MobileNetV2's seventeen blocks, one of each width, at half their width."""
    import torchvision

    blocks = [(1, 16, 1, 1), (6, 24, 1, 2), (6, 32, 1, 2), (6, 64, 2, 2), (6, 96, 1, 1)]
    return torchvision.models.MobileNetV2(
        num_classes=10,
        width_mult=0.5,
        inverted_residual_setting=[list(block) for block in [*blocks, (6, 160, 1, 2)]],
    )


def pictures(size: int) -> Callable[[int], Tensor]:
    """Draws images."""
    return lambda count: torch.randn(count, 3, size, size)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet": (ResNet, pictures(32)),
    "mobilenet": (mobilenet, pictures(96)),
    "transformer": (Sequences, lambda count: torch.randint(0, 500, (count, 64))),
}


def variants(name: str) -> tuple[dict[str, Compressed], dict[str, str], Tensor]:
    """The network compressed in each way, why it cannot be in others, and an example."""
    make, draw = NETWORKS[name]
    with seeded(0):
        model, inputs = make().eval(), draw(32)
    settings = CompressionSettings(calibration_images=32)
    inventory = take_inventory(model, inputs[:1])
    bank = LayerBank.build(model, inventory, Split(inputs, torch.zeros(32).long()), settings)
    found = {"float": bank.stitch(Policy())}
    reasons = {}
    for way, (rule, _) in WAYS.items():
        try:
            config = SpaceConfig.read({"name": way, "rules": [{"match": "*", **rule}]}, where="")
            space = config.bind(inventory, channel_multiple=settings.channel_multiple)
            values = {key: listed[-1] for key, listed in rule.items()}
            compressed = bank.stitch(space.decode(space.uniform(**values)), solve=False)
            found[way] = calibrate(compressed, inputs[:16]) if compressed.quantized else compressed
        except AutocompressError as error:
            reasons[way] = str(error)
    return found, reasons, inputs[:2]


def exported(
    target: Target, ways: dict[str, Compressed], example: Tensor, folder: Path, skipped: set[str]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Files by way, written once for all runtimes that open them, and why others are not there."""
    files, reasons = {}, {}
    for way, compressed in ways.items():
        path = folder / f"{way.replace(':', '')}{target.suffix}"
        if way in skipped:
            reasons[way] = SIMULATED
            continue
        try:
            if not path.exists():
                target.export(compressed, path, example)
            files[way] = path
        except Exception as error:  # of an exporter: this way is not to be had
            reasons[way] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return files, reasons


def rows(names: list[str], targets: list[Availability], seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each network and runtime."""
    for name in names:
        ways, never, example = variants(name)
        with tempfile.TemporaryDirectory() as folder:
            for about in targets:
                begin = time.perf_counter()
                target = get_target({"runtime": about.runtime, "threads": 1})
                skipped = {w for w, (_, technique) in WAYS.items() if technique in about.no_gain}
                files, reasons = exported(target, ways, example, Path(folder), skipped)
                order = [way for way in files if way != "float"]
                plan = Plan(max_seconds=seconds, apart_s=0.0)
                timings = paired_timings(
                    target, [files[way] for way in order], files["float"], plan=plan
                )
                row = {
                    "network": name,
                    "runtime": about.runtime,
                    "version": about.version,
                    "float_ms": round(timings[0].baseline_ms, 4),
                    "ratios": {
                        way: [round(v, 3) for v in (t.ratio, t.ratio_low, t.ratio_high)]
                        for way, t in zip(order, timings, strict=True)
                    },
                    "sizes": {
                        way: round(t.size_bytes / t.baseline_size_bytes, 3)
                        for way, t in zip(order, timings, strict=True)
                    },
                    "not_timed": {**never, **reasons},
                    "seconds": round(time.perf_counter() - begin, 1),
                }
                print(json.dumps(row), file=sys.stderr)
                yield row


def cell(row: dict[str, Any], way: str) -> str:
    """A ratio, in bold where the whole interval shows a gain."""
    if way not in row["ratios"]:
        return SIMULATED if row["not_timed"].get(way) == SIMULATED else "–"
    ratio, _, high = row["ratios"][way]
    return f"**{ratio:.2f}**" if high < GAIN else f"{ratio:.2f}"


def markdown(found: list[dict[str, Any]]) -> str:
    """One table, and what could not be had."""
    lines = [
        f"| network | runtime | float, ms | {' | '.join(WAYS)} |",
        f"|---|---|---|{'---|' * len(WAYS)}",
    ]
    for row in found:
        cells = [row["network"], f"`{row['runtime']}` {row['version']}", f"{row['float_ms']:.3g}"]
        lines.append(f"| {' | '.join([*cells, *(cell(row, way) for way in WAYS)])} |")
    notes = {
        f"- {row['network']}, `{row['runtime']}`, {way}: {why}"
        for row in found
        for way, why in row["not_timed"].items()
        if why != SIMULATED
    }
    return "\n".join([*lines, "", *sorted(notes)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--markdown", action="store_true", help="the table of docs/targets.md")
    parser.add_argument("--quick", action="store_true", help="the transformer, few rounds")
    parser.add_argument("--network", choices=list(NETWORKS), action="append")
    parser.add_argument("--target", action="append", help="a runtime; all that are here by default")
    args = parser.parse_args()
    known = available_targets()
    if unknown := {*(args.target or ())} - {found.runtime for found in known}:
        parser.error(f"no runtime {', '.join(sorted(unknown))}")
    asked = [found for found in known if not args.target or found.runtime in args.target]
    for found in asked:
        if not found.available:
            print(f"left out: {found.runtime}: {found.reason}", file=sys.stderr)
    chosen = [found for found in asked if found.available]
    names = args.network or (["transformer"] if args.quick else list(NETWORKS))
    table = list(rows(names, chosen, 1.0 if args.quick else 2.5))
    if args.markdown:
        print(markdown(table))
    else:
        print(json.dumps({"targets_table": table}, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
