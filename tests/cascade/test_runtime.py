"""Cascades as they are shipped: the runner and the one file beside each file asked by itself."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.special import softmax
from scipy.stats import entropy

from autocompress.cascade.confidence import Scores
from autocompress.cascade.manifest import Manifest, Stage
from autocompress.errors import ExportError, InputError
from autocompress.exporters.onnx_cascade import write_cascade
from autocompress.runtime import Cascade

FEATURES, COUNT = 4, 200


def linear_file(path: Path, classes: int, seed: int, opset: int = 18) -> np.ndarray:
    """A file with one layer; gives its weights."""
    weights = np.random.default_rng(seed).standard_normal((FEATURES, classes)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "multiply"),
            helper.make_node("Identity", ["h"], ["logits"], "name"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(made, str(path))
    return weights


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(9).standard_normal((COUNT, FEATURES)).astype(np.float32)


def made(folder: Path, kind: str, scores: Scores, *, stages: int = 3) -> list[np.ndarray]:
    """A cascade of linear files in a folder; gives their weights."""
    classes = 1 if scores == "sigmoid" else 3
    weights = [linear_file(folder / f"{i}.onnx", classes, i) for i in range(stages)]
    threshold = {"margin": 0.5, "entropy": -0.6, "probability": 0.7, "agreement": 0.6}[kind]
    names, heat = [f"{i}.onnx" for i in range(stages)], (1.5, 0.8, 1.0)
    if kind == "agreement":
        parts = (Stage(tuple(names[:2]), heat[:2], threshold), Stage((names[2],), (1.0,), None))
    else:
        last = stages - 1
        parts = tuple(
            Stage((name,), (heat[i],), threshold if i < last else None)
            for i, name in enumerate(names)
        )
    Manifest(kind, scores, 0, parts).save(folder)  # type: ignore[arg-type]  # words of a parameter
    return weights


def expected(
    weights: list[np.ndarray], kind: str, scores: Scores, x: np.ndarray
) -> tuple[np.ndarray, int]:
    """Output and stage of one input, told by scipy."""
    outputs = [x.astype(np.float64) @ w for w in weights]
    logits = [np.array([0.0, *o]) if scores == "sigmoid" else o for o in outputs]
    heat = (1.5, 0.8)
    if kind == "agreement":
        sure = [softmax(z / t).max() for z, t in zip(logits, heat, strict=False)]
        alike = logits[0].argmax() == logits[1].argmax()
        return (outputs[1], 0) if alike and min(sure) >= 0.6 else (outputs[2], 1)
    for stage, z in enumerate(logits[:-1]):
        p = np.sort(softmax(z))
        found = {
            "margin": p[-1] - p[-2] >= 0.5,
            "entropy": entropy(p) <= 0.6,
            "probability": softmax(z / heat[stage]).max() >= 0.7,
        }
        if found[kind]:
            return outputs[stage], stage
    return outputs[-1], len(logits) - 1


KINDS = [
    *((k, "softmax", 3) for k in ("margin", "entropy", "probability", "agreement")),
    *(("margin", "softmax", 2), ("probability", "sigmoid", 2), ("agreement", "sigmoid", 3)),
]


@pytest.mark.parametrize(("kind", "scores", "stages"), KINDS)
def test_a_batch_is_split_as_each_input_alone_would_be(
    tmp_path: Path, inputs: np.ndarray, kind: str, scores: Scores, stages: int
) -> None:
    weights = made(tmp_path, kind, scores, stages=stages)
    cascade = Cascade(tmp_path)
    (outputs,), places = cascade.answer({"x": inputs})
    assert set(places) == set(range(stages if kind != "agreement" else 2))
    for i, x in enumerate(inputs):
        wanted, stage = expected(weights, kind, scores, x)
        np.testing.assert_allclose(outputs[i], wanted, rtol=1e-5, atol=1e-5)
        assert places[i] == stage
    for names in (["logits"], []):  # none named is all of them, as in ONNX Runtime
        (again,) = cascade.run(names, {"x": inputs})
        np.testing.assert_array_equal(again, outputs)
    singles = [cascade.run(None, {"x": inputs[i : i + 1]})[0] for i in range(COUNT)]
    np.testing.assert_allclose(np.concatenate(singles), outputs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "scores", "stages"), KINDS)
def test_an_input_that_a_stage_has_no_number_for_is_handed_on_alone(
    tmp_path: Path, inputs: np.ndarray, kind: str, scores: Scores, stages: int
) -> None:
    weights = made(tmp_path, kind, scores, stages=stages)
    weights[0][0, -1] = np.inf  # one logit is infinite, of one sign or the other
    file = onnx.load(str(tmp_path / "0.onnx"))
    file.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights[0], "w"))
    onnx.save(file, str(tmp_path / "0.onnx"))
    inputs[:2] = np.nan
    manifest = Manifest.load(tmp_path / "cascade.json")
    write_cascade(manifest, tmp_path, tmp_path / "one.onnx")
    one = onnxruntime.InferenceSession(str(tmp_path / "one.onnx"))
    (outputs,), places = Cascade(tmp_path).answer({"x": inputs})
    assert set(places[:2]) == {len(manifest.stages) - 1}, "every stage has no number for these"
    with np.errstate(invalid="ignore"):
        for i, x in enumerate(inputs):
            wanted, stage = expected(weights, kind, scores, x)
            assert places[i] == stage
            np.testing.assert_allclose(outputs[i], wanted, rtol=1e-5, atol=1e-5)
            (single,) = one.run(None, {"x": x[None]})
            np.testing.assert_allclose(single[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "scores", "stages"), KINDS)
def test_one_file_answers_as_several(
    tmp_path: Path, inputs: np.ndarray, kind: str, scores: Scores, stages: int
) -> None:
    made(tmp_path, kind, scores, stages=stages)
    cascade = Cascade(tmp_path)
    path = write_cascade(cascade.manifest, tmp_path, tmp_path / "one.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["logits"]
    for i in range(COUNT):
        one = {"x": inputs[i : i + 1]}
        np.testing.assert_allclose(
            session.run(None, one)[0], cascade.run(None, one)[0], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("kind", ["margin", "entropy", "probability"])
@pytest.mark.parametrize("opset", [13, 18])
def test_one_file_tells_near_certain_inputs_apart(tmp_path: Path, kind: str, opset: int) -> None:
    """Half of the inputs are nearer to certain than single precision tells, and half less near."""
    x = 40 * np.random.default_rng(9).standard_normal((COUNT, FEATURES)).astype(np.float32)
    first, _ = (linear_file(tmp_path / f"{i}.onnx", 3, i, opset) for i in range(2))
    logits = x.astype(np.float64) @ first
    p = np.sort(softmax(logits, axis=1), axis=1)
    each = {"margin": p[:, -1] - p[:, -2], "entropy": -entropy(p, axis=1), "probability": p[:, -1]}
    certain = max(each[kind])
    threshold = float(np.median(each[kind]))
    assert np.float32(threshold) == np.float32(certain) or kind == "entropy"
    stages = (Stage(("0.onnx",), (1.0,), threshold), Stage(("1.onnx",), (1.0,), None))
    manifest = Manifest(kind, "softmax", 0, stages)  # type: ignore[arg-type]  # words of a parameter
    path = write_cascade(manifest, tmp_path, tmp_path / "one.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(COUNT)])
    answered = np.isclose(given, logits, rtol=1e-4).all(axis=1)
    np.testing.assert_array_equal(answered, each[kind] >= threshold)


def nodes_run(path: Path, feed: dict[str, np.ndarray], folder: Path) -> set[str]:
    """Names of the nodes that ONNX Runtime's own profile shows."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return {e["name"] for e in events if e.get("cat") == "Node"}


