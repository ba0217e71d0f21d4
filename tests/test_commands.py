"""The commands of a finished run, in the installed program: one small study, from all sides."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_study import STUDY, call

from autocompress.results.metric import Measurement

#: whole studies run in processes of their own, which may have to wait for a quiet machine
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study, and a cache of its own."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


@pytest.fixture(scope="session")
def finished(place: Path) -> dict[str, Any]:
    """The JSON that ``search`` printed; the run lies in ``runs/tiny``."""
    done = call(place, "search tiny.yaml --json")
    assert done.stdout.count("\n") == 1, "nothing but one object on standard output"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_search_reports_what_was_measured(place: Path, finished: dict[str, Any]) -> None:
    assert finished["feasible"]
    assert finished["answered"]
    assert {"uniform", "int8"} & set(finished["baselines"])
    best = next(t for t in finished["trials"] if t["number"] == finished["best"])
    assert best["macs"] <= 0.5 * finished["baseline"]["macs"]
    run = place / "runs" / "tiny"
    lines = [json.loads(x) for x in (run / "trials.jsonl").read_text().splitlines()]
    assert len(lines) >= 6 + 1
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "recipes" / "best.yaml").is_file()
    assert (run / "models" / "best.onnx").is_file()


def test_macs_of_the_answer_are_those_of_the_rebuilt_model(
    place: Path, finished: dict[str, Any]
) -> None:
    import torch

    from autocompress.api_models import apply
    from autocompress.model.cost import count_macs
    from autocompress.techniques.quantize import QuantizedLayer
    from autocompress.workloads.data import digits

    os.environ["AUTOCOMPRESS_CACHE"] = str(place / "cache")
    data = digits()
    recipe = place / "runs" / "tiny" / "recipes" / "best.yaml"
    best = next(t for t in finished["trials"] if t["number"] == finished["best"])
    rebuilt = apply(recipe)
    for name, module in list(rebuilt.named_modules()):
        if isinstance(module, QuantizedLayer):  # the counter knows plain layers only
            owner, _, child = name.rpartition(".")
            setattr(rebuilt.get_submodule(owner), child, module.layer)
    counted = count_macs(rebuilt, data.train.inputs(1)).per_layer
    # fvcore counts batch norms too, which the exported file has folded away
    norms = {n for n, m in rebuilt.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert sum(macs for name, macs in counted.items() if name not in norms) == best["macs"]


def test_front_agrees_with_search(place: Path, finished: dict[str, Any]) -> None:
    front = json.loads(call(place, "front runs/tiny --json").stdout)
    assert front["best"] == finished["best"]
    assert front["front"] == finished["front"]
    lines = (place / "runs" / "tiny" / "trials.jsonl").read_text().splitlines()
    numbers = [json.loads(line)["number"] for line in lines]
    for found in (front, finished):
        assert [t["number"] for t in found["trials"]] == sorted(numbers)
    table = call(place, "front runs/tiny").stdout
    assert "Pareto front" in table
    assert "uncompressed" in table


def test_resume_repeats_no_finished_trial(place: Path, finished: dict[str, Any]) -> None:
    journal = place / "runs" / "tiny" / "trials.jsonl"
    before = journal.read_text()
    again = json.loads(call(place, "search tiny.yaml --resume --json").stdout)
    assert journal.read_text() == before
    assert again["best"] == finished["best"]
    shown = call(place, "search tiny.yaml --resume").stdout
    assert journal.read_text() == before
    assert "ended because all trials are done" in " ".join(shown.split())
    assert "models/best.onnx" in shown


def test_a_run_is_not_overwritten(place: Path, finished: dict[str, Any]) -> None:
    journal = place / "runs" / "tiny" / "trials.jsonl"
    before = journal.read_bytes()
    done = call(place, "search tiny.yaml", check=2)
    assert "--resume" in done.stderr
    assert journal.read_bytes() == before


def test_export_apply_verify(place: Path, finished: dict[str, Any]) -> None:
    import onnxruntime as ort

    from autocompress.workloads.data import digits

    made = json.loads(call(place, "export runs/tiny --pick best -o out/r.yaml --json").stdout)
    assert made["trial"] == finished["best"]
    for name in ("m.onnx", "m.pt2", "m.safetensors"):
        call(place, f"apply out/r.yaml -o out/{name}")
        assert (place / "out" / name).stat().st_size > 1000
    # what is applied again is what was shipped, image by image
    images = digits().test.inputs(64).numpy()
    outputs = []
    for path in (place / "out" / "m.onnx", place / "runs" / "tiny" / "models" / "best.onnx"):
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: images})[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    # the machine may be busy with other tests: the latency claim is judged by the tolerance test
    found = json.loads(call(place, "verify out/r.yaml --json", check=None).stdout)
    assert found["accuracy"] == pytest.approx(found["claimed_accuracy"], abs=1e-6)
    assert found["same_weights"]


def test_a_false_claim_is_found(place: Path, finished: dict[str, Any]) -> None:
    recipe = place / "runs" / "tiny" / "recipes" / "best.yaml"
    data = yaml.safe_load(recipe.read_text())
    data["measurement"]["values"]["accuracy"] -= 0.05
    forged = recipe.with_name("forged.yaml")
    forged.write_text(yaml.safe_dump(data))
    done = call(place, f"verify {forged} --json", check=1)
    assert "accuracy" in json.loads(done.stdout)["reasons"][0]


def test_recipe_of_another_model_is_refused(place: Path, finished: dict[str, Any]) -> None:
    done = call(
        place,
        "apply runs/tiny/recipes/best.yaml --model autocompress.workloads.models:digits_resnet",
        check=2,
    )
    assert "architecture" in done.stderr


def test_evaluate_and_bench(place: Path, finished: dict[str, Any]) -> None:
    one = json.loads(
        call(place, "evaluate tiny.yaml --uniform prune_ratio=0.5,weight_bits=8 --json").stdout
    )
    assert one["trial"]["policy"]["layers"]["conv1"] == {"weight_bits": 8, "activation_bits": 8}
    assert one["trial"]["macs"] < one["baseline"]["macs"]
    assert one["build"] == "finished"
    models = place / "runs" / "tiny" / "models"
    two = json.loads(
        call(place, f"bench {models}/best.onnx --vs {models}/baseline.onnx --json").stdout
    )
    assert two["ratio_low"] <= two["ratio"] <= two["ratio_high"]


def test_evaluate_builds_what_a_study_hands_over(place: Path) -> None:
    """Beside the builder itself: the thorough build is not the quick one, and each is named."""
    from file_checks import file_accuracy

    from autocompress.controller.phases import FINISHED
    from autocompress.results.trial import SEARCH
    from autocompress.run.assembly import assemble
    from autocompress.run.study import read_study

    os.environ["AUTOCOMPRESS_CACHE"] = str(place / "cache")
    ask = "evaluate tiny.yaml --uniform prune_ratio=0.75"
    found = {
        "finished": json.loads(call(place, f"{ask} --json").stdout),
        "quick": json.loads(call(place, f"{ask} --quick --json").stdout),
    }
    parts = assemble(read_study(STUDY), place / "beside")
    policy = parts.space.decode(parts.space.uniform(prune_ratio=0.75))
    for name, phase in (("finished", FINISHED), ("quick", SEARCH)):
        compressed = parts.pipeline.build(policy, phase)
        path = parts.evaluator.model_path(policy, phase)
        measurer = parts.evaluator.measurer
        measurer.export(compressed, path)
        wanted = file_accuracy(measurer.target, path, parts.data.val).value
        assert found[name]["trial"]["accuracy"] == pytest.approx(wanted, abs=1e-6)
        assert found[name]["build"] == name
    assert found["finished"]["trial"]["accuracy"] > found["quick"]["trial"]["accuracy"]
    shown = call(place, f"{ask} --quick").stdout
    assert "quick reconstruction" in shown
    assert "Leave one of them out" in call(place, f"{ask} --quick --epochs 1", check=2).stderr


def test_dry_run_and_profile_touch_nothing(place: Path) -> None:
    (place / "cache").mkdir(exist_ok=True)
    before = sorted(p.name for p in place.iterdir())
    plan = json.loads(call(place, "search tiny.yaml --dry-run --json").stdout)
    assert plan["can_be_met"]
    assert plan["cheapest"]["latency_ms"] > 0
    assert not plan["cheapest"]["measured"], "the estimate decides"
    profile = json.loads(call(place, "profile tiny.yaml --json").stdout)
    layers = profile["layers"]
    assert profile["fvcore"]["macs"] == plan["most_expensive"]["macs"]
    assert "aten::add" in profile["fvcore"]["uncounted"]
    assert all(row["latency_ms"] > 0 for row in layers)
    assert sum(row["macs"] for row in layers) == plan["most_expensive"]["macs"]
    assert sorted(p.name for p in place.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"serach": {}}, "did you mean 'search'"),
        ({"search": {"trails": 3}}, "did you mean 'trials'"),
        ({"space": "joined"}, "'joint'"),
        ({"space": {"rules": [{"match": "layer9.*", "prune_ratio": [0, 0.5]}]}}, "layer"),
        ({"space": {"rules": [{"match": "*", "prune": [0, 0.5]}]}}, "prune_ratio"),
        ({"budget": ["macs<=0.001x"]}, "cannot be met"),
        ({"budget": ["latency<=1e-6ms"]}, "cannot be met"),
        ({"budget": ["latecy<=1ms"]}, "latency"),
        ({"target": {"runtime": "onnxruntim"}}, "did you mean 'onnxruntime'"),
        (
            {
                "data": {
                    "factory": "autocompress.workloads.data:image_folder",
                    "args": {"root": "no/such/folder"},
                }
            },
            "no/such/folder",
        ),
        (
            {
                "model": {
                    "factory": "autocompress.workloads.models:digits_resnet",
                    "checkpoint": "no.safetensors",
                },
                "baseline": None,
            },
            "no.safetensors",
        ),
        ({"model": {"factory": "autocompress.workloads.models:digits_resnt"}}, "digits_resnet"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_bad_input_is_one_clear_message(place: Path, change: dict[str, Any], says: str) -> None:
    (place / "bad.yaml").write_text(yaml.safe_dump({**STUDY, **change, "name": "bad"}))
    done = call(place, "search bad.yaml", check=2)
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (place / "runs" / "bad" / "trials.jsonl").exists()


def test_a_refused_budget_names_one_that_is_met_and_hardly_looser(place: Path) -> None:
    ask = "search tiny.yaml --dry-run --json --budget 'macs<=0.001x'"
    refused = call(place, ask, check=2)
    found = json.loads(refused.stdout)
    assert not found["can_be_met"]
    assert found["reason"] in refused.stderr
    assert found["cheapest"]["macs"] > 0.001 * found["most_expensive"]["macs"]
    named = re.search(r"just meet (macs<=([0-9.]+)x)", found["reason"])
    assert named, found["reason"]
    plan = json.loads(call(place, ask.replace("macs<=0.001x", named[1])).stdout)
    assert plan["can_be_met"]
    tight = f"macs<={0.85 * float(named[2]):.4f}x"
    assert "cannot be met" in call(place, ask.replace("macs<=0.001x", tight), check=2).stderr


def test_a_dry_run_ends_as_search_would_where_latency_cannot_be_met(place: Path) -> None:
    ask = "search tiny.yaml --dry-run --budget 'latency<=1e-6ms'"
    done = call(place, f"{ask} --json", check=2)
    found = json.loads(done.stdout)
    assert not found["can_be_met"]
    assert "cannot be met" in found["reason"]
    assert found["cheapest"]["latency_ms"] > 1e-6
    shown = call(place, ask, check=2)
    assert "cannot be met" in shown.stdout
    assert "Loosen the budget" in " ".join(shown.stderr.split())


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("budget", "code"), [("latency<=3x", 0), ("latency<=1e-6ms", 2)])
def test_a_dry_run_with_a_cached_table_waits_for_nobody(
    place: Path, monkeypatch: pytest.MonkeyPatch, budget: str, code: int
) -> None:
    """Beside another study that times something, and never ends."""
    ask = f"search tiny.yaml --dry-run --json --budget '{budget}'"
    call(place, ask, check=code)  # the table is in the cache now
    folder = place / f"lock-{code}"
    monkeypatch.setenv("AUTOCOMPRESS_LOCK_DIR", str(folder))
    hold = (
        "from autocompress.machine.lock import timing_lock\n"
        "with timing_lock():\n"
        "    print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        # as if for two minutes: computing pauses for a minute at most, and timing for ten
        note = folder / "holder.json"
        note.write_text(json.dumps({**json.loads(note.read_text()), "since": time.time() - 120}))
        try:
            found = json.loads(call(place, ask, check=code, timeout_s=200).stdout)
            assert other.poll() is None, "the other one still holds the machine"
        finally:
            other.communicate("go\n")
    assert found["can_be_met"] == found["feasible"] == (code == 0)
    assert not found["cheapest"]["measured"]


def test_a_drop_that_nothing_keeps_to_is_no_answer(place: Path, finished: dict[str, Any]) -> None:
    """The trials of the finished run, asked for less than any of them loses."""
    strict = place / "runs" / "strict"
    shutil.copytree(place / "runs" / "tiny", strict)
    base = finished["baseline"]["accuracy"]
    front = [t for t in finished["trials"] if t["number"] in finished["front"]]
    lost = 100 * (base - max(t["accuracy"] for t in front))
    # a baseline that is better by a point makes sure that something is lost, whatever was found
    measured = json.loads((strict / "baseline.json").read_text())
    measured["values"]["accuracy"] = base + max(0.0, 1.0 - lost) / 100
    (strict / "baseline.json").write_text(json.dumps(measured))
    ask = "search tiny.yaml --out runs/strict --resume --max-accuracy-drop 0.5"
    done = call(place, f"{ask} --json", check=1)
    found = json.loads(done.stdout)
    assert (found["feasible"], found["answered"], found["best"]) == (True, False, None)
    assert "keeps to an accuracy drop of 0.5 points" in found["reason"]
    nearest = next(t for t in found["trials"] if t["number"] == found["nearest"])
    assert nearest["feasible"]
    assert nearest["accuracy"] == max(t["accuracy"] for t in front)
    assert not list((strict / "recipes").glob("best.*"))
    assert not list((strict / "models").glob("best.*"))
    assert json.loads(call(place, "front runs/strict --json").stdout)["best"] is None
    refused = call(place, "export runs/strict --pick best -o out/no.yaml", check=1)
    assert "keeps to an accuracy drop" in " ".join(refused.stderr.split())
    assert not (place / "out" / "no.yaml").exists()
    call(place, "export runs/strict --pick most-accurate -o out/nearest.yaml")
    shown = " ".join(call(place, ask, check=1).stdout.split())
    assert "keeps to an accuracy drop of 0.5 points" in shown
    assert f"The nearest found is trial {found['nearest']}" in shown


def better(baseline: Measurement) -> Measurement:
    """The same, by half a right answer in ten more than anything can reach."""
    return replace(baseline, values={**baseline.values, "accuracy": 1.05})


def test_python_surface_and_its_recipe(place: Path) -> None:
    """Objects instead of a study file; a user's own metric; the recipe replays."""
    import torch

    import autocompress as ac
    from autocompress.workloads.data import digits
    from autocompress.workloads.models import digits_resnet

    torch.manual_seed(0)
    os.environ["AUTOCOMPRESS_CACHE"] = str(place / "cache")
    ready = digits()
    model = digits_resnet(width=8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = {
        name: torch.utils.data.TensorDataset(
            getattr(ready, name).inputs(), getattr(ready, name).targets
        )
        for name in ("train", "val", "test")
    }
    result = ac.search(
        model,
        data,
        budget=ac.Budget("macs<=0.6x"),
        space="prune",
        out=place / "runs" / "python",
        search={"trials": 3, "candidates": 1, "screen_images": 64},
        tracking={"mlflow": False},
        quiet=True,
    )
    assert result.feasible
    view = replace(result.view, max_accuracy_drop=0.5, baseline=better(result.view.baseline))
    with pytest.raises(ac.AutocompressError, match=r"keeps to an accuracy drop of 0\.5 points"):
        _ = replace(result, view=view).best
    assert len(result.front) >= 1
    saved = result.best.recipe.save(place / "out" / "python.yaml")
    small = ac.apply(saved, model, data)
    inputs = ready.test.inputs(16)
    with torch.no_grad():
        first, second = small(inputs), ac.apply(saved, model, data)(inputs)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
