"""Does a site's store hold what its folder says, each scan with its case and each patient in one split?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.splits import HELD_OUT, TRAIN, TUNING
from client.store import SiteStore, _scans_of_cases, open_store
from shared.config import Study
from shared.errors import SiteError
from shared.schema import SiteFaultsError
from shared.site_folder import SPLITS, SUBJECT_SPLITS, SiteFolder, write_table
from shared.statistics import Statistics, merge
from simulation.cohorts.build import Built
from simulation.pooling import pool_sites
from tests.factories import VISIT, Tables, encode_image, make_labels, make_pixels, make_study, small_site

STUDY = make_study()
SIXTEEN = make_study({"images": {"height": 16, "width": 16}})  # the size of the files: pixels stay as they are


def fix_splits(folder: SiteFolder, chosen: dict[int, str]) -> None:
    frame = pd.DataFrame({"subject_id": list(chosen), "split": list(chosen.values())})
    write_table(folder.path / "subject_splits.parquet", frame, SUBJECT_SPLITS)


def image_ids(store: SiteStore, rows: np.ndarray) -> list[str | None]:
    assert store.pixels is not None
    return [None if row < 0 else store.pixels.table["image_id"][row] for row in rows]


def one_patient(scans: list[tuple[str, str, str]]) -> Tables:
    """A site where patient 1 has (modality, eye, time) scans beside eleven others."""
    tables = small_site()
    tables.images = tables.images[tables.images["subject_id"] != 1]
    for modality, eye, time in scans:
        tables.add_image(1, modality, eye, time)
    return tables


def case_of(tmp_path: Path, scans: list[tuple[str, str, str]], modality: str, **images: int) -> list[int | None]:
    """Numbers of the scans that are in the case of patient 1."""
    tables = one_patient(scans)
    study = make_study({f"images.{name}": value for name, value in images.items()})
    store = open_store(tables.write(tmp_path / "s").path, study)
    names = tables.images["image_id"].tolist()[-len(scans) :]
    case = int(np.flatnonzero(store.case_subjects == 1)[0])
    return [None if name is None else names.index(name) for name in image_ids(store, store.case_scans[modality][case])]


def test_a_case_takes_the_scans_in_its_window_only(tmp_path: Path) -> None:
    scans = [
        ("OCT", "R", "2020-05-31 09:59"),  # a minute too old
        ("OCT", "L", "2020-05-31 10:00"),  # the last moment
        ("OCT", "R", "2020-06-01 10:00"),  # the prediction time itself
        ("OCT", "R", "2020-06-01 10:01"),  # a minute late
    ]
    assert case_of(tmp_path, scans, "oct", window_days=1, per_case=4) == [1, 2, None, None]


def test_the_newest_scan_of_each_eye_comes_first(tmp_path: Path) -> None:
    scans = [
        ("OCT", "L", "2020-06-01 08:00"),
        ("OCT", "R", "2020-06-01 07:00"),
        ("OCT", "R", "2020-06-01 09:00"),
        ("OCT", "R", "2020-06-01 09:30"),
        ("IR", "R", "2020-06-01 09:45"),
    ]
    assert case_of(tmp_path, scans, "oct", per_case=3) == [0, 3, 2]


def test_per_case_scans_of_a_case_are_of_both_eyes_where_there_are_two(tmp_path: Path) -> None:
    scans = [("OCT", "L", "2020-06-01 08:00"), ("OCT", "R", "2020-06-01 09:00"), ("OCT", "R", "2020-06-01 09:30")]
    assert case_of(tmp_path, scans, "oct", per_case=2) == [0, 2]


def test_modalities_do_not_take_each_others_places(tmp_path: Path) -> None:
    scans = [("OCT", "R", "2020-06-01 08:00"), ("IR", "R", "2020-06-01 09:00")]
    assert case_of(tmp_path, scans, "ir", per_case=1) == [1]


scan_rows = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from("LR"), st.integers(-60, 20), st.sampled_from(["OCT", "IR"])),
    max_size=15,
    unique_by=lambda scan: scan[:3],
)


@given(scan_rows, st.integers(0, 2), st.integers(1, 4))
def test_scans_of_cases_equal_a_slow_search(scans: list[tuple[int, str, int, str]], window: int, most: int) -> None:
    table = pd.DataFrame(scans, columns=["subject_id", "eye", "hour", "modality"])
    table["acquired_at"] = (VISIT + pd.to_timedelta(table["hour"].astype("int64"), unit="h")).astype("datetime64[us]")
    table = table.astype({"subject_id": np.int64})
    labels = make_labels([(subject, VISIT, True) for subject in (1, 2, 4)])
    study = make_study({"images.window_days": window, "images.per_case": most})
    found = _scans_of_cases(table, labels, study)
    for case, subject in enumerate((1, 2, 4)):
        for name in ("oct", "ir"):
            by_eye = [
                sorted(
                    (
                        i
                        for i, (who, side, hour, modality) in enumerate(scans)
                        if (who, side, modality) == (subject, eye, name.upper()) and -24 * window <= hour <= 0
                    ),
                    key=lambda i: -scans[i][2],
                )
                for eye in "LR"
            ]
            turns = [eye[turn] for turn in range(15) for eye in by_eye if turn < len(eye)][:most]
            assert found[name][case].tolist() == turns + [-1] * (most - len(turns))


def test_a_batch_of_cases_holds_the_pixels_of_their_scans(site: SiteFolder) -> None:
    store = open_store(site.path, SIXTEEN)
    cases = store.take_cases(np.array([3, 0]))
    for position, case in enumerate([3, 0]):
        subject = store.case_subjects[case]
        for offset, name in enumerate(("oct", "ir")):
            expected = make_pixels(2 * (int(subject) - 1) + offset)
            np.testing.assert_array_equal(cases.images[name][position, 0, 0].numpy(), expected)
            assert cases.shown[name][position].tolist() == [True, False]
            assert not cases.images[name][position, 1].any()
    assert cases.labels.tolist() == [float(store.case_subjects[case] % 2 == 0) for case in (3, 0)]


def test_a_batch_of_eyes_holds_both_scans_of_a_pair(site: SiteFolder) -> None:
    store = open_store(site.path, SIXTEEN)
    assert len(store.scan_splits) == 12
    scans = store.take_scans(np.arange(12), np.random.default_rng(0))
    found = {(bytes(scans.images["oct"][row].numpy()), bytes(scans.images["ir"][row].numpy())) for row in range(12)}
    assert found == {(bytes(make_pixels(2 * i)), bytes(make_pixels(2 * i + 1))) for i in range(12)}


def test_unlabelled_patients_pretrain_but_are_no_cases(tmp_path: Path) -> None:
    store = open_store(small_site(labelled=5).write(tmp_path / "s").path, STUDY)
    assert store.case_subjects.tolist() == [1, 2, 3, 4, 5]
    assert sorted(store.scan_subjects.tolist()) == list(range(1, 13))


@given(st.lists(st.sampled_from(SPLITS), min_size=12, max_size=12))
@settings(max_examples=8)
def test_no_patient_crosses_a_split(tmp_path_factory: pytest.TempPathFactory, chosen: list[str]) -> None:
    """Pretraining included: no scan of a tuning or held-out patient is among those that train."""
    tables = small_site()
    tables.add_image(3, "OCT", "L", "2018-01-01")
    tables.add_image(3, "IR", "L", "2018-01-01")
    folder = tables.write(tmp_path_factory.mktemp("site") / "s")
    split_of = dict(enumerate(chosen, start=1))
    fix_splits(folder, split_of)
    store = open_store(folder.path, STUDY)
    for split in (TRAIN, TUNING, HELD_OUT):
        wanted = {subject for subject, own in split_of.items() if own == split}
        assert set(store.scan_subjects[store.rows_of_scans(split)]) == wanted
        assert set(store.case_subjects[store.rows_of_cases(split)]) == wanted
        if wanted:
            others = store.take_scans(store.rows_of_scans(split), np.random.default_rng(0)).others
            assert others["oct"].shape[0] == len(store.rows_of_scans(split))


def test_another_scan_is_of_the_same_patient_and_modality_and_not_the_same(tmp_path: Path) -> None:
    tables = small_site(patients=3)
    for time in ("2018-01-01", "2019-01-01"):
        tables.add_image(2, "OCT", "L", time)
    store = open_store(tables.write(tmp_path / "s").path, SIXTEEN)
    whose = {bytes(make_pixels(i)): (row.subject_id, row.modality) for i, row in enumerate(tables.images.itertuples())}
    rows = np.arange(len(store.scan_splits))
    drawn: set[bytes] = set()
    for seed in range(30):
        scans = store.take_scans(rows, np.random.default_rng(seed))
        for name in ("oct", "ir"):
            for row in rows[scans.shown[name].numpy()]:
                own, other = (bytes(images[name][row].numpy()) for images in (scans.images, scans.others))
                assert whose[own] == whose[other] == (store.scan_subjects[row], name.upper())
                assert (own == other) == (whose[own] != (2, "OCT"))
                if own == bytes(make_pixels(2)):
                    drawn.add(other)
    assert len(drawn) == 2  # each of the other two


def test_sums_and_counts_of_the_survey_are_those_of_the_folder(tmp_path: Path) -> None:
    tables = small_site(labelled=9)
    tables.add_image(4, "OCT", "L", "2019-01-01", content=b"no image")
    tables.events = tables.events[~((tables.events["subject_id"] == 2) & tables.events["numeric_value"].notna())]
    folder = tables.write(tmp_path / "s")
    fix_splits(folder, {subject: TRAIN if subject <= 6 else HELD_OUT for subject in range(1, 13)})
    survey = open_store(folder.path, STUDY).survey()
    age = (VISIT - pd.Timestamp("1950-01-01")).total_seconds() / (365.25 * 86400)
    pressures = [101.0, 103.0, 104.0, 105.0, 106.0]  # of the training patients; 2 has none
    assert (survey.patients, survey.oct_scans, survey.ir_scans, survey.quarantined) == (12, 12, 12, 1)
    assert (survey.labelled, survey.positive) == (9, 4)
    assert (survey.train_cases, survey.train_positive, survey.clinical_cases) == (6, 3, 9)
    assert survey.counts == (6, 5)
    assert survey.sums == pytest.approx((6 * age, sum(pressures)), rel=1e-6)
    assert survey.squares == pytest.approx((6 * age**2, sum(p**2 for p in pressures)), rel=1e-6)
    assert survey.modalities() == ("oct", "ir", "clinical")


def test_a_site_without_a_modality_says_so(tmp_path: Path) -> None:
    store = open_store(small_site(modalities=("OCT",)).write(tmp_path / "s").path, STUDY)
    assert store.survey().modalities() == ("oct", "clinical")
    cases = store.take_cases(np.arange(3))
    assert cases.shown["oct"].any()
    assert not cases.shown["ir"].any()
    scans = store.take_scans(np.arange(12), np.random.default_rng(0))
    assert scans.shown["oct"].all()
    assert not scans.shown["ir"].any()
    assert not scans.images["ir"].any()


def test_a_site_without_any_scan_still_has_cases(tmp_path: Path) -> None:
    store = open_store(small_site(modalities=()).write(tmp_path / "s").path, STUDY)
    assert store.survey().modalities() == ("clinical",)
    assert not any(shown.any() for shown in store.take_cases(np.arange(12)).shown.values())
    with pytest.raises(SiteError, match=r"^site north: scans that train must not be empty"):
        store.check_pretrainable()


def test_a_site_without_scans_of_the_studys_modality_has_none_to_pretrain_on(tmp_path: Path) -> None:
    study = make_study({"modalities": ["oct", "clinical"]})
    store = open_store(small_site(modalities=("IR",)).write(tmp_path / "s").path, study)
    with pytest.raises(SiteError, match="scans that train must not be empty"):
        store.check_pretrainable()


def test_the_study_chooses_what_is_loaded(site: SiteFolder) -> None:
    clinical = open_store(site.path, make_study({"modalities": ["clinical"], "pretrain.rounds": 0}))
    assert clinical.take_cases(np.arange(2)).images == {}
    image = open_store(site.path, make_study({"modalities": ["oct"]}))
    assert image.take_cases(np.arange(2)).clinical is None
    assert (image.survey().modalities(), clinical.survey().modalities()) == (("oct",), ("clinical",))


def quarantine_site(folder: Path, limit: str | None) -> Path:
    tables = small_site(patients=10, modalities=("OCT",))
    tables.images = tables.images.iloc[:0]
    for number in range(10):
        content = b"bad" if number < 2 else encode_image(make_pixels(number))
        tables.add_image(number + 1, "OCT", content=content)
    path = tables.write(folder).path
    if limit is not None:
        (path / "site.yaml").write_text(f"quarantine_limit: {limit}\n")
    return path


@pytest.mark.parametrize("limit", ["0.2", "1"])
def test_bad_scans_up_to_the_sites_ceiling_are_left_out(tmp_path: Path, limit: str) -> None:
    assert open_store(quarantine_site(tmp_path / "s", limit), STUDY).survey().quarantined == 2


@pytest.mark.parametrize(("limit", "shown"), [(None, "5%"), ("0.19", "19%"), ("0", "0%")])
def test_more_bad_scans_than_the_sites_ceiling_are_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: str | None, shown: str
) -> None:
    with pytest.raises(SiteError) as caught:
        open_store(quarantine_site(tmp_path / "s", limit), STUDY)
    rule = f"site north: unreadable scans must be at most {shown} of all (site.yaml: quarantine_limit), got 2."
    assert str(caught.value).startswith(rule)
    assert len(caplog.messages) == 2
    assert all(text.endswith("is not an image that can be decoded") for text in caplog.messages)


def test_a_folder_that_breaks_the_contract_is_no_store(site: SiteFolder) -> None:
    fix_splits(site, {1: "train", 2: "nowhere"})
    with pytest.raises(SiteFaultsError):
        open_store(site.path, STUDY)


def test_labels_of_another_horizon_are_refused(site: SiteFolder) -> None:
    with pytest.raises(SiteError, match=r"horizon of detection must be the study's task\.horizon_days \(90\), got 365"):
        open_store(site.path, make_study({"task.horizon_days": 90}))


def test_an_empty_split_is_named(site: SiteFolder) -> None:
    fix_splits(site, dict.fromkeys(range(1, 13), TRAIN))
    store = open_store(site.path, STUDY)
    with pytest.raises(
        SiteError, match=r"^site north: split held_out must not be empty\. Label more patients, or raise"
    ):
        store.check_evaluable()
    store.check_trainable()


def test_a_site_without_labels_that_train_is_named(tmp_path: Path) -> None:
    folder = small_site().write(tmp_path / "s")
    fix_splits(folder, dict.fromkeys(range(1, 13), HELD_OUT))
    with pytest.raises(SiteError, match="site north: split train must not be empty"):
        open_store(folder.path, STUDY).check_trainable()


def test_a_site_with_one_class_only_is_named(site: SiteFolder) -> None:
    fix_splits(site, {subject: TRAIN if subject % 2 else HELD_OUT for subject in range(1, 13)})
    with pytest.raises(
        SiteError, match=r"^site north: labels must hold both classes, got '6 case\(s\) of one class'\. "
    ):
        open_store(site.path, STUDY).check_trainable()


def study_of(cohort: Built) -> Study:
    return make_study({"images": {"height": 32, "width": 32}, "name": "cohort"})


def test_a_pooled_site_is_the_sum_of_its_sites(cohort: Built, tmp_path: Path) -> None:
    study = study_of(cohort)
    stores = [open_store(path, study) for path in cohort.sites]
    pooled = open_store(pool_sites(cohort.sites, tmp_path / "pooled"), study)
    apart, together = merge([store.survey() for store in stores]), pooled.survey()
    for name in (
        "patients",
        "oct_scans",
        "ir_scans",
        "labelled",
        "positive",
        "train_cases",
        "train_positive",
        "counts",
    ):
        assert getattr(together, name) == getattr(apart, name)
    assert together.sums == pytest.approx(apart.sums)
    one, other = Statistics.of(apart), Statistics.of(together)
    assert one.prevalence == other.prevalence
    assert one.mean == pytest.approx(other.mean)
    assert one.deviation == pytest.approx(other.deviation)


def test_a_pooled_site_splits_every_patient_as_their_own_site_does(cohort: Built, tmp_path: Path) -> None:
    study = study_of(cohort)
    pooled = open_store(pool_sites(cohort.sites, tmp_path / "pooled"), study)
    split_of = dict(zip(pooled.scan_subjects, pooled.scan_splits, strict=True))
    split_of |= dict(zip(pooled.case_subjects, pooled.case_splits, strict=True))
    for path in cohort.sites:
        store = open_store(path, study)
        for subject, split in zip(store.scan_subjects, store.scan_splits, strict=True):
            assert split_of[subject] == split
        for subject, split in zip(store.case_subjects, store.case_splits, strict=True):
            assert split_of[subject] == split


def test_a_pooled_case_is_the_case_of_its_site(cohort: Built, tmp_path: Path) -> None:
    study = study_of(cohort)
    pooled = open_store(pool_sites(cohort.sites, tmp_path / "pooled"), study)
    store = open_store(cohort.sites[1], study)
    for case in range(len(store.labels)):
        same = (pooled.case_subjects == store.case_subjects[case]) & (pooled.case_times == store.case_times[case])
        (row,) = np.flatnonzero(same)
        here, there = store.take_cases(np.array([case])), pooled.take_cases(np.array([row]))
        for name in ("oct", "ir"):
            np.testing.assert_array_equal(here.images[name], there.images[name])
        np.testing.assert_array_equal(here.clinical, there.clinical)
        assert here.labels == there.labels


def test_studies_that_differ_in_how_they_learn_read_a_site_once(site: SiteFolder) -> None:
    one, other = (open_store(site.path, make_study({"finetune.rounds": rounds})) for rounds in (1, 2))
    assert other.clinical is one.clinical
    assert other.pixels is one.pixels
    assert list(open_store(site.path, make_study({"seed": 2})).case_splits) != list(one.case_splits)


def test_a_site_that_changed_is_read_anew_for_the_next_study(site: SiteFolder) -> None:
    before = open_store(site.path, make_study())
    everyone = pd.DataFrame({"subject_id": before.subjects, "split": "train"})
    write_table(site.path / "subject_splits.parquet", everyone, SUBJECT_SPLITS)
    (site.path / "site.yaml").write_text("smallest_cell: 7\n", encoding="utf-8")
    after = open_store(site.path, make_study({"finetune.rounds": 2}))
    assert set(before.case_splits) > set(after.case_splits) == {"train"}
    assert after.data_digest != before.data_digest
    assert (before.settings.smallest_cell, after.settings.smallest_cell) == (5, 7)
