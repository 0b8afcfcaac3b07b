"""Are scans shared out evenly and wholly, each unchanged, by the seed alone?"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.errors import ConfigError
from shared.schema import find_faults
from shared.site_folder import SiteFolder
from simulation.cohorts.config import OctCohort
from simulation.cohorts.oct import build

REAL = Path(__file__).resolve().parents[3] / "../shared/data/oct"
FORMATS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".PNG")


def draw_scans(folder: Path, count: int) -> Path:
    """``count`` different scans of different sizes and formats, in folders by diagnosis as public sets have them."""
    noise = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"class-{number % 2}" / f"scan-{number:02d}{FORMATS[number % len(FORMATS)]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (20 + number, 30), dtype=np.uint8)).save(file)
    return folder


def built(scans: Path, folder: Path, *, sites: int, seed: int = 0) -> list[SiteFolder]:
    build(OctCohort(folder=str(scans), sites=sites), seed=seed, folder=folder)
    return [SiteFolder(path) for path in sorted((folder / "sites").iterdir())]


def hashes(site: SiteFolder) -> list[str]:
    return sorted(site.images()["sha256"])


@pytest.fixture(scope="module")
def eleven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scans(tmp_path_factory.mktemp("scans"), 11)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sites=st.integers(1, 11), seed=st.integers(0, 2**32 - 1))
def test_every_scan_goes_to_one_site_and_sizes_differ_by_one_at_most(
    eleven: Path, tmp_path_factory: pytest.TempPathFactory, sites: int, seed: int
) -> None:
    folders = built(eleven, tmp_path_factory.mktemp("cohort"), sites=sites, seed=seed)

    shared_out = [digest for folder in folders for digest in hashes(folder)]
    given_in = [hashlib.sha256(file.read_bytes()).hexdigest() for file in eleven.rglob("*.*")]
    sizes = [len(folder.images()) for folder in folders]
    assert sorted(shared_out) == sorted(given_in)
    assert len(sizes) == sites
    assert max(sizes) - min(sizes) <= 1


def test_a_site_keeps_the_contract_with_scans_only(eleven: Path, tmp_path: Path) -> None:
    for site in built(eleven, tmp_path, sites=3):
        images = site.images()
        assert list(find_faults(site)) == []
        assert site.events().empty
        assert site.tasks() == []
        assert images["subject_id"].is_unique
        assert set(images["modality"]) == {"OCT"}
        assert images["pair_id"].isna().all()


def test_the_index_describes_the_copies(eleven: Path, tmp_path: Path) -> None:
    for site in built(eleven, tmp_path, sites=2):
        for row in site.images().itertuples():
            file = site.image_files / str(row.path)
            assert hashlib.sha256(file.read_bytes()).hexdigest() == row.sha256
            with Image.open(file) as image:
                assert image.size == (row.width, row.height)


def test_names_do_not_tell_the_diagnosis(eleven: Path, tmp_path: Path) -> None:
    for site in built(eleven, tmp_path, sites=2):
        assert not site.images()["path"].str.contains("class").any()


def test_patients_are_told_apart_across_sites(eleven: Path, tmp_path: Path) -> None:
    patients = pd.concat([site.images()["subject_id"] for site in built(eleven, tmp_path, sites=3)])
    assert patients.is_unique


def test_the_seed_decides(eleven: Path, tmp_path: Path) -> None:
    def bytes_of(name: str, seed: int) -> list[tuple[str, bytes]]:
        sites = built(eleven, tmp_path / name, sites=3, seed=seed)
        files = [file for site in sites for file in site.path.rglob("*") if file.is_file()]
        return sorted((file.relative_to(tmp_path / name).as_posix(), file.read_bytes()) for file in files)

    assert bytes_of("a", 1) == bytes_of("b", 1)
    assert bytes_of("c", 1) != bytes_of("d", 2)


def test_nothing_but_sites_is_left_behind(eleven: Path, tmp_path: Path) -> None:
    built(eleven, tmp_path, sites=2)
    assert [path.name for path in tmp_path.iterdir()] == ["sites"]


def test_other_files_are_not_scans(tmp_path: Path) -> None:
    scans = draw_scans(tmp_path / "scans", 2)
    (scans / "readme.txt").write_text("not a scan")
    (scans / "._scan.png").write_bytes(b"left by a file manager")

    assert [len(site.images()) for site in built(scans, tmp_path / "cohort", sites=1)] == [2]


def test_fewer_scans_than_sites_is_refused(tmp_path: Path) -> None:
    scans = draw_scans(tmp_path / "scans", 2)
    with pytest.raises(ConfigError, match=r"cohort.sites must not exceed the scans, got 3.*holds 2"):
        built(scans, tmp_path / "cohort", sites=3)


def test_a_missing_folder_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cohort.folder must exist.*cohort.folder=PATH"):
        built(Path("nowhere/oct"), tmp_path, sites=1)


def test_a_damaged_scan_is_named_and_no_half_site_is_left(tmp_path: Path) -> None:
    scans = draw_scans(tmp_path / "scans", 2)
    (scans / "damaged.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"damaged.png must be a readable image"):
        built(scans, tmp_path / "cohort", sites=1)
    assert not list((tmp_path / "cohort").rglob("*.parquet"))


def test_a_stack_of_scans_is_refused(tmp_path: Path) -> None:
    scans = draw_scans(tmp_path / "scans", 1)
    page = Image.new("L", (8, 8))
    page.save(scans / "stack.tif", save_all=True, append_images=[page])
    with pytest.raises(ConfigError, match=r"stack.tif must hold one image, got '2 images'"):
        built(scans, tmp_path / "cohort", sites=1)


@pytest.mark.skipif(not REAL.exists(), reason="no real OCT B-scans here")
def test_real_scans_keep_the_contract(tmp_path: Path) -> None:
    sites = built(REAL, tmp_path, sites=3)

    assert [len(site.images()) for site in sites] == [24, 24, 24]
    assert [fault for site in sites for fault in find_faults(site)] == []
