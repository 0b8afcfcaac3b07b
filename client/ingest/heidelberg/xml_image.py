"""What does one image of an XML export say of itself: kind, time, and pixels?

Each image has a time of its own, by the local clock (``UTCBias`` beside it says how far that is from UTC, and is not
needed, as every time of a site is local).
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.ingest.export import QUARANTINED, LeftOutError
from client.ingest.heidelberg.values import is_size, plausible
from client.ingest.heidelberg.xml_tree import image_file, told

CONTEXT = "OphthalmicAcquisitionContext"
_FORMATS = ("TIFF", "PNG", "BMP", "JPEG")


def is_infrared(image: Element) -> bool:
    """A localizer is infrared unless it says otherwise."""
    kind, light = (told(image, f"ImageType/{name}").upper() for name in ("Type", "LightSource"))
    return light == "IR" if light else kind in ("LOCALIZER", "IR")


def acquisition_time(study: Element, series: Element, image: Element) -> datetime | None:
    """The day of the series or else of the study, and the image's time of that day; where that is missing, midnight.

    The date of a reference series, an earlier visit's, is another element and does not count.
    """
    date = series.find("ExamDate/Date")
    date = study.find("StudyDate/Date") if date is None else date
    if date is None:
        return None
    time = image.find("AcquisitionTime/Time")
    try:
        year, month, day_of_month = (int(told(date, name)) for name in ("Year", "Month", "Day"))
        day = datetime(year, month, day_of_month)
        if time is not None:
            day += _time_of_day(time)
    except (ValueError, OverflowError):
        return None
    return plausible(day)


def _time_of_day(time: Element) -> timedelta:
    hours, minutes, seconds = (float(told(time, name)) for name in ("Hour", "Minute", "Second"))
    if not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds < 61):
        raise ValueError
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def stated_number(element: Element, path: str) -> float:
    """The number at a path; not a number where there is none."""
    try:
        return float(told(element, path))
    except ValueError:
        return math.nan


def read_pixels(image: Element, files: dict[str, Path]) -> NDArray[Any]:
    """(H, W), uint8 or uint16; raises ``LeftOutError`` where the file is missing, damaged or another one."""
    path = image_file(image, files)
    if path is None:
        raise LeftOutError(QUARANTINED, "names an image that is not there")
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            return _grey(picture, image)
    except LeftOutError:
        raise
    except Exception:  # Pillow raises a dozen kinds for files that are none, or damaged
        raise LeftOutError(QUARANTINED, "names an image that cannot be read") from None


def _grey(picture: Image.Image, image: Element) -> NDArray[Any]:
    """The first page as (H, W), uint8 or uint16, checked against what the XML says before anything is decoded."""
    if not is_size(picture.height, picture.width):
        raise LeftOutError(QUARANTINED, "names an image that is larger than any scan")
    stated = tuple(stated_number(image, f"{CONTEXT}/{name}") for name in ("Width", "Height"))
    if not any(map(math.isnan, stated)) and stated != picture.size:
        raise LeftOutError(QUARANTINED, "names an image that is not of the size that it states")
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    return np.asarray(picture.convert("L"))
