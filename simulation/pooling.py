"""How does one site hold everything? The centralised arm is a federation of one site with all sites' patients."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from shared.errors import SiteError
from shared.site_folder import SUBJECT_SPLITS, Dataset, SiteFolder, write_site, write_table

POOLED = "pooled"
T = TypeVar("T")


def pool_sites(sites: Sequence[Path], folder: Path) -> Path:
    """Write a site folder with the patients of several; its images are links to theirs. Nothing is done twice.

    Raises:
        SiteError: a patient or a name of two sites, or sites that differ in a unit or a horizon.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    folders = [SiteFolder(path) for path in sites]
    datasets = [site.dataset() for site in folders]
    _check_names([dataset.site for dataset in datasets])
    _check_subjects(folders)
    units = _agreed("unit", {dataset.site: dataset.units for dataset in datasets})
    horizons = _agreed("horizon", {dataset.site: dataset.horizons_days for dataset in datasets})
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    links = draft / "links"
    links.mkdir()
    try:
        images = []
        for dataset, site in zip(datasets, folders, strict=True):
            os.symlink(site.image_files.resolve(), links / dataset.site)
            table = site.images()
            for column in ("image_id", "path"):
                table[column] = f"{dataset.site}/" + table[column]
            table["pair_id"] = f"{dataset.site}/" + table["pair_id"]
            images.append(table)
        tasks = sorted({task for site in folders for task in site.tasks()})
        labels = {task: pd.concat([site.labels(task) for site in folders], ignore_index=True) for task in tasks}
        site_draft = write_site(
            draft / folder.name,
            Dataset(site=POOLED, units=units, horizons_days=horizons),
            pd.concat([site.events() for site in folders], ignore_index=True),
            pd.concat(images, ignore_index=True),
            labels,
            links,
        )
        fixed = pd.concat([site.subject_splits() for site in folders], ignore_index=True)
        if len(fixed):
            write_table(site_draft.path / "subject_splits.parquet", fixed, SUBJECT_SPLITS)
        os.replace(site_draft.path, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _agreed(what: str, stated: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """What several sites state of each code or task, which must be the same everywhere."""
    agreed: dict[str, T] = {}
    for site, values in stated.items():
        for name, value in values.items():
            if agreed.setdefault(name, value) != value:
                raise SiteError(f"site {site}: {what} of {name}", f"must be {agreed[name]} as elsewhere", value=value)
    return agreed


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SiteError(f"site {name}", "must be the name of one site only", remedy="Rename one in dataset.yaml.")


def _check_subjects(folders: Sequence[SiteFolder]) -> None:
    seen: set[int] = set()
    for site in folders:
        own = set(site.events()["subject_id"]) | set(site.images()["subject_id"])
        if seen & own:
            remedy = "Give every patient an id of their own before pooling."
            value = f"{len(seen & own)} shared"
            raise SiteError(f"site {site.name}: subject_id", "must be of this site only", value=value, remedy=remedy)
        seen |= own
