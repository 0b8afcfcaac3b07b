"""How does a folder of real OCT B-scans become the sites of a federation?

Public sets of single B-scans come without patient ids, eyes or dates, and their folders name a diagnosis at most.
So each scan is a patient of its own, and there are no records and no labels: these sites can pretrain, which is what
they are for. Two scans of one person may fall into different sites or splits; no figure from here is about patients.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from shared.errors import ConfigError
from shared.site_folder import EVENTS, OCT, Dataset, write_site
from simulation.cohorts.config import OctCohort
from simulation.cohorts.ist import locate

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
ACQUIRED_AT = pd.Timestamp("2000-01-01")  # the sets have no dates, and one for all tells the models nothing
# The contract knows R and L only and the sets do not say which. One value for all invents no pairs of eyes and no
# difference between them; R, because its layout is the common reference onto which left eyes are mirrored.
EYE = "R"


def build(config: OctCohort, *, seed: int, folder: Path) -> None:
    """Write ``<folder>/sites/site-<number>``, sizes within one scan of each other.

    Args:
        config: the folder of scans, searched in depth, and the number of sites.
        seed: decides which scan goes to which site.
        folder: the new cohort's folder.

    Raises:
        ConfigError: no such folder, fewer scans than sites, or a file that is not one readable image.
        SiteError: a site of that name exists already.
    """
    files = sources(config)
    if len(files) < config.sites:
        remedy = f"cohort.folder holds {len(files)} scan(s); each site needs one."
        raise ConfigError("cohort.sites", "must not exceed the scans", value=config.sites, remedy=remedy)
    scans = dict(enumerate(files, start=1))  # by patient: the same in whatever way they are shared out
    shuffled = np.random.default_rng(seed).permutation(len(files)) + 1
    for number, part in enumerate(np.array_split(shuffled, config.sites), start=1):
        _write_site({int(patient): scans[int(patient)] for patient in sorted(part)}, f"site-{number:02d}", folder)


def sources(config: OctCohort) -> list[Path]:
    """The scans of which the cohort is made; raises ``ConfigError`` where their folder is not."""
    remedy = "Point to a folder with PNG, JPEG or TIFF B-scans: cohort.folder=PATH"
    return find_scans(locate(config.folder, "cohort.folder", remedy))


def find_scans(folder: Path) -> list[Path]:
    """Every image file below the folder, in the order of their relative paths; hidden ones are not scans."""
    found = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    return sorted(
        (file for file in found if not file.name.startswith(".")), key=lambda file: file.relative_to(folder).as_posix()
    )


def _write_site(scans: dict[int, Path], name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".scans-", dir=folder) as draft:
        copies = Path(draft) / "files"
        copies.mkdir()
        images = pd.DataFrame([_copy(scan, patient, copies) for patient, scan in scans.items()])
        dataset = Dataset(site=name, extracted_at=ACQUIRED_AT.date().isoformat())
        write_site(folder / "sites" / name, dataset, pd.DataFrame(columns=EVENTS.names), images, image_files=copies)


def _copy(scan: Path, patient: int, copies: Path) -> dict[str, object]:
    """Copy one scan under a name that does not tell its diagnosis; its row of the imaging index."""
    image_id = f"oct-{patient:05d}"
    path = f"{image_id}{scan.suffix.lower()}"
    height, width = _size(scan)
    shutil.copyfile(scan, copies / path)
    return {
        "image_id": image_id,
        "subject_id": patient,
        "eye": EYE,
        "acquired_at": ACQUIRED_AT,
        "modality": OCT,
        "path": path,
        "frame": 0,
        "height": height,
        "width": width,
        "sha256": hashlib.sha256((copies / path).read_bytes()).hexdigest(),
    }


def _size(scan: Path) -> tuple[int, int]:
    """Height and width in pixels, from the header."""
    try:
        with Image.open(scan) as image:
            frames, height, width = getattr(image, "n_frames", 1), image.height, image.width
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(str(scan), "must be a readable image", value=type(error).__name__) from None
    if frames != 1:
        remedy = "Save each B-scan as a file of its own."
        raise ConfigError(str(scan), "must hold one image", value=f"{frames} images", remedy=remedy)
    return height, width
