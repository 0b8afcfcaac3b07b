"""Does the stroke trial become honest sites: one a hospital, and nothing in them from after randomisation?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from shared.config import Features
from shared.errors import ConfigError, SiteError
from shared.knobs import load
from shared.schema import find_faults
from shared.site_folder import SiteFolder
from simulation.cohorts.config import IstCohort
from simulation.cohorts.ist import CATEGORIES, COLUMNS, MEASURED, TASK, build

REPOSITORY = Path(__file__).resolve().parents[3]
REAL = REPOSITORY / "../shared/data/ist/IST.csv"
CHOICES = {"SEX": "MF", "RCONSC": "FDU", "RXHEP": "NLM", "STYPE": ("TACS", "PACS", "LACS", "POCS", "OTH")}
LATER = ("DDEAD", "FDEAD", "TD", "EXPD6", "STRK14")  # some of what was filled in after randomisation

needs_trial = pytest.mark.skipif(not REAL.exists(), reason="the trial's file (doi:10.7488/ds/104) is not here")


def feature_list() -> dict[str, Any]:
    """The study's feature list as its file has it, without what is Hydra's."""
    features = yaml.safe_load((REPOSITORY / "configs/features/ist.yaml").read_text(encoding="utf-8"))
    return {name: value for name, value in features.items() if name != "defaults"}


def trial(sizes: dict[int, int], seed: int = 0) -> pd.DataFrame:
    """A made-up file with the trial's columns; ``sizes`` are patients by hospital, all with a known outcome."""
    draw = np.random.default_rng(seed)
    count = sum(sizes.values())
    columns: dict[str, Any] = {
        "HOSPNUM": np.repeat(list(sizes), list(sizes.values())),
        "RDATE": draw.choice(["sty-91", "pa?-95", "gru-93"], count),
        "HOURLOCAL": draw.integers(0, 24, count),
        "MINLOCAL": draw.integers(0, 60, count),
        "OCCODE": draw.integers(1, 5, count),
        "AGE": draw.integers(40, 99, count),
        "RSBP": draw.integers(90, 230, count),
        "RDELAY": draw.integers(1, 49, count),
    }
    columns |= {name: draw.choice(list(CHOICES.get(name, "YNC" if name.startswith("RDEF") else "YN")), count)
                for name in CATEGORIES}  # fmt: skip
    columns |= {name: draw.integers(0, 2, count) for name in LATER}
    return pd.DataFrame(columns)


def built(table: pd.DataFrame, folder: Path, *, minimum: int = 1, seed: int = 0, encoding: str = "utf-8") -> Path:
    """The sites made of a file; ``folder`` is new."""
    folder.mkdir()
    file = folder / "trial.csv"
    table.to_csv(file, index=False, encoding=encoding)
    build(IstCohort(file=str(file), minimum_patients=minimum), seed=seed, folder=folder)
    return folder / "sites"


def contents(sites: Path) -> dict[str, bytes]:
    return {file.relative_to(sites).as_posix(): file.read_bytes() for file in sites.rglob("*") if file.is_file()}


def site_names(sites: Path) -> list[str]:
    return sorted(path.name for path in sites.iterdir())


def test_a_site_keeps_the_contract_and_has_its_hospitals_patients(tmp_path: Path) -> None:
    sites = built(trial({7: 30, 123: 20}), tmp_path / "cohort")

    assert site_names(sites) == ["hospital-007", "hospital-123"]
    folders = [SiteFolder(sites / name) for name in site_names(sites)]
    assert [list(find_faults(folder)) for folder in folders] == [[], []]
    assert [len(folder.labels(TASK)) for folder in folders] == [30, 20]
    assert [folder.dataset().horizons_days for folder in folders] == [{"outcome": 183}] * 2
    assert not set(folders[0].labels(TASK)["subject_id"]) & set(folders[1].labels(TASK)["subject_id"])


def test_every_input_is_before_its_prediction_and_every_outcome_before_the_extract(tmp_path: Path) -> None:
    site = SiteFolder(built(trial({7: 50}), tmp_path / "cohort") / "hospital-007")
    labels = site.labels(TASK).set_index("subject_id")
    events = site.events()

    prediction = events["subject_id"].map(labels["prediction_time"])
    assert (events["time"] < prediction).all()
    assert (labels["prediction_time"] + pd.Timedelta(days=183) <= pd.Timestamp(site.dataset().extracted_at)).all()


def test_nothing_from_after_randomisation_enters(tmp_path: Path) -> None:
    table = trial({7: 30, 9: 20})
    other = table.copy()
    other[list(LATER)] = 1 - other[list(LATER)]
    other["OCCODE"] = other["OCCODE"].replace({1: 2, 2: 1, 3: 4, 4: 3})  # the same label by another way

    assert contents(built(table, tmp_path / "a")) == contents(built(other, tmp_path / "b"))


