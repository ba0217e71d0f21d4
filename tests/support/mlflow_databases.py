"""A new database of MLflow goes through all its migrations, seconds each time; here only once."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


def begun_as_copy(first: Path) -> Callable[[Engine], None]:
    """What does MLflow's ``_initialize_tables``, in place of it.

    Args:
        first: where the first SQLite database is kept as it begins; the next ones are its copies,
            in other processes too.
    """
    from mlflow.store.db import utils

    begin = utils._initialize_tables

    def begin_as_copy(engine: Engine) -> None:
        if engine.dialect.name != "sqlite":
            begin(engine)
            return
        if not first.exists():
            begin(engine)
        with closing(engine.raw_connection()) as opened:
            own = cast("sqlite3.Connection", opened.driver_connection)
            if first.exists():
                with closing(sqlite3.connect(first)) as kept:
                    kept.backup(own)
                return
            new = first.with_name(f"{first.name}.{os.getpid()}")
            with closing(sqlite3.connect(new)) as kept:
                own.backup(kept)
            new.replace(first)

    return begin_as_copy
