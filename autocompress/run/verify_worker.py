"""The fresh process of ``autocompress verify``: prints one JSON object as its last line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from autocompress.errors import AutocompressError
from autocompress.run.replay import check


def main(arguments: str) -> int:
    """Check a recipe.

    Args:
        arguments: JSON list of the recipe's path, a model factory, a checkpoint and a data
            factory, where null stands for the study's own, and whether to trust the recipe.
    """
    recipe, model, checkpoint, data, trust = json.loads(arguments)
    try:
        found = check(Path(recipe), model, checkpoint, data=data, trust=trust)
    except AutocompressError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
