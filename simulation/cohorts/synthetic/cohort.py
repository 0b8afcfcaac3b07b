"""How are all hospitals' folders made from one seed, whatever the number of workers?"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from shared.errors import ConfigError, SiteError
from shared.site_folder import Dataset, write_site, write_table
from simulation.cohorts.config import SyntheticCohort
from simulation.cohorts.synthetic.block import Plan, sample_block
from simulation.cohorts.synthetic.hospitals import Hospital, hospitals, shares
from simulation.cohorts.synthetic.images import write_images
from simulation.cohorts.synthetic.patients import EXTRACTED_AT
from simulation.cohorts.synthetic.record import UNITS
from simulation.cohorts.synthetic.tables import TASKS, event_table, label_tables, truth_table
from simulation.processes import forking

TRUTH = pa.schema(
    [
        ("site", pa.string()),
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("task", pa.string()),
        ("p_oracle", pa.float64()),  # P(event | the latent risk)
        ("p_image", pa.float64()),  # … | what the images of this visit show
        ("p_clinical", pa.float64()),  # … | the record strictly before the prediction time
        ("p_multimodal", pa.float64()),  # … | both
    ]
)
_BLOCK = 64  # patients; part of the random streams, so a change of it changes every cohort


@dataclass(frozen=True)
class _Job:
    """A block to be made, by whichever process."""

    plan: Plan
    hospital: Hospital
    first: int
    count: int
    files: Path  # where the images go


@dataclass(frozen=True)
class _Tables:
    """What a job leaves besides image files."""

    events: pd.DataFrame
    images: pd.DataFrame
    labels: dict[str, pd.DataFrame]
    truth: pd.DataFrame


def build(config: SyntheticCohort, *, horizon_days: int, seed: int, folder: Path, workers: int = 1) -> None:
    """Write ``sites/<name>/`` for every hospital, then ``truth.parquet`` beside them, which no site sees.

    Everything is made in a draft and moved at the end, so where ``truth.parquet`` is, the cohort is whole. Equal
    settings and seed give equal bytes, whatever ``workers`` is.

    Args:
        config: the cohort.
        horizon_days: N of both tasks: a stroke in [t - N, t] (detection) or in (t, t + N] (risk).
        seed: of all randomness.
        folder: of the cohort; made if absent.
        workers: processes to render with.

    Raises:
        ConfigError: fewer patients than hospitals.
        SiteError: a site folder of this cohort exists already.
    """
    if config.patients < config.sites:
        raise ConfigError("cohort.patients", f"must be >= cohort.sites, {config.sites}", value=config.patients)
    places = hospitals(config.sites, seed)
    for place in places:
        if (folder / "sites" / place.name).exists():
            remedy = "Remove it or choose another folder."
            raise SiteError(str(folder / "sites" / place.name), "must not exist yet", remedy=remedy)
    plan = Plan(seed, config.visits, config.labelled, horizon_days, config.image_height, config.image_width)
    (folder / "sites").mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
    try:
        jobs = list(_jobs(plan, places, config.patients, draft / "images"))
        made = _run(jobs, workers)
        for place in places:
            own = [tables for job, tables in zip(jobs, made, strict=True) if job.hospital == place]
            _write(place, plan, own, draft)
        for place in places:
            os.replace(draft / place.name, folder / "sites" / place.name)
        write_table(folder / "truth.parquet", pd.concat([tables.truth for tables in made]), TRUTH)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _jobs(plan: Plan, places: Sequence[Hospital], patients: int, images: Path) -> Iterator[_Job]:
    for place, share in zip(places, shares(places, patients), strict=True):
        for first in range(0, share, _BLOCK):
            yield _Job(plan, place, first, min(_BLOCK, share - first), images / place.name)


def _run(jobs: list[_Job], workers: int) -> list[_Tables]:
    """The tables of all jobs, in the order of the jobs."""
    if workers == 1:
        return [_make(job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=forking()) as pool:
        return list(pool.map(_make, jobs))


def _make(job: _Job) -> _Tables:
    block = sample_block(job.plan, job.hospital, job.first, job.count)
    return _Tables(
        events=event_table(block, job.plan, job.first),
        images=write_images(block, job.plan, job.first, job.files),
        labels=label_tables(block, job.plan.horizon_days),
        truth=truth_table(block, job.plan.horizon_days),
    )


def _write(place: Hospital, plan: Plan, made: list[_Tables], draft: Path) -> None:
    dataset = Dataset(
        site=place.name,
        extracted_at=EXTRACTED_AT,
        units=UNITS,
        horizons_days=dict.fromkeys(TASKS, plan.horizon_days),
    )
    write_site(
        draft / place.name,
        dataset,
        pd.concat([tables.events for tables in made], ignore_index=True),
        pd.concat([tables.images for tables in made], ignore_index=True),
        {task: pd.concat([tables.labels[task] for tables in made], ignore_index=True) for task in TASKS},
        draft / "images" / place.name,
    )
