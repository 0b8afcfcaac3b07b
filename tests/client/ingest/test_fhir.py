from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.features import clinical_inputs
from client.ingest.export import QUARANTINED, RECORDS, SKIPPED, ExportError, FilesRead, LeftOut, LeftOutError
from client.ingest.fhir import files as fhir_files
from client.ingest.fhir import read_fhir
from client.ingest.fhir.times import birth, moments
from client.ingest.vocabulary import normal_code
from shared.config import ONSET, CodeFeature, Features

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "fhir"
needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason="the FHIR sample is not at hand")

Resource = dict[str, Any]
LOINC, SNOMED, ICD10, ICD9 = (
    "http://loinc.org",
    "http://snomed.info/sct",
    "http://hl7.org/fhir/sid/icd-10-cm",
    "http://hl7.org/fhir/sid/icd-9-cm",
)
UCUM = "http://unitsofmeasure.org"
MRN = "http://hospital.example/mrn"
PATIENT: Resource = {
    "resourceType": "Patient",
    "id": "p1",
    "identifier": [{"system": MRN, "value": "MRN7"}],
    "birthDate": "1950-03-04",
    "gender": "male",
}


def concept(*codings: tuple[str, str]) -> Resource:
    return {"coding": [{"system": system, "code": code} for system, code in codings]}


def quantity(value: object = 120.5, **others: object) -> Resource:
    return {"value": value, "unit": "mmHg", "system": UCUM, "code": "mm[Hg]", **others}


PRESSURE: Resource = {
    "resourceType": "Observation",
    "id": "o1",
    "status": "final",
    "code": concept((LOINC, "8480-6")),
    "subject": {"reference": "Patient/p1"},
    "effectiveDateTime": "2020-01-02T10:30:00+01:00",
    "valueQuantity": quantity(),
}
CONDITION: Resource = {
    "resourceType": "Condition",
    "id": "c1",
    "verificationStatus": concept(("http://terminology.hl7.org/CodeSystem/condition-ver-status", "confirmed")),
    "code": concept((SNOMED, "38341003")),
    "subject": {"reference": "Patient/p1"},
    "recordedDate": "2020-01-02T10:30:00Z",
    "onsetDateTime": "2019-06-01",
}
ENCOUNTER: Resource = {
    "resourceType": "Encounter",
    "id": "e1",
    "subject": {"reference": "Patient/p1"},
    "period": {"start": "2020-01-01T08:00:00Z", "end": "2020-01-05T09:00:00Z"},
}


def write_lines(file: Path, *resources: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(resource) + "\n" for resource in resources))
    return file


def write_bundle(file: Path, *resources: Resource, urls: bool = False) -> Path:
    entries = [{"fullUrl": f"urn:uuid:{r['id']}" if urls else None, "resource": r} for r in resources]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}))
    return file


def read(export: Path, **options: str) -> tuple[pd.DataFrame, Counter[tuple[str, str]]]:
    """The events in an order that does not depend on the export's, and how much was left out for each reason."""
    tables, left = [], Counter[tuple[str, str]]()
    for item in read_fhir(export, **options):
        if isinstance(item, LeftOut):
            left[item.outcome, item.reason] += item.count
        elif not isinstance(item, FilesRead):
            assert list(item) == list(RECORDS)
            tables.append(item)
    events = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({name: [] for name in RECORDS})
    return events.sort_values(list(RECORDS), ignore_index=True), left


