"""Does whoever waits see how far an import is?"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from client.ingest import progress as module
from client.ingest.fhir import read_fhir
from client.ingest.mapping import TableMapping
from client.ingest.omop import read_omop
from client.ingest.progress import Meter, Progress, Tell
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.records import import_records
from client.ingest.table import read_table
from client.ingest.vocabulary import read_vocabulary
from shared.knobs import load


def shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "_LINE_S", 0.0)
    monkeypatch.setattr(module, "_REFRESH_S", 0.0)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Progress("files", console) as progress:
        progress.advance()
        progress.expect(4)
        progress.advance(2)
        progress.advance(1)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_, last = shown(False, monkeypatch).splitlines()
    assert first == "files: 1"
    assert second.startswith("files: 3 of 4, ")
    assert second.endswith(" s left")
    assert last == "files: 4 of 4"


def test_on_a_terminal_there_is_a_bar_with_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(True, monkeypatch)
    assert "files" in text
    assert "3/4" in text


def test_where_nobody_knows_how_many_there_are_the_bytes_tell_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(module, "_LINE_S", 0.0)
        monkeypatch.setattr(module, "_REFRESH_S", 0.0)
        monkeypatch.setattr(module, "_STEP_BYTES", 1)
        file = io.StringIO()
        with Progress("rows", Console(file=file, force_terminal=terminal, width=120)) as progress:
            meter = Meter(400, progress.read)
            meter.add(100)
            progress.advance(50_000)
            meter.add(300)
            meter.add(1)  # a file that grew
        text = file.getvalue()
        assert "50000, 25% read" in text
        assert "100% read" in text
        if not terminal:
            assert [line.endswith(" s left") for line in text.splitlines()] == [True, True, False, False, False]


@pytest.mark.parametrize("total", [0, 10])
def test_an_empty_export_is_no_division(total: int) -> None:
    with Progress("rows", Console(file=io.StringIO())) as progress:
        progress.read(0, total)


Tables = Callable[[Path, Tell], Iterator[Any]]


def csv_tables(folder: Path, tell: Tell) -> Iterator[Any]:
    rows = "".join(f"{number},2020-01-01,120\n" for number in range(1000))
    (folder / "export").write_text("who,day,pressure\n" + rows)
    columns = {"pressure": {"code": "LOINC//8480-6", "unit": "mmHg"}}
    mapping = load(TableMapping, {"patient": ["who"], "time": {"columns": ["day"]}, "columns": columns})
    return read_table(folder / "export", mapping, chunk_rows=100, tell=tell)


def fhir_tables(folder: Path, tell: Tell) -> Iterator[Any]:
    people = [{"resourceType": "Patient", "id": str(number), "birthDate": "1950"} for number in range(1000)]
    (folder / "export").mkdir()
    (folder / "export" / "people.ndjson").write_text("\n".join(map(json.dumps, people)))
    (folder / "export" / "one.json").write_text(json.dumps(people[0]))
    (folder / "export" / "damaged.json").write_text("{")
    return read_fhir(folder / "export", tell=tell)


def omop_tables(folder: Path, tell: Tell) -> Iterator[Any]:
    persons = "".join(f"{number},8507,1950\n" for number in range(1000))
    with zipfile.ZipFile(folder / "export", "w") as archive:
        archive.writestr("person.csv", "person_id,gender_concept_id,year_of_birth\n" + persons)
        archive.writestr("concept.csv", "concept_id,vocabulary_id,concept_code\n1,LOINC,8480-6\n")
        archive.writestr("condition_occurrence.csv", "person_id,condition_concept_id,condition_start_date\n1,1,2020\n")
        archive.writestr("notes.docx", b"x")
    return read_omop(folder / "export", 100, tell=tell)


@pytest.mark.parametrize("tables", [csv_tables, fhir_tables, omop_tables])
@pytest.mark.parametrize("step_bytes", [1, 2**16])
def test_every_import_of_records_is_told_to_its_end(
    tables: Tables, step_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STEP_BYTES", step_bytes)
    told: list[tuple[int, int]] = []
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "dataset.yaml").write_text("site: north\n")
    file = io.StringIO()
    summary = import_records(
        tmp_path / "site",
        "any",
        tmp_path / "export",
        tables(tmp_path, lambda done, total: told.append((done, total))),
        read_vocabulary(),
        Pseudonyms(b"k" * 32),
        progress=Progress("rows", Console(file=file)),
    )
    done = [one for one, _ in told]
    assert len(told) > (2 if step_bytes == 1 else 0)
    assert done == sorted(done)
    assert {total for _, total in told} == {done[-1]}
    assert file.getvalue() == f"rows: {summary.rows}\n"
