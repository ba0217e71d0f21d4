"""The networks of docs/models.md and what its table says of each, found by doing it.

Weights are fresh and inputs small, so that a network takes seconds or a minute.

    python tests/support/zoo.py [NETWORK ...]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.errors import ExportError
from autocompress.exporters.write import export
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.model.prepare import prepare
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.saturation import settled
from autocompress.targets import get_target
from autocompress.task.calling import call, input_names
from autocompress.task.data import Split
from autocompress.task.nested import batch_size, take, tensors
from autocompress.techniques.compressed import Compressed
from autocompress.workloads import imagenet  # noqa: F401  (declares what torchvision wants)
from autocompress.workloads.models import resnet20, seeded


class RecurrentClassifier(nn.Module):
    """Reads a sequence of 28 numbers a step and answers from the last hidden state."""

    def __init__(
        self,
        kind: type[nn.LSTM] | type[nn.GRU],
        hidden: int = 64,
        depth: int = 1,
        both: bool = False,
    ) -> None:
        super().__init__()
        self.cell = kind(28, hidden, depth, batch_first=True, bidirectional=both)
        self.head = nn.Linear(hidden * (1 + both), 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x)
        return self.head(states[:, -1])


class TextEncoder(nn.Module):
    """Token and position embeddings, two encoder layers, the mean of the tokens classified."""

    def __init__(self, words: int = 1000, width: int = 64, tokens: int = 24) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.words(x) + self.places).mean(1))


def _torchvision(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models

        return models.get_model(name, num_classes=10, **options)

    return build


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return build


def _transformers(name: str, config: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config)(**options))

    return build


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Args:
        build: makes it, weights drawn from torch's generator.
        shape: of one input.
        words: size of the vocabulary where inputs are tokens, 0 where they are real.
        small: whether all of its row is found within seconds.
        keywords: how inputs are named, where they go in by keyword: the tokens or images first,
            then a mask of ones.
        package: that the network comes from, and that need not be installed.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 64, 64)
    words: int = 0
    small: bool = False
    keywords: tuple[str, ...] = ()
    package: str = ""


def _of_packages() -> dict[str, Entry]:
    """Networks of timm and transformers, from a configuration."""
    wide = {"vocab_size": 1000, "num_hidden_layers": 2, "hidden_size": 64}
    heads, inner = {"num_attention_heads": 4}, {"intermediate_size": 128}
    gpt2 = {"vocab_size": 1000, "n_layer": 2, "n_embd": 64, "n_head": 4}
    distilbert = {"vocab_size": 1000, "n_layers": 2, "dim": 64, "n_heads": 4, "hidden_dim": 128}
    llama = {**wide, **heads, **inner, "num_key_value_heads": 2}
    image = {"image_size": 64, "patch_size": 16, **heads, **inner}
    text = ("input_ids", "attention_mask")
    images = {
        "timm vit_tiny_patch16_224": _timm("vit_tiny_patch16_224", img_size=64),
        "timm convnext_atto": _timm("convnext_atto"),
        "timm convnextv2_atto": _timm("convnextv2_atto"),
        "timm efficientnet_b0": _timm("efficientnet_b0"),
        "timm tf_efficientnet_lite0": _timm("tf_efficientnet_lite0"),
        "timm regnety_002": _timm("regnety_002"),
    }
    vit = _transformers(
        "ViTForImageClassification", "ViTConfig", hidden_size=64, num_hidden_layers=2, **image
    )
    texts = {
        "transformers BERT": ("BertForSequenceClassification", "BertConfig", wide | heads | inner),
        "transformers DistilBERT": (
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            distilbert,
        ),
        "transformers GPT-2": ("GPT2LMHeadModel", "GPT2Config", gpt2),
        "transformers Llama": ("LlamaForCausalLM", "LlamaConfig", llama),
    }
    return {
        **{name: Entry(build, package="timm") for name, build in images.items()},
        "transformers ViT": Entry(vit, keywords=("pixel_values",), package="transformers"),
        **{
            name: Entry(
                _transformers(kind, config, **options),
                (24,),
                1000,
                keywords=text,
                package="transformers",
            )
            for name, (kind, config, options) in texts.items()
        },
    }


ZOO: dict[str, Entry] = {
    "resnet20 (option A shortcuts)": Entry(resnet20, (3, 32, 32), small=True),
    "resnet18": Entry(_torchvision("resnet18")),
    "resnet50": Entry(_torchvision("resnet50")),
    "vgg16_bn": Entry(_torchvision("vgg16_bn"), (3, 224, 224)),
    "mobilenet_v2": Entry(_torchvision("mobilenet_v2")),
    "mobilenet_v3_small": Entry(_torchvision("mobilenet_v3_small")),
    "densenet121": Entry(_torchvision("densenet121")),
    "efficientnet_b0": Entry(_torchvision("efficientnet_b0")),
    "resnext50_32x4d": Entry(_torchvision("resnext50_32x4d")),
    "convnext_tiny": Entry(_torchvision("convnext_tiny")),
    "vit_b_16": Entry(_torchvision("vit_b_16", image_size=64)),
    "swin_t": Entry(_torchvision("swin_t")),
    "LSTM classifier": Entry(lambda: RecurrentClassifier(nn.LSTM), (28, 28), small=True),
    "two LSTMs in both directions": Entry(
        lambda: RecurrentClassifier(nn.LSTM, 32, 2, both=True), (28, 28), small=True
    ),
    "GRU classifier": Entry(lambda: RecurrentClassifier(nn.GRU), (28, 28), small=True),
    "nn.TransformerEncoder": Entry(TextEncoder, (24,), words=1000, small=True),
    **_of_packages(),
}


def network(name: str) -> nn.Module:
    """A network of the zoo, the same weights every time, batch norms with lively statistics."""
    entry = ZOO[name]
    with seeded(0):
        model = entry.build()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():  # some heads start at zero, and then answer nothing
                    parameter.normal_(std=0.02)
            model.train()
            call(model, calibration(name, 16))
        if entry.package:
            train_shortly(model, calibration(name, 16))
    return model.eval()


def train_shortly(model: nn.Module, inputs: Any, steps: int = 5) -> None:
    """A few steps towards classes drawn at random."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        logits = tensors(call(model, inputs))[0].flatten(0, -2)
        targets = torch.arange(len(logits)) % logits.shape[-1]
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()


