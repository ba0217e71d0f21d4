"""Files of models with several inputs and outputs, and with free axes, against the modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from file_checks import file_accuracy
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.errors import ExportError
from autocompress.exporters.agreement import check_graph
from autocompress.exporters.axes import find_axes
from autocompress.exporters.onnx_graph import Exporter, float_graph
from autocompress.exporters.write import export
from autocompress.model.cost import count_macs
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.answers import file_answers, module_answers
from autocompress.quality.saturation import settled
from autocompress.targets import get_target
from autocompress.task.calling import call
from autocompress.task.data import Split
from autocompress.task.nested import batch_size, named_tensors, take, tensors
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import simulate


@dataclass
class Answer:
    logits: Any
    aux: Any = None
    text: str = "not for a file"


class TwoHeads(nn.Module):
    """One stream, two answers, built in one of several ways."""

    def __init__(self, build: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.build = build
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.h, self.g = nn.Linear(8, 5), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        seen = F.relu(self.b(F.relu(self.a(x)))).mean((2, 3))
        return self.build(self.h(seen), self.g(seen))


class Words(nn.Module):
    """Token ids and numbers, by keyword or in a pair; a text of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.a, self.b = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(4, 16)
        self.h = nn.Linear(16, 5)

    def forward(self, ids: Tensor, rest: dict[str, Tensor]) -> Tensor:
        return self.h(F.relu(self.a(self.e(ids)).mean(1) + self.b(rest["dense"])))


BUILDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda logits, aux: (logits, aux),
    "list": lambda logits, aux: [logits, aux],
    "dict": lambda logits, aux: {"logits": logits, "aux": aux},
    "nested": lambda logits, aux: {"heads": (aux, None), "logits": logits},
    "ordered": lambda logits, aux: OrderedDict(logits=logits, aux=aux),
    "dataclass": Answer,
}
IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 5
WORDS = {
    "ids": torch.randint(20, (12, 7), generator=torch.Generator().manual_seed(1)),
    "rest": {"dense": torch.randn(12, 4, generator=torch.Generator().manual_seed(2))},
}
ORT = get_target("onnxruntime")
SETTINGS = settled(CompressionSettings(), ORT)


def heads(name: str) -> nn.Module:
    torch.manual_seed(0)
    return TwoHeads(BUILDS[name]).eval()


def words() -> nn.Module:
    torch.manual_seed(0)
    return Words().eval()


def compressed_of(model: nn.Module, split: Split, **layer: Any) -> Compressed:
    inventory = take_inventory(model, split.inputs(2))
    bank = LayerBank.build(model, inventory, split, SETTINGS)
    names = [x.name for x in inventory.layers if x.kind in ("conv", "linear")]
    if "prune_ratio" in layer:
        names = [n for g in inventory.channel_groups if not g.residual for n in g.producers]
        assert names
    return bank.stitch(Policy(dict.fromkeys(names, LayerPolicy(**layer))))


