"""Which scans are there? Counts by modality, device, year and eye; pairs, sizes, spacing and repeated content."""

from __future__ import annotations

import pandas as pd

from client.check.counting import nested, parted, quantiles, without_rare
from client.check.suppression import Count
from client.check.tables import OTHER, UNSTATED, Tables
from shared.site_folder import IR, OCT

ONCE, SAME_PATIENT, ACROSS = "once", "again for the same patient", "also for another patient"
PAIRED, UNPAIRED = "with infrared scan", "without"


def scan_counts(tables: Tables) -> Count:
    """All scans: by modality, device, year and eye, nested in this order, and by how often their content is there."""
    images, smallest = tables.images, tables.settings.smallest_cell
    modalities = []
    for modality, scans in images.groupby("modality", sort=True):
        groups = (
            ("device", nested(without_rare(scans, "device", smallest), "device", "year", "eye")),
            ("size", nested(without_rare(_sized(scans), "size", smallest), "size")),
            ("spacing", nested(_spaced(scans), "spacing_is")),
        )
        modalities.append(Count(str(modality), len(scans), scans["subject_id"].nunique(), groups))
    content = nested(images.assign(content=_content(images)), "content")
    by = (("modality", tuple(modalities)), ("content", content))
    return Count("scans", len(images), images["subject_id"].nunique(), by)


def pairing_counts(tables: Tables) -> tuple[Count, float | None]:
    """Visits of an eye with an OCT: with and without an infrared scan that belongs to one of its B-scans.

    The partition is left out where few infrared scans stand alone, as their count would follow from it.

    Returns:
        The counts; and in that case the least that the share of pairs can be, as whoever reads the page can know.
    """
    smallest, images = tables.settings.smallest_cell, tables.images
    images = images.assign(paired=_paired(images))
    visits = images.groupby(["modality", "subject_id", "eye", "acquired_at"])[["paired"]].any().reset_index()
    oct_visits, ir_visits = visits[visits["modality"] == OCT], visits[visits["modality"] == IR]
    alone = ir_visits[~ir_visits["paired"]]
    named = oct_visits.assign(pairing=oct_visits["paired"].map({True: PAIRED, False: UNPAIRED}))
    few, groups = 0 < alone["subject_id"].nunique() < smallest, (("pairing", nested(named, "pairing")),)
    counts = Count("visits", len(named), named["subject_id"].nunique(), () if few else groups)
    if not few or not len(named) or len(alone) >= smallest:
        return counts, None
    return counts, max(0, len(ir_visits) - (smallest - 1)) / len(named)


def _paired(images: pd.DataFrame) -> pd.Series:
    """Which scans have a partner."""
    modalities = images.groupby("pair_id")["modality"].nunique()
    return images["pair_id"].isin(modalities[modalities > 1].index)


def spacing_quantiles(tables: Tables) -> dict[str, dict[str, dict[str, float]]]:
    """By modality, for rows and columns: quantiles of the spacing in mm per pixel, one value a patient."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for modality, scans in tables.images.groupby("modality"):
        known = scans[_is_spaced(scans)]
        for place, axis in enumerate(("row", "column")):
            values = known["spacing"].map(lambda spacing, place=place: float(spacing[place]))
            told = quantiles(values.groupby(known["subject_id"]).median(), tables.settings.smallest_cell)
            if told:
                found.setdefault(str(modality), {})[axis] = told
    return found


def patients_by_modality(tables: Tables) -> tuple[Count, ...]:
    """Patients with scans: with OCT and infrared, or one of them only."""
    owners = {name: set(part["subject_id"]) for name, part in tables.images.groupby("modality")}
    has_oct, has_ir = owners.get(OCT, set()), owners.get(IR, set())
    both, neither = has_oct & has_ir, owners.get(OTHER, set()) - has_oct - has_ir
    paired = set(tables.images.loc[_paired(tables.images), "subject_id"])
    counts = (
        Count("OCT and infrared", len(both), groups=(parted("pairing", both, paired, ("with a pair", "without")),)),
        Count("OCT only", len(has_oct - has_ir)),
        Count("infrared only", len(has_ir - has_oct)),
        Count(OTHER, len(neither)),
    )
    return tuple(count for count in counts if count.value)


def _sized(scans: pd.DataFrame) -> pd.DataFrame:
    known = scans["height"].notna() & scans["width"].notna()
    size = scans["height"].astype("Int64").astype(str) + " \u00d7 " + scans["width"].astype("Int64").astype(str)
    return scans.assign(size=size.where(known, UNSTATED))


def _is_spaced(scans: pd.DataFrame) -> pd.Series:
    return scans["spacing"].map(lambda spacing: spacing is not None and len(spacing) == 2).astype(bool)


def _spaced(scans: pd.DataFrame) -> pd.DataFrame:
    return scans.assign(spacing_is=_is_spaced(scans).map({True: "known", False: UNSTATED}))


def _content(images: pd.DataFrame) -> pd.Series:
    """How often a scan's bytes are there; the frames of one file are different scans."""
    same = images.assign(frame=images["frame"].fillna(0)).groupby(["sha256", "frame"])["subject_id"]
    content = pd.Series(ONCE, index=images.index)
    return content.mask(same.transform("size") > 1, SAME_PATIENT).mask(same.transform("nunique") > 1, ACROSS)
