"""Does a second run over what did not change leave every file of the site folder alone?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from client.ingest.fhir import read_fhir
from client.ingest.mapping import TableMapping
from client.ingest.omop import read_omop
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.records import RecordsSummary, import_records
from client.ingest.table import read_table
from client.ingest.vocabulary import read_vocabulary
from client.labelling import label_site
from shared.knobs import load
from shared.site_folder import SiteFolder

PATIENTS, VOCABULARY = Pseudonyms(b"k" * 32), read_vocabulary()
MAPPING: dict[str, Any] = {
    "patient": ["who"],
    "time": {"columns": ["day"]},
    "columns": {
        "pressure": {"code": "LOINC//8480-6", "unit": "mmHg"},
        "height": {"code": "LOINC//8302-2", "unit": "cm"},
    },
    "labels": {"death": {"column": "died", "values": {"0": False, "1": True}, "horizon_days": 30}},
}


def csv_export(folder: Path) -> Path:
    rows = [f"{who},2020-01-{who:02},{120 + who},{170 + who},{who % 2}" for who in range(1, 29)]
    rows += [rows[0], "3,2020-01-03,wrong,,0"]
    (folder / "visits.csv").write_text("\n".join(["who,day,pressure,height,died", *rows]) + "\n")
    return folder / "visits.csv"


def omop_export(folder: Path) -> Path:
    tables: Mapping[str, list[str]] = {
        "person": ["person_id,gender_concept_id,year_of_birth", *(f"{who},8507,1950" for who in range(1, 29))],
        "measurement": [
            "person_id,measurement_concept_id,measurement_date,value_as_number,unit_source_value",
            *(f"{who},{3004249 + who % 3},2020-02-01,{who},mmHg" for who in range(1, 29)),
        ],
    }
    (folder / "cdm").mkdir()
    for name, lines in tables.items():
        (folder / "cdm" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / "cdm" / "notes.docx").write_text("x")
    return folder / "cdm"


def fhir_export(folder: Path) -> Path:
    resources: list[dict[str, object]] = []
    for who in range(1, 29):
        resources.append({"resourceType": "Patient", "id": str(who), "gender": "female", "birthDate": "1950"})
        code = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": ("I63.9", "I10", "E11")[who % 3]}]}
        about = {"subject": {"reference": f"Patient/{who}"}, "recordedDate": "2020-03-01", "onsetDateTime": "2020"}
        resources.append({"resourceType": "Condition", "code": code, **about})
    (folder / "fhir").mkdir()
    (folder / "fhir" / "all.ndjson").write_text("\n".join(map(json.dumps, resources)))
    (folder / "fhir" / "readme.txt").write_text("x")
    return folder / "fhir"


def snapshot(site: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(site)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in site.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "dataset.yaml").write_text("site: Nürnberg\n", encoding="utf-8")
    return SiteFolder(tmp_path / "site")


@pytest.fixture
def runs(site: SiteFolder, tmp_path: Path) -> dict[str, Callable[[], object]]:
    """Each kind of import, and the labelling, to be run as often as wanted."""
    csv, omop, fhir = csv_export(tmp_path), omop_export(tmp_path), fhir_export(tmp_path)
    task = tmp_path / "task.yaml"
    task.write_text("name: risk\nwindow: after\nobserved_days: 0\nanchor: {codes: [LOINC//8480-6]}\n")

    def bring(kind: str, export: Path, tables: Any) -> RecordsSummary:
        return import_records(site, kind, export, tables, VOCABULARY, PATIENTS, today=date(2024, 6, 1))

    return {
        "csv": lambda: bring("csv", csv, read_table(csv, load(TableMapping, MAPPING))),
        "omop": lambda: bring("omop", omop, read_omop(omop)),
        "fhir": lambda: bring("fhir", fhir, read_fhir(fhir)),
        "label": lambda: label_site(site.path, task),
    }


def test_a_second_run_changes_no_file(site: SiteFolder, runs: dict[str, Callable[[], object]]) -> None:
    for run in runs.values():
        run()
    before = snapshot(site.path)
    assert {"events.parquet", "labels/risk.parquet", "labels/death.parquet"} <= set(before)
    assert len([name for name in before if name.startswith("state/imports/events/")]) == 3
    for name, run in runs.items():
        run()
        assert snapshot(site.path) == before, name


def test_what_a_corrected_export_changes_is_written(
    site: SiteFolder, runs: dict[str, Callable[[], object]], tmp_path: Path
) -> None:
    for run in runs.values():
        run()
    before = snapshot(site.path)
    with (tmp_path / "visits.csv").open("a") as file:
        file.write("4,2020-05-01,140,,1\n")
    runs["csv"]()
    after = snapshot(site.path)
    changed = {name for name in before if before[name] != after[name]}
    assert {"events.parquet", "labels/death.parquet", "dataset.yaml"} <= changed
    assert not {"labels/risk.parquet"} & changed
    assert len([name for name in changed if name.startswith("state/imports/events/")]) == 1