def test_only_the_branch_taken_runs(tmp_path: Path, inputs: np.ndarray) -> None:
    made(tmp_path, "margin", "softmax")
    cascade = Cascade(tmp_path)
    path = write_cascade(cascade.manifest, tmp_path, tmp_path / "one.onnx")
    _, places = cascade.answer({"x": inputs})
    for stage in range(3):
        one = inputs[places == stage][:1]
        ran = nodes_run(path, {"x": one}, tmp_path)
        asked = {int(n[5]) for n in ran if n.startswith("stage") and "multiply" in n}
        assert asked == set(range(stage + 1))


def test_it_needs_numpy_and_onnxruntime_only(tmp_path: Path) -> None:
    """In a process in which nothing else can be imported."""
    made(tmp_path, "margin", "softmax")
    refused = ["torch", "scipy", "pydantic", "yaml", "onnx", "optuna", "rich", "typer"]
    code = (
        "import sys\n"
        f"for name in {refused!r}: sys.modules[name] = None\n"
        "import numpy as np\n"
        "from autocompress.runtime import Cascade\n"
        f"cascade = Cascade({str(tmp_path)!r})\n"
        f"print(cascade.run(None, {{'x': np.ones((5, {FEATURES}), np.float32)}})[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(5, 3)"


STAGES = [
    {"files": ["0.onnx"], "temperatures": [1.0], "threshold": 0.5},
    {"files": ["1.onnx"], "temperatures": [1.0], "threshold": None},
]
PLAIN: dict[str, Any] = {
    "format": 1,
    "confidence": "margin",
    "scores": "softmax",
    "output": 0,
    "threads": 1,
    "stages": STAGES,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format 1"),
        ({"confidence": "luck"}, "must be one of margin"),
        ({"scores": "none"}, "must be one of softmax"),
        ({"stages": [{**STAGES[0], "files": ["../0.onnx"]}, STAGES[1]]}, "bare names"),
        ({"stages": STAGES[:1]}, "threshold"),
        ({"stages": STAGES[1:]}, "threshold"),
        ({"stages": [{**STAGES[0], "temperatures": [0.0]}, STAGES[1]]}, "above 0"),
        ({"stages": [{"files": ["0.onnx"]}, STAGES[1]]}, "damaged"),
        ({"stages": [{**STAGES[0], "threshold": math.nan}, STAGES[1]]}, "`threshold`.* finite"),
        ({"stages": [{**STAGES[0], "threshold": True}, STAGES[1]]}, "`threshold` holds True"),
        ({"stages": [{**STAGES[0], "threshold": 10**400}, STAGES[1]]}, "damaged"),
        ({"stages": [{**STAGES[0], "temperatures": [math.inf]}, STAGES[1]]}, "finite"),
        ({"stages": [{**STAGES[0], "files": "0"}, STAGES[1]]}, "`files` holds '0'"),
        ({"output": -1}, "`output` must be"),
        ({"output": 1}, "the files have 1"),
        ({"output": 0.5}, "`output` holds 0.5"),
        ({"threads": 0}, "`threads` must be"),
        ({"threads": 10**30}, "`threads` must be"),
        ({"confidence": "agreement"}, "do not fit"),
        ({"stages": [{**STAGES[0], "files": ["absent.onnx"]}, STAGES[1]]}, "cannot open"),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    linear_file(tmp_path / "0.onnx", 3, 0)
    linear_file(tmp_path / "1.onnx", 3, 1)
    (tmp_path / "cascade.json").write_text(json.dumps({**PLAIN, **change}))
    with pytest.raises(InputError, match=says):
        Cascade(tmp_path)


def test_files_of_other_classes_are_no_cascade(tmp_path: Path) -> None:
    """One class would be spread over all where the answers are put together."""
    made(tmp_path, "margin", "softmax")
    linear_file(tmp_path / "1.onnx", 4, 1)
    with pytest.raises(InputError, match=r"1\.onnx takes and gives .*no files of one cascade"):
        Cascade(tmp_path)


def open_file_of(path: Path, classes: int) -> None:
    """A file that does not say how many classes it tells apart: it cuts at a place found late."""
    linear_file(path, classes, classes)
    model = onnx.load(str(path))
    del model.graph.node[1]
    model.graph.node.extend(
        [
            helper.make_node("NonZero", ["x"], ["found"]),
            helper.make_node("Shape", ["found"], ["place"]),
            helper.make_node("Mul", ["place", "none"], ["nothing"]),
            helper.make_node("Add", ["nothing", "many"], ["ends"]),
            helper.make_node("Slice", ["h", "none", "ends"], ["logits"]),
        ]
    )
    for name, value in (("none", 0), ("many", COUNT)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value, value]), name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    onnx.save(model, str(path))


def test_stages_that_answer_in_other_shapes_are_refused(tmp_path: Path, inputs: np.ndarray) -> None:
    """Numpy would spread one logit over all classes."""
    made(tmp_path, "margin", "softmax", stages=2)
    open_file_of(tmp_path / "0.onnx", 3)
    open_file_of(tmp_path / "1.onnx", 1)
    with pytest.raises(InputError, match=r"\(3,\) and \(1,\)"):
        Cascade(tmp_path).run(None, {"x": inputs})
    open_file_of(tmp_path / "1.onnx", 3)
    assert Cascade(tmp_path).run(None, {"x": inputs})[0].shape == (COUNT, 3)


def whole_batch_file(path: Path) -> None:
    """A file that gives three logits for each of ``batch + 1`` inputs."""
    linear_file(path, 3, 0)
    model = onnx.load(str(path))
    model.graph.node[1].CopyFrom(helper.make_node("Pad", ["h", "pads"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 1, 0]), "pads"))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "more"
    onnx.save(model, str(path))


