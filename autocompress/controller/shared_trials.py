"""One study of Optuna in a database, written and read by any number of drivers."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from autocompress.controller.foreign_trials import read_foreign
from autocompress.controller.optuna_study import trial_state
from autocompress.errors import AutocompressError, InputError
from autocompress.policy.policy import Policy
from autocompress.policy.space import Assignment, Space
from autocompress.policy.writing import printable, scrubbed, without_password
from autocompress.results.metric import Measurement, Metric
from autocompress.results.trial import SEARCH, Trial, TrialState

if TYPE_CHECKING:
    import optuna

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_LOOK_EVERY_S, _RETRY_S, _MADE_S = 2.0, 60.0, 1.0
_TRIES = 5
_BEING_MADE = ("already exists", "UNIQUE constraint", "duplicate key", "database is locked")
"""What databases say to a driver that makes the tables at the moment when another does."""
_LISTED = "constraints"
"""Where optuna-dashboard looks for constraints; Optuna itself knows them by name."""
_ELSEWHERE = "evaluated by another driver of the same study"


class SharedTrials:
    """Trials of a search in one of Optuna's storages: a mirror, and a meeting place. A ``Sink``.

    Before a policy is evaluated it is claimed by a running trial that holds its digest. Of two
    drivers that claim one policy at the same moment, the one with the lower trial number goes on;
    both see both claims, for each looks after its own is written. A claim of a driver that has died
    ends with its time limit.

    Args:
        url: of the storage: ``sqlite:///study.db``, ``postgresql://user@host/name``, or
            ``journal:FILE``.
        name: of the study there.
        space: parameters are its choices, with their levels as categories.
        objectives: each with its direction.
        driver: a name for this process that a resumed run has again.
        identity: of all that trials must have in common to be compared; every driver's is the same.

    Raises:
        InputError: the storage cannot be opened, or holds a study of something else.
    """

    def __init__(
        self,
        url: str,
        name: str,
        space: Space,
        objectives: Sequence[Metric],
        driver: str,
        identity: Mapping[str, str],
    ) -> None:
        import optuna

        self.space, self.objectives, self.driver = space, tuple(objectives), driver
        self._claimed: dict[str, int] = {}
        self._seen: set[int] = set()
        self._unusable: set[int] = set()
        self._looked = 0.0
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            c.name: optuna.distributions.CategoricalDistribution([str(v) for v in c.levels])
            for c in space.choices
        }
        self._unsent: list[Trial] = []
        self._down_until = 0.0
        self._storage = open_storage(url)
        with _told(url):
            self.study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                directions=[m.goal for m in objectives],
                load_if_exists=True,
            )
            self._agree(name, identity)
            self._give_back_own()

    def _agree(self, name: str, identity: Mapping[str, str]) -> None:
        """See that what all drivers find can be compared."""
        import optuna

        choices = [f"{c.name}: {list(c.levels)}" for c in self.space.choices]
        wanted = {**identity, "choices": choices}
        held = self.study.user_attrs.get("identity")
        if held is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names([m.name for m in self.objectives])
            self.study.set_user_attr("identity", wanted)
        elif held != wanted:
            other = ", ".join(key for key in wanted if held.get(key) != wanted[key])
            raise InputError(
                f"The study {name!r} in the storage is of something else (other {other}). Name "
                "this one differently, or use another storage."
            )

    def _give_back_own(self) -> None:
        """Claims that an earlier session of this driver left are free again."""
        for trial in self._running():
            if trial.user_attrs.get("driver") == self.driver:
                self.study.tell(trial.number, state=trial_state("FAIL"))

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(trial_state("RUNNING"),))

    def claim(self, policy: Policy, assignment: Assignment, limit_s: float) -> bool:
        """Take a policy for this driver.

        Args:
            policy: that is to be evaluated.
            assignment: its levels.
            limit_s: after so many seconds others may take it.

        Returns:
            Whether nobody else has it, or had it.
        """
        return self._tried(lambda: self._claim(policy, assignment, limit_s), True)

    def _tried(self, work: Callable[[], _T], otherwise: _T) -> _T:
        """Do something with the storage, or without it where it does not answer.

        The search goes on alone meanwhile; what it finds is written when the storage is back.
        """
        if time.monotonic() < self._down_until:
            return otherwise
        try:
            return work()
        except Exception as error:  # of a database driver or of Optuna
            self._down_until = time.monotonic() + _RETRY_S
            first = (str(error).strip().splitlines() or [""])[0]
            _log.warning(
                "The storage does not answer (%s: %s). The search goes on alone and tries again in "
                "a minute.",
                type(error).__name__,
                first,
            )
            return otherwise

    def _claim(self, policy: Policy, assignment: Assignment, limit_s: float) -> bool:
        digest = policy.untrained_digest
        if self._taken(digest, below=None):
            return False
        claim = self._frozen(
            assignment,
            trial_state("RUNNING"),
            {"driver": self.driver, "policy": digest, "until": time.time() + limit_s},
        )
        number = self._add(claim)
        if self._taken(digest, below=number):
            self.study.tell(number, state=trial_state("FAIL"))
            return False
        self._claimed[digest] = number
        return True

    def _taken(self, digest: str, below: int | None) -> bool:
        """Whether a policy is settled, or claimed by a trial of a lower number."""
        now = time.time()
        states = (trial_state("RUNNING"), trial_state("COMPLETE"))
        for trial in self.study.get_trials(deepcopy=False, states=states):
            if trial.user_attrs.get("policy") != digest:
                continue
            if trial.state == trial_state("COMPLETE"):
                if trial.number in self._unusable:
                    continue
                return True
            until = trial.user_attrs.get("until")
            alive = isinstance(until, int | float) and until > now
            if alive and (below is None or trial.number < below):
                return True
        return False

    def _add(self, frozen: optuna.trial.FrozenTrial) -> int:
        """Write a trial as a whole, and give its number."""
        study = self._storage.get_study_id_from_name(self.study.study_name)
        trial = self._storage.create_new_trial(study, template_trial=frozen)
        number = self._storage.get_trial(trial).number
        self._seen.add(number)
        return number

    def record(self, trial: Trial) -> None:
        """Write a trial of the search: into its claim, or as one more."""
        if trial.phase != SEARCH or trial.reason == _ELSEWHERE:
            return
        self._unsent.append(trial)
        self._tried(self._send, None)

    def _send(self) -> None:
        while self._unsent:
            self._write(self._unsent[0])
            self._unsent.pop(0)

    def _write(self, trial: Trial) -> None:
        number = self._claimed.pop(trial.policy.untrained_digest, None)
        assignment, values = self.space.encode(trial.policy), self._values(trial.measurement)
        done = trial.state is TrialState.COMPLETE and values is not None
        if number is None and not (done and assignment is not None):
            return
        text, over = json.dumps(trial.as_dict()), trial.constraints
        if number is not None:
            self._close(number, text, over, values if done else None)
        elif assignment is not None:
            about = {"driver": self.driver, "policy": trial.policy.untrained_digest, "trial": text}
            self._add(self._frozen(assignment, trial_state("COMPLETE"), about, values, over))

    def _close(
        self, number: int, text: str, over: Mapping[str, float], values: list[float] | None
    ) -> None:
        """Give a claim what was found, or nothing where that failed."""
        import optuna

        study = self._storage.get_study_id_from_name(self.study.study_name)
        place = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        claim = optuna.trial.Trial(self.study, place)
        claim.set_user_attr("trial", text)
        for name, violation in over.items():
            claim.set_constraint(name, violation)
        for attribute, figures in listed(over).items():
            self._storage.set_trial_system_attr(place, attribute, figures)
        self.study.tell(claim, values, trial_state("FAIL" if values is None else "COMPLETE"))

    def news(self, taken: Callable[[Trial], Trial] = lambda trial: trial) -> list[Trial]:
        """Complete trials of other drivers since the last look; looks every other second.

        Each is checked by itself: one that cannot be used is left out, with a line in the log.

        Args:
            taken: makes a trial one of this driver's; what it raises leaves the trial out.
        """
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return []
        self._looked = time.monotonic()
        nothing: list[optuna.trial.FrozenTrial] = []
        found = self._tried(self._complete, nothing)
        read = (self._usable(trial, taken) for trial in found if trial.number not in self._seen)
        return [trial for trial in read if trial is not None]

    def _complete(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(trial_state("COMPLETE"),))

    def _usable(
        self, frozen: optuna.trial.FrozenTrial, taken: Callable[[Trial], Trial]
    ) -> Trial | None:
        """A trial of another driver, or ``None`` where nothing can be done with it."""
        self._seen.add(frozen.number)
        text = frozen.user_attrs.get("trial")
        if text is None:  # of somebody who writes to the study by other means
            return None
        try:
            read = read_foreign(text, frozen.params, self.space, self.objectives)
            return taken(replace(read, reason=_ELSEWHERE, parent=None))
        except Exception as error:  # whatever a stranger's record brings about
            self._unusable.add(frozen.number)
            _log.warning(
                "Trial %d of the storage cannot be used and is left out (%s: %s).",
                frozen.number,
                type(error).__name__,
                printable(str(error))[:200],
            )
            return None

    def _values(self, measured: Measurement | None) -> list[float] | None:
        names = [m.name for m in self.objectives]
        if measured is None or any(name not in measured for name in names):
            return None
        return [float(measured[name]) for name in names]

    def _frozen(
        self,
        assignment: Assignment,
        state: Any,
        attributes: Mapping[str, Any],
        values: Sequence[float] | None = None,
        over: Mapping[str, float] | None = None,
    ) -> optuna.trial.FrozenTrial:
        import optuna

        choices = zip(self.space.choices, assignment, strict=True)
        return optuna.trial.create_trial(
            state=state,
            values=values,
            params={c.name: str(c.levels[level]) for c, level in choices},
            distributions=self._distributions,
            user_attrs=dict(attributes),
            constraints=dict(over or {}) or None,
            system_attrs=listed(over or {}),
        )


def listed(over: Mapping[str, float]) -> dict[str, list[float]]:
    """A trial's violations as optuna-dashboard reads them: an attribute of the system's."""
    return {_LISTED: list(over.values())} if over else {}


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """One of Optuna's storages.

    Raises:
        InputError: nothing that can be opened.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _told(url):
        return _opened(url)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Say in a sentence what is wrong with a storage."""
    try:
        yield
    except AutocompressError:
        raise
    except Exception as error:  # of a database driver, of Optuna, of a URL
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"The storage {without_password(url)} cannot be used: "
            f"{scrubbed(first, url)} It reads like sqlite:///study.db, "
            "postgresql+psycopg://user@host/name (with psycopg installed) or journal:study.log."
        ) from None


def _opened(url: str) -> optuna.storages.BaseStorage:
    import optuna

    if url.startswith("journal:"):
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
    for _ in range(_TRIES):
        try:
            return optuna.storages.RDBStorage(url)
        except Exception as error:
            if not any(words in str(error) for words in _BEING_MADE):
                raise
            time.sleep(_MADE_S)
    return optuna.storages.RDBStorage(url)
