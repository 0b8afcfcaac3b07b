"""Is a site folder the same, however often, in whatever order and in whatever pieces its records are imported?"""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.feature_list import read_features
from client.features import check_units, clinical_inputs
from client.ingest import parts, site_tables
from client.ingest.coverage import coverage_dict
from client.ingest.export import (
    BIRTH,
    DEATH,
    OBSERVED_FROM,
    OBSERVED_UNTIL,
    QUARANTINED,
    RECORDS,
    SKIPPED,
    ExportError,
    FilesRead,
    LeftOut,
)
from client.ingest.journal import importing
from client.ingest.outcomes import LabelRows
from client.ingest.part_notes import EARLIER, read_notes
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.records import RecordsSummary, import_records
from client.ingest.site_tables import read_all_notes, read_coverage
from client.ingest.vocabulary import read_vocabulary
from shared.errors import ConfigError, SiteError
from shared.schema import check_site
from shared.site_folder import Dataset, SiteFolder, write_site

SYSTOLIC, HEIGHT, WEIGHT, BMI, HBA1C = (
    f"LOINC//{code}" for code in ("8480-6", "8302-2", "29463-7", "39156-5", "4548-4")
)
Row = tuple[str, object, str, float | None, str]
VOCABULARY, FEATURES = read_vocabulary(), read_features()
PATIENTS = Pseudonyms(b"k" * 32)
TODAY = date(2024, 6, 1)


def table(rows: Sequence[Row]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=list(RECORDS))
    frame["time"] = pd.to_datetime(frame["time"], format="ISO8601").astype("datetime64[us]")
    return frame.astype({"value": np.float64})


def new_site(folder: Path, text: str = "site: north\n") -> SiteFolder:
    folder.mkdir(parents=True)
    (folder / "dataset.yaml").write_text(text, encoding="utf-8")
    return SiteFolder(folder)


def bring(
    site: SiteFolder, tables: Iterable[pd.DataFrame | LeftOut | LabelRows], export: str = "a", said: str = ""
) -> RecordsSummary:
    path = Path("/exports") / export
    return import_records(
        site, "csv", path, tables, VOCABULARY, PATIENTS, features=FEATURES, extracted_at=said, today=TODAY
    )


def events(site: SiteFolder) -> list[tuple[int, object, str, float | None]]:
    """Events as tuples, None for null."""
    frame = site.events()
    rows = zip(*(frame[name] for name in ("subject_id", "time", "code", "numeric_value")), strict=True)
    return [
        (who, None if pd.isna(t) else t, code, None if pd.isna(x) else round(float(x), 2)) for who, t, code, x in rows
    ]


def codes(site: SiteFolder) -> list[str]:
    return [code for _, _, code, _ in events(site)]


def contents(site: SiteFolder) -> dict[str, bytes]:
    return {str(file.relative_to(site.path)): file.read_bytes() for file in site.path.rglob("*") if file.is_file()}


def reasons(summary: RecordsSummary) -> Mapping[str, int]:
    return {item.reason: item.count for item in summary.left_out}


USUAL: list[Row] = [
    ("p1", "1950-02-03", BIRTH, None, ""),
    ("p1", None, "Gender//f", None, ""),
    ("p1", "2020-01-01", "SNOMED//44054006", None, ""),
    ("p1", "2020-01-01 10:00", "LOINC//8459-0", 16.0, "kPa"),
    ("p2", "2021-05-01", "ICD9CM//43491", None, ""),
    ("p2", "2021-05-01 08:00", "LOINC//59261-8", 53.0, "mmol/mol"),
    ("p2", "2021-05-02", "LOCAL//17", None, ""),
    ("p2", "2021-05-02", DEATH, None, ""),
    ("p2", "2019-05-02", OBSERVED_FROM, None, ""),
    ("p2", "2021-05-02", OBSERVED_UNTIL, None, ""),
]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["p1", "p2", "p3", ""]),
        st.sampled_from([None, "2019-12-31", "2020-01-01 10:00", "2020-01-01 12:00", "2099-01-01", "1700-01-01"]),
        st.sampled_from([SYSTOLIC, HEIGHT, WEIGHT, BMI, HBA1C, "ICD9//401.9", "SEX//M", BIRTH, "LOINC//1-8", "a b"]),
        st.sampled_from([None, 1.7, 70.0, 150.0, 1e9, float("inf")]),
        st.sampled_from(["", "kg", "m", "cm", "mmHg", "%", "kPa", "a b"]),
    ),
    max_size=30,
)