def read_one(tmp_path: Path, *resources: object, **options: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Code and time of the events of some resources, without the patient's own, and why others were left out."""
    events, left = read(write_lines(tmp_path / "export.ndjson", PATIENT, *resources), **options)
    events = events[~events["code"].isin(["MEDS_BIRTH", "SEX//M"])]
    return [(str(row.code), str(row.time)) for row in events.itertuples()], sorted(left.elements())


def change(resource: Resource, **elements: object) -> Resource:
    """The resource with other elements; None takes one away."""
    return {key: value for key, value in {**resource, **elements}.items() if value is not None}


def same(first: tuple[pd.DataFrame, object], second: tuple[pd.DataFrame, object]) -> None:
    pd.testing.assert_frame_equal(first[0], second[0])
    assert first[1] == second[1]


def resources_of_sample() -> list[Resource]:
    documents = [json.loads(file.read_text()) for file in sorted(SAMPLE.glob("*.json"))]
    return [entry["resource"] for document in documents for entry in document["entry"]]


@needs_sample
def test_sample_agrees_with_another_reading_of_it() -> None:
    events, left = read(SAMPLE)
    resources, expected, unread = resources_of_sample(), Counter[tuple[object, ...]](), 0
    for item in resources:
        patient = item.get("subject", {}).get("reference", "").removeprefix("urn:uuid:")
        if item["resourceType"] == "Condition":
            code = f"SNOMED//{item['code']['coding'][0]['code']}"
            expected[patient, code, item["recordedDate"][:19], None, ""] += 1
            expected[patient, f"ONSET//{code}", item["onsetDateTime"][:19], None, ""] += 1
        if item["resourceType"] == "Observation":
            for part in item.get("component", [item]):
                code, value, unit = f"LOINC//{part['code']['coding'][0]['code']}", None, ""
                if "valueQuantity" in part:
                    value, unit = part["valueQuantity"]["value"], part["valueQuantity"]["code"]
                elif code == "LOINC//72166-2":
                    answer = part["valueCodeableConcept"]["coding"][0]["display"]
                    code += {"Never smoker": "//never", "Former smoker": "//former"}[answer]
                else:
                    unread += 1
                    continue
                expected[patient, code, item["effectiveDateTime"][:19], value, unit] += 1
    clinical = events[events["code"].str.match("LOINC|SNOMED|ONSET")]
    found = Counter(
        (row.patient, row.code, row.time.isoformat()[:19], None if np.isnan(row.value) else row.value, row.unit)
        for row in clinical.itertuples()
    )
    assert found == expected
    assert left == {(SKIPPED, "Observation: an answer that is not read: no quantity, and no smoking status"): unread}
    patients = [item for item in resources if item["resourceType"] == "Patient"]
    assert Counter(events["code"])["MEDS_BIRTH"] == len(patients) == 9
    assert Counter(events["code"])["MEDS_DEATH"] == sum("deceasedDateTime" in item for item in patients)
    assert Counter(events["code"])["SNOMED//230690007"] == 5


@needs_sample
def test_bundles_and_bulk_export_of_the_sample_are_the_same(tmp_path: Path) -> None:
    resources = resources_of_sample()
    for kind in {item["resourceType"] for item in resources}:
        write_lines(tmp_path / f"{kind}.ndjson", *(item for item in resources if item["resourceType"] == kind))
    same(read(tmp_path), read(SAMPLE))


@needs_sample
def test_identifier_of_a_system_can_stand_for_the_patient() -> None:
    by_id, _ = read(SAMPLE)
    system = "http://hospital.smarthealthit.org"
    numbers = {
        item["id"]: next(one["value"] for one in item["identifier"] if one["system"] == system)
        for item in resources_of_sample()
        if item["resourceType"] == "Patient"
    }
    by_number, left = read(SAMPLE, identifier_system=system)
    expected = by_id.assign(patient=by_id["patient"].map(numbers)).sort_values(list(RECORDS), ignore_index=True)
    pd.testing.assert_frame_equal(by_number, expected, check_dtype=False)
    assert sum(left.values()) == 3
    with pytest.raises(ExportError, match="must be one that patients have"):
        read(SAMPLE, identifier_system="http://nobody.example")


@needs_sample
def test_nothing_of_the_sample_is_seen_before_it_was_recorded(tmp_path: Path) -> None:
    """Conditions that began years before they were recorded: the record, not the onset, lets a feature see them."""
    resources = [item for item in resources_of_sample() if item["resourceType"] == "Condition"]
    for number, item in enumerate(resources):
        item["onsetDateTime"] = f"{int(item['recordedDate'][:4]) - 1 - number % 5}"
    events, _ = read(write_lines(tmp_path / "Condition.ndjson", *resources))
    assert set(events["code"].str.startswith(ONSET)) == {True, False}
    events["subject_id"] = events["patient"].factorize()[0]
    events["numeric_value"] = events["value"]
    recorded = events[~events["code"].str.startswith(ONSET)]
    moment = pd.Timedelta(microseconds=1)
    for code, rows in recorded.groupby("code"):
        features = Features(age=False, codes=(CodeFeature("condition", (str(code),)),))
        first = rows.groupby("subject_id")["time"].min().reset_index().rename(columns={"time": "prediction_time"})
        before, _ = clinical_inputs(events, first, features)
        after, _ = clinical_inputs(events, first.assign(prediction_time=first["prediction_time"] + moment), features)
        assert not before.any()
        assert after.all()


@given(st.datetimes(datetime(1850, 1, 1), datetime(2100, 1, 1)), st.sampled_from(["", "Z", "+05:00", "-03:30"]))
def test_no_time_comes_before_one_that_is_written(moment: datetime, offset: str) -> None:
    written = moment.isoformat()
    for length in (4, 7, 10):
        first, last = moments(written[:length], None)
        assert first <= moment <= last
        assert first.isoformat()[:length] == last.isoformat()[:length] == written[:length]
    first, last = moments(written + offset, None)
    assert moment <= last
    assert first == last == moment or moment.time() == datetime.min.time()
    assert abs((birth(written[:4]) - moment).days) <= 184
    zone = ZoneInfo("Europe/Vienna")
    if offset and moment.time() != datetime.min.time():
        there = moments(written + offset, zone)[0].replace(tzinfo=zone)
        assert abs(there.timestamp() - datetime.fromisoformat(written + offset).timestamp()) in (0, 3600) or (
            moments(written + offset, zone)[0].time() == datetime.min.time()
        )


@pytest.mark.parametrize(
    "written",
    [
        "",
        "20200101",
        "2020-13",
        "2020-02-30",
        "2020-01-01T25:00:00Z",
        "0000",
        "now",
        "2020-01-01T10:00:00+99:99",
        "2020-W01",
        "1\u0662\u0663\u0664",
    ],
)
def test_what_is_no_time_is_told(written: str) -> None:
    with pytest.raises(LeftOutError):
        moments(written, None)


def test_times_keep_the_clock_or_are_turned_into_the_sites_zone(tmp_path: Path) -> None:
    noon = change(PRESSURE, effectiveDateTime="2020-07-01T10:00:00Z")
    assert read_one(tmp_path, noon)[0] == [("LOINC//8480-6", "2020-07-01 10:00:00")]
    assert read_one(tmp_path, noon, time_zone="Europe/Vienna")[0] == [("LOINC//8480-6", "2020-07-01 12:00:00")]
    with pytest.raises(ExportError, match="must be an IANA name"):
        read_one(tmp_path, noon, time_zone="../etc/passwd")


RECORDED = {"recordedDate": "2020-01-02T10:30:00Z"}
ASSERTED = [{"url": "http://hl7.org/fhir/StructureDefinition/condition-assertedDate", "valueDateTime": "2020-01-03"}]
IN_ENCOUNTER = {"reference": "Encounter/e1"}


@pytest.mark.parametrize(
    ("elements", "recorded", "onset"),
    [
        ({}, "2020-01-02 10:30:00", "2019-06-01 23:59:59.999999"),
        ({"recordedDate": "2020-01"}, "2020-01-31 23:59:59.999999", "2019-06-01 23:59:59.999999"),
        ({"recordedDate": "2020-01-02T00:00:00Z"}, "2020-01-02 23:59:59.999999", "2019-06-01 23:59:59.999999"),
        ({"recordedDate": None}, None, "2019-06-01 23:59:59.999999"),
        ({"recordedDate": None, "encounter": IN_ENCOUNTER}, "2020-01-05 09:00:00", "2019-06-01 23:59:59.999999"),
        ({"recordedDate": None, "extension": ASSERTED}, "2020-01-03 23:59:59.999999", "2019-06-01 23:59:59.999999"),
        ({"onsetDateTime": "2019"}, "2020-01-02 10:30:00", "2019-12-31 23:59:59.999999"),
        ({"onsetDateTime": "2020"}, "2020-01-02 10:30:00", "2020-01-02 10:30:00"),
        ({"onsetDateTime": None}, "2020-01-02 10:30:00", None),
        ({"onsetDateTime": None, "onsetString": "long ago"}, "2020-01-02 10:30:00", None),
        (
            {"onsetDateTime": None, "onsetPeriod": {"start": "2018-01-01"}},
            "2020-01-02 10:30:00",
            "2018-01-01 23:59:59.999999",
        ),
        ({"onsetDateTime": None, "onsetAge": {"value": 60, "code": "a"}}, "2020-01-02 10:30:00", "2011-03-04 06:00:00"),
        ({"onsetDateTime": None, "onsetAge": {"value": 1e300, "code": "a"}}, "2020-01-02 10:30:00", None),
    ],
)
def test_condition_is_known_from_when_it_was_recorded(
    tmp_path: Path, elements: Resource, recorded: str | None, onset: str | None
) -> None:
    events, left = read_one(tmp_path, change(CONDITION, **elements), ENCOUNTER)
    expected = [("ONSET//SNOMED//38341003", onset), ("SNOMED//38341003", recorded)]
    assert events == [(code, time) for code, time in expected if time]
    assert left == (
        [] if recorded else [(SKIPPED, "Condition: nobody knows when it was recorded: only its onset is kept")]
    )


@pytest.mark.parametrize(
    "elements",
    [
        {"onsetDateTime": "2021-01-05"},
        {"onsetDateTime": "2020-01-02T10:31:00Z"},
        {"onsetDateTime": None, "onsetPeriod": {"start": "2021"}},
        {"onsetDateTime": None, "onsetAge": {"value": 70, "code": "a"}},
        {"recordedDate": None, "encounter": IN_ENCOUNTER, "onsetDateTime": "2020-01-06"},
    ],
)
def test_an_onset_after_the_date_of_record_is_not_a_second_stroke(tmp_path: Path, elements: Resource) -> None:
    events, left = read_one(tmp_path, change(CONDITION, **elements), ENCOUNTER)
    assert [code for code, _ in events] == ["SNOMED//38341003"]
    assert left == [(QUARANTINED, "Condition: an onset later than when it was recorded; only the latter is kept")]


@given(st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_condition_without_a_date_of_record_is_never_known_within_its_encounter(
    tmp_path: Path, data: st.DataObject
) -> None:
    start, end = sorted(
        data.draw(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)), min_size=2, max_size=2))
    )
    length = data.draw(st.sampled_from([4, 7, 10, 26]))
    period = {"start": start.isoformat(), "end": end.isoformat(timespec="microseconds")[:length]}
    undated = change(CONDITION, recordedDate=None, encounter=IN_ENCOUNTER)
    events, _ = read_one(tmp_path, undated, change(ENCOUNTER, period=period))
    assert pd.Timestamp(dict(events)["SNOMED//38341003"]) >= end
    events, left = read_one(tmp_path, undated, change(ENCOUNTER, period={"start": start.isoformat()}))
    assert [code for code, _ in events] == ["ONSET//SNOMED//38341003"]
    assert len(left) == 1


