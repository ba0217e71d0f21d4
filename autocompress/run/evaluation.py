"""One policy of the user's, built and measured: what would happen if."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.machine.progress import Progress
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.policy import Policy
from autocompress.policy.reading import read_mapping, read_value
from autocompress.policy.registry import field_names, no_field, techniques
from autocompress.report.tables import trial_json
from autocompress.results.answer import judged
from autocompress.results.trial import SEARCH, Phase, Trial
from autocompress.run.study import StudyConfig
from autocompress.run.target_fit import refuse_policies


def evaluate(
    study: StudyConfig,
    policy: Path | Policy | None,
    uniform: str | Mapping[str, Any] | None,
    progress: Progress,
    *,
    epochs: float = 0.0,
    quick: bool = False,
    given: tuple[Any, Any] = (None, None),
) -> dict[str, Any]:
    """Measure one policy, built as a study would hand it over.

    Args:
        study: as read.
        policy: itself, or the file of a policy or recipe; or else
        uniform: values for every layer that the space may touch, ``prune_ratio=0.5,...``.
        progress: told what is going on.
        epochs: of fine-tuning.
        quick: the quick reconstruction by which the search scores its trials, instead of the
            thorough one (``settings.finish``) that ends a study.
        given: model and data in place of the study's factories.

    Raises:
        InputError: no such policy or layer, or training asked of the quick build.
    """
    from autocompress.run.assembly import assemble

    if quick and epochs:
        raise InputError(
            f"--quick measures what the search measures, which is not trained; got --epochs "
            f"{epochs:g}. Leave one of them out."
        )
    # what cannot be read is said before a model is loaded, or trained
    wanted = None if uniform is None else read_uniform(uniform)
    policy = _policy_file(policy) if isinstance(policy, Path) else policy
    with scratch_folder("evaluate") as scratch:
        parts = assemble(study, scratch, model=given[0], data=given[1], progress=progress)
        if wanted is not None:
            policy = parts.space.decode(parts.space.uniform(**wanted))
        assert policy is not None
        for name in policy.layers:
            parts.inventory.layer(name)
        refuse_policies(type(parts.evaluator.measurer.target), policy.layers.values())
        progress("measuring", 0.5)
        phase = SEARCH if quick else Phase("recover", epochs, 1)
        found = parts.evaluator.evaluate(policy, phase, 0)
        baseline = parts.evaluator.baseline
    trial = judged(Trial(0, policy, phase, measurement=found), study.limits(), baseline)
    return {
        "trial": trial_json(trial, baseline, alone=True),
        "baseline": {
            k: baseline[k]
            for k in (baseline.quality.name, "latency_ms", "macs", "params", "size_bytes")
        },
        "quality": baseline.quality.as_dict(),
        "budget": str(study.limits()),
        "build": "quick" if quick else "finished",
        "epochs": epochs,
    }


def read_uniform(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """Check values, or read ``prune_ratio=0.5,weight_bits=8``.

    Bits of activations follow those of weights.
    """
    values = _parsed(given) if isinstance(given, str) else dict(given)
    for key, value in values.items():
        if key not in field_names():
            raise InputError(no_field(key))
        field = next(f for t in techniques() for f in t.fields if f.name == key)
        if not field.allows(value):  # the nearest level of a word would be no change at all
            raise InputError(f"--uniform: `{key}` must be {field.must}, got {value!r}.")
    for technique in techniques():
        values = {**technique.followed(values), **values}
    return values


def _parsed(text: str) -> dict[str, Any]:
    found = {}
    for part in text.split(","):
        key, separator, value = part.strip().partition("=")
        if not separator:
            raise InputError(f"--uniform reads like prune_ratio=0.5,weight_bits=8, got {text!r}.")
        found[key] = read_value(value)
    return found


def _policy_file(file: Path) -> Policy:
    """A policy from its own file or from a recipe."""
    data = read_mapping(file, "policy")
    return Policy.read(data.get("policy", data), where=str(file))
