"""Which DICOM files are scans of the retina: an OCT volume or an infrared scan?

What is said of the light, in the order in which it is believed: image type and codes (Spectralis and the AI-READI data
set write INFRARED as image type), wavelength, then the words of the series (Spectralis: IR, Volume IR, FAF, ...).
An ophthalmic photograph that says nothing of its light is left out: of a scanning laser ophthalmoscope it may be
infrared or autofluorescence.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset
from pydicom.uid import UID, OphthalmicTomographyImageStorage

from client.ingest.dicom.header import PHOTOGRAPHS, items, stated_of, text, values
from client.ingest.export import QUARANTINED, SKIPPED, LeftOutError
from shared.site_folder import IR, OCT

_NEAR_INFRARED_NM = (700.0, 1000.0)
_INFRARED = {"INFRARED", "IR", "NIR", "LSO"}  # the line scanner of a Cirrus has 750 nm
_OTHER = {
    "a colour photograph": {"COLOR", "COLOUR", "CFP", "MULTICOLOR", "TRUECOLOR", "MC"},
    "an autofluorescence photograph": {"AUTOFLUORESCENCE", "FAF", "AF", "BAF", "GAF", "IRAF"},
    "an angiogram": {"FA", "FFA", "FAG", "FLUORESCEIN", "ICG", "ICGA", "INDOCYANINE", "ANGIO", "ANGIOGRAPHY"},
    "a photograph in one colour": {"RED", "REDFREE", "RF", "BLUE", "GREEN", "BR", "GR", "MB", "MG"},
}
_ANTERIOR = {"ANTERIOR", "CORNEA", "CORNEAL", "IRIS", "LENS", "SCLERA", "CONJUNCTIVA", "EYELID"}


def modality_of_class(sop_class: UID) -> str:
    """OCT, or IR for what may be an infrared scan.

    Raises:
        LeftOutError: another class, by its name.
    """
    if sop_class == OphthalmicTomographyImageStorage:
        return OCT
    if sop_class in PHOTOGRAPHS:
        return IR
    name = sop_class.name if sop_class.name != sop_class else "of a class that is not in the standard"
    raise LeftOutError(SKIPPED, f"is no OCT or infrared scan: {name}")


def check_kind(header: Dataset, modality: str) -> None:
    """Raise ``LeftOutError`` unless the header is that of a scan of the retina in this modality."""
    if text(header, "BurnedInAnnotation") == "YES":
        raise LeftOutError(QUARANTINED, "has text burned into its pixels")
    if _words(*_meanings(header, "AnatomicRegionSequence")) & _ANTERIOR:
        raise LeftOutError(SKIPPED, "shows the anterior segment of the eye")
    other = _other_light(header) if modality == IR else None
    if other is not None:
        raise LeftOutError(SKIPPED, f"is {other}")


def _other_light(header: Dataset) -> str | None:
    """What a photograph is instead of infrared."""
    if items(header, "ContrastBolusAgentSequence") or text(header, "ContrastBolusAgent"):
        return "an angiogram"
    codes = _meanings(header, "ChannelDescriptionCodeSequence") + _meanings(
        header, "LightPathFilterTypeStackCodeSequence"
    )
    kinds = [str(kind) for kind in values(header, "ImageType")[2:]]
    for words in (_words(*codes, *kinds) | _wavelength(header), _words(text(header, "SeriesDescription"))):
        for other, names in _OTHER.items():
            if words & names:
                return other
        if words & _INFRARED:
            return None
    return "an ophthalmic photograph that does not say that it is infrared"


def _meanings(header: Dataset, keyword: str) -> list[str]:
    return [text(code, "CodeMeaning") for code in items(header, keyword) + stated_of(header, 0, keyword)]


def _words(*texts: str) -> set[str]:
    joined = re.sub(r"INFRA[ -]?RED", "INFRARED", " ".join(texts).upper())
    return {*re.findall(r"[A-Z]+", re.sub(r"RED[ -]?FREE", "REDFREE", joined))}


def _wavelength(header: Dataset) -> set[str]:
    """INFRARED where the light is said to be of that length."""
    low, high = _NEAR_INFRARED_NM
    stated = (text(header, "LightPathFilterPassThroughWavelength"), text(header, "IlluminationWaveLength"))
    return {"INFRARED"} if any(low <= float(nm) <= high for nm in stated if nm) else set()
