"""Does a CSV file say in the site folder what its mapping says it says, and does a broken one say what is wrong?"""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.feature_list import read_features
from client.features import clinical_inputs
from client.ingest.delimited import read_columns
from client.ingest.export import BIRTH, DEATH, OBSERVED_FROM, OBSERVED_UNTIL, RECORDS, ExportError, LeftOut
from client.ingest.mapping import TableMapping, needed, read_mapping
from client.ingest.outcomes import LabelRows
from client.ingest.records import import_records
from client.ingest.table import read_table
from client.ingest.vocabulary import read_vocabulary
from shared.errors import ConfigError, FedretinaError
from shared.knobs import load
from shared.schema import check_site
from shared.site_folder import SiteFolder
from simulation.cohorts.ist import MEASURED, events_of, read_patients

REPOSITORY = Path(__file__).resolve().parents[3]
TRIAL = REPOSITORY / "../shared/data/ist/IST.csv"
TRIAL_MAPPING = REPOSITORY / "client/ingest/mappings/ist.yaml"
Read = tuple[list[tuple[str, str, str, float | None, str]], list[LabelRows], list[LeftOut]]
LAST = "23:59:59.999999"
WIDE: dict[str, Any] = {
    "patient": ["pid"],
    "time": {"columns": ["visit"], "format": "%d.%m.%Y"},
    "columns": {
        "rr": {"code": "LOINC//8480-6", "unit": "mmHg"},
        "sex": {"values": {"m": "SEX//M", "f": "SEX//F"}, "static": True},
        "af": {"values": {"Y": "ICD10//I48", "N": ""}},
    },
}


def mapping(**changes: Any) -> TableMapping:
    return load(TableMapping, {**WIDE, **changes})


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "export.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def read(file: Path, how: TableMapping, zone: str = "UTC", chunk_rows: int = 50_000) -> Read:
    """Records as tuples, labels and what was left out."""
    records, labels, left_out = [], [], []
    for item in read_table(file, how, zone, chunk_rows):
        if isinstance(item, LeftOut):
            left_out.append(item)
        elif isinstance(item, LabelRows):
            labels.append(item)
        else:
            assert tuple(item.columns) == RECORDS
            assert item["time"].dtype == "datetime64[us]"
            for patient, time, code, value, unit in item.itertuples(index=False):
                when = "" if pd.isna(time) else str(time)
                records.append((patient, when, code, None if pd.isna(value) else value, unit))
    return records, labels, left_out


def test_one_row_a_visit(tmp_path: Path) -> None:
    file = written(tmp_path, "other,pid,visit,rr,sex,af\nx, 7 ,03.02.2020,140,M,y\nx,8,04.02.2020,,f,N\nx,8,,90,,\n")
    records, _, left_out = read(file, mapping())
    assert sorted(records) == [
        ("7", "", "SEX//M", None, ""),
        ("7", f"2020-02-03 {LAST}", "ICD10//I48", None, ""),
        ("7", f"2020-02-03 {LAST}", "LOINC//8480-6", 140.0, "mmHg"),
        ("8", "", "LOINC//8480-6", 90.0, "mmHg"),
        ("8", "", "SEX//F", None, ""),
    ]
    assert left_out == []


def test_one_code_a_row(tmp_path: Path) -> None:
    how = load(
        TableMapping,
        {
            "patient": ["pid"],
            "time": {"columns": ["day", "hour"], "format": "%Y-%m-%d %H"},
            "long": {"code": "code", "vocabulary_column": "system", "value": "value", "unit": "unit"},
            "delimiter": ";",
            "decimal": ",",
        },
    )
    text = (
        "pid;day;hour;system;code;value;unit\n1;2020-01-01;8;LOINC;4548-4;7,5;%\n1;2020-01-01;9;ICD10;I10;;\n"
        "1;2020-01-01;9;LOINC;72166-2;LA15920-4;\n1;2020-01-01;9;LOINC;4548-4;high;%\n1;2020-01-01;9;LOINC;;7;%\n"
    )
    records, _, left_out = read(written(tmp_path, text), how)
    assert records == [
        ("1", "2020-01-01 08:00:00", "LOINC//4548-4", 7.5, "%"),
        ("1", "2020-01-01 09:00:00", "ICD10//I10", None, ""),
        ("1", "2020-01-01 09:00:00", "LOINC//72166-2//LA15920-4", None, ""),
    ]
    assert {(item.reason, item.about) for item in left_out} == {
        ("a value that is not a number", "column value"),
        ("a row without a code", ""),
    }