def assert_alike(found: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    assert type(found) is type(wanted)
    pairs = zip(named_tensors(found), named_tensors(wanted), strict=True)
    for (name, one), (other, two) in pairs:
        assert name == other
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_outputs_come_back_built_as_the_model_builds_them(
    name: str, suffix: str, tmp_path: Path
) -> None:
    model, split = heads(name), Split(IMAGES, LABELS)
    small = compressed_of(model, split, prune_ratio=0.5)
    path = tmp_path / f"model{suffix}"
    export(small, path, split.inputs(2))
    target = ORT if suffix == ".onnx" else get_target("torch")
    like = call(model, split.inputs(1))
    found = list(file_answers(target, path, split, like=like, batch=5))
    wanted = list(module_answers(lambda x: call(small.module, x), split, batch=5))
    assert [batch_size(o) for o, _ in found] == [5, 5, 2]
    for (one, labels), (two, _) in zip(found, wanted, strict=True):
        assert_alike(one, two)
        assert len(labels) == batch_size(one)


def test_names_in_a_file_are_those_of_the_structure() -> None:
    for name, wanted in (("nested", ["heads.0", "logits"]), ("tuple", ["output", "output_1"])):
        graph = float_graph(heads(name), IMAGES[:1])
        assert [o.name for o in graph.graph.output] == wanted
        assert {"a#0/Conv", "b#0/Conv"} <= {n.name for n in graph.graph.node}
        check_graph(heads(name), graph, IMAGES[:3])


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_both_exporters_take_keywords_and_dictionaries(exporter: Exporter) -> None:
    model = words()
    graph = float_graph(model, take(WORDS, slice(0, 1)), exporter)
    assert [i.name for i in graph.graph.input] == ["ids", "rest.dense"]
    assert {"a#0/MatMul", "b#0/Gemm"} <= {n.name for n in graph.graph.node}
    check_graph(model, graph, WORDS)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_inputs_by_keyword_of_unlike_shapes_and_types(suffix: str, tmp_path: Path) -> None:
    model, split = words(), Split(WORDS, LABELS)
    assert take_inventory(model, split.inputs(2)).input_shape == ((7,), (4,))
    integer = compressed_of(model, split, weight_bits=8, activation_bits=8)
    ready = calibrate(integer, split.inputs())
    path = tmp_path / f"model{suffix}"
    export(ready, path, split.inputs(2))
    target = ORT if suffix == ".onnx" else get_target("torch")
    ((found, _),) = file_answers(target, path, split)
    wanted = call(simulate(ready), split.inputs())
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
    by_position = (WORDS["ids"], WORDS["rest"])
    torch.testing.assert_close(call(model, by_position), call(model, WORDS))


def test_calibration_on_the_way_is_calibration_on_a_batch() -> None:
    for model, split in ((words(), Split(WORDS, LABELS)), (heads("dict"), Split(IMAGES, LABELS))):
        layers = {"weight_bits": 8, "activation_bits": 8}
        whole = calibrate(compressed_of(model, split, **layers), split.inputs())
        parts = calibrate(compressed_of(model, split, **layers), split)
        assert whole.ranges == parts.ranges


def test_a_metric_sees_both_outputs_of_module_and_file(tmp_path: Path) -> None:
    model, split = heads("dict"), Split(IMAGES, LABELS)
    path = tmp_path / "model.onnx"
    export(compressed_of(model, split), path, split.inputs(2))
    seen = []

    def metric(outputs: Any, targets: Tensor) -> float:
        seen.append((type(outputs), sorted(outputs)))
        return float((outputs["logits"].argmax(1) == targets).float().mean() + outputs["aux"].sum())

    like = call(model, split.inputs(1))
    found = file_accuracy(ORT, path, split, metric, like=like, batch=5)
    with torch.no_grad():
        wanted = metric(call(model, IMAGES), LABELS)
    assert found.value == pytest.approx(wanted, rel=1e-3)
    assert set(map(str, seen)) == {str((dict, ["aux", "logits"]))}


def test_costs_are_counted_of_nested_inputs() -> None:
    counted = count_macs(words(), WORDS)
    assert counted.per_layer["a"] == 7 * 8 * 16
    assert counted.per_layer["b"] == 4 * 16


class Pooled(nn.Module):
    """Takes images of any size; one of them with a size written into it."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed, self.a, self.h = fixed, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu(self.a(x)).flatten(2)
        # a number of Python's is a constant of the traced file
        scale = float(x.shape[-1]) if self.fixed else 1.0
        return self.h(seen.mean(2)) * scale


def test_free_axes_are_found_and_a_size_that_became_a_constant_is_not_one() -> None:
    found, notes = find_axes(Pooled(False).eval(), IMAGES)
    assert found == {"input": {2: "height", 3: "width"}}
    assert not notes
    found, notes = find_axes(Pooled(True).eval(), IMAGES)
    assert found == {"input": {2: "height"}}
    assert "'width' stays fixed" in notes[0]


def test_a_file_of_free_axes_runs_on_other_sizes_and_says_its_own(tmp_path: Path) -> None:
    model, split = words(), Split(WORDS, LABELS)
    plain = compressed_of(model, split, weight_bits=8, activation_bits=8)
    ready = calibrate(plain.with_(dynamic={"ids": {1: "sequence"}}), split.inputs())
    path = tmp_path / "model.onnx"
    export(ready, path, split.inputs(2))
    session = ORT.open(path)
    assert session.sizes == {"sequence": 7}
    assert [spec.free_axes for spec in session.inputs] == [{"sequence": 1}, {}]
    for length in (1, 5, 30):
        ids = torch.arange(length)[None] % 20
        inputs = {"ids": ids, "rest": {"dense": WORDS["rest"]["dense"][:1]}}
        (found,) = session.run([part.numpy() for part in tensors(inputs)])
        wanted = call(simulate(ready), inputs)
        assert float((torch.from_numpy(found) - wanted).abs().max()) < 0.1
    session.close()


class Branching(nn.Module):
    """Computes with another size where it is being exported, as some language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        size = 6 if torch.compiler.is_compiling() else x.shape[1]
        return self.a(x).mean(1) * size


def test_a_program_that_computes_something_else_in_another_size_is_refused(
    tmp_path: Path,
) -> None:
    split = Split(torch.randn(12, 6, 4), LABELS)
    plain = compressed_of(Branching().eval(), split)
    export(plain, tmp_path / "model.pt2", split.inputs(2))
    free = plain.with_(dynamic={"input": {1: "sequence"}})
    with pytest.raises(ExportError, match="must compute what the module computes"):
        export(free, tmp_path / "model.pt2", split.inputs(2))


def test_a_program_of_free_axes_runs_on_other_sizes(tmp_path: Path) -> None:
    model, split = words(), Split(WORDS, LABELS)
    plain = compressed_of(model, split, weight_bits=8, activation_bits=8)
    ready = calibrate(plain.with_(dynamic={"ids": {1: "sequence"}}), split.inputs())
    export(ready, tmp_path / "model.pt2", split.inputs(2))
    program = torch.export.load(tmp_path / "model.pt2").module()
    for length in (2, 5, 30):
        ids, dense = torch.arange(length)[None] % 20, WORDS["rest"]["dense"][:1]
        (found,) = program(ids, dense)
        wanted = call(simulate(ready), {"ids": ids, "rest": {"dense": dense}})
        torch.testing.assert_close(found, wanted)


def test_a_constant_size_under_a_free_axis_is_refused(tmp_path: Path) -> None:
    model, split = Pooled(True).eval(), Split(IMAGES, LABELS)
    small = compressed_of(model, split).with_(dynamic={"input": {3: "width"}})
    with pytest.raises(ExportError, match="must compute what the module computes"):
        export(small, tmp_path / "model.onnx", split.inputs(2))
    with pytest.raises(ExportError, match=r"torch\.export cannot take this model"):
        export(small, tmp_path / "model.pt2", split.inputs(2))
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    plain = compressed_of(fixed, split).with_(dynamic={"input": {3: "width"}})
    with pytest.raises(ExportError, match="neither half nor twice"):
        export(plain, tmp_path / "model.onnx", split.inputs(2))
