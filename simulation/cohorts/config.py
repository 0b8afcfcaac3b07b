"""Which cohorts can a simulation make, and with which settings?"""

from __future__ import annotations

from dataclasses import dataclass

from shared.knobs import knob


@dataclass(frozen=True)
class SyntheticCohort:
    """Patients whose latent vascular risk shows in scans and records alike."""

    kind: str = knob("synthetic", choices=["synthetic"])
    sites: int = knob(4, "hospitals", ge=1, le=200)
    patients: int = knob(1600, "patients of all hospitals together", ge=8)
    visits: float = knob(1.5, "mean visits of a patient", ge=1.0, le=10.0)
    labelled: float = knob(0.5, "fraction of the patients whose outcome is known", gt=0.0, le=1.0)
    image_height: int = knob(64, "height of the scans", unit="pixels", ge=16, le=2048)
    image_width: int = knob(64, "width of the scans", unit="pixels", ge=16, le=2048)


@dataclass(frozen=True)
class IstCohort:
    """The International Stroke Trial, one site a hospital (doi:10.7488/ds/104)."""

    kind: str = knob("ist", choices=["ist"])
    file: str = knob("../shared/data/ist/IST.csv", "the official file, IST_dataset.csv or a copy of it")
    minimum_patients: int = knob(200, "hospitals with fewer patients are left out", ge=1)


@dataclass(frozen=True)
class OctCohort:
    """Real OCT B-scans in a folder, shared out among sites; without labels."""

    kind: str = knob("oct", choices=["oct"])
    folder: str = knob("../shared/data/oct", "folder with PNG, JPEG or TIFF B-scans, searched in depth")
    sites: int = knob(3, "sites among which the scans are shared out", ge=1, le=200)


@dataclass(frozen=True)
class FolderCohort:
    """Site folders that exist already, such as those written by importers."""

    kind: str = knob("folders", choices=["folders"])
    folders: tuple[str, ...] = knob((), "site folders")


Cohort = SyntheticCohort | IstCohort | OctCohort | FolderCohort