@pytest.mark.parametrize(
    ("codings", "code"),
    [
        ([(SNOMED, "230690007"), (ICD10, "I63.9"), (ICD9, "434.91")], "ICD10CM//I63.9"),
        ([(ICD9, "434.91"), (SNOMED, "230690007")], "SNOMED//230690007"),
        ([("http://local.example", "X"), (ICD9, "434.91")], "ICD9//434.91"),
        ([("https://HL7.org/fhir/sid/icd-10/", "I63")], "ICD10//I63"),
        ([("http://fhir.de/CodeSystem/bfarm/icd-10-gm", "I63.9")], "ICD10//I63.9"),
        ([("urn:oid:2.16.840.1.113883.6.90", "I63.9")], "ICD10CM//I63.9"),
        ([("http://hl7.org/fhir/sid/icd-10-pcs", "0016070"), (SNOMED, "230690007")], "SNOMED//230690007"),
        ([("http://local.example", "X")], None),
        ([(ICD10, "a patient's name")], None),
        ([], None),
    ],
)
def test_condition_coded_in_several_ways_is_one(
    tmp_path: Path, codings: list[tuple[str, str]], code: str | None
) -> None:
    events, left = read_one(tmp_path, change(CONDITION, code=concept(*codings), onsetDateTime=None))
    assert [found for found, _ in events] == ([code] if code else [])
    assert len(left) == (code is None)


