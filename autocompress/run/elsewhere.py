"""What the policies of a finished run take on another target; kept, so that it is timed once."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from filelock import FileLock, Timeout
from pydantic import AfterValidator, Field

from autocompress.errors import InputError, explained
from autocompress.machine.progress import Progress
from autocompress.measure.extras import MEMORY
from autocompress.policy.attempt import attempt
from autocompress.policy.claims import TimingClaim
from autocompress.policy.costs import EXTRA
from autocompress.policy.policy import Policy
from autocompress.policy.reading import read_mapping
from autocompress.policy.section import Section
from autocompress.results.metric import LATENCY
from autocompress.track.folder import RunFolder, plain, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from autocompress.measure.latency import Timing
    from autocompress.measure.measurer import Measurer
    from autocompress.run.evaluator import StudyEvaluator
    from autocompress.targets.base import Target

_AT_ONCE = 4
"""Files that share the uncompressed model's turns."""
_SECONDS = 3.0
"""For the timing of one file."""
_PURPOSE = "the front there"
_REMEDY = "Delete the file; `front --target` times its policies again."
_log = logging.getLogger(__name__)


def _of_a_file(costs: dict[str, float]) -> dict[str, float]:
    """What is kept in the place of a first target's costs must be costs, the latency among them."""
    known = {LATENCY.name} | {cost.name for cost in EXTRA}
    if not costs.get(LATENCY.name) or not set(costs) <= known:
        raise ValueError(f"must hold {LATENCY.name}, and no more than {', '.join(sorted(known))}")
    return costs


_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class _Told(Section):
    """What is kept of one file."""

    costs: Annotated[dict[str, _Amount], AfterValidator(_of_a_file)]
    spread: _Amount
    timing: TimingClaim


class _Form(Section):
    """What is kept of one target."""

    target: dict[str, Any]
    asked: list[str]
    baseline: _Told | None
    policies: dict[str, _Told]
    failed: dict[str, str] = Field(default_factory=dict)


