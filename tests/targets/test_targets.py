"""One contract for every runtime that is present here."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autocompress.errors import InputError, TargetUnavailable
from autocompress.targets import (
    RUNTIMES,
    Target,
    TargetConfig,
    available_targets,
    get_target,
)
from autocompress.targets.base import NodeTime, Profile, TensorSpec, random_inputs

_HERE = {found.runtime: found for found in available_targets()}


@pytest.fixture(params=RUNTIMES)
def target(request: pytest.FixtureRequest) -> Target:
    found = _HERE[request.param]
    if not found.available:
        pytest.skip(f"{request.param}: {found.reason}")
    return get_target(request.param)


def test_a_runtime_is_available_or_says_why_not() -> None:
    assert [found.runtime for found in available_targets()] == list(RUNTIMES)
    for found in available_targets():
        assert found.available == (found.reason == "") == bool(found.version)
        assert bool(found.devices) == found.available
        assert found.as_dict()["devices"] == list(found.devices)
    assert _HERE["onnxruntime"].available
    assert _HERE["torch"].available


def test_an_absent_runtime_is_an_error_that_says_how_to_get_it() -> None:
    absent = [found for found in available_targets() if not found.available]
    for found in absent:
        with pytest.raises(TargetUnavailable, match="pip install"):
            get_target(found.runtime)


def test_it_computes_what_torch_computes(
    target: Target, exported: dict[str, Path], network: nn.Module
) -> None:
    with closing(target.open(exported[target.suffix])) as session:
        inputs = random_inputs(session.inputs, target.config.batch, seed=7)
        (found,) = session.run(inputs)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(inputs[0])).numpy()
    assert [tuple(i.shape) for i in inputs] == [(1, 3, 8, 8)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_free_batch_takes_any_number(
    target: Target, exported: dict[str, Path], network: nn.Module
) -> None:
    if target.config.runtime == "executorch":
        batches = {1: get_target({"runtime": "executorch", "batch": 1})}
        batches |= {3: get_target({"runtime": "executorch", "batch": 3})}
    else:
        batches = dict.fromkeys((1, 3), target)
    for batch, where in batches.items():
        with closing(where.open(exported[where.suffix], fixed=False)) as session:
            inputs = random_inputs(session.inputs, batch)
            (found,) = session.run(inputs)
        with torch.inference_mode():
            wanted = network(torch.from_numpy(inputs[0])).numpy()
        assert found.shape == (batch, 5)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_batch_of_the_config_is_settled(target: Target, exported: dict[str, Path]) -> None:
    four = get_target({"runtime": target.config.runtime, "batch": 4})
    with closing(four.open(exported[four.suffix])) as session:
        (found,) = session.run(random_inputs(session.inputs, 4))
    assert found.shape == (4, 5)


def test_results_do_not_change_when_the_session_runs_again(
    target: Target, exported: dict[str, Path]
) -> None:
    with closing(target.open(exported[target.suffix])) as session:
        one, two = (random_inputs(session.inputs, 1, seed) for seed in (1, 2))
        (first,) = session.run(one)
        kept = first.copy()
        session.run(two)
        (again,) = session.run(one)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(first, again)


def test_a_prepared_call_runs_and_a_profile_shows_operators(
    target: Target, exported: dict[str, Path]
) -> None:
    with closing(target.open(exported[target.suffix])) as session:
        inputs = random_inputs(session.inputs)
        call = session.prepare(inputs)
        assert call() is not None
        profile = session.profile(inputs, runs=3)
    assert profile.nodes
    assert profile.total_ms > 0
    assert all(node.ms >= 0 for node in profile.nodes)
    assert sum(node.ms for node in profile.nodes) > 0
    assert sum(count for count, _ in profile.by_op().values()) == len(profile.nodes)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_that_were_asked_for(
    target: Target, exported: dict[str, Path], threads: int
) -> None:
    path = exported[target.suffix]
    here = get_target({"runtime": target.config.runtime, "threads": threads})
    before = torch.get_num_threads()
    with closing(here.open(path)) as session:
        session.run(random_inputs(session.inputs))
        assert session.threads == threads
    with closing(here.open(path, threads=3 - threads)) as session:
        assert session.threads == 3 - threads
    assert torch.get_num_threads() == before
    assert here.describe()["threads"] == threads


def test_torch_kernels_see_the_threads_of_the_session(exported: dict[str, Path]) -> None:
    seen: list[int] = []
    with closing(get_target({"runtime": "torch", "threads": 2}).open(exported[".pt2"])) as session:
        opened: Any = session
        opened._module.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        session.run(random_inputs(session.inputs))
    assert seen == [2]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux lists threads")
def test_onnxruntime_starts_one_thread_less_than_it_uses(exported: dict[str, Path]) -> None:
    def tasks() -> int:
        return len(os.listdir("/proc/self/task"))

    before = tasks()
    with closing(get_target({"threads": 4}).open(exported[".onnx"])):
        assert tasks() - before == 3
    with closing(get_target({"threads": 1}).open(exported[".onnx"])):
        assert tasks() == before


def test_what_a_record_says_is_what_the_config_asked(target: Target) -> None:
    told = target.describe()
    assert told["runtime"] == target.config.runtime
    assert told["version"] == _HERE[target.config.runtime].version
    assert {"device": "cpu", "threads": 1, "batch": 1}.items() <= told.items()


def test_what_cannot_be_opened_is_an_input_error(target: Target, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model file"):
        target.open(tmp_path / f"absent{target.suffix}")
    wrong = tmp_path / "model.bin"
    wrong.write_bytes(b"x")
    with pytest.raises(InputError, match=target.suffix):
        target.open(wrong)
    broken = tmp_path / f"broken{target.suffix}"
    broken.write_bytes(b"not a model at all")
    with pytest.raises(InputError, match="broken"):
        target.open(broken)


def test_the_wrong_number_of_inputs_is_an_input_error(
    target: Target, exported: dict[str, Path]
) -> None:
    with closing(target.open(exported[target.suffix])) as session:
        inputs = random_inputs(session.inputs)
        with pytest.raises(InputError, match="takes 1 inputs, got 2"):
            session.run([*inputs, *inputs])


@pytest.mark.slow
def test_a_compiled_program_computes_the_same(
    exported: dict[str, Path], network: nn.Module
) -> None:
    compiled = get_target({"runtime": "torch", "compile": True})
    with closing(compiled.open(exported[".pt2"])) as session:
        inputs = random_inputs(session.inputs)
        (found,) = session.run(inputs)
        profile = session.profile(inputs, runs=3)
    np.testing.assert_allclose(found, network(torch.from_numpy(inputs[0])).detach(), atol=1e-5)
    assert profile.nodes
    assert compiled.describe()["compile"] is True


def test_an_unknown_device_is_not_taken_for_another(target: Target) -> None:
    with pytest.raises(InputError):
        get_target({"runtime": target.config.runtime, "device": "abacus"})


def test_a_config_names_the_nearest_key_and_runtime() -> None:
    with pytest.raises(InputError, match="'threads'"):
        TargetConfig.read({"thread": 2})
    with pytest.raises(InputError, match="onnxruntime"):
        TargetConfig.read({"runtime": "onnx_runtime"})
    with pytest.raises(InputError, match="threads"):
        TargetConfig.read({"threads": 0})


def test_profiles_carry_the_names_of_the_file(exported: dict[str, Path]) -> None:
    file = {n.name for n in onnx.load(str(exported[".onnx"])).graph.node}
    with closing(get_target("onnxruntime").open(exported[".onnx"])) as session:
        profile = session.profile(random_inputs(session.inputs), runs=2)
    convolutions = [n for n in profile.nodes if "Conv" in n.op]
    # blocked layouts are named after tensors by the runtime; here they carry their own names again
    assert {n.name for n in convolutions} == {n for n in file if n.endswith("/Conv")}
    with closing(get_target("torch").open(exported[".pt2"])) as session:
        profile = session.profile(random_inputs(session.inputs), runs=2)
    scopes = [n.name.partition("/")[0] for n in profile.nodes if "conv2d" in n.op]
    assert scopes == ["first", "deep", "last"]


def test_random_inputs_fit_what_is_asked() -> None:
    specs = [
        TensorSpec("x", (None, 3, 4), "float32"),
        TensorSpec("tokens", (2, 5), "int64"),
        TensorSpec("mask", (None, 5), "bool"),
    ]
    x, tokens, mask = random_inputs(specs, batch=6, seed=1)
    assert (x.shape, tokens.shape, mask.shape) == ((6, 3, 4), (2, 5), (6, 5))
    assert (x.dtype, tokens.dtype, mask.dtype) == (np.float32, np.int64, np.bool_)
    assert set(np.unique(tokens)) <= {0, 1}
    np.testing.assert_array_equal(x, random_inputs(specs, batch=6, seed=1)[0])
    with pytest.raises(InputError, match="Only the batch"):
        random_inputs([TensorSpec("x", (None, None), "float32")])


def test_a_profile_sums_by_operator() -> None:
    nodes = (
        NodeTime("a", "Conv", 1.0),
        NodeTime("b", "Add", 3.0),
        NodeTime("c", "Conv", 1.5),
        NodeTime("d", "Relu", float("nan")),
    )
    profile = Profile(nodes, 6.0)
    assert list(profile.by_op().items()) == [
        ("Add", (1, 3.0)),
        ("Conv", (2, 2.5)),
        ("Relu", (1, 0.0)),
    ]
    assert profile.as_dict()["ops"]["Conv"] == {"nodes": 2, "ms": 2.5}


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_torch_on_cuda_computes_the_same(
    compiled: bool, exported: dict[str, Path], network: nn.Module
) -> None:
    target = get_target({"runtime": "torch", "device": "cuda", "compile": compiled, "batch": 2})
    with closing(target.open(exported[".pt2"])) as session:
        inputs = random_inputs(session.inputs, 2)
        (found,) = session.run(inputs)
        profile = session.profile(inputs, runs=3)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(inputs[0])).numpy()
    # convolutions may run in TF32 there
    np.testing.assert_allclose(found, wanted, atol=5e-3)
    assert profile.nodes
    assert profile.total_ms > 0
