"""The sites of chance, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.client.audit.sites import chance_site


@pytest.fixture(scope="session")
def north(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site whose patients train; read it, do not change it."""
    return chance_site(tmp_path_factory.mktemp("sites") / "north")


@pytest.fixture(scope="session")
def south(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of the same kind with other patients."""
    return chance_site(tmp_path_factory.mktemp("sites") / "south", seed=5)
