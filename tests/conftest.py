"""What does every test start from? One thread, no network, repeatable examples, a tiny cohort."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import hypothesis
import pytest
import torch

from shared.config import Task
from shared.models.torchvision_shim import ensure_torchvision
from shared.site_folder import SiteFolder
from simulation.cohorts.build import Built, build_cohort
from simulation.cohorts.config import SyntheticCohort
from tests import factories
from tests.e2e import nursery

with warnings.catch_warnings(action="ignore"):
    import typer  # noqa: F401  # which flwr imports; it warns of click once, at import

torch.set_num_threads(1)
ensure_torchvision()  # before any test: timm and torchmetrics fail at import without it
hypothesis.settings.register_profile(
    "fedretina",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("fedretina")


def pytest_configure(config: pytest.Config) -> None:
    """One nursery for all processes that run tests, which begins to import what it needs while they collect."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        os.environ[nursery.SHARED] = nursery.python()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole federations first: what takes long must not be what is left over for one process at the end."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    """A correct site folder of 12 patients, both modalities, 16 x 16 scans."""
    return factories.small_site().write(tmp_path / "north")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Four synthetic hospitals, 60 patients, 32 x 32 scans. Shared by all tests: read it, do not change it."""
    config = SyntheticCohort(sites=4, patients=60, image_height=32, image_width=32)
    return build_cohort(config, Task(), 1, tmp_path_factory.mktemp("cohorts"), workers=1)
