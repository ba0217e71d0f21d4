"""The registry of samplers: ours, handed in, and of installed packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import get_args

import optuna
import pytest
from analytic import AnalyticEvaluator
from analytic_study import context

from autocompress.commands import options
from autocompress.controller.config import SearchConfig
from autocompress.controller.guided.proposer import GuidedProposer
from autocompress.controller.loop import run_search
from autocompress.controller.optuna_study import OptunaController
from autocompress.controller.plain import PlainProposer
from autocompress.controller.samplers import make_proposer, sampler_names
from autocompress.errors import InputError, PolicyError
from autocompress.results.trial import SEARCH, Trial, TrialState

Install = Callable[[str, str], None]

PACKAGE = """
import optuna
from autocompress.controller.protocols import Proposal
from autocompress.errors import PolicyError

class Mildest:
    def __init__(self, context):
        self.space = context.space
    def suggest(self, n):
        return [Proposal("mildest", self.space.mildest)]
    def update(self, completed, active):
        pass

def of_optuna(context):
    return optuna.samplers.RandomSampler(seed=context.config.seed)

AS_IT_IS = optuna.samplers.RandomSampler(seed=0)

def nothing(context):
    return None

def crashing(context):
    raise ZeroDivisionError("on purpose")

def refusing(context):
    raise PolicyError("on purpose, in plain words")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package that offers samplers on the path, as an installer would."""

    def put(package: str, points: str) -> None:
        root = tmp_path / package
        info = root / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (root / f"{package}.py").write_text(PACKAGE)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[autocompress.samplers]\n{points}\n")
        monkeypatch.syspath_prepend(str(root))
        assert distribution(package).version == "1.0"

    return put


def test_our_own_names() -> None:
    ctx = context(AnalyticEvaluator(3))
    assert isinstance(make_proposer(ctx), GuidedProposer)
    for name in ("tpe", "nsga2", "gp", "random"):
        made = make_proposer(ctx, name)
        assert isinstance(made, PlainProposer)
        assert made.controller.sampler == made.origin == name
    assert {"guided", "tpe", "nsga2", "gp", "random"} <= set(sampler_names())


def test_a_package_offers_a_sampler_by_name(install: Install) -> None:
    install(
        "acmesamplers",
        "mildest = acmesamplers:Mildest\nwrapped = acmesamplers:of_optuna\n"
        "ready = acmesamplers:AS_IT_IS",
    )
    ctx = context(AnalyticEvaluator(3), trials=3, budget="latency<=1x")
    assert {"mildest", "wrapped", "ready"} <= set(sampler_names())
    run_search(ctx, make_proposer(ctx, "mildest"))
    first = next(t for t in ctx.ledger.trials if t.state is TrialState.COMPLETE)
    assert first.origin == "mildest"
    for name in ("wrapped", "ready"):
        made = make_proposer(ctx, name)
        made.queue.clear()  # type: ignore[attr-defined]  # a PlainProposer
        (proposal,) = made.suggest(1)
        assert proposal.origin == name


def test_no_package_takes_the_place_of_ours(install: Install) -> None:
    install("acmetwice", "guided = acmetwice:Mildest")
    assert isinstance(make_proposer(context(AnalyticEvaluator(3))), GuidedProposer)


def test_an_unknown_name_is_answered_with_the_nearest(install: Install) -> None:
    install("acmeother", "annealing = acmeother:Mildest")
    ctx = context(AnalyticEvaluator(3))
    for wrong, near in (("guidde", "guided"), ("anealing", "annealing")):
        with pytest.raises(InputError, match=f"got '{wrong}'; did you mean '{near}'"):
            make_proposer(ctx, wrong)


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("acmebroken:missing", "AttributeError"),
        ("not_there:anything", "ModuleNotFoundError"),
        ("acmebroken:crashing", "ZeroDivisionError: on purpose"),
        ("acmebroken:nothing", "must have `suggest` and `update`.*None"),
    ],
)
def test_a_broken_package_is_named(install: Install, point: str, says: str) -> None:
    install("acmebroken", f"broken = {point}")
    with pytest.raises(InputError, match=says) as error:
        make_proposer(context(AnalyticEvaluator(3)), "broken")
    assert "the package acmebroken" in str(error.value)


def test_what_a_package_says_in_our_words_is_left_as_it_is(install: Install) -> None:
    install("acmerefusing", "refusing = acmerefusing:refusing")
    with pytest.raises(PolicyError, match="in plain words"):
        make_proposer(context(AnalyticEvaluator(3)), "refusing")


def test_two_packages_of_one_name_are_both_named(install: Install) -> None:
    install("acmeone", "same = acmeone:Mildest")
    install("acmetoo", "same = acmetoo:Mildest")
    with pytest.raises(InputError, match=r"acmeone.*acmetoo|acmetoo.*acmeone"):
        make_proposer(context(AnalyticEvaluator(3)), "same")


def test_what_is_handed_in_must_be_a_sampler() -> None:
    with pytest.raises(InputError, match=r"`search\.sampler` is 3"):
        make_proposer(context(AnalyticEvaluator(3)), 3)  # type: ignore[arg-type]  # on purpose
    grid = optuna.samplers.GridSampler({"other": [0, 1]})
    with pytest.raises(InputError, match=r"GridSampler cannot sample this space.*l0/prune_ratio"):
        make_proposer(context(AnalyticEvaluator(3)), grid)


class OneObjective(optuna.samplers.RandomSampler):
    """Refuses two objectives, as CMA-ES does."""

    def sample_independent(self, study, trial, name, distribution):  # type: ignore[no-untyped-def]  # Optuna's
        self._raise_error_if_multi_objective(study)
        return super().sample_independent(study, trial, name, distribution)


def test_a_sampler_of_one_objective_maximizes_accuracy_less_what_is_over() -> None:
    ctx = context(AnalyticEvaluator(3), trials=30, budget="latency<=0.6x")
    made = make_proposer(ctx, OneObjective(seed=0))
    assert isinstance(made, PlainProposer)
    run_search(ctx, made)
    study = made.controller._study
    told = [t for t in study.trials if t.values is not None]
    by_levels = {ctx.space.encode(t.policy): t for t in ctx.ledger.trials if t.measurement}
    assert len(told) >= 30
    assert {t.state for t in ctx.ledger.trials} >= {TrialState.COMPLETE, TrialState.REJECTED}
    for one in told:
        trial: Trial = by_levels[tuple(one.params[c.name] for c in ctx.space.choices)]
        assert trial.measurement is not None
        over = max(0.0, *trial.violations.values())
        accuracy = trial.measurement.get("accuracy", 0.0)
        assert one.value == pytest.approx(accuracy - over)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


def test_a_sampler_that_is_handed_in_is_never_started_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from autocompress.controller import optuna_study as module

    monkeypatch.setattr(module, "_REMEMBERED", (5, 5))
    ctx = context(AnalyticEvaluator(6), trials=30)
    sampler = optuna.samplers.RandomSampler(seed=0)
    controller = OptunaController(ctx.space, ctx.objectives, sampler, 0)
    for number in range(30):
        levels = controller.ask()
        found = ctx.evaluator.evaluate(ctx.space.decode(levels), SEARCH, 0)
        controller.tell(levels, Trial(number, ctx.space.decode(levels), measurement=found))
    assert controller._study.sampler is sampler
    assert len(controller._study.trials) == 30


def test_all_who_tell_of_samplers_name_them_and_packages() -> None:
    for told in (get_args(options.Sampler)[1].help, SearchConfig.__doc__):
        assert told is not None
        assert all(name in told for name in ("guided", "tpe", "nsga2", "gp", "random"))
        assert "installed package" in " ".join(told.split())