def test_the_outcome_is_in_the_label_only(tmp_path: Path) -> None:
    table = trial({7: 30})
    first = SiteFolder(built(table, tmp_path / "a") / "hospital-007")
    second = SiteFolder(built(table.assign(OCCODE=5 - table["OCCODE"]), tmp_path / "b") / "hospital-007")

    pd.testing.assert_frame_equal(first.events(), second.events())
    assert (first.labels(TASK)["boolean_value"] != second.labels(TASK)["boolean_value"]).all()


def test_the_same_file_gives_the_same_bytes_whatever_the_seed(tmp_path: Path) -> None:
    table = trial({7: 30})
    assert contents(built(table, tmp_path / "a", seed=1)) == contents(built(table, tmp_path / "b", seed=2))


def test_dead_or_dependent_is_true_and_unknown_outcomes_are_dropped(tmp_path: Path) -> None:
    table = trial({7: 6}).assign(OCCODE=[1, 2, 3, 4, 0, 9])
    site = SiteFolder(built(table, tmp_path / "cohort") / "hospital-007")

    labels = site.labels(TASK).set_index("subject_id")["boolean_value"]
    assert labels.to_dict() == {1: True, 2: True, 3: False, 4: False}
    assert set(site.events()["subject_id"]) == {1, 2, 3, 4}


def test_small_hospitals_are_left_out_by_patients_with_a_known_outcome(tmp_path: Path) -> None:
    table = trial({1: 9, 2: 10, 3: 11})
    table.loc[table["HOSPNUM"] == 3, "OCCODE"] = [0, 9, *[1] * 9]

    assert site_names(built(table, tmp_path / "cohort", minimum=10)) == ["hospital-002"]


def test_events_say_what_the_file_says(tmp_path: Path) -> None:
    table = trial({7: 1}).assign(AGE=71, RSBP=165, RDELAY=6, RCONSC="D", RDEF3="C", STYPE="LACS")
    events = SiteFolder(built(table, tmp_path / "cohort") / "hospital-007").events()

    values = events.dropna(subset="numeric_value").set_index("code")["numeric_value"].to_dict()
    assert values == {"IST//AGE": 71.0, "LOINC//8480-6": 165.0, "IST//RDELAY": 6.0}
    assert {"IST//RCONSC//D", "IST//RDEF3//C", "IST//STYPE//LACS"} < set(events["code"])
    assert len(events) == len(MEASURED) + len(CATEGORIES)


def test_a_blank_gives_no_event(tmp_path: Path) -> None:
    table = trial({7: 2})
    table = table.assign(RATRIAL=["", "Y"], RSBP=["", "150"])
    codes = SiteFolder(built(table, tmp_path / "cohort") / "hospital-007").events().groupby("subject_id")["code"]

    said = codes.apply(lambda column: {code for code in column if "RATRIAL" in code or "8480" in code})
    assert said.to_dict() == {1: set(), 2: {"IST//RATRIAL//Y", "LOINC//8480-6"}}


@pytest.mark.parametrize(
    ("written", "month"),
    [("sty-91", 1), ("lut-91", 2), ("kwi-91", 4), ("Oct-91", 10), ("AUG-91", 8), ("lis-91", 11), ("mar-91", 3)],
)
def test_months_are_polish_or_english(tmp_path: Path, written: str, month: int) -> None:
    table = trial({7: 1}).assign(RDATE=written, HOURLOCAL=15, MINLOCAL=40)
    labels = SiteFolder(built(table, tmp_path / "cohort") / "hospital-007").labels(TASK)

    assert labels["prediction_time"].tolist() == [pd.Timestamp(1991, month, 1, 15, 40)]


@pytest.mark.parametrize(("october", "encoding"), [("paź-95", "utf-8"), ("paź-95", "cp1250"), ("pa?-95", "latin-1")])
def test_october_is_read_in_every_encoding(tmp_path: Path, october: str, encoding: str) -> None:
    table = trial({7: 1}).assign(RDATE=october, HOURLOCAL=99, MINLOCAL=99)
    labels = SiteFolder(built(table, tmp_path / "cohort", encoding=encoding) / "hospital-007").labels(TASK)

    assert labels["prediction_time"].tolist() == [pd.Timestamp(1995, 10, 1, 12)]  # 99: unknown, so noon


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(ConfigError, match=rf"column {column} must be present.*ds/104"):
        built(trial({7: 3}).drop(columns=column), tmp_path / "cohort")


@pytest.mark.parametrize(("column", "value"), [("RDATE", "13-91"), ("AGE", "old"), ("HOSPNUM", ""), ("HOSPNUM", "1.5")])
def test_a_value_that_cannot_be_read_is_refused_without_being_shown(tmp_path: Path, column: str, value: str) -> None:
    table = trial({7: 3}).astype({column: "object"})
    table.loc[1, column] = value
    with pytest.raises(ConfigError, match=rf"column {column} must hold .*'1 row\(s\) that do not'"):
        built(table, tmp_path / "cohort")


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cohort.file must exist.*10.7488/ds/104.*cohort.file=PATH"):
        build(IstCohort(file="nowhere/IST.csv"), seed=0, folder=tmp_path)


