"""Where does each table of a site folder live, and how is it written and read?

The layout is the contract between every importer and the client. Tables are parquet with exactly the columns below;
events, labels and splits follow MEDS (medical-event-data-standard.github.io, package ``meds``).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from shared.errors import FedretinaError, SiteError
from shared.knobs import dump, knob, load

SCHEMA_VERSION = 1
OCT, IR = "OCT", "IR"
IMAGE_MODALITIES = (OCT, IR)
SPLITS = ("train", "tuning", "held_out")
_MEND_DATASET = "Mend dataset.yaml; docs/site-folder.md says what it holds."

EVENTS = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("time", pa.timestamp("us")),  # null for what does not change, such as sex
        ("code", pa.string()),
        ("numeric_value", pa.float32()),
        ("text_value", pa.string()),
    ]
)
IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("subject_id", pa.int64()),
        ("eye", pa.string()),  # R or L
        ("acquired_at", pa.timestamp("us")),
        ("modality", pa.string()),  # OCT or IR
        ("device", pa.string()),
        ("pair_id", pa.string()),  # shared by an OCT and its IR; null when unpaired
        ("path", pa.string()),  # relative to imaging/files
        ("frame", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("spacing", pa.list_(pa.float32())),  # mm per pixel: [row, column]; null when unknown
        ("sha256", pa.string()),  # of the file's bytes
        ("quality", pa.float32()),  # as the device states it; null when it does not
    ]
)
LABELS = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("boolean_value", pa.bool_()),
    ]
)
SUBJECT_SPLITS = pa.schema([("subject_id", pa.int64()), ("split", pa.string())])


@dataclass(frozen=True)
class Dataset:
    """``dataset.yaml``: what a site says about its folder."""

    site: str = knob(help="name of the site, as other sites will see it")
    schema_version: int = knob(SCHEMA_VERSION, "version of this contract", ge=1, le=SCHEMA_VERSION)
    time_zone: str = knob("UTC", "IANA name of the zone in which every time is written")
    extracted_at: str = knob("", "ISO date of the extract; nothing in the folder is later")
    units: dict[str, str] = knob({}, "unit of the numeric values of each measured code (UCUM)")
    horizons_days: dict[str, int] = knob({}, "horizon of each label task", unit="days")
    vocabulary_digest: str = knob("", "SHA-256 of the code mapping used by the importer")


@dataclass(frozen=True)
class SiteFolder:
    """The paths and tables of one site folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.dataset().site

    @property
    def image_files(self) -> Path:
        return self.path / "imaging" / "files"

    @property
    def state(self) -> Path:
        return self.path / "state"

    def dataset(self) -> Dataset:
        file = self.path / "dataset.yaml"
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            remedy = "Point to a folder made by fedretina site init, or of a simulated cohort."
            raise SiteError(str(file), "must exist", remedy=remedy) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            value = str(error).splitlines()[0]
            raise SiteError(str(file), "must be valid YAML", value=value, remedy=_MEND_DATASET) from None
        try:
            return load(Dataset, data or {}, "dataset.yaml: ")
        except FedretinaError as error:
            remedy = error.remedy or _MEND_DATASET
            raise SiteError(error.name, error.rule, value=error.value, remedy=remedy) from None

    def events(self) -> pd.DataFrame:
        return self._read("events.parquet", EVENTS)

    def images(self) -> pd.DataFrame:
        """The imaging index; empty where a site has no images."""
        return self._read("imaging/index.parquet", IMAGES, optional=True)

    def tasks(self) -> list[str]:
        return sorted(file.stem for file in (self.path / "labels").glob("*.parquet"))

    def labels(self, task: str) -> pd.DataFrame:
        """The labels of a task; empty where a site has none (it can still pretrain)."""
        return self._read(f"labels/{task}.parquet", LABELS, optional=True)

    def subject_splits(self) -> pd.DataFrame:
        """Splits that the site fixed by hand; empty where the study's keyed hash decides."""
        return self._read("subject_splits.parquet", SUBJECT_SPLITS, optional=True)

    def _read(self, relative: str, schema: pa.Schema, *, optional: bool = False) -> pd.DataFrame:
        file = self.path / relative
        if optional and not file.exists():
            return _frame(schema.empty_table())
        try:
            table = pq.ParquetFile(file).read()
        except FileNotFoundError:
            raise SiteError(str(file), "must exist", remedy="Import this site's data again.") from None
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            remedy = "Make it again by the import or the labelling that made it, or restore it from a copy."
            raise SiteError(str(file), "must be a readable parquet file", value=reason, remedy=remedy) from None
        missing = [name for name in schema.names if name not in table.column_names]
        if missing:
            remedy = f"Columns: {', '.join(schema.names)}."
            raise SiteError(f"{relative}: column {missing[0]}", "must be present", remedy=remedy)
        columns = []
        for field in schema:
            try:
                columns.append(table.column(field.name).cast(field.type))
            except pa.ArrowException:
                found = str(table.column(field.name).type)
                remedy = "docs/site-folder.md lists the columns and their types."
                name = f"{relative}: column {field.name}"
                raise SiteError(name, f"must be {field.type}", value=found, remedy=remedy) from None
        return _frame(pa.Table.from_arrays(columns, schema=schema))


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame


def write_site(
    folder: Path,
    dataset: Dataset,
    events: pd.DataFrame,
    images: pd.DataFrame | None = None,
    labels: Mapping[str, pd.DataFrame] | None = None,
    image_files: Path | None = None,
) -> SiteFolder:
    """Write a whole site folder, or nothing.

    Args:
        folder: the new folder; must not exist.
        events: columns of ``EVENTS``; a missing nullable column is filled with nulls.
        images: columns of ``IMAGES``.
        labels: per task, columns of ``LABELS``.
        image_files: a folder that is moved to ``imaging/files``; ``path`` in ``images`` is relative to it.

    Raises:
        SiteError: the folder exists already.
    """
    if folder.exists():
        raise SiteError(str(folder), "must not exist yet", remedy="Remove it or choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (draft / "imaging").mkdir()
        (draft / "labels").mkdir()
        (draft / "dataset.yaml").write_text(yaml.safe_dump(dump(dataset), sort_keys=False), encoding="utf-8")
        ordered = events.sort_values(["subject_id", "time"], na_position="first", kind="stable")
        write_table(draft / "events.parquet", ordered, EVENTS)
        if images is not None:
            write_table(draft / "imaging" / "index.parquet", images, IMAGES)
        for task, table in (labels or {}).items():
            write_table(draft / "labels" / f"{task}.parquet", table, LABELS)
        if image_files is None:
            (draft / "imaging" / "files").mkdir()
        else:
            shutil.move(str(image_files), draft / "imaging" / "files")
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return SiteFolder(folder)


def write_table(file: Path, frame: pd.DataFrame, schema: pa.Schema) -> None:
    """Write a frame with exactly the columns of ``schema``; absent columns become nulls."""
    columns = {
        field.name: pa.array(frame[field.name], type=field.type, from_pandas=True)
        if field.name in frame
        else pa.nulls(len(frame), field.type)
        for field in schema
    }
    pq.write_table(pa.table(columns, schema=schema), file)
