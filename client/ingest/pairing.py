"""Which infrared scan belongs to which OCT? The one that the export names; else the only one of that eye at that time.

What could be meant in two ways stays unpaired. The answer depends on the set of a patient's scans alone, not on their
order or on the import that each came with.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.site_folder import IR, OCT


@dataclass(frozen=True, slots=True)
class Candidate:
    """What pairing looks at in a scan.

    Attributes:
        acquired_us: microseconds since any fixed moment.
        partner: of an OCT, what the export calls its infrared scan, None where it says nothing; of an infrared scan,
            what it is called.
        is_central: only the central B-scan of a volume is paired.
        is_named: an OCT, of whichever patient, has this infrared scan as its partner.
    """

    image_id: str
    subject_id: int
    eye: str
    device: str
    modality: str
    acquired_us: int
    partner: str | None
    is_central: bool
    is_named: bool


def pair(candidates: Iterable[Candidate], within_s: float) -> dict[str, str]:
    """The image_id of the infrared scan for that of each OCT that has one.

    Args:
        candidates: all scans of a patient, or of several.
        within_s: how far apart in time two scans may be that the export does not join.
    """
    scans = list(candidates)
    infrared = [scan for scan in scans if scan.modality == IR]
    central = [scan for scan in scans if scan.modality == OCT and scan.is_central]
    pairs = _named(central, infrared)
    # An OCT whose export names another scan has no business with this one, and a scan that is named is taken.
    free_oct = [scan for scan in central if scan.partner is None]
    free_ir = [scan for scan in infrared if not scan.is_named]
    return pairs | _at_one_time(free_oct, free_ir, round(within_s * 1e6))


def _named(central: Sequence[Candidate], infrared: Sequence[Candidate]) -> dict[str, str]:
    """Pairs that the export states; of several OCT with one infrared scan the nearest in time has it."""
    called: dict[str | None, list[Candidate]] = defaultdict(list)
    for scan in infrared:
        called[scan.partner].append(scan)
    claims: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for scan in central:
        partners = called.get(scan.partner, []) if scan.partner is not None else []
        if len(partners) != 1:
            continue
        (partner,) = partners
        if (partner.subject_id, partner.eye) == (scan.subject_id, scan.eye):
            apart_us = abs(partner.acquired_us - scan.acquired_us)
            claims[partner.image_id].append((apart_us, scan.image_id))
    return {min(claimants)[1]: partner for partner, claimants in claims.items()}


def _at_one_time(octs: Sequence[Candidate], irs: Sequence[Candidate], within_us: int) -> dict[str, str]:
    """Pairs of one eye and device where each is the only one within that time of the other."""
    oct_by_eye, ir_by_eye = _by_eye(octs), _by_eye(irs)
    pairs = {}
    for eye, taken in oct_by_eye.items():
        others = ir_by_eye.get(eye, [])
        for time_us, image_id in taken:
            partner = _only(others, time_us, within_us)
            if partner is not None and _only(taken, partner[0], within_us) is not None:
                pairs[image_id] = partner[1]
    return pairs


def _by_eye(scans: Sequence[Candidate]) -> dict[tuple[int, str, str], list[tuple[int, str]]]:
    """(time, image_id) of the scans of each eye and device, by time."""
    groups = defaultdict(list)
    for scan in scans:
        groups[scan.subject_id, scan.eye, scan.device].append((scan.acquired_us, scan.image_id))
    return {key: sorted(group) for key, group in groups.items()}


def _only(scans: Sequence[tuple[int, str]], time_us: int, within_us: int) -> tuple[int, str] | None:
    """The scan within that time, when it is one."""
    first = bisect_left(scans, (time_us - within_us, ""))
    last = bisect_right(scans, time_us + within_us, key=lambda scan: scan[0])
    return scans[first] if last - first == 1 else None