def test_no_hospital_of_the_size_says_how_large_they_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cohort.minimum_patients must leave.*got 40.*largest has 30"):
        built(trial({7: 30}), tmp_path / "cohort", minimum=40)


def test_a_relative_file_is_found_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial({7: 3}).to_csv(tmp_path / "here.csv", index=False)
    monkeypatch.chdir(tmp_path)
    build(IstCohort(file="here.csv", minimum_patients=1), seed=0, folder=tmp_path / "cohort")

    assert site_names(tmp_path / "cohort" / "sites") == ["hospital-007"]


def test_a_site_is_never_written_over(tmp_path: Path) -> None:
    trial({7: 3}).to_csv(tmp_path / "trial.csv", index=False)
    config = IstCohort(file=str(tmp_path / "trial.csv"), minimum_patients=1)
    build(config, seed=0, folder=tmp_path)
    with pytest.raises(SiteError, match="must not exist yet"):
        build(config, seed=0, folder=tmp_path)


def test_the_feature_list_covers_every_column_once() -> None:
    features = load(Features, feature_list())
    codes = [code for feature in features.codes for code in feature.codes]

    assert len(set(codes)) == len(codes)
    assert {(feature.code, feature.unit) for feature in features.numeric} == set(MEASURED.values())
    assert {code.split("//")[1] for code in codes} == set(CATEGORIES)


# The trial itself. Everything below needs its file.


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events and labels of every hospital of the trial, however small; labels name their ``hospital``."""
    folder = tmp_path_factory.mktemp("trial")
    build(IstCohort(file=str(REAL), minimum_patients=1), seed=0, folder=folder)
    sites = folder / "sites"
    folders = [SiteFolder(sites / name) for name in site_names(sites)]
    events = pd.concat([folder.events() for folder in folders], ignore_index=True)
    labels = [folder.labels(TASK).assign(hospital=folder.path.name) for folder in folders]
    return events, pd.concat(labels, ignore_index=True).set_index("subject_id")


@needs_trial
def test_thirteen_real_hospitals_have_200_patients(tmp_path: Path) -> None:
    build(IstCohort(file=str(REAL)), seed=0, folder=tmp_path)
    folders = [SiteFolder(tmp_path / "sites" / name) for name in site_names(tmp_path / "sites")]

    assert len(folders) == 13
    assert sum(len(folder.labels(TASK)) for folder in folders) == 3600
    assert [fault for folder in folders for fault in find_faults(folder)] == []


@needs_trial
def test_every_code_of_the_trial_is_a_feature_and_every_feature_occurs(
    gathered: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    features = feature_list()
    listed = {feature["code"] for feature in features["numeric"]}
    listed |= {code for feature in features["codes"] for code in feature["codes"]}

    assert set(gathered[0]["code"]) == listed


@needs_trial
def test_logistic_regression_reaches_the_references(gathered: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """Mean AUROC of 13 large hospitals, 5 folds: trained on all 464 0.773, on the 13 0.766, on one alone 0.749."""
    inputs, outcome, hospital = _design(*gathered)
    sizes = pd.Series(hospital).value_counts()
    large = np.isin(hospital, sizes[sizes >= 200].index)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(inputs, outcome))

    def mean_auroc(scopes: list[npt.NDArray[np.bool_]]) -> float:
        risk = np.full(len(outcome), np.nan)
        for train, test in folds:
            for scope in scopes:
                fitted = _regression().fit(inputs[train][scope[train]], outcome[train][scope[train]])
                told = test[scope[test] & large[test]]
                risk[told] = fitted.decision_function(inputs[told])
        return float(np.mean([roc_auc_score(outcome[hospital == one], risk[hospital == one]) for one in ones]))

    ones = sorted(set(hospital[large]))
    everyone = mean_auroc([np.ones_like(large)])
    thirteen = mean_auroc([large])
    alone = mean_auroc([hospital == one for one in ones])

    assert len(ones) == 13
    assert everyone > 0.765
    assert everyone > thirteen > alone + 0.01


def _regression() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, solver="newton-cholesky"))


def _design(
    events: pd.DataFrame, labels: pd.DataFrame
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.object_]]:
    """Inputs (patients x features) by the feature list, outcomes and hospitals."""
    features = feature_list()
    by_code = dict(iter(events.groupby("code")))
    columns: dict[str, Any] = {}
    for feature in features["numeric"]:
        rows = by_code[feature["code"]].set_index("subject_id")
        columns[feature["name"]] = rows["numeric_value"].clip(feature["low"], feature["high"])
    for feature in features["codes"]:
        having = pd.concat([by_code[code]["subject_id"] for code in feature["codes"] if code in by_code])
        columns[feature["name"]] = pd.Series(1.0, index=having.unique())
    inputs = pd.DataFrame(columns, index=labels.index).fillna(0.0)  # no measured value of the trial is blank
    return (
        inputs.to_numpy(dtype=float),
        labels["boolean_value"].to_numpy(dtype=bool),
        labels["hospital"].to_numpy(dtype=object),
    )
