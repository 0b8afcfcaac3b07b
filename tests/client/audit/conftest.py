"""The sites of noise, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.client.audit.sites import noise_site

PATIENTS = 200


@pytest.fixture(scope="session")
def north(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site whose patients train; read it, do not change it."""
    return noise_site(tmp_path_factory.mktemp("sites") / "north", PATIENTS)


@pytest.fixture(scope="session")
def south(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of the same kind with other patients."""
    return noise_site(tmp_path_factory.mktemp("sites") / "south", PATIENTS, seed=5)