def calibration(name: str, count: int = 16) -> Any:
    """Inputs of the right kind."""
    entry = ZOO[name]
    generator = torch.Generator().manual_seed(1)
    if entry.words:
        inputs = torch.randint(entry.words, (count, *entry.shape), generator=generator)
    else:
        inputs = torch.randn(count, *entry.shape, generator=generator)
    if not entry.keywords:
        return inputs
    parts = (inputs, torch.ones_like(inputs))
    return dict(zip(entry.keywords, parts, strict=False))


COLUMNS = ("prunes", "quantizes", "factorizes", "exports", "runs")


class Row:
    """One network's row of the table.

    Args:
        name: of a network of the zoo.
    """

    def __init__(self, name: str) -> None:
        given = network(name)
        self.model, self.inputs = prepare(given).model, calibration(name)
        self.package = ZOO[name].package
        self.inventory = take_inventory(self.model, self._first(1))
        settings = CompressionSettings(calibration_images=16, importance="l1")
        whole = policy_cost(self.inventory, Policy(), settings).params
        assert whole == sum(p.numel() for p in given.parameters())
        self.settings = settled(settings, get_target("onnxruntime"))
        count = batch_size(self.inputs)
        images = Split(self.inputs, torch.zeros(count, dtype=torch.long))
        self.bank = LayerBank.build(self.model, self.inventory, images, self.settings)
        groups = [g for g in self.inventory.channel_groups if not g.residual]
        self.prunable = {p for g in groups for p in g.producers}
        self.integer = {
            layer.name
            for layer in self.inventory.layers
            if not layer.why_not("quantize") and layer.kind != "embedding"
        }
        self.low_rank = {
            layer.name for layer in self.inventory.layers if not layer.why_not("low-rank")
        }

    def _first(self, count: int) -> Any:
        return take(self.inputs, slice(0, count))

    def cells(self, folder: Path) -> dict[str, str]:
        """What the row says, each cell after its checks."""
        pruned = self._stitched(prune=0.5)
        factored = self._stitched(rank=0.5)
        for made, title in ((pruned, "pruned"), (factored, "factorized")):
            self._same_in_file(made, folder / f"{title}.onnx")
        quantized = calibrate(self._stitched(bits=8), self.inputs)
        self._integer_kernels(quantized, folder / "int8.onnx")
        everything = self._stitched(prune=0.25, rank=0.5, bits=8)
        written = self._exports(everything, folder)
        self._runs(everything, folder / "all.onnx")
        integer = sum(layer.macs for layer in self.inventory.layers if layer.name in self.integer)
        values = (
            f"{self._share(pruned):.2f}x",
            f"{100 * integer / self.inventory.macs:.0f} %",
            f"{self._share(factored):.2f}x",
            ", ".join(written),
            "yes",
        )
        return dict(zip(COLUMNS, values, strict=True))

    def _stitched(
        self, prune: float = 0.0, rank: float | None = None, bits: int = 32
    ) -> Compressed:
        layers = {}
        for layer in self.inventory.layers:
            name = layer.name
            own = bits if name in self.integer else 32
            layers[name] = LayerPolicy(
                prune_ratio=prune if name in self.prunable else 0.0,
                rank_ratio=rank if name in self.low_rank else None,
                weight_bits=own,
                activation_bits=own,
            )
        made = self.bank.stitch(Policy(layers))
        self._check_macs(made)
        counted = policy_cost(self.inventory, made.policy, self.settings).params
        assert counted == sum(p.numel() for p in made.module.parameters())
        return made

    def _share(self, made: Compressed) -> float:
        """Multiply-adds left."""
        return policy_cost(self.inventory, made.policy, self.settings).macs / self.inventory.macs

    def _check_macs(self, made: Compressed) -> None:
        """The formula against torch's own counter, which knows no recurrent kernels."""
        if any(layer.kind in ("lstm", "gru") for layer in self.inventory.layers):
            return
        counter = FlopCounterMode(display=False)
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        exact = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with torch.no_grad(), exact, counter:
            call(made.module, self._first(1))
        torch.backends.mha.set_fastpath_enabled(fused)
        formula = policy_cost(self.inventory, made.policy, self.settings).macs
        assert formula == (counter.get_total_flops() - self._between(counter)) // 2

    def _between(self, counter: FlopCounterMode) -> int:
        """Of products between activations, which belong to no layer of these packages."""
        if not self.package:
            return 0
        counts = counter.get_flop_counts()["Global"]
        return sum(n for op, n in counts.items() if "bmm" in str(op))

    def _file_answers(self, path: Path, inputs: Any) -> np.ndarray:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path.with_suffix(".optimized"))
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        fed = {n: t.numpy() for n, t in zip(input_names(inputs), tensors(inputs), strict=True)}
        taken = {x.name for x in session.get_inputs()}
        return np.asarray(session.run(None, {n: t for n, t in fed.items() if n in taken})[0])

    def _same_in_file(self, made: Compressed, path: Path) -> None:
        """The runtime computes what the module computes."""
        export(made, path, self._first(2))
        with torch.no_grad():
            wanted = tensors(call(made.module, self.inputs))[0].numpy()
        found = self._file_answers(path, self.inputs)
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-3 * np.abs(wanted).max())

    def _integer_kernels(self, made: Compressed, path: Path) -> None:
        """No float kernel multiplies with a stored weight, but for layers that stay float."""
        export(made, path, self._first(2))
        self._file_answers(path, self._first(1))
        graph = onnx.load(path.with_suffix(".optimized")).graph
        stored = {tensor.name for tensor in graph.initializer}
        kinds = ("Conv", "FusedConv", "Gemm", "MatMul", "LSTM", "GRU")
        left = [n for n in graph.node if n.op_type in kinds and n.input[1] in stored]
        floats = [n for n in self.inventory.layers if n.kind != "embedding"]
        assert len(left) == len(floats) - len(self.integer)

    def _exports(self, made: Compressed, folder: Path) -> list[str]:
        """Formats that the combined policy is written in."""
        made = calibrate(made, self.inputs)
        written = []
        for suffix in (".onnx", ".pt2", ".safetensors"):
            try:
                export(made, folder / f"all{suffix}", self._first(2))
            except ExportError:  # the cell says so by what it leaves out
                continue
            written.append(suffix)
        return written

    def _runs(self, made: Compressed, path: Path) -> None:
        """Three inputs at once: right in shape, and near the float module's answers."""
        with torch.no_grad():
            wanted = tensors(call(made.module, self._first(3)))[0].numpy()
        found = self._file_answers(path, self._first(3))
        assert found.shape == wanted.shape
        cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
        assert cosine > 0.98


def main() -> None:
    """Print rows as they are found."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ZOO:
        with tempfile.TemporaryDirectory() as folder:
            print("|", " | ".join([name, *Row(name).cells(Path(folder)).values()]), "|", flush=True)


if __name__ == "__main__":
    main()
