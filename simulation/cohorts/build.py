"""Which sites does a simulation have? Cohorts are built once and kept by the digest of their settings."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from client.secret import SECRET
from shared.config import Task
from shared.errors import ConfigError
from shared.keys import write_secret
from shared.knobs import digest
from shared.randomness import derive_seed
from simulation.cohorts import ist, oct, synthetic
from simulation.cohorts.config import Cohort, FolderCohort, IstCohort, OctCohort, SyntheticCohort


@dataclass(frozen=True)
class Built:
    """A cohort on disk: its site folders, and the truth of a synthetic one (None for real data)."""

    sites: tuple[Path, ...]
    truth: Path | None


def build_cohort(cohort: Cohort, task: Task, seed: int, cache: Path, workers: int) -> Built:
    """The site folders of a cohort, built unless they were before.

    Args:
        cache: folder of built cohorts; one that is interrupted leaves nothing there.

    Raises:
        ConfigError: settings that the cohort cannot serve.
    """
    if isinstance(cohort, FolderCohort):
        return _existing(cohort)
    made_of = (version("fedretina"), digest(cohort), task.horizon_days, seed, *_sources(cohort))
    name = f"{cohort.kind}-{derive_seed(*made_of):016x}"
    folder = cache / name
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
        try:
            if isinstance(cohort, IstCohort):
                ist.build(cohort, seed=seed, folder=draft)
            elif isinstance(cohort, OctCohort):
                oct.build(cohort, seed=seed, folder=draft)
            else:
                synthetic.build(cohort, horizon_days=task.horizon_days, seed=seed, folder=draft, workers=workers)
            for site in (draft / "sites").iterdir():
                # So that a private simulation can be repeated; a hospital's own secret follows from nothing.
                write_secret(site / SECRET, hashlib.sha256(f"{name} {site.name}".encode()).digest())
            try:
                os.replace(draft, folder)
            except OSError:
                if not folder.exists():  # else another process has built it meanwhile
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    truth = folder / "truth.parquet"
    sites = tuple(sorted(path for path in (folder / "sites").iterdir() if path.is_dir()))
    return Built(sites, truth if truth.exists() else None)


def _sources(cohort: SyntheticCohort | IstCohort | OctCohort) -> list[str]:
    """The files of a real cohort with their sizes and times of change, so that new content is a new cohort."""
    if isinstance(cohort, SyntheticCohort):
        return []
    files = ist.sources(cohort) if isinstance(cohort, IstCohort) else oct.sources(cohort)
    return [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]


def _existing(cohort: FolderCohort) -> Built:
    if not cohort.folders:
        raise ConfigError("cohort.folders", "must name at least one site folder")
    for folder in cohort.folders:
        if not Path(folder).is_dir():
            raise ConfigError("cohort.folders", "must name existing folders", value=folder)
    folders = tuple(Path(folder).resolve() for folder in cohort.folders)
    names = [folder.name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            remedy = "Arms are named after the folders: rename one."
            raise ConfigError("cohort.folders", "must end in names of their own", value=name, remedy=remedy)
    return Built(folders, None)
