from __future__ import annotations

import contextlib
import csv
import io
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.ingest.export import DEATH, QUARANTINED, RECORDS, SKIPPED, ExportError, LeftOut
from client.ingest.omop import read_omop
from client.ingest.omop.people import at_the_latest, clock

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "omop" / "Synthea27Nj_5.4.zip"
needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason="the OMOP sample is not at hand")

Table = list[dict[str, str]]
CONCEPT: Table = [
    {"concept_id": "1", "vocabulary_id": "LOINC", "concept_code": "8480-6"},
    {"concept_id": "2", "vocabulary_id": "SNOMED", "concept_code": "38341003"},
    {"concept_id": "3", "vocabulary_id": "ICD10CM", "concept_code": "I10"},
    {"concept_id": "4", "vocabulary_id": "ICD9CM", "concept_code": "401.9"},
    {"concept_id": "5", "vocabulary_id": "UCUM", "concept_code": "mm[Hg]"},
    {"concept_id": "6", "vocabulary_id": "LOINC", "concept_code": "72166-2"},
    {"concept_id": "7", "vocabulary_id": "LOINC", "concept_code": "LA18978-9"},
]
PERSON = {
    "person_id": "10",
    "gender_concept_id": "8507",
    "year_of_birth": "1950",
    "month_of_birth": "3",
    "day_of_birth": "4",
    "birth_datetime": "1950-03-04 00:00:00",
    "person_source_value": "MRN7",
}
PRESSURE = {
    "person_id": "10",
    "measurement_concept_id": "1",
    "measurement_date": "2020-01-02",
    "measurement_datetime": "2020-01-02 10:30:00",
    "value_as_number": "120.5",
    "unit_concept_id": "5",
    "unit_source_value": "mmHg",
    "operator_concept_id": "0",
}
CONDITION = {
    "person_id": "10",
    "condition_concept_id": "2",
    "condition_source_concept_id": "3",
    "condition_start_date": "2020-01-02",
    "condition_start_datetime": "2020-01-02 00:00:00",
}
OBSERVATION = {
    "person_id": "10",
    "observation_concept_id": "6",
    "observation_date": "2020-01-02",
    "value_as_number": "",
    "value_as_concept_id": "7",
}
PERIOD = {
    "person_id": "10",
    "observation_period_start_date": "2010-01-01",
    "observation_period_end_date": "2021-12-31",
}
DEAD = {"person_id": "10", "death_date": "2022-05-06"}


def small_cdm() -> dict[str, Table]:
    return {
        "concept": CONCEPT,
        "person": [PERSON],
        "measurement": [PRESSURE],
        "condition_occurrence": [CONDITION],
        "observation": [OBSERVATION],
        "observation_period": [PERIOD],
        "death": [DEAD],
    }


