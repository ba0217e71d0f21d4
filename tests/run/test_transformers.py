"""Models of Hugging Face, from configuration with random weights, go in as they are.

Each is listed, pruned where it has a plain MLP, quantized, written to a file and read back. Pruned
networks are held against masked ones, files against the modules that they were made of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.exporters.write import export
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.answers import file_answers
from autocompress.quality.saturation import settled
from autocompress.targets import get_target
from autocompress.task.calling import call, without_cache
from autocompress.task.data import Data
from autocompress.task.nested import named_tensors, take, tensors
from autocompress.techniques.quantize import simulate

transformers = pytest.importorskip("transformers")

COUNT, LENGTH, WORDS = 24, 6, 40
SETTINGS = settled(CompressionSettings(), get_target("onnxruntime"))


def first(answer: Any) -> torch.Tensor:
    """The logits, which every one of these models answers first."""
    return tensors(answer)[0]


def text(labels: str) -> list[dict[str, Any]]:
    """Rows as a tokenized data set of Hugging Face gives them: lists of numbers, and a text."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(COUNT):
        ids = torch.randint(5, WORDS, (LENGTH,), generator=draw).tolist()
        length = 3 + i % (LENGTH - 2)
        row = {
            "text": "of no use to a model",
            "input_ids": ids[:length] + [0] * (LENGTH - length),
            "attention_mask": [1] * length + [0] * (LENGTH - length),
            "labels": i % 3 if labels == "one" else [w % 3 for w in ids],
        }
        rows.append(row)
    return rows


def images() -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.randn(3, 8, 8, generator=draw), "labels": i % 3}
        for i in range(COUNT)
    ]


def bert(kind: str) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        num_labels=3,
    )
    return getattr(transformers, f"BertFor{kind}")(config)  # type: ignore[no-any-return]  # transformers is untyped here


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=WORDS, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32
    )
    return transformers.DistilBertForMaskedLM(config)  # type: ignore[no-any-return]  # transformers is untyped here


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_inner=24, n_positions=32
    )
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]  # transformers is untyped here


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)  # type: ignore[no-any-return]  # transformers is untyped here


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[dict[str, Any]]]]] = {
    "bert, sequence": (lambda: bert("SequenceClassification"), lambda: text("one")),
    "bert, tokens": (lambda: bert("TokenClassification"), lambda: text("each")),
    "distilbert, masked": (distilbert, lambda: text("each")),
    "gpt2, causal": (gpt2, lambda: text("each")),
    "vit": (vit, images),
}


@cache
def made(name: str) -> tuple[nn.Module, Data, LayerBank]:
    torch.manual_seed(0)
    model, rows = MODELS[name]
    module = without_cache(model()).eval()
    for parameter in module.parameters():  # at their initial size every layer does next to nothing
        nn.init.normal_(parameter, 0.1 if parameter.dim() == 1 else 0.0, 0.3)
    data = Data.wrap({"train": rows()}).fitted(module)
    inventory = take_inventory(module, data.train.inputs(2))
    return module, data, LayerBank.build(module, inventory, data.train, SETTINGS)


def read_back(compressed: Any, data: Data, model: nn.Module, path: Path) -> Any:
    """What the written file answers to all training inputs, built like the model's answer."""
    export(compressed, path, data.train.inputs(2))
    like = call(model, data.train.inputs(1))
    found = list(file_answers(get_target("onnxruntime"), path, data.train, like=like, batch=100))
    return found[0][0]


def pruned_policy(bank: LayerBank) -> Policy:
    """Half of every inner stream."""
    groups = [g for g in bank.inventory.channel_groups if not g.residual]
    half = LayerPolicy(prune_ratio=0.5)
    return Policy({name: half for group in groups for name in group.producers})


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_what_is_answered_comes_back_from_the_file(name: str, tmp_path: Path) -> None:
    model, data, bank = made(name)
    assert "text" not in data.train.inputs(1)
    compressed = bank.stitch(pruned_policy(bank))
    wanted = call(compressed.module, data.train.inputs())
    found = read_back(compressed, data, model, tmp_path / "model.onnx")
    assert type(found) is type(wanted)
    assert [n for n, _ in named_tensors(found)] == [n for n, _ in named_tensors(wanted)]
    torch.testing.assert_close(first(found), first(wanted), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bert, sequence", "distilbert, masked", "vit"])
@torch.no_grad()
def test_a_pruned_mlp_is_a_masked_one(name: str) -> None:
    model, data, bank = made(name)
    groups = [g for g in bank.inventory.channel_groups if g.channels == 24]
    assert len(groups) == 2
    policy = Policy({group.name: LayerPolicy(prune_ratio=0.5) for group in groups})
    small = bank.stitch(policy, solve=False).module
    masked = copy.deepcopy(model)
    for group in groups:
        layer, kept = masked.get_submodule(group.name), small.get_submodule(group.name)
        stays = (layer.weight[:, None] == kept.weight[None]).all(-1).any(1)
        assert int(stays.sum()) == 12
        layer.weight[~stays], layer.bias[~stays] = 0.0, 0.0  # the activation of 0 is 0
    inputs = data.train.inputs()
    wanted, found = first(call(masked, inputs)), first(call(small, inputs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert, sequence", "gpt2, causal", "vit"])
@torch.no_grad()
def test_integers_of_the_file_are_those_that_are_simulated(name: str, tmp_path: Path) -> None:
    model, data, bank = made(name)
    layers = [x.name for x in bank.inventory.layers if x.kind in ("conv", "linear")]
    policy = Policy(dict.fromkeys(layers, LayerPolicy(weight_bits=8, activation_bits=8)))
    compressed = calibrate(bank.stitch(policy), data.train.inputs())
    wanted = first(call(simulate(compressed), data.train.inputs()))
    found = first(read_back(compressed, data, model, tmp_path / "model.onnx"))
    exact = first(call(model, data.train.inputs()))
    # rounding moves outputs; the file's and the simulation's by the same, but for single steps
    assert _distance(found, wanted) < 0.5 * _distance(wanted, exact) + 0.02
    assert _distance(found, exact) < 0.15


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


@torch.no_grad()
def test_texts_of_any_length(tmp_path: Path) -> None:
    model, data, bank = made("bert, sequence")
    axes = {name: {1: "sequence"} for name in ("input_ids", "attention_mask")}
    compressed = bank.stitch(Policy()).with_(dynamic=axes)
    path = tmp_path / "model.onnx"
    export(compressed, path, data.train.inputs(2))
    for length in (2, LENGTH):
        inputs = {n: t[:3, :length] for n, t in data.train.inputs(3).items()}
        wanted = first(call(model, inputs))
        session = get_target("onnxruntime").open(path, fixed=False)
        found = session.run([t.numpy() for t in inputs.values()])
        torch.testing.assert_close(torch.from_numpy(found[0]), wanted, rtol=1e-3, atol=1e-3)
        session.close()


def test_the_labels_of_a_batch_are_no_inputs() -> None:
    _, data, _ = made("bert, tokens")
    assert data.train.inputs(1).keys() == {"input_ids", "attention_mask"}
    assert data.train.targets.shape == (len(data.train), LENGTH)
    assert take(data.train.targets, slice(0, 1)).shape == (1, LENGTH)
