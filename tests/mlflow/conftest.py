"""What all tests of MLflow share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_databases import begun_as_copy


@pytest.fixture(scope="session", autouse=True)
def _databases_begin_as_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from mlflow.store.db import utils

    first = tmp_path_factory.mktemp("mlflow") / "first.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", begun_as_copy(first))
        yield