def test_dates_of_what_happened_once(tmp_path: Path) -> None:
    dates = {
        "born": {"code": BIRTH, "format": "%d %b %Y"},
        "died": {"code": DEATH},
        "from": {"code": OBSERVED_FROM},
        "to": {"code": OBSERVED_UNTIL},
        "stroke": {"code": "ICD10//I63", "format": "%d-%m-%Y", "replace": {"märz": "03"}},
    }
    how = load(TableMapping, {"patient": ["house", "pid"], "dates": dates})
    text = "pid,house,born,died,from,to,stroke\n1,a,3 Feb 1950,,2019-01-01,2021-05-06T07:08:09,02-März-2020\n1,,,,,,\n"
    records, _, _ = read(written(tmp_path, text), how)
    assert sorted((code, when) for _, when, code, _, _ in records) == [
        ("ICD10//I63", f"2020-03-02 {LAST}"),
        (BIRTH, "1950-02-03 00:00:00"),
        (OBSERVED_UNTIL, "2021-05-06 07:08:09"),
        (OBSERVED_FROM, "2019-01-01 00:00:00"),
    ]
    assert {patient for patient, *_ in records} == {"a\x1f1"}


def test_times_with_a_zone_are_told_by_the_sites_clock(tmp_path: Path) -> None:
    how = load(TableMapping, {"patient": ["pid"], "dates": {"died": {"code": DEATH}}})
    times = [
        "2020-07-01T10:00:00Z",
        "2020-07-01T10:00:00+05:00",
        "2020-07-01 10:00",
        "2020-01-05",
        "nonsense",
        "20200105",
    ]
    file = written(tmp_path, "pid,died\n" + "".join(f"1,{time}\n" for time in times))
    records, _, _ = read(file, how, "Europe/Berlin")
    found = [when for _, when, *_ in records]
    assert found == [
        *("2020-07-01 12:00:00", "2020-07-01 07:00:00", "2020-07-01 10:00:00"),
        *(f"2020-01-05 {LAST}", "", f"2020-01-05 {LAST}"),
    ]


@pytest.mark.parametrize("written_time", ["2020-06-01", "2020-06-01 00:00:00", "2020-06-01 15:00"])
def test_what_may_have_been_recorded_after_a_scan_is_not_seen_at_it(tmp_path: Path, written_time: str) -> None:
    """A date without a time of day could be of three in the afternoon."""
    how = mapping(time={"columns": ["visit"]}, dates={"noted": {"code": "ICD10//I10"}})
    file = written(tmp_path, f"pid,visit,rr,sex,af,noted\n1,{written_time},140,m,Y,{written_time}\n")
    (tmp_path / "dataset.yaml").write_text("site: north\n", encoding="utf-8")
    import_records(tmp_path, "csv", file, read_table(file, how), read_vocabulary(), Numbers())
    subject = Numbers().subject_id("1")
    for scan, seen in (("2020-06-01 10:00", 1.0), ("2020-06-02 10:00", 143.0)):  # male; and pressure, AF, hypertension
        cases = pd.DataFrame({"subject_id": [subject], "prediction_time": [pd.Timestamp(scan)]})
        features = read_features()
        inputs, _ = clinical_inputs(SiteFolder(tmp_path).events(), cases, features)
        ages = slice(len(features.numeric) + 1, 2 * len(features.numeric) + 2)
        inputs[:, ages] = 0
        assert np.nansum(inputs) == seen