def test_excluded_diagnosis_of_german_records_is_not_a_diagnosis(tmp_path: Path) -> None:
    url = "http://fhir.de/StructureDefinition/icd-10-gm-diagnosesicherheit"
    for letter, code in (("A", "ICD10-UNSECURED//I63.9A"), ("V", "ICD10-UNSECURED//I63.9V"), ("G", "ICD10//I63.9")):
        coding = {"system": "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "code": "I63.9"}
        marked = {**coding, "extension": [{"url": url, "valueCoding": {"code": letter}}]}
        events, _ = read_one(tmp_path, change(CONDITION, code={"coding": [marked]}, onsetDateTime=None))
        assert [normal_code(found) for found, _ in events] == [code]


@pytest.mark.parametrize(
    ("elements", "outcome"),
    [
        ({"verificationStatus": concept(("", "refuted"))}, SKIPPED),
        ({"verificationStatus": concept(("", "entered-in-error"))}, SKIPPED),
        ({"verificationStatus": "entered-in-error"}, SKIPPED),
        ({"verificationStatus": [concept(("", "refuted"))]}, QUARANTINED),
        ({"verificationStatus": 1}, QUARANTINED),
        ({"verificationStatus": None}, None),
        ({"code": None}, SKIPPED),
        ({"code": {"coding": {"system": SNOMED, "code": "1"}}}, QUARANTINED),
        ({"code": {"coding": [{"system": SNOMED, "code": 1}]}}, QUARANTINED),
        ({"recordedDate": "yesterday"}, QUARANTINED),
        ({"recordedDate": 20200101}, QUARANTINED),
        ({"onsetDateTime": ["2019"]}, QUARANTINED),
        ({"recordedDate": None, "onsetDateTime": None}, SKIPPED),
        ({"subject": None}, QUARANTINED),
        ({"subject": {}}, QUARANTINED),
        ({"subject": {"reference": "Group/1"}}, SKIPPED),
        ({"subject": {"reference": "#p1"}}, SKIPPED),
        ({"subject": {"reference": "p1"}}, SKIPPED),
        ({"subject": {"reference": "Patient/"}}, SKIPPED),
        ({"subject": {"reference": "Patient/" + "1" * 300}}, QUARANTINED),
        ({"subject": {"reference": "Patient/\ud800"}}, QUARANTINED),
        ({"subject": {"reference": "Patient/\x00"}}, QUARANTINED),
    ],
)
def test_condition_that_says_nothing_is_left_out(tmp_path: Path, elements: Resource, outcome: str | None) -> None:
    events, left = read_one(tmp_path, change(CONDITION, **elements))
    assert len(events) == (2 if outcome is None else 0)
    assert [found for found, _ in left] == ([] if outcome is None else [outcome])


@pytest.mark.parametrize(
    "subject",
    [
        {"reference": "Patient/p1"},
        {"reference": "Patient/p1/_history/3"},
        {"reference": "https://server.example/fhir/Patient/p1"},
        {"reference": "urn:uuid:p1"},
        {"reference": "urn:uuid:0a"},
        {"reference": f"Patient?identifier={MRN}|MRN7"},
        {"reference": "Patient?identifier=http%3A%2F%2Fhospital.example%2Fmrn%7CMRN7"},
        {"identifier": {"system": MRN, "value": "MRN7"}},
    ],
)
@pytest.mark.parametrize("system", ["", MRN])
def test_every_way_to_refer_to_a_patient_finds_it(tmp_path: Path, subject: Resource, system: str) -> None:
    write_bundle(tmp_path / "b.json", change(CONDITION, subject=subject))
    bundle = {"resourceType": "Bundle", "entry": [{"fullUrl": "urn:uuid:0a", "resource": PATIENT}]}
    (tmp_path / "z.json").write_text(json.dumps(bundle))
    events, left = read(tmp_path, identifier_system=system)
    assert set(events["patient"]) == {"MRN7" if system else "p1"}
    assert len(events) == 4
    assert not left


def test_patient_without_an_id_is_named_by_its_url(tmp_path: Path) -> None:
    nameless = change(CONDITION, subject={"reference": "urn:uuid:0a"})
    entries = [{"resource": nameless}, {"fullUrl": "urn:uuid:0a", "resource": change(PATIENT, id=None)}]
    (tmp_path / "b.json").write_text(json.dumps({"resourceType": "Bundle", "entry": entries}))
    events, left = read(tmp_path)
    assert set(events["patient"]) == {"0a"}
    assert not left


def test_patient_of_another_file_counts_by_its_reference(tmp_path: Path) -> None:
    events, left = read(write_lines(tmp_path / "Condition.ndjson", CONDITION))
    assert set(events["patient"]) == {"p1"}
    assert not left


def test_identifier_told_with_the_reference_is_enough(tmp_path: Path) -> None:
    other = {"reference": "Patient/p2", "identifier": {"system": MRN, "value": "MRN8"}}
    unknown = change(CONDITION, subject={"reference": "Patient/p3"})
    file = write_lines(tmp_path / "export.ndjson", PATIENT, change(CONDITION, subject=other), unknown)
    events, left = read(file, identifier_system=MRN)
    assert set(events["patient"]) == {"MRN7", "MRN8"}
    assert sum(left.values()) == 1
    alone, _ = read(write_lines(tmp_path / "alone.ndjson", change(CONDITION, subject=other)), identifier_system=MRN)
    assert set(alone["patient"]) == {"MRN8"}


@pytest.mark.parametrize(
    ("identifiers", "patient"),
    [
        ([{"system": MRN, "value": "1", "use": "old"}, {"system": MRN, "value": "2"}], "2"),
        ([{"system": MRN, "value": "1", "use": "official"}, {"system": MRN, "value": "2"}], "1"),
        ([{"system": MRN, "value": "1"}, {"system": MRN, "value": "1"}], "1"),
        ([{"system": MRN, "value": "1"}, {"system": MRN, "value": "2"}], None),
        ([{"system": "http://other.example", "value": "1"}], None),
    ],
)
def test_patient_with_several_identifiers_is_not_guessed(
    tmp_path: Path, identifiers: list[Resource], patient: str | None
) -> None:
    several = change(PATIENT, id="p2", identifier=identifiers)
    events, left = read(write_lines(tmp_path / "export.ndjson", PATIENT, several), identifier_system=MRN)
    assert set(events["patient"]) == {"MRN7", patient} - {None}
    assert sum(left.values()) == (patient is None)


@pytest.mark.parametrize(
    ("elements", "codes", "reasons"),
    [
        ({"birthDate": "1950"}, {"MEDS_BIRTH": "1950-07-01 00:00:00", "SEX//M": "NaT"}, 0),
        ({"birthDate": "1950-03"}, {"MEDS_BIRTH": "1950-03-15 00:00:00", "SEX//M": "NaT"}, 0),
        ({"birthDate": None, "gender": "female"}, {"SEX//F": "NaT"}, 1),
        ({"gender": "other"}, {"MEDS_BIRTH": "1950-03-04 00:00:00"}, 1),
        (
            {"deceasedDateTime": "2020-05"},
            {"MEDS_BIRTH": "1950-03-04 00:00:00", "SEX//M": "NaT", "MEDS_DEATH": "2020-05-31 23:59:59.999999"},
            0,
        ),
        ({"deceasedBoolean": True}, {"MEDS_BIRTH": "1950-03-04 00:00:00", "SEX//M": "NaT"}, 1),
        ({"deceasedBoolean": False}, {"MEDS_BIRTH": "1950-03-04 00:00:00", "SEX//M": "NaT"}, 0),
        ({"deceasedBoolean": "false"}, {}, 1),
        ({"id": None}, {}, 1),
        ({"id": 7}, {}, 1),
    ],
)
def test_patient(tmp_path: Path, elements: Resource, codes: dict[str, str], reasons: int) -> None:
    events, left = read(write_lines(tmp_path / "Patient.ndjson", change(PATIENT, **elements)))
    assert {row.code: str(row.time) for row in events.itertuples()} == codes
    assert sum(left.values()) == reasons


def panel(code: str = "85354-9", **elements: object) -> Resource:
    parts = [
        {"code": concept((LOINC, one)), "valueQuantity": quantity(value)}
        for one, value in (("8480-6", 120), ("8462-4", 80))
    ]
    return change(PRESSURE, code=concept((LOINC, code)), valueQuantity=None, component=parts, **elements)


SMOKES = change(PRESSURE, code=concept((LOINC, "72166-2")), valueQuantity=None)


@pytest.mark.parametrize(
    ("observation", "codes", "outcomes"),
    [
        (PRESSURE, ["8480-6"], []),
        (panel(), ["8462-4", "8480-6"], []),
        (panel("55284-4"), ["8462-4", "8480-6"], []),
        (panel(valueString="120/80"), ["8462-4", "8480-6"], [SKIPPED]),
        (panel("9999-9"), [], [SKIPPED]),
        (panel(status="entered-in-error"), [], [SKIPPED]),
        (change(PRESSURE, status="cancelled"), [], [SKIPPED]),
        (change(PRESSURE, status=None), [], [SKIPPED]),
        (change(PRESSURE, valueQuantity=quantity(comparator="<")), [], [SKIPPED]),
        (change(PRESSURE, dataAbsentReason={"text": "unknown"}), [], [SKIPPED]),
        (change(PRESSURE, valueQuantity=None), [], [SKIPPED]),
        (change(PRESSURE, valueQuantity={"unit": "mmHg"}), [], [SKIPPED]),
        (change(PRESSURE, valueQuantity=None, valueString="high"), [], [SKIPPED]),
        (change(PRESSURE, valueQuantity=None, valueInteger=120), ["8480-6"], []),
        (change(PRESSURE, valueQuantity=quantity("120")), [], [QUARANTINED]),
        (change(PRESSURE, valueQuantity=quantity(True)), [], [QUARANTINED]),
        (change(PRESSURE, valueQuantity=quantity(10**400)), [], [QUARANTINED]),
        (change(PRESSURE, valueQuantity=quantity(float("nan"))), [], [QUARANTINED]),
        (change(PRESSURE, valueQuantity=[quantity()]), [], [QUARANTINED]),
        (change(PRESSURE, effectiveDateTime=None), [], [QUARANTINED]),
        (change(PRESSURE, effectiveDateTime=None, issued="2020-01-02T10:30:00Z"), ["8480-6"], []),
        (change(PRESSURE, effectiveDateTime=None, effectiveInstant="2020-01-02T10:30:00Z"), ["8480-6"], []),
        (change(PRESSURE, effectiveDateTime=None, effectivePeriod={"end": "2020-01-02T10:30:00Z"}), ["8480-6"], []),
        (
            change(PRESSURE, effectiveDateTime=None, effectivePeriod={"start": "2020-01-02T10:30:00Z"}),
            [],
            [QUARANTINED],
        ),
        (change(PRESSURE, code=concept((LOINC, "8331-1"), (LOINC, "8310-5"))), ["8310-5"], []),
        (change(PRESSURE, code=concept(("http://local.example", "RR"))), [], [SKIPPED]),
        (change(SMOKES, valueCodeableConcept=concept((SNOMED, "449868002"))), ["72166-2//current"], []),
        (
            change(SMOKES, valueCodeableConcept=concept((SNOMED, "8517006"), (LOINC, "LA15920-4"))),
            ["72166-2//former"],
            [],
        ),
        (change(SMOKES, valueCodeableConcept=concept((LOINC, "LA18978-9"))), ["72166-2//never"], []),
        (change(SMOKES, valueCodeableConcept=concept((SNOMED, "266927001"))), [], [SKIPPED]),
        (change(SMOKES, valueCodeableConcept=concept((SNOMED, "8517006"), (SNOMED, "266919005"))), [], [SKIPPED]),
        (change(SMOKES, valueCodeableConcept={"text": "never"}), [], [SKIPPED]),
        (change(PRESSURE, valueQuantity=None, valueCodeableConcept=concept((SNOMED, "1"))), [], [SKIPPED]),
    ],
)
def test_observation(tmp_path: Path, observation: Resource, codes: list[str], outcomes: list[str]) -> None:
    events, left = read_one(tmp_path, observation)
    assert events == [(f"LOINC//{code}", "2020-01-02 10:30:00") for code in codes]
    assert [outcome for outcome, _ in left] == outcomes


@pytest.mark.parametrize(
    ("stated", "unit"),
    [
        ({}, "mm[Hg]"),
        ({"system": None}, "mmHg"),
        ({"code": None}, "mmHg"),
        ({"system": None, "unit": None}, "mm[Hg]"),
        ({"system": None, "unit": " mm\u00a0 Hg "}, "mm Hg"),
        ({"system": None, "unit": None, "code": None}, ""),
    ],
)
def test_unit_is_the_code_of_ucum_else_as_written(tmp_path: Path, stated: Resource, unit: str) -> None:
    observation = change(PRESSURE, valueQuantity=change(quantity(), **stated))
    events, _ = read(write_lines(tmp_path / "export.ndjson", observation))
    assert events["unit"].tolist() == [unit]


def test_bundle_in_a_bundle_is_read_and_a_history_is_not(tmp_path: Path) -> None:
    inner = {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": PATIENT}, {"resource": PRESSURE}]}
    old = {"resourceType": "Bundle", "type": "history", "entry": [{"resource": CONDITION}]}
    entries = [{"resource": inner}, {"resource": old}, {"response": {"status": "204"}}]
    (tmp_path / "b.json").write_text(json.dumps({"resourceType": "Bundle", "type": "batch-response", "entry": entries}))
    events, left = read(tmp_path)
    assert sorted(events["code"]) == ["LOINC//8480-6", "MEDS_BIRTH", "SEX//M"]
    assert list(left) == [(SKIPPED, "a bundle of type history, which has what was replaced since")]


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        b"{",
        json.dumps(PRESSURE).encode()[:-20],
        json.dumps(PRESSURE).encode() * 2,
        nested(200_000),
        b'{"resourceType": ' * 100_000,
        b'{"resourceType": "Observation", "value": ' + b"9" * 10_000 + b"}",
        b'{"resourceType": "Observation", "status": "\xff"}',
        b"\xff\xfe\x00\xd8",
        b"1",
        b"null",
        b"[]",
        b'{"resourceType": 7}',
        b'{"resourceType": "Bundle", "entry": {}}',
        b'{"resourceType": "Bundle", "entry": [null]}',
        b'{"resourceType": "Bundle", "entry": [{"resource": [1]}]}',
        b'{"resourceType": "Bundle", "entry": [{"resource": {}, "fullUrl": 1}]}',
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".ndjson"])
def test_damaged_document_is_told_and_the_others_are_read(tmp_path: Path, content: bytes, suffix: str) -> None:
    write_lines(tmp_path / "a.ndjson", PATIENT)
    (tmp_path / f"b{suffix}").write_bytes(content + b"\n")
    write_lines(tmp_path / "c.ndjson", PRESSURE)
    events, left = read(tmp_path)
    assert sorted(events["code"]) == ["LOINC//8480-6", "MEDS_BIRTH", "SEX//M"]
    assert sum(left.values()) == (0 if not content and suffix == ".ndjson" else 1)


