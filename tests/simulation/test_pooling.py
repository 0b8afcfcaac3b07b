"""Is the pooled site all of the sites together, with the same splits, or nothing at all?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.store import open_store
from shared.errors import SiteError
from shared.schema import check_site
from shared.site_folder import SUBJECT_SPLITS, SiteFolder, write_table
from shared.statistics import merge
from simulation.pooling import pool_sites
from tests.factories import SYSTOLIC, Tables, make_study, small_site

STUDY = make_study()


def tables() -> list[Tables]:
    return [
        small_site("north", 12, first=1),
        small_site("south", 10, first=41, modalities=["OCT"]),
        small_site("east", 8, first=81, labelled=3),
    ]


def written(folder: Path, sites: list[Tables]) -> list[Path]:
    return [site.write(folder / site.dataset.site).path for site in sites]


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pooled_site_keeps_the_contract(tmp_path: Path) -> None:
    check_site(SiteFolder(pool_sites(written(tmp_path / "sites", tables()), tmp_path / "run" / "pooled")))
    assert left_behind(tmp_path / "run") == ["pooled"]


def test_pooled_site_has_every_patient_case_and_scan_with_its_split(tmp_path: Path) -> None:
    sites = written(tmp_path / "sites", tables())
    pooled = open_store(pool_sites(sites, tmp_path / "pooled"), STUDY)
    stores = [open_store(site, STUDY) for site in sites]
    assert len(pooled.subjects) == sum(len(store.subjects) for store in stores) == 30

    def cases(store: object) -> pd.DataFrame:
        names = ("case_subjects", "case_times", "labels", "case_splits")
        return pd.DataFrame({name: getattr(store, name) for name in names})

    together = pd.concat([cases(store) for store in stores]).sort_values(["case_subjects", "case_times"])
    pd.testing.assert_frame_equal(
        cases(pooled).sort_values(["case_subjects", "case_times"]).reset_index(drop=True),
        together.reset_index(drop=True),
    )
    for split in ("train", "tuning", "held_out"):
        assert len(pooled.rows_of_scans(split)) == sum(len(store.rows_of_scans(split)) for store in stores)


def test_pooled_case_has_the_inputs_of_its_site(tmp_path: Path) -> None:
    sites = written(tmp_path / "sites", tables())
    pooled = open_store(pool_sites(sites, tmp_path / "pooled"), STUDY)
    for site in sites:
        store = open_store(site, STUDY)
        for row, subject in enumerate(store.case_subjects):
            (there,) = np.flatnonzero(pooled.case_subjects == subject)
            own, other = store.take_cases(np.array([row])), pooled.take_cases(np.array([there]))
            for name in ("oct", "ir"):
                assert own.shown[name].tolist() == other.shown[name].tolist()
                assert own.images[name].numpy().tobytes() == other.images[name].numpy().tobytes()
            assert own.clinical is not None
            assert other.clinical is not None
            np.testing.assert_array_equal(own.clinical.numpy(), other.clinical.numpy())


def test_pooled_survey_is_the_sum_of_the_surveys(tmp_path: Path) -> None:
    sites = written(tmp_path / "sites", tables())
    pooled = open_store(pool_sites(sites, tmp_path / "pooled"), STUDY).survey()
    together = merge([open_store(site, STUDY).survey() for site in sites])
    for field in dataclasses.fields(together):
        assert getattr(pooled, field.name) == pytest.approx(getattr(together, field.name), rel=1e-9), field.name


def test_splits_that_a_site_fixed_by_hand_hold_in_the_pool(tmp_path: Path) -> None:
    sites = written(tmp_path / "sites", tables())
    fixed = pd.DataFrame({"subject_id": range(1, 13), "split": ["held_out"] * 9 + ["train"] * 3})
    write_table(sites[0] / "subject_splits.parquet", fixed, SUBJECT_SPLITS)
    pooled = open_store(pool_sites(sites, tmp_path / "pooled"), STUDY)
    found = dict(zip(pooled.case_subjects.tolist(), pooled.case_splits.tolist(), strict=True))
    by_hand = dict(zip(fixed["subject_id"], fixed["split"], strict=True))
    assert {subject: found[subject] for subject in by_hand} == by_hand


def test_site_without_scans_can_be_pooled(tmp_path: Path) -> None:
    sites = written(tmp_path / "sites", [small_site("north"), small_site("records", first=101, modalities=[])])
    pooled = open_store(pool_sites(sites, tmp_path / "pooled"), STUDY)
    assert len(pooled.subjects) == 24


def test_pool_is_made_once(tmp_path: Path) -> None:
    sites = written(tmp_path / "sites", tables())
    pooled = pool_sites(sites, tmp_path / "pooled")
    before = {file: file.stat().st_mtime_ns for file in pooled.rglob("*.parquet")}
    assert pool_sites(sites, tmp_path / "pooled") == pooled
    assert {file: file.stat().st_mtime_ns for file in pooled.rglob("*.parquet")} == before


def _same_patient(sites: list[Tables]) -> None:
    sites[1] = small_site("south", 10, first=12)


def _other_unit(sites: list[Tables]) -> None:
    sites[2].dataset = dataclasses.replace(sites[2].dataset, units={SYSTOLIC: "kPa"})


def _other_horizon(sites: list[Tables]) -> None:
    sites[2].dataset = dataclasses.replace(sites[2].dataset, horizons_days={"detection": 30})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_same_patient, "site south: subject_id must be of this site only, got '1 shared'"),
        (_other_unit, "site east: unit of LOINC//8480-6 must be mm[Hg] as elsewhere, got 'kPa'"),
        (_other_horizon, "site east: horizon of detection must be 365 as elsewhere, got 30"),
    ],
)
def test_contradicting_sites_are_refused_and_nothing_is_written(tmp_path: Path, change: object, message: str) -> None:
    assert callable(change)
    sites = tables()
    change(sites)
    (tmp_path / "run").mkdir()
    with pytest.raises(SiteError) as caught:
        pool_sites(written(tmp_path / "sites", sites), tmp_path / "run" / "pooled")
    assert str(caught.value).startswith(message)
    assert left_behind(tmp_path / "run") == []


def test_two_sites_of_one_name_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    sites = [small_site("north").write(tmp_path / "a").path, small_site("north", first=90).write(tmp_path / "b").path]
    (tmp_path / "run").mkdir()
    with pytest.raises(SiteError, match="north"):
        pool_sites(sites, tmp_path / "run" / "pooled")
    assert left_behind(tmp_path / "run") == []


def test_interrupted_pooling_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = written(tmp_path / "sites", tables())

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shared.site_folder.write_table", interrupt)
    (tmp_path / "run").mkdir()
    with pytest.raises(KeyboardInterrupt):
        pool_sites(sites, tmp_path / "run" / "pooled")
    assert left_behind(tmp_path / "run") == []