@pytest.mark.parametrize(
    ("written_time", "form", "last", "middle"),
    [
        ("2020", "ISO8601", "2020-12-31", "2020-07-01"),
        ("2020-02", "ISO8601", "2020-02-29", "2020-02-15"),
        ("02/2020", "%m/%Y", "2020-02-29", "2020-02-15"),
        ("2020", "%Y", "2020-12-31", "2020-07-01"),
    ],
)
def test_what_is_known_to_the_month_or_year_counts_from_its_end(
    tmp_path: Path, written_time: str, form: str, last: str, middle: str
) -> None:
    first = f"{last[:4]}-01-01" if middle[5:7] == "07" else f"{last[:8]}01"
    codes = {"a": BIRTH, "b": DEATH, "c": OBSERVED_FROM, "d": OBSERVED_UNTIL, "e": "ICD10//I63"}
    time = {"columns": ["visit"], "format": form}
    how = load(
        TableMapping,
        {
            "patient": ["pid"],
            "time": time,
            "columns": {"rr": {"code": "LOINC//8480-6", "unit": "mmHg"}, "af": {"prefix": "X", "time": time}},
            "dates": {name: {"code": code, "format": form} for name, code in codes.items()},
            "labels": {"death": {"column": "af", "values": {"1": True}, "horizon_days": 30}},
        },
    )
    file = written(tmp_path, "pid,visit,rr,af,a,b,c,d,e\n1" + f",{written_time},140,1" + f",{written_time}" * 5 + "\n")
    records, ((labels),), _ = read(file, how)
    assert {code: when for _, when, code, _, _ in records} == {
        **dict.fromkeys(["LOINC//8480-6", "X//1", DEATH, OBSERVED_UNTIL, "ICD10//I63"], f"{last} {LAST}"),
        BIRTH: f"{middle} 00:00:00",
        OBSERVED_FROM: f"{first} 00:00:00",
    }
    assert labels.rows["prediction_time"].astype("str").tolist() == [first]


def test_an_age_in_a_year_tells_a_birth_to_a_year(tmp_path: Path) -> None:
    how = load(TableMapping, {"patient": ["pid"], "time": {"columns": ["visit"]}, "age": {"column": "age"}})
    ((_, when, _, _, _),), _, _ = read(written(tmp_path, "pid,visit,age\n1,2020,50\n"), how)
    assert when[:4] in ("1969", "1970")  # born from 2 January 1969 to 31 December 1970
    assert abs((pd.Timestamp(when) - pd.Timestamp("1970-01-01")).days) <= 3  # born from 1969 to 1970


