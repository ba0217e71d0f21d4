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
        arguments: JSON list of the recipe's path, a model factory or null, a checkpoint or null.
    """
    recipe, model, checkpoint = json.loads(arguments)
    try:
        found = check(Path(recipe), model, checkpoint)
    except AutocompressError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
