"""The fresh process of ``autocompress verify``: prints one JSON object, and nothing else."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from autocompress.errors import AutocompressError
from autocompress.machine.output import answer, keep_for_answers
from autocompress.run.replay import check


def main(arguments: str) -> int:
    """Check a recipe.

    Args:
        arguments: JSON list of the recipe's path, a model factory, a checkpoint and a data
            factory, where null stands for the study's own, whether to trust the recipe, and the
            number of the process that asks.
    """
    recipe, model, checkpoint, data, trust, asking = json.loads(arguments)
    keep_for_answers()
    threading.Thread(target=_follow, args=[asking], name="follow", daemon=True).start()
    try:
        found = check(Path(recipe), model, checkpoint, data=data, trust=trust)
    except AutocompressError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    answer(json.dumps(found))
    return 0


def _follow(asking: int) -> None:
    """End soon after whoever asks: nobody hears the answer then."""
    while os.getppid() == asking:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
