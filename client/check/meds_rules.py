"""Are the tables what MEDS says? By the schemas of its own package, and its rule on the order of events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from meds.schema import DataSchema, LabelSchema, SubjectSplitSchema

from client.check.concerns import Concern
from shared.site_folder import SiteFolder

_REMEDY = "Write it by an importer: fedretina site import; or see the schemas of MEDS."


def meds_concerns(folder: SiteFolder, events: pd.DataFrame) -> Iterator[Concern]:
    """Tables that break MEDS; those that cannot be read at all are faults of the contract already."""
    tables = [(folder.path / "events.parquet", "events.parquet", DataSchema)]
    tables += [(file, "labels", LabelSchema) for file in sorted((folder.path / "labels").glob("*.parquet"))]
    tables += [(folder.path / "subject_splits.parquet", "subject_splits.parquet", SubjectSplitSchema)]
    for file, name, schema in tables:
        if file.exists() and not _conforms(file, schema):
            yield Concern(name, "another schema", f"should conform to the {schema.__name__} of MEDS", _REMEDY)
    if not _is_ordered(events):
        yield Concern("events.parquet", "another order", "should hold each patient's events together, by time", _REMEDY)


def _conforms(file: Path, schema: type[DataSchema | LabelSchema | SubjectSplitSchema]) -> bool:
    try:
        schema.validate(schema.align(pq.ParquetFile(file).read()))
    except (pa.ArrowException, OSError):
        return True  # not readable: find_faults tells
    except Exception:  # the package's own kinds, which differ by its releases
        return False
    return True


def _is_ordered(events: pd.DataFrame) -> bool:
    subjects = events["subject_id"]
    times = pd.Series(events["time"].to_numpy("datetime64[us]").astype("int64"), events.index)  # none comes first
    again = subjects == subjects.shift()
    together = int((~again).sum()) == subjects.nunique()
    return together and not bool((again & (times < times.shift())).any())
