"""How does the International Stroke Trial become one site a hospital?

The file is the trial's public record of 19,435 patients (doi:10.7488/ds/104; Sandercock et al., Trials 2011, 12:101).
A site holds what was known when a patient was randomised, as MEDS events, and one label: dead or dependent six months
later. Every other column was filled in afterwards and would leak the outcome; it is not even read.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shared.errors import ConfigError
from shared.site_folder import Dataset, write_site
from simulation.cohorts.config import IstCohort

TASK = "outcome"
HORIZON_DAYS = 183  # six months
REPOSITORY = Path(__file__).resolve().parents[2]

MEASURED = {"AGE": ("IST//AGE", "a"), "RSBP": ("LOINC//8480-6", "mm[Hg]"), "RDELAY": ("IST//RDELAY", "h")}
DEFICITS = tuple(f"RDEF{number}" for number in range(1, 9))
CATEGORIES = (
    *("SEX", "RCONSC", "RSLEEP", "RATRIAL", "RCT", "RVISINF", "STYPE"),
    *DEFICITS,
    *("RXASP", "RXHEP"),
)
COLUMNS = ("HOSPNUM", "RDATE", "HOURLOCAL", "MINLOCAL", "OCCODE", *MEASURED, *CATEGORIES)
OUTCOMES = {1: True, 2: True, 3: False, 4: False}  # dead, dependent; not recovered, recovered. 0 and 9: unknown

# The official file has Polish months, other copies have English ones. October is told by its first two letters:
# its third, "ź", was lost in one encoding or another in every copy seen ("pa?-95").
_POLISH = ("sty", "lut", "mar", "kwi", "maj", "cze", "lip", "sie", "wrz", "pa", "lis", "gru")
_ENGLISH = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTHS = {name: month for names in (_POLISH, _ENGLISH) for month, name in enumerate(names, start=1)}


def build(config: IstCohort, *, seed: int, folder: Path) -> None:
    """Write ``<folder>/sites/hospital-<number>`` for every hospital that is large enough.

    Args:
        config: the file, and how many patients with a known outcome a hospital must have.
        seed: not used, as nothing is drawn: the same file gives the same bytes.
        folder: the new cohort's folder.

    Raises:
        ConfigError: no such file, a column or value in it that is not the trial's, or no hospital of that size.
        SiteError: a site of that name exists already.
    """
    (file,) = sources(config)
    patients = read_patients(file)
    extracted_at = _last_follow_up(patients)
    known = patients[patients["outcome"].notna()]
    sizes = known["hospital"].value_counts().sort_index()
    chosen = sizes[sizes >= config.minimum_patients].index
    if chosen.empty:
        remedy = f"The largest has {int(sizes.max()) if len(sizes) else 0}."
        rule = "must leave at least one hospital"
        raise ConfigError("cohort.minimum_patients", rule, value=config.minimum_patients, remedy=remedy)
    kept = known[known["hospital"].isin(chosen)]
    events = events_of(kept)  # of all at once: a column of a large table costs no more than that of a small one
    hospital = events["subject_id"].map(kept.set_index("subject_id")["hospital"])
    for number, patients in kept.groupby("hospital"):
        name = f"hospital-{number:03d}"
        _write_hospital(patients, events[hospital == number], name, extracted_at, folder / "sites")


def sources(config: IstCohort) -> list[Path]:
    """The one file of which the cohort is made; raises ``ConfigError`` where it is not."""
    remedy = "Get it from doi:10.7488/ds/104 and say where it is: cohort.file=PATH"
    return [locate(config.file, "cohort.file", remedy)]


def locate(path: str, name: str, remedy: str) -> Path:
    """The file or folder at ``path``: relative to the current directory or else to the repository.

    Raises:
        ConfigError: there is none; ``name`` and ``remedy`` say which setting to mend and how.
    """
    for candidate in (Path(path), REPOSITORY / path):
        if candidate.exists():
            return candidate
    raise ConfigError(name, "must exist", value=path, remedy=remedy)


def read_patients(file: Path) -> pd.DataFrame:
    """The patients of the file, one a row: what was known at randomisation, and the outcome.

    Returns:
        ``subject_id`` (row number, from 1), ``hospital``, ``randomised_at``, ``outcome`` (null where unknown), and the
        columns of ``MEASURED`` (years, mmHg, hours) and ``CATEGORIES`` (upper case); null where the file is blank.

    Raises:
        ConfigError: a missing column, or a value that cannot be read.
    """
    table = _read_columns(file)
    patients = pd.DataFrame({"subject_id": range(1, len(table) + 1)})
    patients["hospital"] = _hospitals(table["HOSPNUM"])
    patients["randomised_at"] = _randomisation_times(table)
    patients["outcome"] = _numbers(table["OCCODE"]).map(OUTCOMES)
    for column in MEASURED:
        patients[column] = _numbers(table[column])
    for column in CATEGORIES:
        patients[column] = table[column].str.strip().str.upper().replace("", None)
    return patients


def _read_columns(file: Path) -> pd.DataFrame:
    try:
        # Only months have letters beyond ASCII, and they are read whatever became of theirs.
        table = pd.read_csv(
            file, dtype="str", encoding="utf-8-sig", encoding_errors="replace", usecols=lambda name: name in COLUMNS
        )
    except (OSError, ValueError) as error:  # pandas' own parser errors are ValueErrors
        raise ConfigError("cohort.file", "must be a readable CSV file", value=str(error).splitlines()[0]) from None
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        remedy = "Use the file as published (doi:10.7488/ds/104), with commas and a header line."
        raise ConfigError(f"cohort.file: column {missing[0]}", "must be present", remedy=remedy)
    return table


def _numbers(column: pd.Series) -> pd.Series:
    """The column as floats, null where blank."""
    numbers = pd.to_numeric(column.str.strip().replace("", None), errors="coerce")
    _refuse(column.notna() & (column.str.strip() != "") & numbers.isna(), column, "must hold numbers")
    return numbers


def _hospitals(column: pd.Series) -> pd.Series:
    numbers = _numbers(column)
    _refuse(numbers.isna() | (numbers < 0) | (numbers % 1 != 0), column, "must hold whole numbers")
    return numbers.astype("int64")


def _randomisation_times(table: pd.DataFrame) -> pd.Series:
    """When each patient was randomised, by the hospital's own clock.

    The file tells month and year only, so the first of the month stands for the day; an unknown hour (99) is noon.
    """
    parts = table["RDATE"].str.strip().str.lower().str.extract(r"^(pa|[a-z]{3}).{0,2}-(\d\d)$")
    months = parts[0].map(MONTHS)
    _refuse(months.isna(), table["RDATE"], "must hold month and year, such as sty-91 or Jan-91")
    days = pd.to_datetime({"year": 1900 + parts[1].astype("int64"), "month": months.astype("int64"), "day": 1})
    hours, minutes = _numbers(table["HOURLOCAL"]), _numbers(table["MINLOCAL"])
    hours, minutes = hours.where(hours.between(0, 23), 12), minutes.where(minutes.between(0, 59), 0)
    return days.astype("datetime64[us]") + pd.to_timedelta(hours * 60 + minutes, unit="min").astype("timedelta64[us]")


def _refuse(wrong: pd.Series, column: pd.Series, rule: str) -> None:
    if wrong.any():
        raise ConfigError(f"cohort.file: column {column.name}", rule, value=f"{int(wrong.sum())} row(s) that do not")


def _last_follow_up(patients: pd.DataFrame) -> str:
    """The first day on which the last outcome of the trial could be known, as ISO date."""
    if patients.empty:
        raise ConfigError("cohort.file", "must hold patients", value="a header only")
    last: pd.Timestamp = patients["randomised_at"].max()
    return (last + pd.Timedelta(days=HORIZON_DAYS)).ceil("D").date().isoformat()


def _write_hospital(patients: pd.DataFrame, events: pd.DataFrame, name: str, extracted_at: str, sites: Path) -> None:
    dataset = Dataset(
        site=name,
        extracted_at=extracted_at,
        units=dict(MEASURED.values()),
        horizons_days={TASK: HORIZON_DAYS},
    )
    labels = pd.DataFrame(
        {
            "subject_id": patients["subject_id"],
            "prediction_time": patients["randomised_at"],
            "boolean_value": patients["outcome"].astype(bool),
        }
    )
    write_site(sites / name, dataset, events, labels={TASK: labels})


def events_of(patients: pd.DataFrame) -> pd.DataFrame:
    """What was known at randomisation, as events an hour before it: inputs come from strictly before a prediction.

    Args:
        patients: as ``read_patients`` returns them.

    Returns:
        Columns of ``shared.site_folder.EVENTS``, without text; a blank gives no event.
    """
    keys = pd.DataFrame(
        {"subject_id": patients["subject_id"], "time": patients["randomised_at"] - pd.Timedelta(hours=1)}
    )
    measured = [
        keys.assign(code=code, numeric_value=patients[column]).dropna(subset="numeric_value")
        for column, (code, _) in MEASURED.items()
    ]
    observed = [keys.assign(code=f"IST//{column}//" + patients[column]).dropna(subset="code") for column in CATEGORIES]
    return pd.concat([*measured, *observed], ignore_index=True)