def test_answers_that_are_not_one_per_input_are_refused(tmp_path: Path, inputs: np.ndarray) -> None:
    made(tmp_path, "margin", "softmax")
    whole_batch_file(tmp_path / "0.onnx")
    with pytest.raises(InputError, match=r"\(201, 3\)"):
        Cascade(tmp_path).run(None, {"x": inputs})


@pytest.mark.parametrize(
    ("feed", "says"),
    [
        ({}, "inputs are .'x'., got"),
        (None, "given by name"),
        ([np.ones((1, FEATURES), np.float32)], "given by name"),
        ({"y": np.ones((1, FEATURES), np.float32)}, "inputs are .'x'., got .'y'."),
        ({"x": np.float32(1)}, "batch of as many samples"),
        ({"x": np.ones((2, FEATURES))}, "cannot run on these inputs.*double"),
        ({"x": np.ones((2, FEATURES + 1), np.float32)}, "cannot run on these inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path, feed: Any, says: str) -> None:
    made(tmp_path, "margin", "softmax")
    with pytest.raises(InputError, match=says):
        Cascade(tmp_path).run(None, feed)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_batches_of_any_size_are_answered(tmp_path: Path, inputs: np.ndarray, count: int) -> None:
    made(tmp_path, "margin", "softmax")
    (outputs,), places = Cascade(tmp_path).answer({"x": inputs[:count]})
    assert (outputs.shape, places.shape) == ((count, 3), (count,))


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", 10**12])
def test_threads_are_a_whole_number(tmp_path: Path, threads: Any) -> None:
    made(tmp_path, "margin", "softmax")
    with pytest.raises(InputError, match="`threads`"):
        Cascade(tmp_path, threads=threads)


def test_what_is_no_cascade_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cascade at"):
        Cascade(tmp_path)
    (tmp_path / "cascade.json").write_text("no json")
    with pytest.raises(InputError, match="no JSON"):
        Cascade(tmp_path / "cascade.json")
    made(tmp_path, "margin", "softmax")
    with pytest.raises(InputError, match="outputs are"):
        Cascade(tmp_path).run(["other"], {"x": np.ones((1, FEATURES), np.float32)})


def test_files_that_do_not_fit_stay_several(tmp_path: Path) -> None:
    made(tmp_path, "margin", "softmax")
    linear_file(tmp_path / "1.onnx", 3, 1, opset=17)
    with pytest.raises(ExportError, match="operator sets"):
        write_cascade(Manifest.load(tmp_path), tmp_path, tmp_path / "one.onnx")
    assert not (tmp_path / "one.onnx").exists()
