"""What should somebody look at before this folder trains a model? Each with what was found, the rule and the remedy.

What was found is told in shown counts only: ``check.json`` may be shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from client.check.cases import NEGATIVE, POSITIVE
from client.check.imports import Quarantined
from client.check.patients import NO_RECORDS, NO_SCANS, WITH_RECORDS, WITH_SCANS
from client.check.records import OUTSIDE, WITH, FeatureFigure
from client.check.scans import ACROSS, PAIRED
from client.check.suppression import WITHHELD, Cell, Shown, share
from shared.site_folder import IR, OCT

LEAST_PAIRED, MOST_OUTSIDE, LEAST_LINKED, LEAST_OUTCOMES = 0.8, 0.05, 0.5, 20
_MEND_SCANS = "fedretina site left-out names them with reasons; mend the export and import it again."
_MEND_FILES = (
    "They are damaged or cut short: export them anew and import again. fedretina site import tells the reasons."
)
_MEND_ROWS = "fedretina site import counts them by reason and column; mend the mapping or the export and import again."
_FIRST_OCT_YEAR = 1991  # Huang et al., Science 1991, 254:1178


@dataclass(frozen=True)
class Concern:
    """Something that a person should look at.

    Attributes:
        value: what was found, in words that may be shared.
        fails: the site cannot take part like this.
    """

    name: str
    value: str
    rule: str
    remedy: str
    fails: bool = False


def patient_concerns(patients: Cell) -> Iterator[Concern]:
    """Nobody, or scans and records that do not meet."""
    if patients.count == 0:
        yield Concern("patients", "0", "must be more than 0", "Import scans or records: fedretina site import.")
        return
    with_scans = next((cell for cell in patients.group("scans") if cell.name == WITH_SCANS), None)
    if with_scans is None or patients.find("scans", NO_SCANS) == 0:
        return  # scans of everybody, or none, or too few to tell
    recorded = with_scans.find("records", WITH_RECORDS)
    if isinstance(recorded, str) and with_scans.find("records", NO_RECORDS) != WITHHELD:
        return
    linked = share(recorded, with_scans.count)
    if linked is not None and linked < LEAST_LINKED:
        yield Concern(
            "patients with scans who have records",
            f"{recorded} of {with_scans.count}",
            f"should be at least {LEAST_LINKED:.0%}, where a site has both",
            "Check that both exports use the same patient ids, and that they were imported into the same folder.",
        )


def scan_concerns(scans: Cell, pairing: Cell, paired_at_least: float | None) -> Iterator[Concern]:
    """Scans without partners, of two patients at once, or of a time before there were any."""
    modalities = {cell.name: cell for cell in scans.group("modality")}
    paired = pairing.find("pairing", PAIRED)
    rate = share(paired, pairing.count) if paired_at_least is None else paired_at_least
    is_low = _is_few(paired) if rate is None else rate < LEAST_PAIRED
    if IR in modalities and OCT in modalities and is_low:
        yield Concern(
            "visits of an eye with an OCT that have an infrared scan",
            f"{_words(paired)} of {_words(pairing.count)}",
            f"should be at least {LEAST_PAIRED:.0%}, where a site has both",
            "Check that both were exported, and the time within which they are paired (import --pair-within-s).",
        )
    repeated = scans.find("content", ACROSS)
    if repeated not in (0, WITHHELD):
        yield Concern(
            "scans whose content another patient has too",
            _words(repeated),
            "should be 0",
            "Find out whose they are; one patient may have two ids. The same scan in two splits flatters a model.",
        )
    years = {
        year.name for cell in modalities.values() for device in cell.group("device") for year in device.group("year")
    }
    early = sorted(name for name in years if name.isdecimal() and int(name) < _FIRST_OCT_YEAR)
    if early:
        yield Concern(
            "years of scans",
            ", ".join(early),
            f"should not be before {_FIRST_OCT_YEAR}",
            "Check the device's clock or the date column; labels and look-back depend on it.",
        )


def feature_concerns(features: tuple[FeatureFigure, ...], bad_units: Mapping[str, float]) -> Iterator[Concern]:
    """Features that the site cannot serve, or not in the right unit; ``bad_units``: fractions of rows left out."""
    for feature in features:
        if feature.coverage.count == 0:
            continue  # without patients that is all there is to say
        have = feature.coverage.find("value", WITH)
        if have == 0 or (_is_few(have) and feature.unit):  # of codes some are rare, and mapped all the same
            yield Concern(
                f"feature {feature.name}",
                f"{_words(have)} patients with it",
                "should be there for some patients",
                "Where the site records it, map its codes (docs/records.md); where it does not, leave it.",
            )
        if not feature.in_unit:
            assert feature.plausible is not None
            low, high = feature.plausible
            yield Concern(
                f"feature {feature.name}",
                "another unit",
                f"must be in {feature.unit}, mostly within {low:g} to {high:g}",
                "Import it again with its unit stated in the mapping; the study's stages stop on it.",
            )
        if bad_units.get(feature.name, 0.0) > MOST_OUTSIDE:
            yield Concern(
                f"feature {feature.name}",
                "some rows left out at import because of their unit",
                f"should be at most {MOST_OUTSIDE:.0%} of its rows",
                "fedretina site import prints how many; state the unit in the mapping, or convert it in the export.",
            )
        outside = _outside(feature)
        if outside is not None and outside > MOST_OUTSIDE and feature.in_unit:
            yield Concern(
                f"feature {feature.name}",
                f"{outside:.0%} of its patients have values outside the plausible range",
                f"should be at most {MOST_OUTSIDE:.0%}",
                "Look at those values; they count as missing.",
            )


def _outside(feature: FeatureFigure) -> float | None:
    for cell in feature.coverage.group("value"):
        if cell.name == WITH:
            return share(cell.find("range", OUTSIDE), cell.count)
    return None


def case_concerns(tasks: tuple[Cell, ...]) -> Iterator[Concern]:
    """No outcomes, or not both."""
    if not tasks:
        yield Concern(
            "labels",
            "none",
            "should be there for some cases",
            "Make them: fedretina site label. Without them the site takes part in pretraining only.",
        )
    for task in tasks:
        for name, words in ((POSITIVE, "cases with the outcome"), (NEGATIVE, "cases without the outcome")):
            count = task.find("outcome", name)
            if _is_few(count) or (isinstance(count, int) and count < LEAST_OUTCOMES):
                yield Concern(
                    f"task {task.name}: {words}",
                    _words(count),
                    f"should be at least {LEAST_OUTCOMES}",
                    "With fewer a score of this site says little; check the task's rules and the outcome codes.",
                )


def reading_concerns(
    quarantined: Quarantined, bad_scans: Cell | None, unreadable: float, limit: float
) -> Iterator[Concern]:
    """What could not be used at import, and scans that cannot be read now."""
    for name, lost, remedy in (
        ("files quarantined at import", quarantined.files, _MEND_SCANS),
        ("files of records quarantined at import", quarantined.record_files, _MEND_FILES),
        ("rows of records quarantined at import", quarantined.rows, _MEND_ROWS),
    ):
        if lost > limit:
            rule = f"should be at most {limit:.0%} (site.yaml: quarantine_limit)"
            yield Concern(name, _above(limit), rule, remedy)
    if bad_scans is not None and unreadable:
        yield Concern(
            "scans that cannot be read",
            _above(limit) if unreadable > limit else f"some, up to {limit:.0%}",
            f"must be at most {limit:.0%} (site.yaml: quarantine_limit), should be none",
            "Import the export again; restore damaged files.",
            fails=unreadable > limit,
        )


def _above(limit: float) -> str:
    return f"more than {limit:.0%}"


def _is_few(count: Shown) -> bool:
    return isinstance(count, str) and count != WITHHELD


def _words(count: Shown) -> str:
    if count == WITHHELD:
        return "a number that is not shown"
    return "fewer than " + count[1:] if isinstance(count, str) else f"{count:,}"