def test_records_become_what_the_study_asks_for(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    summary = bring(site, [table(USUAL)])
    one, two = PATIENTS.subject_id("p1"), PATIENTS.subject_id("p2")
    assert sorted(events(site), key=str) == sorted(
        [
            (one, None, "SEX//F", None),
            (one, pd.Timestamp("1950-02-03"), BIRTH, None),
            (one, pd.Timestamp("2020-01-01"), "ICD10//E11", None),
            (one, pd.Timestamp("2020-01-01 10:00"), SYSTOLIC, 120.01),
            (two, pd.Timestamp("2019-05-02"), OBSERVED_FROM, None),
            (two, pd.Timestamp("2021-05-01"), "ICD10//I63", None),
            (two, pd.Timestamp("2021-05-01 08:00"), HBA1C, 7.0),
            (two, pd.Timestamp("2021-05-02"), "LOCAL//17", None),
            (two, pd.Timestamp("2021-05-02"), DEATH, None),
            (two, pd.Timestamp("2021-05-02"), OBSERVED_UNTIL, None),
        ],
        key=str,
    )
    check_site(site)
    dataset = site.dataset()
    assert dataset.units == {SYSTOLIC: "mm[Hg]", HBA1C: "%"}
    assert dataset.extracted_at == "2021-05-02"
    assert dataset.vocabulary_digest == VOCABULARY.digest
    check_units(dataset, site.events(), FEATURES)
    assert (summary.rows, summary.events, summary.patients, summary.left_out) == (10, 10, 2, ())
    assert summary.coverage.features["diabetes"].patients == 1
    assert summary.coverage.unmapped == {"LOCAL//17": 1}
    assert all("\n" not in line for line in summary.lines())


def test_coverage_counts_patients_and_not_their_rows(tmp_path: Path) -> None:
    """A code of one patient with many rows may be that patient's number: it must not pass for a frequent one."""
    site = new_site(tmp_path / "site")
    rows: list[Row] = [("p1", f"2020-01-{day:02d}", "LOCAL//4711", None, "") for day in range(1, 20)]
    rows += [(f"p{number}", "2020-01-01", "LOCAL//often", None, "") for number in range(7)]
    for export in "ab":
        bring(site, [table(rows)], export)
    coverage = read_coverage(site)
    assert coverage is not None
    assert coverage.unmapped == {"LOCAL//4711": 1, "LOCAL//often": 7}
    assert coverage_dict(coverage)["unmapped"] == {"LOCAL//often": 7}
    assert coverage.rows == {"LOCAL": (52, 0)}


def test_what_a_killed_import_left_is_swept(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    bring(site, [table(USUAL)])
    before = contents(site)
    (site.path / "state/imports/events/.draft-x").mkdir()
    (site.path / "state/imports/events/.draft-x/1.arrow").write_bytes(b"x")
    (site.path / "state/imports/events/.a.parquet-x").write_bytes(b"x")
    (site.path / ".events.parquet-x").write_bytes(b"x")
    bring(site, [table(USUAL)])
    assert contents(site) == before


def test_events_are_sorted_as_write_site_sorts_them(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    bring(site, [table([(f"p{n % 50}", f"20{n % 20:02d}-01-01", "ICD10//I10", None, "") for n in range(500)])])
    frame = site.events()
    assert frame["subject_id"].nunique() == 50
    ordered = frame.sort_values(["subject_id", "time"], na_position="first", kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(frame, ordered)


def test_a_second_run_changes_no_byte(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site", "site: north\nextracted_at: '2023-12-31'\n")
    first = bring(site, [table(USUAL)])
    before = contents(site)
    assert site.dataset().extracted_at == "2023-12-31"
    second = bring(site, [table(USUAL)])
    assert contents(site) == before
    assert first == second


@given(ROWS, st.lists(st.integers(0, 30), max_size=4))
@settings(max_examples=5, deadline=None)
def test_pieces_and_their_order_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], cuts: list[int]
) -> None:
    rows = [*rows, USUAL[0]]
    folder = tmp_path_factory.mktemp("pieces")
    whole, pieces = new_site(folder / "whole"), new_site(folder / "pieces")
    one = bring(whole, [table(rows)])
    places = [0, *sorted(cuts), len(rows)]
    split = [rows[start:stop] for start, stop in pairwise(places) if start < stop]
    other = bring(pieces, [table(piece) for piece in reversed(split)])
    assert contents(whole) == contents(pieces)
    assert one == other
    check_site(whole)


@given(ROWS, ROWS)
@settings(max_examples=3, deadline=None)
def test_the_order_of_imports_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], others: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("order")
    exports = {"a": [*rows, USUAL[0]], "b": [*others, USUAL[2]]}
    sites = []
    for order in ("ab", "ba"):
        site = new_site(folder / order)
        for export in order:
            bring(site, [table(exports[export])], export)
        check_site(site)
        sites.append(contents(site))
    assert sites[0] == sites[1]


def test_a_corrected_export_takes_the_place_of_its_earlier_self_alone(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    bring(site, [table([("p1", "2020-01-01", "ICD10//I10", None, "")])], "a")
    bring(site, [table([("p1", "2023-01-01", "ICD10//I63", None, "")])], "b")
    bring(site, [table([("p1", "2021-01-01", "ICD10//I48", None, "")])], "b")
    assert codes(site) == ["ICD10//I10", "ICD10//I48"]
    assert site.dataset().extracted_at == "2021-01-01"


def test_what_two_exports_both_have_is_there_once(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    bring(site, [table([*USUAL, *USUAL])], "a")
    summary = bring(site, [table(USUAL)], "b")
    assert summary.site_events == len(USUAL)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["join", "join_labels", "_write_coverage"])
def test_a_kill_leaves_a_valid_folder_and_the_next_run_makes_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    clean, broken = new_site(tmp_path / "clean"), new_site(tmp_path / "broken")
    later = [*USUAL, ("p3", "2024-01-01", "LOINC//2093-3", 5.0, "mmol/L")]
    bring(broken, [table(USUAL)])
    with monkeypatch.context() as patch:
        patch.setattr(
            parts if step == "join" else site_tables, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            bring(broken, [table(later)])
    check_site(broken)
    for site in (clean, broken):
        bring(site, [table(later)])
    assert contents(clean) == contents(broken)


def test_an_export_that_fails_on_the_way_changes_nothing(tmp_path: Path) -> None:
    def failing() -> Iterable[pd.DataFrame]:
        yield table(USUAL)
        raise ExportError("export", "must be readable to its end")

    site = new_site(tmp_path / "site")
    bring(site, [table(USUAL[:3])])
    before = contents(site)
    with pytest.raises(ExportError):
        bring(site, failing())
    assert contents(site) == before


def test_what_a_reason_is_about_is_told_at_the_hospital(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    reason = "a value that is not a number"
    about = [LeftOut(QUARANTINED, reason, 2, "column rr"), LeftOut(QUARANTINED, reason, 3, "column weight")]
    told = bring(site, [table(USUAL), *about, LeftOut(QUARANTINED, reason, 5, "column rr")]).lines()
    assert [line for line in told if reason in line] == [
        f"quarantined: 7 x {reason} (column rr)",
        f"quarantined: 3 x {reason} (column weight)",
    ]


def test_notes_keep_of_how_many_rows_and_files_something_was_left_out(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    outcomes = labels(("p1", "2022-01-01", True), ("", "2022-01-01", True))
    bring(site, [table(USUAL), LeftOut(SKIPPED, "a row of another kind", 7), FilesRead(9, 2), outcomes])
    (notes,) = read_all_notes(site).values()
    assert (notes.found, notes.files, notes.lost_files) == (len(USUAL) + 7 + 2, 9, 2)
    assert read_notes({**json.loads(json.dumps(notes.plain())), "buckets": notes.buckets}) == notes


def test_notes_of_an_earlier_version_are_read_and_their_reasons_kept_for_the_site(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    bring(site, [table(USUAL)])
    (notes,) = read_all_notes(site).values()
    plain = {name: value for name, value in notes.plain().items() if name not in ("found", "files", "lost_files")}
    del plain["coverage"]["patients"]
    item = {"outcome": QUARANTINED, "reason": "column Doe: a value that is not a number", "count": 7}
    earlier = read_notes({**plain, "buckets": notes.buckets, "left_out": [item]})
    assert earlier.left_out == (LeftOut(QUARANTINED, EARLIER, 7, str(item["reason"])),)
    assert (earlier.found, earlier.coverage.patients, earlier.coverage.rows) == (0, {}, notes.coverage.rows)


def test_patients_of_a_vocabulary_are_counted_by_what_the_study_can_read(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    when = "2020-01-01"
    rows: list[Row] = [(f"p{n}", f"{when} 10:{m}", "LOCAL//x", None, "") for n in range(3) for m in range(10, 20)]
    rows += [(f"p{n}", when, "ICD10//I10", None, "") for n in range(2, 9)]
    bring(site, [table(rows[::2]), table(rows[1::2])], "a")
    bring(site, [table([("q", when, "ICD10//I10", None, "")])], "b")
    coverage = read_coverage(site)
    assert coverage is not None
    assert coverage.rows == {"ICD10": (8, 8), "LOCAL": (30, 0)}
    assert coverage.patients == {"ICD10": (7, 0), "LOCAL": (0, 3)}


def test_an_export_without_an_event_is_refused_with_reasons(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    bring(site, [table(USUAL)])
    before = contents(site)
    with pytest.raises(ExportError, match=r"at least one event.*3 x a value without a unit"):
        bring(site, [table([("p1", "2020-01-01", SYSTOLIC, 120.0, "")] * 3)])
    assert contents(site) == before


def test_events_that_others_wrote_are_not_overwritten(tmp_path: Path) -> None:
    event = {"subject_id": [1], "time": [pd.Timestamp("2020-01-01")], "code": ["ICD10//I10"], "numeric_value": [None]}
    site = write_site(tmp_path / "site", Dataset(site="north"), pd.DataFrame(event))
    with pytest.raises(SiteError, match="must have been made by imports"):
        bring(site, [table(USUAL)])
    with pytest.raises(SiteError, match="must be a site folder"):
        bring(SiteFolder(tmp_path / "absent"), [table(USUAL)])


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    site = new_site(tmp_path / "site")
    bring(site, [table(USUAL)])
    before = contents(site)
    monkeypatch.setattr(parts, "write_part", full)
    with pytest.raises(SiteError, match="room, got 'No space left on device'"):
        bring(site, [table(USUAL[:3])])
    assert contents(site) == before


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    bring(site, [table(USUAL)])
    (part,) = (site.path / "state/imports/events").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(SiteError, match="must be whole"):
        bring(site, [table(USUAL)], "b")


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    with importing(site.path), pytest.raises(SiteError, match="one process at a time"):
        bring(site, [table(USUAL)])


def test_what_is_kept_is_for_nobody_else_and_names_nobody(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    rows: list[Row] = [(f"Doe^Jane {n}", when, code, x, unit) for n, (_, when, code, x, unit) in enumerate(USUAL)]
    bring(site, [table([*rows, ("Doe^Jane", "2020-01-01", "see Doe^Jane", None, "")])], "Doe^Jane.csv")
    for path in [site.path / "state/imports", *(site.path / "state/imports").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert not any(b"Doe" in content for content in contents(site).values())
    assert not list(site.path.rglob(".*"))


def test_whatever_is_left_out_is_counted_by_its_reason(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    when = "2020-01-01"
    wrong: list[tuple[Row, str]] = [
        (("", when, "ICD10//I10", None, ""), "a row without a patient"),
        (("p", None, "ICD10//I10", None, ""), "a row without a date, or with one that cannot be read"),
        (("p", "1849-12-31", "ICD10//I10", None, ""), "a date before 1850"),
        (("p", "2024-06-02", "ICD10//I10", None, ""), "a date after the day of the extract, or in the future"),
        (("p", when, "free text", None, ""), "a code that is none, such as free text"),
        (("p", when, "ICD10//free", None, ""), "a code that is none, such as free text"),
        (("p", when, SYSTOLIC, 120.0, ""), "a value without a unit"),
        (("p", when, "LOINC//2093-3", 5.0, "free text"), "a unit that is none, such as free text"),
        (("p", when, SYSTOLIC, 120.0, "kg"), "a unit that cannot be converted to mm[Hg]"),
        (("p", when, SYSTOLIC, 1200.0, "mmHg"), "a value outside 50 to 300 mm[Hg]"),
        (("p", when, SYSTOLIC, None, "mmHg"), "a measurement without a number"),
        (("p", when, SYSTOLIC, float("inf"), "mmHg"), "a value that is not finite"),
    ]
    rows = [row for row, _ in wrong]
    summary = bring(site, [table([*rows, *USUAL]), LeftOut(SKIPPED, "a table that is not read", 7)])
    expected = pd.Series([reason for _, reason in wrong]).value_counts().to_dict()
    assert reasons(summary) == {**expected, "a table that is not read": 7}
    assert summary.rows == len(rows) + len(USUAL)
    assert summary.events == len(USUAL)
    assert [notes.left_out for notes in read_all_notes(site).values()] == [summary.left_out]
    coverage = read_coverage(site)
    assert coverage is not None
    assert coverage.features["systolic_pressure"].bad_unit == 2
    assert coverage.features["systolic_pressure"].bad_range == 1


def test_nothing_is_later_than_the_stated_extract(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    bring(site, [table([*USUAL, ("p1", "2021-01-01 23:59", "ICD10//I10", None, "")])], said="2021-01-01")
    assert max(site.events()["time"].dropna()) == pd.Timestamp("2021-01-01 23:59")
    assert site.dataset().extracted_at == "2021-01-01"
    check_site(site)
    with pytest.raises(ExportError, match="ISO date"):
        bring(site, [table(USUAL)], said="yesterday")


def test_a_diagnosis_without_a_date_does_not_become_one_of_all_times(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    bring(site, [table([("p", None, "ICD10//E11", None, ""), ("p", None, "SEX//M", None, "")])])
    assert codes(site) == ["SEX//M"]
    cases = pd.DataFrame({"subject_id": [PATIENTS.subject_id("p")], "prediction_time": [pd.Timestamp("2000-01-01")]})
    inputs, _ = clinical_inputs(site.events(), cases, FEATURES)
    assert np.nansum(inputs) == 1.0  # male, and nothing else


def test_one_birth_a_patient(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    rows: list[Row] = [("near", "1950-07-01", BIRTH, None, ""), ("near", "1950-01-01", BIRTH, None, "")]
    rows += [("far", "1950-07-01", BIRTH, None, ""), ("far", "1970-01-01", BIRTH, None, "")]
    summary = bring(site, [table(rows)], "a")
    assert events(site) == [(PATIENTS.subject_id("near"), pd.Timestamp("1950-01-01"), BIRTH, None)]
    assert reasons(summary)["births of one patient more than a year apart"] == 2
    bring(site, [table([("near", "1949-09-01", BIRTH, None, "")])], "b")
    assert [when for _, when, _, _ in events(site)] == [pd.Timestamp("1949-09-01")]


def test_body_mass_index_is_computed_of_one_day_and_known_no_sooner_than_its_parts(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    rows: list[Row] = [
        *[("p", "2020-01-01 09:00", HEIGHT, 2.0, "m"), ("p", "2020-01-01 11:00", WEIGHT, 80.0, "kg")],
        *[("p", "2020-02-01", HEIGHT, 200.0, "cm"), ("p", "2020-02-02", WEIGHT, 90.0, "kg")],  # another day
        *[("q", "2020-01-01", HEIGHT, 200.0, "cm"), ("q", "2020-01-01", WEIGHT, 80.0, "kg")],
        ("q", "2020-01-01", BMI, 19.0, "kg/m2"),  # there already
        *[("r", "2020-01-01", HEIGHT, 50.0, "cm"), ("r", "2020-01-01", WEIGHT, 80.0, "kg")],  # not plausible
        *[("s", "2020-01-01", HEIGHT, 200.0, "cm"), ("t", "2020-01-01", WEIGHT, 80.0, "kg")],  # two patients
    ]
    summary = bring(site, [table(rows)])
    found = {(who, when, value) for who, when, code, value in events(site) if code == BMI}
    assert found == {
        (PATIENTS.subject_id("p"), pd.Timestamp("2020-01-01 11:00"), 20.0),
        (PATIENTS.subject_id("q"), pd.Timestamp("2020-01-01"), 19.0),
    }
    assert summary.derived == 1


def test_a_code_that_the_study_does_not_name_has_one_unit_over_all_imports(tmp_path: Path) -> None:
    code = "LOINC//718-7"
    site = new_site(tmp_path / "site")
    bring(site, [table([("p", "2020-01-01", code, 14.0, "g/dL"), ("q", "2020-01-01", code, 15.0, "g/dL")])], "a")
    summary = bring(site, [table([("p", "2020-01-02", code, 8.7, "mmol/L")])], "b")
    assert site.dataset().units == {code: "g/dL"}
    assert [value for *_, value in events(site)] in ([14.0, 15.0], [15.0, 14.0])
    assert reasons(summary) == {"a value in another unit than most of its code": 1}
    glucose = "LOINC//2345-7"
    bring(
        site,
        [table([("p", "2020-01-01", glucose, 5.0, "mmol/L"), ("p", "2020-01-02", glucose, 6000.0, "umol/L")])],
        "c",
    )
    assert [value for _, _, name, value in events(site) if name == glucose] == [5.0, 6.0]


def labels(*rows: tuple[str, object, bool]) -> LabelRows:
    frame = pd.DataFrame(list(rows), columns=["patient", "prediction_time", "boolean_value"])
    frame["prediction_time"] = pd.to_datetime(frame["prediction_time"], format="ISO8601").astype("datetime64[us]")
    return LabelRows("outcome", frame, 30)


def test_labels_that_an_export_states(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site")
    wrong = [("p2", "2022-01-01", True), ("p2", "2022-01-01", False), ("", "2022-01-01", True), ("p1", None, True)]
    summary = bring(site, [table(USUAL), labels(("p1", "2022-01-01", True), *wrong)], "a")
    bring(site, [table(USUAL), labels(("p2", "2023-01-01", False), ("p1", "2022-01-01", True))], "b")
    found = site.labels("outcome")
    assert sorted(zip(found["prediction_time"].astype(str), found["boolean_value"], strict=True)) == [
        ("2022-01-01", True),
        ("2023-01-01", False),
    ]
    assert summary.labels == {"outcome": 1}
    assert {(item.reason, item.about): item.count for item in summary.left_out if item.outcome == QUARANTINED} == {
        ("a label without a patient or a date that can be", "task outcome"): 2,
        ("labels that contradict each other", "task outcome"): 2,
    }
    assert site.dataset().horizons_days == {"outcome": 30}
    assert site.dataset().extracted_at == "2023-01-31"
    check_site(site)
    bring(site, [table(USUAL)], "a")
    assert len(site.labels("outcome")) == 2
    bring(site, [table(USUAL)], "b")
    assert site.tasks() == []


def test_a_feature_list_that_is_none_is_refused(tmp_path: Path) -> None:
    for number, text in enumerate(["[1]", "{", "numeric: 3", "nothing: here"]):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError):
            read_features(file)
    with pytest.raises(ConfigError):
        read_features(tmp_path / "absent.yaml")
