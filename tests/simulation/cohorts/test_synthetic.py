"""Is the synthetic cohort what it says: reproducible, within the contract, and true about its own probabilities?"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image

from shared.errors import ConfigError, SiteError
from shared.schema import find_faults
from shared.site_folder import SiteFolder
from simulation.cohorts.config import SyntheticCohort
from simulation.cohorts.synthetic import build
from simulation.cohorts.synthetic.block import Block, Plan, sample_block, truth
from simulation.cohorts.synthetic.ceiling import expected_auroc
from simulation.cohorts.synthetic.hospitals import hospitals, shares
from simulation.cohorts.synthetic.images import write_images
from simulation.cohorts.synthetic.infrared import render_infrared, sample_fundus
from simulation.cohorts.synthetic.morphology import MODALITIES, TRAITS, image_evidence
from simulation.cohorts.synthetic.png import encode
from simulation.cohorts.synthetic.strokes import STROKE_CODES, event_probability

SMALL = SyntheticCohort(patients=200, image_height=40, image_width=56)
HORIZON_DAYS = 365
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    build(SMALL, horizon_days=HORIZON_DAYS, seed=7, folder=folder)
    return folder


@pytest.fixture(scope="module")
def sites(cohort: Path) -> dict[str, SiteFolder]:
    return {folder.name: SiteFolder(folder) for folder in (cohort / "sites").iterdir()}


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    """Many patients, none rendered."""
    plan = Plan(seed=3, mean_visits=1.5, labelled=1.0, horizon_days=HORIZON_DAYS, image_height=64, image_width=64)
    places = hospitals(4, plan.seed)
    return [sample_block(plan, place, 0, count) for place, count in zip(places, shares(places, 12000), strict=True)]


@pytest.fixture(scope="module")
def true(blocks: list[Block]) -> dict[str, Floats]:
    parts = [truth(block, HORIZON_DAYS) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_equal_seeds_give_equal_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    config = SyntheticCohort(sites=2, patients=70, image_height=16, image_width=16)
    for name, seed, workers in (("alone", 1, 1), ("together", 1, 2), ("other", 2, 1)):
        build(config, horizon_days=90, seed=seed, folder=tmp_path / name, workers=workers)
    alone, together, other = (_digests(tmp_path / name) for name in ("alone", "together", "other"))
    assert alone == together
    assert alone != other


def test_folders_keep_the_contract(sites: dict[str, SiteFolder]) -> None:
    assert set(sites) == {"north", "east", "south", "west"}
    for site in sites.values():
        assert list(find_faults(site)) == []


def test_nothing_is_left_beside_the_sites_and_the_truth(cohort: Path) -> None:
    assert {path.name for path in cohort.iterdir()} == {"sites", "truth.parquet"}


def test_patients_of_different_hospitals_are_never_the_same(sites: dict[str, SiteFolder]) -> None:
    subjects = [subject for site in sites.values() for subject in site.events()["subject_id"].unique()]
    assert len(subjects) == len(set(subjects)) == SMALL.patients


def test_an_existing_site_is_never_overwritten(cohort: Path) -> None:
    with pytest.raises(SiteError, match="must not exist yet"):
        build(SMALL, horizon_days=HORIZON_DAYS, seed=7, folder=cohort)


def test_every_hospital_needs_a_patient(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cohort\.patients must be >= cohort\.sites"):
        build(SyntheticCohort(sites=9, patients=8), horizon_days=90, seed=0, folder=tmp_path)


def test_many_hospitals_share_out_all_patients() -> None:
    places = hospitals(30, seed=5)
    counts = shares(places, 100)
    assert sum(counts) == 100
    assert min(counts) >= 1
    assert len({place.name for place in places}) == len({place.number for place in places}) == 30
    assert places == hospitals(30, seed=5)


def test_labels_are_what_the_stroke_codes_say(sites: dict[str, SiteFolder]) -> None:
    days = pd.Timedelta(days=HORIZON_DAYS)
    for site in sites.values():
        events = site.events()
        strokes = events[events["code"].str.match(r"ICD10//I6[0134]")]
        assert set(strokes["code"]) <= set(STROKE_CODES)
        for task in ("detection", "risk"):
            for row in site.labels(task).itertuples():
                after = strokes.loc[strokes["subject_id"] == row.subject_id, "time"] - row.prediction_time
                inside = (after <= pd.Timedelta(0)) & (after >= -days)
                if task == "risk":
                    inside = (after > pd.Timedelta(0)) & (after <= days)
                assert row.boolean_value == inside.any()


def test_every_label_is_observed_to_its_end(sites: dict[str, SiteFolder]) -> None:
    for site in sites.values():
        end = pd.Timestamp(site.dataset().extracted_at)
        assert (site.labels("risk")["prediction_time"] + pd.Timedelta(days=HORIZON_DAYS) < end).all()


def test_a_visit_is_predicted_when_its_last_image_was_taken(sites: dict[str, SiteFolder]) -> None:
    for site in sites.values():
        images = site.images()
        visit = images["image_id"].str.split("-").str[1]
        taken = images.groupby(["subject_id", visit])["acquired_at"]
        assert (taken.max() - taken.min() < pd.Timedelta(minutes=10)).all()
        last = taken.max().reset_index().rename(columns={"acquired_at": "prediction_time"})
        labels = site.labels("detection")
        assert len(labels.merge(last, on=["subject_id", "prediction_time"])) == len(labels)


def test_some_records_are_later_than_the_visit(sites: dict[str, SiteFolder]) -> None:
    events = sites["north"].events()
    last = sites["north"].images().groupby("subject_id")["acquired_at"].max()
    assert (events["time"] > events["subject_id"].map(last)).mean() > 0.05


def test_hospitals_differ_as_declared(sites: dict[str, SiteFolder]) -> None:
    images = {name: site.images() for name, site in sites.items()}
    assert set(images["south"]["modality"]) == {"OCT"}
    assert images["south"]["pair_id"].isna().all()
    assert set(images["east"]["height"]) == {60}
    assert set(images["north"]["height"]) == {40}
    patients = {name: site.events()["subject_id"].nunique() for name, site in sites.items()}
    labelled = {name: site.labels("risk")["subject_id"].nunique() / patients[name] for name, site in sites.items()}
    assert_allclose(labelled["north"], SMALL.labelled, atol=1 / patients["north"])
    assert_allclose(labelled["west"], SMALL.labelled / 3, atol=1 / patients["west"])
    assert sorted(patients, key=lambda name: -patients[name])[:2] == ["north", "east"]


def test_images_are_what_the_index_says(sites: dict[str, SiteFolder]) -> None:
    for site in sites.values():
        for row in site.images().head(20).itertuples():
            data = (site.image_files / row.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row.sha256
            with Image.open(io.BytesIO(data)) as image:
                assert (image.mode, image.size) == ("L", (row.width, row.height))


def test_png_decodes_to_what_was_encoded() -> None:
    image = np.random.default_rng(0).integers(0, 256, (17, 23), dtype=np.uint8)
    with Image.open(io.BytesIO(encode(image))) as decoded:
        assert np.array_equal(np.asarray(decoded), image)


def test_truth_has_a_row_for_every_label(cohort: Path, sites: dict[str, SiteFolder]) -> None:
    table = pd.read_parquet(cohort / "truth.parquet")
    for name, site in sites.items():
        for task in ("detection", "risk"):
            rows = table[(table["site"] == name) & (table["task"] == task)]
            labels = site.labels(task)
            assert len(rows.merge(labels, on=["subject_id", "prediction_time"])) == len(labels) == len(rows)
    assert table.filter(like="p_").apply(lambda column: column.between(0, 1)).all(axis=None)


@pytest.mark.parametrize("name", ["p_image", "p_clinical", "p_multimodal"])
def test_posteriors_are_calibrated(true: dict[str, Floats], blocks: list[Block], name: str) -> None:
    first = np.concatenate([block.patients.visit_number == 1 for block in blocks])
    oracle, posterior = true["p_oracle"][first], true[name][first]
    for tenth in np.array_split(np.argsort(posterior), 10):
        error = oracle[tenth] - posterior[tenth]
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(tenth))


def test_outcomes_happen_as_often_as_the_oracle_says(blocks: list[Block]) -> None:
    for block in blocks:
        patients = block.patients
        first = patients.visit_time_s[patients.visit_number == 1]
        after_s = block.stroke_s - first[block.stroke_patient]
        inside = (after_s > 0) & (after_s <= HORIZON_DAYS * 86400)
        happened = np.isin(np.arange(len(first)), block.stroke_patient[inside])
        expected = event_probability(patients.risk, HORIZON_DAYS)
        spread = np.sqrt((expected * (1 - expected)).sum())
        assert abs(happened.sum() - expected.sum()) < 4 * spread


def test_ceilings_are_where_the_study_wants_them(true: dict[str, Floats]) -> None:
    best = {name: expected_auroc(true["p_oracle"], score) or 0.0 for name, score in true.items()}
    assert 0.25 < true["p_oracle"].mean() < 0.35
    assert 0.79 < best["p_image"] < 0.84
    assert 0.79 < best["p_clinical"] < 0.84
    assert max(best["p_image"], best["p_clinical"]) + 0.03 < best["p_multimodal"] < best["p_oracle"] - 0.02
    assert 0.85 < best["p_multimodal"] < 0.89
    assert 0.93 < best["p_oracle"] < 0.96


def test_image_evidence_is_that_of_the_joint_normal_distribution(blocks: list[Block]) -> None:
    """Against the density of all traits of both eyes with their full covariance."""
    morphology = blocks[0].morphology
    evidence = image_evidence(morphology)
    visit = int(np.flatnonzero(morphology.imaged.all(axis=(1, 2)))[0])
    exponent = []
    for risk in (-1.0, 0.0, 1.0):
        total = 0.0
        for index, trait in enumerate(TRAITS):
            noise = trait.eye_sd**2 + trait.visit_sd**2
            covariance = trait.patient_sd**2 + noise * np.eye(2)
            deviation = morphology.traits[visit, :, index] - trait.loading * risk
            total -= 0.5 * deviation @ np.linalg.solve(covariance, deviation)
        exponent.append(total)
    ours = evidence.log_likelihood(np.array([-1.0, 0.0, 1.0]))[visit]
    assert_allclose(np.diff(ours), np.diff(exponent), rtol=1e-9)


def test_expected_auroc_counts_every_pair() -> None:
    rng = np.random.default_rng(0)
    p, score = rng.random(40), rng.integers(0, 8, 40).astype(float)
    pairs = p[:, None] * (1 - p[None, :]) * (1 - np.eye(40))
    wins = (score[:, None] > score[None, :]) + 0.5 * (score[:, None] == score[None, :])
    assert expected_auroc(p, score) == pytest.approx((pairs * wins).sum() / pairs.sum(), rel=1e-7)


def test_expected_auroc_is_the_mean_over_drawn_labels() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(1, 2, 300)
    score = p + rng.normal(0, 0.2, 300)
    drawn = [_auroc(rng.random(300) < p, score) for _ in range(400)]
    assert expected_auroc(p, score) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(400) + 1e-3)


def test_expected_auroc_of_certain_or_impossible_labels() -> None:
    assert expected_auroc(np.array([0.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0])) == 1.0
    assert expected_auroc(np.array([0.3, 0.6]), np.array([1.0, 1.0])) == 0.5
    assert expected_auroc(np.array([1.0, 1.0]), np.array([1.0, 2.0])) is None
    assert expected_auroc(np.empty(0), np.empty(0)) is None


def _auroc(events: NDArray[np.bool_], score: Floats) -> float:
    wins = score[events][:, None] > score[~events][None, :]
    return float(wins.mean())


@dataclass(frozen=True)
class Scans:
    """Right eyes of one hospital at 64 x 64 pixels."""

    images: Floats  # (n, 64, 64), 0 to 1
    risk: Floats  # (n,)
    traits: dict[str, Floats]  # (n,) each


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scans]:
    plan = Plan(seed=11, mean_visits=1.0, labelled=1.0, horizon_days=HORIZON_DAYS, image_height=64, image_width=64)
    block = sample_block(plan, hospitals(1, plan.seed)[0], 0, 420)
    files = tmp_path_factory.mktemp("north")
    index = write_images(block, plan, 0, files)
    index = index[index["eye"] == "R"]
    return {modality: _scans(block, index[index["modality"] == modality], files) for modality in MODALITIES}


def _scans(block: Block, index: pd.DataFrame, files: Path) -> Scans:
    images = np.stack([_pixels(files / path) for path in index["path"]])
    patient = np.searchsorted(block.patients.subject_id, index["subject_id"])
    traits = {trait.name: block.morphology.traits[patient, 0, number] for number, trait in enumerate(TRAITS)}
    return Scans(images, block.patients.risk[patient], traits)


def _pixels(file: Path) -> Floats:
    with Image.open(file) as image:
        return np.asarray(image) / 255.0


def _correlation(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_layers_measured_on_the_pixels_are_thinner_at_high_risk(scans: dict[str, Scans]) -> None:
    oct_scans = scans["OCT"]
    tissue = (oct_scans.images > 0.12).sum(axis=1).mean(axis=1)
    assert _correlation(tissue, oct_scans.risk) < -0.2
    for name in ("nerve_fibre_layer", "ganglion_cell_layer", "choroid"):
        assert _correlation(tissue, oct_scans.traits[name]) > 0.15


@pytest.mark.parametrize("size", [64, 256])
def test_wider_arterioles_absorb_more_light_in_every_eye(size: int) -> None:
    light = [_infrared(ratio, 0.0, size).mean(axis=(1, 2)) for ratio in (-1.5, 0.0, 1.5)]
    assert (np.diff(light, axis=0) < -0.001).all()


def test_tortuous_vessels_leave_the_course_of_straight_ones() -> None:
    straight, little, much = (_infrared(0.0, tortuosity, 64) for tortuosity in (-3.0, -1.0, 1.5))
    assert (np.abs(much - straight).mean(axis=(1, 2)) > 1.3 * np.abs(little - straight).mean(axis=(1, 2))).all()


def _infrared(ratio: float, tortuosity: float, size: int) -> NDArray[np.float32]:
    """The same eight eyes with other vessels, before the camera."""
    rng = np.random.default_rng(4)
    fundus = sample_fundus(8, rng)
    return render_infrared(np.tile(np.float32([ratio, tortuosity]), (8, 1)), fundus, size, size, rng)


@pytest.mark.parametrize("modality", MODALITIES)
def test_corners_say_nothing_of_the_risk(scans: dict[str, Scans], modality: str) -> None:
    images, risk = scans[modality].images, scans[modality].risk
    for rows in (slice(0, 6), slice(-6, None)):
        for columns in (slice(0, 6), slice(-6, None)):
            corner = images[:, rows, columns].mean(axis=(1, 2))
            assert abs(_correlation(corner, risk)) < 4 / np.sqrt(len(risk))


def test_the_disc_lies_towards_the_nose(sites: dict[str, SiteFolder]) -> None:
    site = sites["north"]
    index = site.images()
    index = index[index["modality"] == "IR"]
    nasal_is_right = index["eye"] == "R"
    images = np.stack([_pixels(site.image_files / path) for path in index["path"]])
    middle, third = images[:, 14:26], images.shape[2] // 3
    brighter_right = middle[:, :, -third:].max(axis=(1, 2)) > middle[:, :, :third].max(axis=(1, 2))
    assert (brighter_right == nasal_is_right).mean() > 0.95
