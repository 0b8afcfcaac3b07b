"""What scans does an ``.E2E`` file hold, HEYEX's patient file, or an ``.sdb`` file of its data base?

A file holds any number of series, of one patient as a rule; each is yielded by itself, and one that cannot be used does
not hinder the others. Names and birth dates lie in the record that holds the patient's id, and are not read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from client.ingest.export import QUARANTINED, SKIPPED, LeftOut, LeftOutError, Scan, ScanOptions
from client.ingest.heidelberg.e2e_directory import Directory, Record, content, read_directory
from client.ingest.heidelberg.e2e_records import Series
from client.ingest.heidelberg.e2e_series import read_series
from client.ingest.heidelberg.values import text

_PATIENT = 9
_ID_AT, _ID_BYTES = 102, 25  # within the record: after names, birth date and sex


def read_e2e(path: Path, patient_files: Sequence[Path], options: ScanOptions) -> Iterator[Scan | LeftOut]:
    """The scans of a file, series by series.

    Args:
        patient_files: the ``.pdb`` files beside an ``.sdb``, which say whose it is; an ``.E2E`` says so itself.

    Raises:
        LeftOutError: nothing of it can be used.
    """
    with path.open("rb") as file:
        directory = read_directory(file)
        series = _by_series(directory)
        if not series:
            if directory.complete:
                raise LeftOutError(SKIPPED, "has no series")
            raise LeftOutError(QUARANTINED, "has a directory that is cut short or damaged, and no series in it")
        if not directory.complete:
            yield LeftOut(QUARANTINED, "has a directory that is cut short or damaged: scans may be lost")
        patients = {**_patients_of(patient_files), **_patients(file, directory)}
        for (patient, _, number), records in series.items():
            try:
                yield from read_series(
                    Series(file, directory, records, patients.get(patient, ""), number, options.time_zone), options
                )
            except LeftOutError as error:
                yield error.left_out


def _patients_of(paths: Sequence[Path]) -> dict[int, str]:
    found: dict[int, str] = {}
    for path in paths:
        with path.open("rb") as file:
            try:
                found |= _patients(file, read_directory(file))
            except LeftOutError:
                continue  # it is a source of its own, and reported there
    return found


def _patients(file: BinaryIO, directory: Directory) -> dict[int, str]:
    """The hospital's id of each patient, by the number in the data base."""
    found = (record for record in directory.records if record.kind == _PATIENT)
    return {record.patient: text(content(file, directory, record, _ID_BYTES, skip=_ID_AT)) for record in found}


def _by_series(directory: Directory) -> dict[tuple[int, int, int], tuple[Record, ...]]:
    """The records of each series, by the numbers of its patient, its study and itself."""
    series: dict[tuple[int, int, int], list[Record]] = defaultdict(list)
    for record in directory.records:
        if record.series != -1:
            series[record.patient, record.study, record.series].append(record)
    return {key: tuple(records) for key, records in sorted(series.items())}
