"""How does one site hold everything? The centralised arm is a federation of one site with all sites' patients."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from shared.errors import SiteError
from shared.site_folder import Dataset, SiteFolder, write_site

POOLED = "pooled"


def pool_sites(sites: Sequence[Path], folder: Path) -> Path:
    """Write a site folder with the patients of several; its images are links to theirs. Nothing is done twice.

    Raises:
        SiteError: a patient of two sites, or sites that state a code in different units.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    folders = [SiteFolder(path) for path in sites]
    datasets = [site.dataset() for site in folders]
    _check_subjects(folders)
    units: dict[str, str] = {}
    for dataset in datasets:
        for code, unit in dataset.units.items():
            if units.setdefault(code, unit) != unit:
                raise SiteError(
                    f"site {dataset.site}: unit of {code}", f"must be {units[code]} as elsewhere", value=unit
                )
    horizons = {task: days for dataset in datasets for task, days in dataset.horizons_days.items()}
    links = Path(tempfile.mkdtemp(prefix=".links-", dir=folder.parent))
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
        write_site(
            folder,
            Dataset(site=POOLED, units=units, horizons_days=horizons),
            pd.concat([site.events() for site in folders], ignore_index=True),
            pd.concat(images, ignore_index=True),
            labels,
            links,
        )
    finally:
        shutil.rmtree(links, ignore_errors=True)
    return folder


def _check_subjects(folders: Sequence[SiteFolder]) -> None:
    seen: set[int] = set()
    for site in folders:
        own = set(site.events()["subject_id"]) | set(site.images()["subject_id"])
        if seen & own:
            remedy = "Give every patient an id of their own before pooling."
            value = f"{len(seen & own)} shared"
            raise SiteError(f"site {site.name}: subject_id", "must be of this site only", value=value, remedy=remedy)
        seen |= own