def test_a_word_for_a_date_is_quarantined_and_not_the_time_of_the_import(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("site: north\n", encoding="utf-8")
    how = mapping(time={"columns": ["visit"]})
    file = written(tmp_path, "pid,visit,rr,sex,af\n1,now,140,m,Y\n2,today,140,m,Y\n3,2020-01-01,140,m,Y\n")
    contents = []
    for _ in range(2):
        summary = import_records(tmp_path, "csv", file, read_table(file, how), read_vocabulary(), Numbers())
        contents.append((tmp_path / "events.parquet").read_bytes())
    assert contents[0] == contents[1]
    assert {str(when) for when in SiteFolder(tmp_path).events()["time"].dropna()} == {f"2020-01-01 {LAST}"}
    assert sum(item.count for item in summary.left_out if item.outcome == "quarantined") == 4


NUMBERS = st.builds(
    lambda sign, digits, decimals, exponent: (sign, digits, decimals, exponent),
    st.sampled_from(["", "+", "-"]),
    st.integers(0, 10**6),
    st.none() | st.integers(0, 10**4),
    st.sampled_from(["", "e2", "E-3", "e+1"]),
)


@given(NUMBERS, st.sampled_from(".,"), st.sampled_from(".,"))
@settings(max_examples=60, deadline=None)
def test_a_number_is_one_in_the_stated_notation_only(
    tmp_path_factory: pytest.TempPathFactory, number: tuple[str, int, int | None, str], used: str, stated: str
) -> None:
    sign, digits, decimals, exponent = number
    text, plain = (
        f"{sign}{digits}" + ("" if decimals is None else f"{one}{decimals}") + exponent for one in (used, ".")
    )
    file = written(tmp_path_factory.mktemp("number"), f"pid;visit;rr;sex;af\n1;01.01.2020;{text};;\n")
    records, _, left_out = read(file, mapping(decimal=stated, delimiter=";"))
    if decimals is None or used == stated:
        assert [value for *_, value, _ in records] == [float(plain)]
        assert left_out == []
    else:
        assert records == []
        assert [item.count for item in left_out] == [1]


@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize(
    "text", ["1.200,5", "1,200.5", "1.2.3", "1 200", "1_200", "inf", "NaN", "0x1F", "1e999", "٣", "."]
)
def test_what_is_no_plain_number_is_left_out(tmp_path: Path, decimal: str, text: str) -> None:
    file = written(tmp_path, f"pid;visit;rr;sex;af\n1;01.01.2020;{text};;\n")
    records, _, left_out = read(file, mapping(decimal=decimal, delimiter=";"))
    assert records == []
    assert [item.count for item in left_out] == [1]


@given(st.dates(date(1930, 1, 1), date(2010, 1, 1)), st.dates(date(2010, 1, 1), date(2024, 1, 1)))
@settings(max_examples=8, deadline=None)
def test_an_age_tells_a_birth_to_half_a_year(tmp_path_factory: pytest.TempPathFactory, born: date, visit: date) -> None:
    age = visit.year - born.year - ((visit.month, visit.day) < (born.month, born.day))
    how = load(TableMapping, {"patient": ["pid"], "time": {"columns": ["visit"]}, "age": {"column": "age"}})
    file = written(tmp_path_factory.mktemp("age"), f"pid,visit,age\n1,{visit},{age}\n")
    ((_, when, code, _, _),), _, _ = read(file, how)
    assert code == BIRTH
    assert abs((pd.Timestamp(when) - pd.Timestamp(born)).days) <= 185


def test_outcomes_become_labels(tmp_path: Path) -> None:
    label = {"column": "dead", "values": {"ja": True, "nein": False}, "horizon_days": 30}
    how = mapping(labels={"death": label}, hours_before=2.0)
    text = "pid,visit,rr,sex,af,dead\n7,03.02.2020,140,M,y,JA\n8,03.02.2020,140,M,y,nein\n9,03.02.2020,140,M,y,?\n"
    records, labels, left_out = read(written(tmp_path, text), how)
    assert {when for _, when, *_ in records} == {"", "2020-02-02 22:00:00"}
    ((rows, horizon),) = [(one.rows, one.horizon_days) for one in labels]
    assert rows["patient"].tolist() == ["7", "8"]
    assert rows["boolean_value"].tolist() == [True, False]
    assert set(rows["prediction_time"].astype(str)) == {"2020-02-03"}
    assert horizon == 30
    assert left_out == [LeftOut("skipped", "a row without a label", about="task death")]


@pytest.mark.skipif(not TRIAL.exists(), reason="the trial's file (doi:10.7488/ds/104) is not here")
def test_a_hospital_of_the_stroke_trial_is_what_the_cohort_makes_of_it(tmp_path: Path) -> None:
    class RowNumbers:
        def subject_id(self, original: str) -> int:
            return int(original)

    (tmp_path / "dataset.yaml").write_text("site: hospital-039\n", encoding="utf-8")
    site = SiteFolder(tmp_path)
    how = replace(read_mapping(TRIAL_MAPPING), where={"HOSPNUM": ("39",)})
    features = read_features(REPOSITORY / "configs/features/ist.yaml")
    summary = import_records(
        site, "csv", TRIAL, read_table(TRIAL, how), read_vocabulary(), RowNumbers(), features=features
    )
    patients = read_patients(TRIAL)
    patients = patients[patients["hospital"] == 39]
    columns = ["subject_id", "time", "code", "numeric_value"]
    ours, theirs = (
        frame[columns].sort_values(columns, ignore_index=True) for frame in (site.events(), events_of(patients))
    )
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
    known = patients[patients["outcome"].notna()]
    labels = site.labels("outcome").set_index("subject_id")
    assert labels["boolean_value"].to_dict() == known.set_index("subject_id")["outcome"].to_dict()
    assert labels["prediction_time"].to_dict() == known.set_index("subject_id")["randomised_at"].to_dict()
    assert site.dataset().units == dict(MEASURED.values())
    assert summary.left_out == ()
    check_site(site)


def test_the_trials_months_are_read_in_every_spelling(tmp_path: Path) -> None:
    how = read_mapping(TRIAL_MAPPING)
    months = ("paź-91", "pa?-91", "pa\ufffd-91", "Oct-91", "OCT-91")
    blank = dict.fromkeys(needed(how), "")
    rows = [{**blank, "RDATE": month, "HOURLOCAL": "99", "AGE": "70", "OCCODE": "1"} for month in months]
    pd.DataFrame(rows).to_csv(tmp_path / "export.csv", index=False)
    records, labels, _ = read(tmp_path / "export.csv", how)
    assert {(when, code) for _, when, code, _, _ in records} == {("1991-10-01 11:00:00", "IST//AGE")}
    assert labels[0].rows["prediction_time"].nunique() == 1


@pytest.mark.parametrize("chunk_rows", [1, 2, 7])
def test_chunks_do_not_matter(tmp_path: Path, chunk_rows: int) -> None:
    rows = [f"{n % 3},0{n % 9 + 1}.01.2020,{100 + n},{'mf'[n % 2]},{'YN?'[n % 3]}\n" for n in range(10)]
    file = written(tmp_path, "pid,visit,rr,sex,af\n" + "".join([*rows[:5], "too,short\n", "\n", *rows[5:]]))
    whole, pieces = read(file, mapping()), read(file, mapping(), chunk_rows=chunk_rows)
    assert sorted(whole[0]) == sorted(pieces[0])
    for counted in (whole[2], pieces[2]):
        assert sum(item.count for item in counted if "fields" in item.reason) == 1
        assert sum(item.count for item in counted if "name" in item.reason) == 3


def test_missing_columns_are_named_at_once_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"missing: sex, af, visit\. There are: pid, rr, x\.") as caught:
        read(written(tmp_path, "pid,rr,x\n1,2,3\n"), mapping())
    assert "\n" not in str(caught.value)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="column rr must be there once"):
        read(written(tmp_path, "pid,visit,rr,sex,af,rr\n"), mapping())


