"""The version that the command line shows is that of the installed package."""

from __future__ import annotations

from importlib.metadata import version

from typer.testing import CliRunner

import autocompress
from autocompress.cli import app


def test_the_version() -> None:
    assert autocompress.__version__ == version("autocompress")
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output.strip()) == (0, f"autocompress {version('autocompress')}")