def test_files_and_lines_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = change(PRESSURE, note=[{"text": "x" * 5000}])
    write_lines(tmp_path / "lines.ndjson", PATIENT, long, PRESSURE)
    write_bundle(tmp_path / "large.json", long)
    assert len(read(tmp_path)[0]) == 5
    monkeypatch.setattr(fhir_files, "MOST_FILE_BYTES", 1000)
    monkeypatch.setattr(fhir_files, "MOST_LINE_BYTES", 1000)
    events, left = read(tmp_path)
    assert len(events) == 3
    assert sum(left.values()) == 2


def test_every_file_and_link_that_is_not_read_is_counted_by_reason(tmp_path: Path) -> None:
    export = tmp_path / "export"
    write_lines(export / "deep" / "er" / "PATIENT.NDJSON", PATIENT)
    (export / "readme.txt").write_text("x")
    write_lines(tmp_path / "outside.ndjson", PRESSURE)
    (export / "link.ndjson").symlink_to(tmp_path / "outside.ndjson")
    (export / "loop").symlink_to(export)
    write_lines(export / ".hidden" / "a.ndjson", PRESSURE)
    write_lines(export / "._a.ndjson", PRESSURE)
    os.mkfifo(export / "pipe.json")
    events, left = read(export)
    assert len(events) == 2
    assert left == {
        (SKIPPED, "a link, which is not followed"): 2,
        (SKIPPED, "a hidden file"): 2,
        (SKIPPED, "no regular file"): 1,
        (SKIPPED, "a file that is neither .json nor .ndjson"): 1,
    }


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["", "a", ".a", "__MACOSX"]), st.sampled_from(["b.json", ".b.json", "c.txt", "d"])),
        st.sampled_from(["file", "link", "folder link"]),
        max_size=8,
    )
)
@settings(max_examples=30, deadline=None)
def test_the_files_read_and_those_left_out_are_all_there_are(entries: dict[tuple[str, str], str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        export = Path(name)
        for (folder, file), kind in entries.items():
            path = export / folder / file
            path.parent.mkdir(exist_ok=True)
            if kind == "file":
                path.write_text("{}")
            else:
                path.symlink_to(Path(__file__) if kind == "link" else Path(__file__).parent)
        files, left = fhir_files.fhir_files(export)
        assert len(files) + len(left) == len(entries)
        read_ones = [path for path, kind in entries.items() if kind == "file" and path[0] in ("", "a")]
        assert len(files) == sum(file == "b.json" for _, file in read_ones)


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "a.ndjson", PATIENT)
    (tmp_path / "shut").mkdir()
    scandir = os.scandir

    def refused(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "no", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    _, left = read(tmp_path)
    assert left == {(QUARANTINED, "a folder that cannot be listed"): 1}


@pytest.mark.parametrize("content", [None, b"", b"x", b"{}", b'{"resourceType": "Claim"}'])
def test_what_is_no_export_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ExportError) as error:
        read(tmp_path if content is not None else tmp_path / "nothing")
    assert str(tmp_path) not in str(error.value)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(
        [10**400, "\ud800", "\x00", "2020", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:01+14:00", "a", "x" * 5000]
    ),
    st.text(max_size=5),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The path to everything within plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in places(inner, (*path, key)))]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_anything_at_any_place_is_an_event_or_left_out(tmp_path: Path, data: st.DataObject) -> None:
    aged = change(
        CONDITION, onsetDateTime=None, onsetAge={"value": 60, "code": "a"}, recordedDate=None, encounter=IN_ENCOUNTER
    )
    whole = [
        PATIENT,
        panel(),
        PRESSURE,
        CONDITION,
        aged,
        ENCOUNTER,
        change(SMOKES, valueCodeableConcept=concept((SNOMED, "8517006"))),
    ]
    document = json.loads(json.dumps(data.draw(st.sampled_from(whole))))
    path = data.draw(st.sampled_from(places(document)[1:]))
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = data.draw(ANYTHING)
    rest = {**PATIENT, "id": "p2"}
    events, left = read(
        write_lines(tmp_path / "export.ndjson", document, rest), identifier_system=data.draw(st.sampled_from(["", MRN]))
    )
    assert sum(events["patient"].isin(["p2", "MRN7"])) >= 2
    assert len(events) > 2 or left or document.get("resourceType") not in ("Patient", "Observation", "Condition")
    assert events.loc[~events["code"].str.startswith("SEX//"), "time"].notna().all()
    assert events["patient"].str.encode("utf-8").notna().all()
    assert all(re.fullmatch(r"[\w .:,;()/'-]+", reason) for _, reason in left)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bits_never_crash_and_spare_the_other_lines(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(json.dumps(data.draw(st.sampled_from([panel(), CONDITION, PATIENT, ENCOUNTER]))).encode())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    content = content[: data.draw(st.integers(0, len(content)))]
    (tmp_path / "a.ndjson").write_bytes(content + b"\n" + json.dumps({**PATIENT, "id": "other"}).encode())
    events, _ = read(tmp_path)
    assert sum(events["patient"] == "other") == 2


def test_files_that_give_nothing_because_they_are_damaged_are_counted(tmp_path: Path) -> None:
    for number in range(3):
        write_bundle(tmp_path / f"{number}.json", PATIENT)
    whole = (tmp_path / "0.json").read_bytes()
    for number in range(2):
        (tmp_path / f"cut-{number}.json").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "line.ndjson").write_bytes(json.dumps(PATIENT).encode() + b"\n{\n")  # gives something
    (tmp_path / "other.json").write_text("{}")  # is whole, and not meant for us
    assert list(read_fhir(tmp_path))[-1] == FilesRead(7, 2)