def as_csv(table: Table, separator: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(table[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue().encode()


def write_cdm(folder: Path, tables: Mapping[str, Table]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        (folder / f"{name}.csv").write_bytes(as_csv(table))
    return folder


def zipped(file: Path, entries: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file


def read(export: Path, chunk_rows: int = 1000, **options: bool) -> tuple[pd.DataFrame, Counter[tuple[str, str]]]:
    """The events in an order that does not depend on the export's, and how many rows were left out for each reason."""
    tables, left = [pd.DataFrame({name: [] for name in RECORDS})], Counter[tuple[str, str]]()
    for item in read_omop(export, chunk_rows, **options):
        if isinstance(item, LeftOut):
            left[item.outcome, item.reason] += item.count
        else:
            assert list(item) == list(RECORDS)
            assert len(item) <= 2 * chunk_rows
            tables.append(item)
    events = pd.concat(tables[1:] or tables, ignore_index=True)
    return events.sort_values(list(RECORDS), ignore_index=True), left


def same(first: tuple[pd.DataFrame, object], second: tuple[pd.DataFrame, object]) -> None:
    pd.testing.assert_frame_equal(first[0], second[0])
    assert first[1] == second[1]


def read_changed(tmp_path: Path, table: str, *rows: dict[str, str]) -> tuple[pd.DataFrame, Counter[tuple[str, str]]]:
    """What one table of the small CDM becomes with other rows: each the usual one with some cells changed."""
    usual = small_cdm()[table][0]
    cdm = {"concept": CONCEPT, "person": [PERSON], table: [{**usual, **row} for row in rows]}
    events, left = read(write_cdm(tmp_path / "cdm", cdm))
    others = [reason for reason in left if not reason[1].startswith(f"table {table}:")]
    for reason in others:
        del left[reason]
    if table != "person":
        events = events[~events["code"].isin(["MEDS_BIRTH", "SEX//M"])].reset_index(drop=True)
    return events, left


def test_small_cdm_becomes_events(tmp_path: Path) -> None:
    events, left = read(write_cdm(tmp_path / "cdm", small_cdm()))
    found = {
        row.code: (row.patient, str(row.time), row.value, row.unit) for row in events.fillna({"value": -1}).itertuples()
    }
    assert found == {
        "MEDS_BIRTH": ("10", "1950-03-04 00:00:00", -1, ""),
        "SEX//M": ("10", "NaT", -1, ""),
        "LOINC//8480-6": ("10", "2020-01-02 10:30:00", 120.5, "mm[Hg]"),
        "ICD10CM//I10": ("10", "2020-01-02 23:59:59.999999", -1, ""),
        "LOINC//72166-2//never": ("10", "2020-01-02 23:59:59.999999", -1, ""),
        "OBSERVATION//START": ("10", "2010-01-01 00:00:00", -1, ""),
        "OBSERVATION//END": ("10", "2021-12-31 23:59:59.999999", -1, ""),
        "MEDS_DEATH": ("10", "2022-05-06 23:59:59.999999", -1, ""),
    }
    assert not left


def rows_of_sample(name: str) -> list[dict[str, str]]:
    with zipfile.ZipFile(SAMPLE) as archive:
        return list(csv.DictReader(io.StringIO(archive.read(f"{name}.csv").decode())))


@pytest.fixture(scope="module")
def sample() -> tuple[pd.DataFrame, Counter[tuple[str, str]]]:
    return read(SAMPLE, 200_000)


@needs_sample
def test_sample_agrees_with_another_reading_of_it(sample: tuple[pd.DataFrame, Counter[tuple[str, str]]]) -> None:
    events, left = sample
    concepts = {row["concept_id"]: row for row in rows_of_sample("CONCEPT")}

    def code(concept_id: str) -> str:
        return f"{concepts[concept_id]['vocabulary_id']}//{concepts[concept_id]['concept_code']}"

    measured = Counter(
        (row["person_id"], code(row["measurement_concept_id"]), float(row["value_as_number"]), row["unit_source_value"])
        for row in rows_of_sample("MEASUREMENT")
        if row["value_as_number"]
    )
    numbers = events[events["value"].notna()]
    assert measured == Counter(zip(numbers.patient, numbers.code, numbers.value, numbers.unit, strict=True))
    recorded = Counter(
        (row["person_id"], code(row["condition_concept_id"]), row["condition_start_date"])
        for row in rows_of_sample("CONDITION_OCCURRENCE")
    )
    recorded.update(
        (row["person_id"], code(row["observation_concept_id"]), row["observation_date"])
        for row in rows_of_sample("OBSERVATION")
        if code(row["observation_concept_id"]).startswith("SNOMED")
    )
    coded = events[events["code"].str.startswith("SNOMED") & events["value"].isna()]
    assert recorded == Counter(zip(coded.patient, coded.code, coded.time.dt.date.astype(str), strict=True))
    people = rows_of_sample("PERSON")
    assert Counter(events["code"])["MEDS_BIRTH"] == len(people) == 28
    assert Counter(events["code"])["SEX//F"] == sum(row["gender_concept_id"] == "8532" for row in people)
    assert Counter(events["code"])[DEATH] == len(rows_of_sample("DEATH"))
    for table in ("MEASUREMENT", "OBSERVATION"):
        events_of_table = numbers if table == "MEASUREMENT" else events[events["code"].str.startswith("SNOMED")]
        conditions = 0 if table == "MEASUREMENT" else len(rows_of_sample("CONDITION_OCCURRENCE"))
        dropped = sum(count for (_, reason), count in left.items() if f"table {table.lower()}:" in reason)
        assert len(events_of_table) - conditions + dropped == len(rows_of_sample(table))


@needs_sample
def test_zip_folder_and_parquet_of_the_sample_are_the_same(
    tmp_path: Path, sample: tuple[pd.DataFrame, Counter[tuple[str, str]]]
) -> None:
    wanted = ("PERSON", "MEASUREMENT", "CONDITION_OCCURRENCE", "OBSERVATION", "OBSERVATION_PERIOD", "DEATH", "CONCEPT")
    with zipfile.ZipFile(SAMPLE) as archive:
        archive.extractall(tmp_path / "folder")
    for file in (tmp_path / "folder").rglob("*.csv"):
        parquet = tmp_path / "parquet" / file.relative_to(tmp_path / "folder").with_suffix(".parquet")
        parquet.parent.mkdir(exist_ok=True)
        if file.stem in wanted:
            pq.write_table(pacsv.read_csv(file), parquet)
        else:
            parquet.write_bytes(b"")  # never opened
    _, left = sample
    assert left[SKIPPED, "a table of the CDM that is not read"] == 32
    assert left[SKIPPED, "a hidden file"] == 1
    assert left[SKIPPED, "a file that is no table of the CDM"] == 0
    same(sample, read(tmp_path / "folder", 7000))
    same(sample, read(tmp_path / "parquet", 7000))


def test_writing_of_an_export_does_not_matter(tmp_path: Path) -> None:
    cdm, content = small_cdm(), {name: as_csv(table) for name, table in small_cdm().items()}
    plain = read(write_cdm(tmp_path / "plain", cdm))
    same(
        plain,
        read(zipped(tmp_path / "nested.zip", {f"cdm/{name.upper()}.CSV": data for name, data in content.items()})),
    )
    mac = {"__MACOSX/._person.csv": b"\x00", "._person.csv": b"\x00", "readme.pdf": b"", "provider.csv": b"x"}
    events, left = read(zipped(tmp_path / "mac.zip", mac | {f"{name}.csv": data for name, data in content.items()}))
    assert left == {
        (SKIPPED, "a hidden file"): 2,
        (SKIPPED, "a file that is no table of the CDM"): 1,
        (SKIPPED, "a table of the CDM that is not read"): 1,
    }
    same(plain, (events, plain[1]))
    for name, change in {
        "bom": lambda table: b"\xef\xbb\xbf" + as_csv(table),
        "tabs": lambda table: as_csv(table, "\t"),
        "capitals": lambda table: as_csv([{key.upper(): cell for key, cell in row.items()} for row in table]),
        "quotes": lambda table: as_csv([row | {"note": 'a, "b"\nc'} for row in table]),
        "unix": lambda table: as_csv(table).replace(b"\r\n", b"\n"),
        "decimals": lambda table: as_csv(
            [{k: f"{c}.0" if c.isdigit() else c for k, c in row.items()} for row in table]
        ),
    }.items():
        assert callable(change)
        folder = write_cdm(tmp_path / name, {})
        for table, rows in cdm.items():
            codes_stay = rows if table == "concept" and name == "decimals" else None
            (folder / f"dbo.{table}.csv").write_bytes(as_csv(rows) if codes_stay else change(rows))
        same(plain, read(folder))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_parts_of_a_table_are_the_table(tmp_path: Path, kind: str) -> None:
    cdm = small_cdm()
    cdm["measurement"] = [{**PRESSURE, "value_as_number": str(100 + i)} for i in range(10)]
    whole = read(write_cdm(tmp_path / "whole", cdm))
    parts = write_cdm(tmp_path / "parts", {name: table for name, table in cdm.items() if name != "measurement"})
    folder = parts / f"measurement.{kind}"
    folder.mkdir()
    (folder / ".part-0.crc").write_bytes(b"")
    (folder / "_SUCCESS").write_bytes(b"")
    for number, rows in enumerate([cdm["measurement"][:3], cdm["measurement"][3:]]):
        if kind == "csv":
            (folder / f"part-{number}.csv").write_bytes(as_csv(rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{number}.parquet")
    events, left = read(parts, 2)
    assert left == {(SKIPPED, "a hidden file"): 2}
    same(whole, (events, whole[1]))


def test_parquet_in_a_zip_is_read(tmp_path: Path) -> None:
    content = {}
    for name, table in small_cdm().items():
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(table), file)
        content[f"{name}.parquet"] = file.getvalue()
    same(read(zipped(tmp_path / "cdm.zip", content)), read(write_cdm(tmp_path / "cdm", small_cdm())))


@given(
    st.datetimes(min_value=pd.Timestamp(1850, 1, 1), max_value=pd.Timestamp(2100, 1, 1)),
    st.sampled_from(["", "Z", "+05:00", "-0330"]),
)
def test_no_time_comes_before_the_one_that_is_written(moment: pd.Timestamp, offset: str) -> None:
    written = pd.Series([moment.isoformat(), moment.date().isoformat(), f"{moment.date()}T00:00:00{offset}"])
    times = at_the_latest(clock(written))
    assert times[0] == moment or (moment.time().isoformat() == "00:00:00" and times[0] > moment)
    end_of_day = pd.Timestamp(moment.date()) + pd.Timedelta(days=1) - pd.Timedelta(microseconds=1)
    assert list(times[1:]) == [end_of_day] * 2


@pytest.mark.parametrize(
    ("cells", "born"),
    [
        ({}, "1950-03-04"),
        ({"birth_datetime": "1950-03-04 05:30:00"}, "1950-03-04 05:30"),
        ({"birth_datetime": ""}, "1950-03-04"),
        ({"birth_datetime": "", "day_of_birth": ""}, "1950-03-15"),
        ({"birth_datetime": "", "day_of_birth": "", "month_of_birth": ""}, "1950-07-01"),
        ({"birth_datetime": "", "day_of_birth": "0", "month_of_birth": "0"}, "1950-07-01"),
        ({"birth_datetime": "", "year_of_birth": "1950.0", "month_of_birth": "12.0"}, "1950-12-04"),
        ({"birth_datetime": "", "day_of_birth": "31", "month_of_birth": "2"}, None),
        ({"birth_datetime": "", "year_of_birth": ""}, None),
        ({"birth_datetime": "", "year_of_birth": "unknown"}, None),
    ],
)
def test_birth_is_as_exact_as_it_is_known(tmp_path: Path, cells: dict[str, str], born: str | None) -> None:
    events, left = read_changed(tmp_path, "person", cells)
    births = events.loc[events["code"] == "MEDS_BIRTH", "time"].tolist()
    assert births == ([] if born is None else [pd.Timestamp(born)])
    assert sum(left.values()) == (born is None)


def test_sex_that_is_neither_is_left_out(tmp_path: Path) -> None:
    events, left = read_changed(
        tmp_path, "person", {"gender_concept_id": "8532"}, {"gender_concept_id": "8521"}, {"gender_concept_id": "0"}
    )
    assert events["code"].tolist().count("SEX//F") == 1
    assert left == {(SKIPPED, "table person: sex is neither male nor female"): 2}


@pytest.mark.parametrize(
    ("standard", "source", "code"),
    [
        ("2", "3", "ICD10CM//I10"),
        ("3", "2", "ICD10CM//I10"),
        ("2", "4", "SNOMED//38341003"),
        ("2", "0", "SNOMED//38341003"),
        ("0", "4", "ICD9//401.9"),
        ("2.0", "", "SNOMED//38341003"),
        ("99", "0", "OMOP//99"),
        ("99", "2", "SNOMED//38341003"),
        ("0", "0", None),
        ("", "", None),
    ],
)
def test_one_condition_is_one_event(tmp_path: Path, standard: str, source: str, code: str | None) -> None:
    cells = {"condition_concept_id": standard, "condition_source_concept_id": source}
    events, left = read_changed(tmp_path, "condition_occurrence", cells)
    assert events["code"].tolist() == ([] if code is None else [code])
    assert left == ({(SKIPPED, "table condition_occurrence: without a concept (concept 0)"): 1} if code is None else {})


@pytest.mark.parametrize(
    ("cells", "outcome"),
    [
        ({"operator_concept_id": "4171756"}, SKIPPED),
        ({"operator_concept_id": "4172704.0"}, SKIPPED),
        ({"operator_concept_id": "4172703"}, None),
        ({"operator_concept_id": ""}, None),
        ({"value_as_number": ""}, SKIPPED),
        ({"value_as_number": "12o"}, QUARANTINED),
        ({"value_as_number": "1e999"}, QUARANTINED),
        ({"value_as_number": "nan"}, QUARANTINED),
        ({"measurement_date": "", "measurement_datetime": ""}, QUARANTINED),
        ({"measurement_date": "2020-02-31", "measurement_datetime": ""}, QUARANTINED),
        ({"person_id": ""}, QUARANTINED),
        ({"person_id": "1\ufffd"}, QUARANTINED),
        ({"measurement_concept_id": "0"}, SKIPPED),
    ],
)
def test_measurement_that_says_no_number_is_left_out(
    tmp_path: Path, cells: dict[str, str], outcome: str | None
) -> None:
    events, left = read_changed(tmp_path, "measurement", cells)
    assert len(events) == (outcome is None)
    assert [key[0] for key in left] == ([] if outcome is None else [outcome])


def test_unit_is_the_concepts_else_the_sources(tmp_path: Path) -> None:
    units = [("5", "mmHg"), ("0", "mmHg"), ("77", "mmHg"), ("0", "")]
    rows = [{"unit_concept_id": concept, "unit_source_value": source} for concept, source in units]
    events, _ = read_changed(tmp_path, "measurement", *rows)
    assert Counter(events["unit"]) == {"mm[Hg]": 1, "mmHg": 2, "": 1}


def test_an_answer_that_is_not_read_is_no_event(tmp_path: Path) -> None:
    """The question alone would look like a yes."""
    events, left = read_changed(
        tmp_path,
        "observation",
        {"observation_concept_id": "6", "value_as_concept_id": "2"},
        {"observation_concept_id": "1", "value_as_concept_id": "7"},
        {"observation_concept_id": "1", "value_as_concept_id": ""},
        {"observation_concept_id": "1", "value_as_concept_id": "", "value_as_number": "3"},
        {"observation_concept_id": "2", "value_as_concept_id": ""},
        {"observation_concept_id": "2", "value_as_concept_id": "7"},
    )
    assert events["code"].tolist() == ["LOINC//8480-6", "SNOMED//38341003"]
    assert left == {
        (SKIPPED, "table observation: an answer that is not read"): 3,
        (SKIPPED, "table observation: without a value"): 1,
    }


def test_without_concepts_codes_are_the_ids(tmp_path: Path) -> None:
    cdm = small_cdm()
    del cdm["concept"], cdm["death"]
    events, left = read(write_cdm(tmp_path / "cdm", cdm))
    assert {"OMOP//1", "OMOP//2"} <= set(events["code"])
    assert "mmHg" in set(events["unit"])
    assert left[SKIPPED, "table death: not in the export"] == 1
    assert sum(reason.startswith("table concept: not in the export, so that codes are") for _, reason in left) == 1


def test_source_value_can_stand_for_the_patient(tmp_path: Path) -> None:
    cdm = small_cdm()
    cdm["person"] = [PERSON, {**PERSON, "person_id": "11", "person_source_value": ""}]
    cdm["measurement"] = [PRESSURE, {**PRESSURE, "person_id": "11"}, {**PRESSURE, "person_id": "12"}]
    events, left = read(write_cdm(tmp_path / "cdm", cdm), use_source_value=True)
    assert set(events["patient"]) == {"MRN7"}
    assert left == {
        (QUARANTINED, "table person: no patient that can be told"): 1,
        (QUARANTINED, "table measurement: no patient that can be told"): 2,
    }


CELLS = st.one_of(
    st.sampled_from(
        [
            "",
            "0",
            "1",
            "2",
            "6",
            "7",
            "10",
            "2020-01-02",
            "2020-01-02 10:00",
            "4172703",
            "120",
            "1e400",
            "0000-01-01",
            "-1",
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8),
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_row_is_an_event_or_left_out(tmp_path: Path, data: st.DataObject) -> None:
    cdm = small_cdm()
    for table, (row,) in list(cdm.items())[2:]:
        rows = st.fixed_dictionaries({name: st.one_of(st.just(cell), CELLS) for name, cell in row.items()})
        cdm[table] = data.draw(st.lists(rows, min_size=1, max_size=9))
    events, left = read(write_cdm(tmp_path / "cdm", cdm), chunk_rows=5)
    in_pairs = int(events["code"].str.startswith("OBSERVATION//").sum())
    assert in_pairs % 2 == 0
    rows_in = sum(len(table) for name, table in cdm.items() if name not in ("concept", "person"))
    assert len(events) - 2 - in_pairs // 2 + sum(left.values()) == rows_in
    assert not events["code"].isin(["", "nan"]).any()
    assert events.loc[~events["code"].str.startswith("SEX//"), "time"].notna().all()


def broken(change: Callable[[dict[str, bytes]], object], tmp_path: Path) -> Path:
    content = {f"{name}.csv": as_csv(table) for name, table in small_cdm().items()}
    change(content)
    folder = tmp_path / "cdm"
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda c: c.pop("person.csv"), "must be present"),
        (lambda c: c.update({"person.csv": b""}), "must be present"),
        (lambda c: c.update({"person.csv": b"\x00" * 1000}), "must be present"),
        (lambda c: c.update({"person.csv": c["person.csv"].decode().encode("utf-16")}), "must be readable to its end"),
        (lambda c: c.update({"death.csv": b"person_id;death_date\r\n10;2022-05-06"}), "must be present"),
        (
            lambda c: c.update({"death.csv": b"person_id,death_date,PERSON_ID\r\n10,2022-05-06,10"}),
            "must be there once",
        ),
        (lambda c: c.update({"old/person.csv": c["person.csv"]}), "must be there once"),
        (lambda c: c.update({"person.parquet": b"PAR1"}), "must be there once"),
        (lambda c: c.update({"death.parquet": b"PAR1" + c.pop("death.csv")}), "must be readable to its end"),
        (lambda c: c.update({"measurement.csv": c["measurement.csv"] + b'10,1,"2020'}), "must have every quote closed"),
        (lambda c: c.update({"death.csv": ",".join(f"c{i}" for i in range(100_000)).encode()}), "must have at most"),
        (lambda c: c.update({"death.csv": b"x" * 5_000_000}), "must be readable to its end"),
        (
            lambda c: c.update({"death.csv": b"person_id,death_date\n10," + b"2" * 9_000_000}),
            "must be readable to its end",
        ),
        (lambda c: c.update({"death.csv": b"person_id,death_date," + b"x" * 200_000}), "must be readable to its end"),
    ],
)
def test_a_table_that_is_not_whole_stops_the_import(
    tmp_path: Path, change: Callable[[dict[str, bytes]], object], rule: str
) -> None:
    folder = broken(change, tmp_path)
    with pytest.raises(ExportError) as error:
        read(folder)
    assert error.value.rule.startswith(rule)
    assert str(folder) not in str(error.value)


def test_rows_of_a_wrong_width_are_counted(tmp_path: Path) -> None:
    rows = b"person_id,death_date\n10,2022-05-06\n\xe4\n12,2022,05,\xfc\n\n13,2022-05-06\n14,\xff\n1\xff,2022-05-06"
    events, left = read(broken(lambda c: c.update({"death.csv": rows}), tmp_path))
    assert sorted(events.loc[events["code"] == DEATH, "patient"]) == ["10", "13"]
    assert left == {
        (QUARANTINED, "table death: a row with too few or too many columns"): 2,
        (QUARANTINED, "table death: no date that is one"): 1,
        (QUARANTINED, "table death: no patient that can be told"): 1,
    }


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n"])
def test_a_table_may_be_empty(tmp_path: Path, end: bytes) -> None:
    events, left = read(broken(lambda c: c.update({"death.csv": b"person_id,death_date" + end}), tmp_path))
    assert DEATH not in set(events["code"])
    assert not left


def test_tabs_come_with_quotes_that_mean_nothing(tmp_path: Path) -> None:
    concept = as_csv(CONCEPT, "\t").replace(b"\r\n", b"\n").replace(b"2\tSNOMED", b'99\tNone\t"odd\n2\tSNOMED')
    events, _ = read(broken(lambda c: c.update({"concept.csv": concept}), tmp_path))
    assert "ICD10CM//I10" in set(events["code"])


def raw_zip(tmp_path: Path, entries: Mapping[str, bytes] = {}) -> Path:
    content = {f"{name}.csv": as_csv(table) for name, table in small_cdm().items()}
    return zipped(tmp_path / "cdm.zip", {**content, **entries})


@pytest.mark.parametrize("name", ["../person.csv", "/etc/person.csv", "a/../../b.txt", "C:\\person.csv", "..\\x.csv"])
def test_zip_that_reaches_out_of_itself_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="must be a zip whose entries lie within it"):
        read(raw_zip(tmp_path, {name: b"x"}))


def test_zip_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="must inflate to at most"):
        read(raw_zip(tmp_path, {"death.csv": b"0" * 50_000_000}))


def test_zip_bomb_that_lies_about_its_size_is_damaged(tmp_path: Path) -> None:
    file = raw_zip(tmp_path, {"death.csv": b"person_id,death_date\n" + b"1,2020-01-01\n" * 100_000})
    content, true = file.read_bytes(), (21 + 13 * 100_000).to_bytes(4, "little")
    assert content.count(true) == 2  # in the entry's header and in the directory
    file.write_bytes(content.replace(true, (60).to_bytes(4, "little")))
    with pytest.raises(ExportError, match="must be readable to its end"):
        read(file)


def test_zip_with_a_wrong_checksum_is_damaged(tmp_path: Path) -> None:
    file = raw_zip(tmp_path)
    with zipfile.ZipFile(file) as archive:
        checksum = archive.getinfo("death.csv").CRC.to_bytes(4, "little")
    file.write_bytes(file.read_bytes().replace(checksum, b"\x01\x02\x03\x04"))
    with pytest.raises(ExportError, match="must be readable to its end"):
        read(file)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_zip_is_refused_or_gives_the_same(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(zipped(tmp_path / "cdm.zip", {"person.csv": as_csv([PERSON])}).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "damaged.zip").write_bytes(content)
    try:
        found, left = read(tmp_path / "damaged.zip")
    except ExportError:
        return
    assert found["code"].tolist() == ["MEDS_BIRTH", "SEX//M"]
    assert all("not in the export" in reason for _, reason in left)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(small_cdm())), st.sampled_from(["csv", "parquet"]), st.data())
def test_damaged_table_never_crashes(tmp_path: Path, table: str, kind: str, data: st.DataObject) -> None:
    folder = write_cdm(tmp_path / "cdm", {"person": [PERSON]} if table != "person" else {})
    file = io.BytesIO(as_csv(small_cdm()[table]))
    if kind == "parquet":
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(small_cdm()[table]), file)
    content = bytearray(file.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    for suffix in ("csv", "parquet"):
        (folder / f"{table}.{suffix}").unlink(missing_ok=True)
    (folder / f"{table}.{kind}").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(ExportError):
        read(folder)
    (folder / f"{table}.{kind}").unlink()


@pytest.mark.parametrize("name", ["nothing", "text.txt"])
def test_what_is_no_export_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.txt").write_text("no zip")
    with pytest.raises(ExportError, match="must be a folder"):
        read(tmp_path / name)


def test_links_are_not_followed(tmp_path: Path) -> None:
    cdm = write_cdm(tmp_path / "cdm", small_cdm())
    outside = write_cdm(tmp_path / "outside", {"death": [DEAD]})
    (cdm / "death.csv").unlink()
    (cdm / "death.csv").symlink_to(outside / "death.csv")
    (cdm / "loop").symlink_to(cdm)
    events, left = read(cdm)
    assert DEATH not in set(events["code"])
    assert left == {
        (SKIPPED, "table death: a link, which is not followed"): 1,
        (SKIPPED, "a link, which is not followed"): 1,
    }


COMPRESSED = "compressed by itself, which is not read: unpack it, or give a zip of all tables"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("measuremnt.csv", "a file that is no table of the CDM"),
        ("notes.docx", "a file that is no table of the CDM"),
        ("DRUG_EXPOSURE.csv", "a table of the CDM that is not read"),
        ("drug_exposure/part-0.csv.gz", "a table of the CDM that is not read"),
        ("measurement.csv.gz", f"table measurement: {COMPRESSED}"),
        ("MEASUREMENT/part-0.parquet.GZ", f"table measurement: {COMPRESSED}"),
        ("measurement.zip", f"table measurement: {COMPRESSED}"),
        ("cdm/measurement/part-0.xlsx", "table measurement: a file that is none of .csv, .tsv, .txt, .parquet"),
        ("a/b/c/measurement.csv", "table measurement: more than 2 folders deep"),
        ("a/b/c/d/e.csv", "a file that is no table of the CDM"),
    ],
)
@pytest.mark.parametrize("is_zip", [False, True])
def test_every_other_file_is_told_by_its_reason(tmp_path: Path, name: str, reason: str, is_zip: bool) -> None:
    content = {"person.csv": as_csv([PERSON]), name: b"x"}
    export = tmp_path / "cdm"
    if is_zip:
        export = zipped(export, content)
    else:
        for path, data in content.items():
            (export / path).parent.mkdir(parents=True, exist_ok=True)
            (export / path).write_bytes(data)
    _, left = read(export)
    assert left[SKIPPED, reason] == 1
    assert left[SKIPPED, "table measurement: not in the export"] == (not reason.startswith("table"))


def test_a_link_in_a_folder_or_a_zip_to_a_table_is_told_as_a_link(tmp_path: Path) -> None:
    cdm = write_cdm(tmp_path / "cdm", {"person": [PERSON]})
    (cdm / "condition_occurrence").symlink_to(write_cdm(tmp_path / "outside", {}))
    (cdm / "concept.csv").symlink_to(tmp_path / "nowhere")
    _, folder = read(cdm)
    with zipfile.ZipFile(tmp_path / "cdm.zip", "w") as archive:
        archive.writestr("person.csv", as_csv([PERSON]))
        for name in ("condition_occurrence", "concept.csv"):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, "elsewhere")
    _, packed = read(tmp_path / "cdm.zip")
    assert folder == packed
    assert folder[SKIPPED, "table condition_occurrence: a link, which is not followed"] == 1
    assert [reason for _, reason in folder if reason.startswith("table concept: a link, which is not followed, so")]
    assert not [reason for _, reason in folder if "not in the export" in reason and "co" in reason.split(":")[0]]


def test_a_person_table_that_is_not_read_is_told_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "person.csv.gz").write_bytes(b"")
    with pytest.raises(ExportError, match="table person must be present, got 'compressed by itself"):
        read(tmp_path)
