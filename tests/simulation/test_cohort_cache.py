"""Is a cohort built once, kept by its settings, and never kept half?"""

from __future__ import annotations

from pathlib import Path

import pytest

from client.secret import site_secret
from shared.config import Task
from shared.errors import ConfigError
from simulation.cohorts import build as cohorts
from simulation.cohorts.build import Built, build_cohort
from simulation.cohorts.config import Cohort, FolderCohort, IstCohort, OctCohort, SyntheticCohort
from tests.factories import small_site

SMALL = SyntheticCohort(sites=2, patients=12, image_height=16, image_width=16)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders in which cohorts were built; the builder writes two empty sites and a truth."""
    folders: list[Path] = []

    def build(cohort: SyntheticCohort, *, horizon_days: int, seed: int, folder: Path, workers: int) -> None:
        folders.append(folder)
        for name in ("west", "east"):
            (folder / "sites" / name).mkdir(parents=True)
        (folder / "truth.parquet").touch()

    monkeypatch.setattr(cohorts.synthetic, "build", build)
    return folders


def built(cache: Path, cohort: Cohort = SMALL, horizon_days: int = 365, seed: int = 1) -> Built:
    return build_cohort(cohort, Task(horizon_days=horizon_days), seed, cache, workers=1)


def test_cohort_is_built_once(tmp_path: Path, builds: list[Path]) -> None:
    first = built(tmp_path / "cache")
    assert built(tmp_path / "cache") == first
    assert len(builds) == 1
    assert [site.name for site in first.sites] == ["east", "west"]
    assert first.truth is not None
    assert first.truth.exists()


def test_each_setting_that_matters_has_a_cohort_of_its_own(tmp_path: Path, builds: list[Path]) -> None:
    wider = SyntheticCohort(sites=2, patients=12, image_height=16, image_width=24)
    found = [
        built(tmp_path),
        built(tmp_path, wider),
        built(tmp_path, horizon_days=30),
        built(tmp_path, seed=2),
    ]
    assert len(builds) == 4
    assert len({cohort.sites for cohort in found}) == 4


def test_a_cohort_has_the_same_secrets_wherever_it_is_built_and_each_site_its_own(
    tmp_path: Path, builds: list[Path]
) -> None:
    """Or a private simulation could not be repeated."""
    here, there, other = (built(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    secrets = [[site_secret(site) for site in one.sites] for one in (here, there, other)]
    assert secrets[0] == secrets[1]
    assert len({*secrets[0], *secrets[2]}) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_build_leaves_nothing(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(cohort: object, *, folder: Path, **others: object) -> None:
        (folder / "sites" / "half").mkdir(parents=True)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(cohorts.synthetic, "build", interrupted)
        with pytest.raises(error):
            built(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(built(tmp_path / "cache").sites) == 2


def test_two_processes_that_build_at_once_end_with_one_cohort(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = cohorts.synthetic.build

    def overtaken(cohort: SyntheticCohort, **settings: object) -> None:
        if len(builds) == 0:
            ours(cohort, **settings)  # type: ignore[arg-type]
            built(tmp_path / "cache")  # another process is done first
        else:
            ours(cohort, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(cohorts.synthetic, "build", overtaken)
    assert len(built(tmp_path / "cache").sites) == 2
    assert len(builds) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_real_cohort_round_trips_through_the_cache(tmp_path: Path) -> None:
    first, again = built(tmp_path), built(tmp_path)
    assert first == again
    assert len(first.sites) == 2
    assert all((site / "dataset.yaml").exists() for site in first.sites)


@pytest.mark.parametrize(
    ("cohort", "name"),
    [
        (IstCohort(file="absent.csv"), "absent.csv"),
        (OctCohort(folder="absent"), "absent"),
        (FolderCohort(), "cohort.folders"),
        (FolderCohort(folders=("absent",)), "absent"),
    ],
)
def test_cohort_without_its_source_is_refused_and_leaves_nothing(tmp_path: Path, cohort: Cohort, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(tmp_path / "cache", cohort)
    assert name in str(caught.value)
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


def test_folders_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("b", "a")
    for name in names:
        small_site(name).write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found = built(tmp_path / "cache", FolderCohort(folders=names))
    assert found == Built((tmp_path / "b", tmp_path / "a"), None)  # in the order given, absolute
    assert not (tmp_path / "cache").exists()


def test_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    """Arms and their folders are named after the sites' folders: two alike would share results."""
    folders = []
    for number, hospital in enumerate(("north", "south")):
        folders.append(str(small_site(hospital, first=1 + 100 * number).write(tmp_path / hospital / "export").path))
    with pytest.raises(ConfigError, match=r"cohort\.folders must .*export"):
        built(tmp_path / "cache", FolderCohort(folders=tuple(folders)))