class Elsewhere:
    """Costs of a run's policies on another target.

    A model's time hangs on its shapes alone: a policy is timed once, whatever phases it went
    through.

    Args:
        folder: of the run.
        target: the other one.
        asked: names of costs beside the latency.

    Attributes:
        where: the target as it tells of itself.
        name: of the target, for people.
    """

    def __init__(self, folder: RunFolder, target: Target, asked: frozenset[str]) -> None:
        self.where = target.describe()
        self.name = target.name if target.elsewhere is None else target.config.device
        about = {"target": self.where, "asked": sorted(asked)}
        same = json.dumps([plain(about), target.machine_id()], sort_keys=True)
        name = f"{target.name}-{hashlib.sha256(same.encode()).hexdigest()[:12]}.json"
        self._path = folder.root / "elsewhere" / name
        self._lock = folder.root / f"elsewhere-{name}.lock"
        self._kept: dict[str, Any] = {**about, "baseline": None, "policies": {}, "failed": {}}
        self._writable = True
        self._read()

    def _read(self) -> None:
        if not self._path.exists():
            return
        what = "timings on another target"
        found = read_mapping(self._path, what, form="JSON", remedy=_REMEDY)
        try:
            _Form.read(found, where=str(self._path))
        except InputError as error:
            raise InputError(f"{error} {_REMEDY}") from None
        self._kept = {"failed": {}, **found}  # of earlier versions, which kept no failures

    def __call__(self, policy: Policy) -> Mapping[str, Any] | None:
        """``costs``, ``spread`` of the latency and ``timing`` of a policy's model.

        Args:
            policy: of the run; the one that changes nothing is the uncompressed model.

        Returns:
            ``None`` where it could not be timed.
        """
        found: Mapping[str, Any] | None = (
            self._kept["baseline"]
            if policy.identity
            else self._kept["policies"].get(policy.untrained_digest)
        )
        return found

    def why_not(self, policy: Policy) -> str:
        """Why a policy's model could not be timed; empty where nobody tried, or it was."""
        return str(self._kept["failed"].get(policy.untrained_digest, ""))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process times for the same file; what one has timed is known by then.

        Each would write its own timings over those of the other. A run that may only be read is
        timed all the same, and nothing is kept.
        """
        lock = FileLock(self._lock)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                _log.info("Another process times this run on the same target: waiting for its end.")
                lock.acquire()
        except OSError as error:
            self._writable = False
            _log.warning("What is timed now cannot be kept: %s.", explained(error))
        try:
            self._read()
            yield
        finally:
            lock.release()

    def missing(self, policies: Sequence[Policy], *, retry: bool = False) -> list[Policy]:
        """Those that were not timed there yet, each once.

        Args:
            policies: of the run.
            retry: those that could not be timed, too.
        """
        wanted = {p.untrained_digest: p.untrained for p in policies}
        absent = [p for p in wanted.values() if self(p) is None]
        return [p for p in absent if retry or not self.why_not(p)]

    def measure(
        self, evaluator: StudyEvaluator, policies: Sequence[Policy], progress: Progress
    ) -> None:
        """Build, export and time models there. What is timed, or why it cannot be, is kept at once.

        Args:
            evaluator: of the study with the other target.
            policies: that ``missing`` told.
            progress: told how long it will still take.
        """
        measurer, began, done = evaluator.measurer, time.monotonic(), 0
        if self(Policy()) is None:
            progress("timing the uncompressed model there", 0.0)
            first = measurer.timing(measurer.baseline_file, max_seconds=8.0)
            self._kept["baseline"] = self._costs(measurer, measurer.baseline_file, first, None)
            self._keep()
        changed = [policy for policy in policies if not policy.identity]
        for some in _batches(changed):
            self._time(measurer, self._exported(evaluator, some))
            done += len(some)
            left = (time.monotonic() - began) / done * (len(changed) - done)
            progress(f"timing policies there, about {left:.0f} s left", done / len(changed))

    def _exported(
        self, evaluator: StudyEvaluator, policies: Sequence[Policy]
    ) -> dict[Policy, Path]:
        """Files of those whose models can be exported."""
        found = {}
        for policy in policies:
            file, why = attempt(policy, _PURPOSE, partial(evaluator.export_variant, policy))
            if file is None:
                self._failed(policy, why)
            else:
                found[policy] = file
        return found

    def _time(self, measurer: Measurer, files: Mapping[Policy, Path]) -> None:
        """Time files together; where one of them fails, each alone."""

        def together(some: Sequence[Policy]) -> dict[Policy, Any]:
            paths = [files[policy] for policy in some]
            timings = measurer.timings(paths, max_seconds=_SECONDS)
            base = self._kept["baseline"]["costs"]
            return {
                policy: self._costs(measurer, path, timing, base)
                for policy, path, timing in zip(some, paths, timings, strict=True)
            }

        ready = [*files]
        found = (
            attempt(ready[0], "a timing of several", partial(together, ready))[0] if ready else {}
        )
        self._timed(found or {})
        for policy in ready if found is None else ():
            alone, why = attempt(policy, _PURPOSE, partial(together, [policy]))
            if alone is None:
                self._failed(policy, why)
            else:
                self._timed(alone)
        for path in files.values():
            path.unlink(missing_ok=True)
        self._keep()

    def _timed(self, found: Mapping[Policy, Any]) -> None:
        for policy, told in found.items():
            self._kept["policies"][policy.untrained_digest] = told
            self._kept["failed"].pop(policy.untrained_digest, None)

    def _failed(self, policy: Policy, why: str) -> None:
        self._kept["failed"][policy.untrained_digest] = why

    @staticmethod
    def _costs(
        measurer: Measurer, path: Path, timing: Timing, base: Mapping[str, float] | None
    ) -> dict[str, Any]:
        """A file's latency, and what is measured beside it."""
        ms = timing.baseline_ms if base is None else timing.ratio * base["latency_ms"]
        memory = measurer.extras.memory(path) if MEMORY in measurer.asked else {}
        extras = measurer.beside_latency(path, timing, ms, base)
        costs = {"latency_ms": ms, **memory, **extras}
        return {"costs": costs, "spread": timing.iqr_ms, "timing": timing.as_dict()}

    def _keep(self) -> None:
        if self._writable:
            write_json(self._path, self._kept)


def _batches(policies: Sequence[Policy]) -> Iterator[Sequence[Policy]]:
    for start in range(0, len(policies), _AT_ONCE):
        yield policies[start : start + _AT_ONCE]
