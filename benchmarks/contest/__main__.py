"""One tool's run in a process of its own, ``python -m contest --peer NAME ...``.

The last line on standard output is a JSON object with the file, or with the reason for none.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

BEGUN = time.time()


def peers() -> dict[str, Any]:
    """Name to function, for the tools of the peers' environment."""
    from contest import pruning, quantizing

    return {
        **{f"torch_pruning_{k}": partial(pruning.torch_pruning, kind=k) for k in PRUNERS},
        "modelopt_fastnas": pruning.fast_nas,
        "nncf_int8": quantizing.nncf_int8,
        "mct_mixed": quantizing.mct_mixed,
        "mct_pruning": quantizing.mct_pruning,
        "fasterai": pruning.fasterai,
        "ridge": pruning.ridge,
        "optuna": pruning.optuna_study,
        "ort_int8": quantizing.plain_int8,
    }


PRUNERS = ("l1", "taylor", "group")


def main() -> None:
    """Run one tool and say where its file is."""
    options = argparse.ArgumentParser()
    options.add_argument("--peer", required=True)
    options.add_argument("--network", required=True)
    options.add_argument("--latency", type=float, required=True)
    options.add_argument("--seconds", type=float, required=True)
    options.add_argument("--folder", type=Path, required=True)
    given = options.parse_args()
    work = (given.network, given.latency, given.seconds, BEGUN, given.folder)
    import torch

    torch.set_num_threads(1)
    if given.peer in ("autocompress", "uniform_int8"):
        from contest import ours

        task: Any = ours.Own(*work)
        path, more = getattr(ours, given.peer)(task)
    else:
        from contest.task import Task

        task = Task(*work)
        path, more = peers()[given.peer](task)
    print(json.dumps({"file": str(path), "how": ", ".join(task.said), **more}))


if __name__ == "__main__":
    main()