def test_encodings(tmp_path: Path) -> None:
    text = "pid,visit,rr,sex,af\nMüller,03.02.2020,140,m,Y\n"
    utf8, bom = (
        read(written(tmp_path, text), mapping()),
        read(written(tmp_path, b"\xef\xbb\xbf" + text.encode()), mapping()),
    )
    assert utf8 == bom == read(written(tmp_path, text.encode("cp1252")), mapping(encoding="windows-1252"))
    assert utf8 == read(written(tmp_path, text.encode("utf-16")), mapping(encoding="utf-16"))
    for encoding in ("no-such", "hex"):
        with pytest.raises(ExportError, match="encoding"):
            read(written(tmp_path, text), mapping(encoding=encoding))


def broken(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files that are no CSV export, by what is wrong with them."""
    good = b"pid,visit,rr,sex,af\n" + b"7,03.02.2020,140,m,Y\n" * 50
    contents = {
        "nothing": b"",
        "blank lines": b"\n\n\n",
        "not UTF-8": good + "Müller,03.02.2020,1,m,Y\n".encode("cp1252"),
        "compressed": gzip.compress(good),
        "a quote that is never closed": good + b'7,"03.02.2020,140,m,Y\n' + good,
        "such a quote before much": b'pid,visit,rr,sex,af\n"' + b"7,03.02.2020,140,m,Y\n" * 10_000,
        "a quote within": good + b'7,"03.02"2020,140,m,Y\n',
        "a very long field": b"pid,visit,rr,sex,af\n" + b"7" * 200_000 + b",03.02.2020,140,m,Y\n",
        "a picture": bytes(random.Random(1).randrange(256) for _ in range(5000)),
        "another delimiter": good.replace(b",", b";"),
    }
    for name, content in contents.items():
        yield name, written(folder, content)
    with (folder / "zeros.csv").open("wb") as stream:
        stream.truncate(2**30)  # a gigabyte that takes no room
    yield "zeros", folder / "zeros.csv"
    yield "a folder", folder
    yield "not there", folder / "absent.csv"


def test_a_file_that_is_none_is_refused_in_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    for name, file in broken(tmp_path):
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        (site / "dataset.yaml").write_text("site: north\n", encoding="utf-8")
        with pytest.raises(FedretinaError) as caught:
            import_records(site, "csv", file, read_table(file, mapping()), read_vocabulary(), Numbers())
        assert "\n" not in str(caught.value), name
        assert len(str(caught.value)) < 500, name
        assert sorted(path.name for path in site.rglob("*") if path.is_file()) == ["dataset.yaml", "lock"], name


class Numbers:
    """Any pseudonyms."""

    def subject_id(self, original: str) -> int:
        return sum(original.encode()) + 1


def test_a_file_of_100_000_columns(tmp_path: Path) -> None:
    names = [*(f"c{number}" for number in range(100_000)), "pid", "visit", "rr", "sex", "af"]
    values = [*("x" for _ in range(100_000)), "7", "03.02.2020", "140", "m", "Y"]
    file = written(tmp_path, ",".join(names) + "\n" + (",".join(values) + "\n") * 3)
    records, _, _ = read(file, mapping())
    assert len(records) == 9
    with pytest.raises(ExportError) as caught:
        read(file, mapping(patient=["absent"]))
    assert len(str(caught.value)) < 500


@pytest.mark.timeout(40)
def test_20_000_of_100_000_columns_are_found_in_seconds(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(100_003)]
    file = written(tmp_path, ",".join(names) + "\n" + ",".join(names) + "\n")
    (frame,) = read_columns(file, names[-20_000:])
    assert frame.iloc[0, :-1].tolist() == names[-20_000:]


def test_many_columns_give_one_table(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(300)]
    file = written(tmp_path, ",".join([*names, "pid", "visit"]) + "\n" + "x," * 300 + "7,03.02.2020\n")
    (records,) = read_table(file, mapping(columns={name: {"prefix": "X"} for name in names}))
    assert len(records) == 300


@pytest.mark.timeout(20)
def test_a_pipe_or_a_folder_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportError, match="must be a regular file, got 'a pipe or device'"):
        read(tmp_path / "pipe", mapping())
    with pytest.raises(ExportError, match="must be a regular file"):
        read_mapping(tmp_path / "pipe")
    with pytest.raises(ExportError, match="must be one file, got 'a folder'") as caught:
        read(tmp_path, mapping())
    assert caught.value.remedy


@given(st.integers(0, 2**32), st.sampled_from(["flip", "cut", "insert"]))
@settings(max_examples=30, deadline=None)
def test_damage_is_an_error_or_is_counted(tmp_path_factory: pytest.TempPathFactory, seed: int, damage: str) -> None:
    """Every row of a damaged file is read, or it is an error in one line, or a count."""
    draw = random.Random(seed)
    content = bytearray(b"pid,visit,rr,sex,af\n" + b"7,03.02.2020,140,m,Y\n" * 5)
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(20, len(content))
        if damage == "flip":
            content[place] ^= 1 << draw.randrange(8)
        elif damage == "cut":
            del content[place : place + draw.randrange(30)]
        else:
            content[place:place] = draw.choice([b"\0", b'"', b"\r", b"\n", b",", b"\xff", b"\xe2\x80\xa8"])
        if len(content) < 22:
            break
    file, error = written(tmp_path_factory.mktemp("damage"), bytes(content)), ""
    try:
        records, _, left_out = read(file, mapping())
    except ExportError as caught:
        error, records, left_out = str(caught), [], []
    assert "\n" not in error
    assert all(item.count > 0 and "\n" not in item.reason for item in left_out)
    assert error or records or left_out or len(content) < 42


@pytest.mark.parametrize(
    "text",
    [
        *["", "[1]", "{", "patient: pid", "patient: [pid]\nnothing: 1", "!!python/object/apply:os.system [ls]"],
        *["columns: {a: {code: X//1}}", "columns: {a: {prefix: X, code: X//1, unit: kg}}", "columns: {a: {}}"],
        *["columns: {a: {prefix: X}}", "delimiter: ab\ndates: {a: {code: MEDS_BIRTH}}", "? [a]\n: b"],
        *["dates: {a: {code: MEDS_BIRTH}}\nlabels: {../a: {column: b, values: {1: true}, horizon_days: 1}}"],
        *[
            "long: {code: a, vocabulary: X, vocabulary_column: b}\ntime: {columns: [t]}",
            "time: {columns: []}\nage: {column: a}",
            "time: {columns: [t], format: mixed}\nage: {column: a}",
            'dates: {a: {code: MEDS_BIRTH, format: "%Q"}}',
        ],
    ],
)
def test_a_mapping_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mapping.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises((ExportError, ConfigError)) as caught:
        read_mapping(file)
    assert "\n" not in str(caught.value)


def test_values_are_read_as_they_are_written(tmp_path: Path) -> None:
    """YAML would make numbers and booleans of them."""
    file = tmp_path / "mapping.yaml"
    file.write_text(
        "columns: {a: {values: {1: A//1, no: A//2, 0.50: A//3, 2020-01-01: A//4}, static: true}}", encoding="utf-8"
    )
    assert list(read_mapping(file).columns["a"].values) == ["1", "no", "0.50", "2020-01-01"]


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/records.md").read_text(encoding="utf-8")
    example = page.split("```yaml\n")[1].split("```")[0]
    rows = page.split("```csv\n")[1].split("```")[0]
    (tmp_path / "mapping.yaml").write_text(example, encoding="utf-8")
    records, _, left_out = read(written(tmp_path, rows), read_mapping(tmp_path / "mapping.yaml"))
    assert left_out == []
    assert {code for _, _, code, _, _ in records} >= {BIRTH, "LOINC//8480-6", "LOINC//4548-4", "SEX//F", "ICD10//I48"}
