"""How do the parts of all imports become the tables of a site folder, so that a kill at any time leaves a valid one?

``dataset.yaml`` is written first, to cover the events that are there and those that come; then the events; then the
date of the extract is set to what they need.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import yaml

from client.ingest import parts
from client.ingest.coverage import Coverage, merged
from client.ingest.events import Rules
from client.ingest.export import Why
from client.ingest.outcomes import join_labels
from client.ingest.part_notes import Notes, PatientCounts, read_notes
from client.ingest.pseudonyms import IMPORTS
from shared.errors import SiteError
from shared.files import replacing, write_atomic
from shared.knobs import dump
from shared.site_folder import Dataset, SiteFolder

EVENTS = "events.parquet"
_PARTS = f"{IMPORTS}/events"
_COVERAGE = f"{IMPORTS}/coverage.json"


def parts_folder(site: SiteFolder) -> Path:
    """The folder of the parts, for nobody else to read."""
    folder = site.path / _PARTS
    folder.mkdir(mode=0o700, exist_ok=True)  # the folder above is there, as there is the lock of this import in it
    return folder


def part_file(site: SiteFolder, name: str) -> Path:
    """The part of one import."""
    return parts_folder(site) / f"{name}.parquet"


def sweep(site: SiteFolder) -> None:
    """Remove what an import left that was killed; the caller holds the lock."""
    for path in parts_folder(site).glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in site.path.glob(f".{EVENTS}-*"):
        path.unlink()


def check_folder(site: SiteFolder) -> None:
    """Raise ``SiteError`` unless records can be imported into this folder."""
    if not (site.path / "dataset.yaml").exists():
        remedy = f"Make it first: fedretina site init {site.path}."
        raise SiteError(str(site.path), "must be a site folder", remedy=remedy)
    events = site.path / EVENTS
    if events.exists() and not any((site.path / _PARTS).glob("*.parquet")) and len(site.events()):
        remedy = "Import into a new folder, or restore the state/ folder that belongs to this one."
        raise SiteError(str(events), "must have been made by imports into this folder", remedy=remedy)


def read_all_notes(site: SiteFolder) -> dict[str, Notes]:
    """What is kept with each part, by the name of the import."""
    return {file.stem: _notes(file) for file in sorted((site.path / _PARTS).glob("*.parquet"))}


def _notes(file: Path) -> Notes:
    try:
        return read_notes(parts.read_notes(file))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        remedy = "Remove it and repeat every import of records."
        raise SiteError(str(file), "must be whole", remedy=remedy) from None


def join_all(site: SiteFolder, rules: Rules, horizons_days: Mapping[str, int]) -> Counter[Why]:
    """Make events, labels and ``dataset.yaml`` anew from the parts; what was left out because of other parts."""
    notes, before = read_all_notes(site), site.dataset()
    measures = {code: measure.unit for code, measure in rules.measures.items()}
    usual = parts.usual_units([one.units for one in notes.values()], measures)
    after = replace(
        before,
        units=dict(sorted({**before.units, **usual}.items())),
        extracted_at=max((one.stated or one.latest for one in notes.values()), default=""),
        vocabulary_digest=rules.vocabulary.digest,
        horizons_days={**before.horizons_days, **horizons_days},
    )
    _write_dataset(site, replace(after, extracted_at=max(before.extracted_at, after.extracted_at)))
    counts: Counter[Why] = Counter()
    by_patient = PatientCounts(rules)

    def finish(frame: pd.DataFrame) -> pd.DataFrame:
        frame = parts.in_usual_units(frame, usual, rules.units, counts)
        frame = parts.in_order(frame, counts)
        by_patient.add(frame)
        return frame

    with replacing(site.path / EVENTS, unless_equal=True) as draft:
        parts.join([part_file(site, name) for name in notes], draft, finish)
    join_labels(site, counts)
    _write_dataset(site, after)
    _write_coverage(site, [one.coverage for one in notes.values()], by_patient)
    return counts


def _write_dataset(site: SiteFolder, dataset: Dataset) -> None:
    text = yaml.safe_dump(dump(dataset), sort_keys=False, allow_unicode=True)
    file = site.path / "dataset.yaml"
    if text != file.read_text(encoding="utf-8"):
        write_atomic(file, text.encode())


def _write_coverage(site: SiteFolder, coverages: list[Coverage], by_patient: PatientCounts) -> None:
    """Patients are those of the union; rows left out are those of all imports together."""
    bad: dict[str, tuple[int, int]] = {}
    for coverage in coverages:
        for name, one in coverage.features.items():
            by_unit, by_range = bad.get(name, (0, 0))
            bad[name] = by_unit + one.bad_unit, by_range + one.bad_range
    text = json.dumps(asdict(by_patient.coverage(merged(coverages), bad)), indent=1)
    with replacing(site.path / _COVERAGE, unless_equal=True) as draft:
        draft.write_bytes(text.encode())


def read_coverage(site: SiteFolder) -> Coverage | None:
    """Of all imports of records together; None where there was none. Exact counts: show it by ``coverage_dict``.

    Raises:
        SiteError: a damaged file.
    """
    try:
        data = json.loads((site.path / _COVERAGE).read_text(encoding="utf-8"))
        notes = {"kind": "", "stated": "", "latest": "", "units": {}, "left_out": (), "buckets": (), "coverage": data}
        return read_notes(notes).coverage
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError):
        raise SiteError(_COVERAGE, "must be readable", remedy="Repeat an import.") from None
