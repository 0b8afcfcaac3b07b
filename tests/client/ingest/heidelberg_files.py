"""How does a test get genuine files of Heidelberg's formats? Written field by field, and read by eyepy as well.

The ``.vol`` writer follows the published order of the fields; the ``.E2E`` writer builds with eyepy's own definitions
of the format; the XML has the elements of a real export.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.factories import encode_image, make_pixels

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "heyex"
EXAM = datetime(2021, 3, 4, 9, 30, 15)
NOTHING = np.finfo(np.float32).max  # what a .vol file holds where there is no image
NAME = "Doe^Jane"


def ticks(time: datetime) -> int:
    return round((time - datetime(1601, 1, 1)).total_seconds()) * 10**7


def days(time: datetime) -> float:
    return (time - datetime(1899, 12, 30)).total_seconds() / 86400


def make_reflectance(seed: int, count: int = 3, height: int = 12, width: int = 10) -> NDArray[np.float32]:
    """(count, height, width) in [0, 1], dim like a retina, a column of nothing at the left."""
    values = np.random.default_rng(seed).beta(0.3, 4, (count, height, width)).astype(np.float32)
    values[:, :, 0] = NOTHING
    return values


@dataclass
class Vol:
    """A ``.vol`` file; change a field, then ``content``."""

    version: bytes = b"HSF-OCT-103"
    patient: bytes = b"P-17"
    eye: bytes = b"OD"
    exam_time: int = ticks(EXAM)
    visit_date: float = days(datetime(2021, 3, 4))
    pattern: int = 3
    series: bytes = b"3433.2"
    header_bytes: int = 512
    quality: float = 31.5
    reflectance: NDArray[np.float32] = field(default_factory=lambda: make_reflectance(1))
    slo: NDArray[np.uint8] = field(default_factory=lambda: make_pixels(2, 8, 9))
    b_scans: int | None = None  # what the header claims; the truth when None

    def content(self) -> bytes:
        count, height, width = self.reflectance.shape
        claimed = count if self.b_scans is None else self.b_scans
        head = struct.pack("<12sIIIddd", self.version, width, claimed, height, 0.0114, 0.24, 0.00387)
        head += struct.pack("<IIddId", self.slo.shape[1], self.slo.shape[0], 0.0115, 0.0116, 30, -1.5)
        head += struct.pack("<4sQiI", self.eye, self.exam_time, self.pattern, self.header_bytes)
        head += struct.pack("<16s16sI21s3xd", self.series, b"", 9, self.patient, days(datetime(1950, 6, 7)))
        head += struct.pack("<I24sdiiii34s", 5, b"#1", self.visit_date, 0, 0, 0, 0, b"")
        assert len(head.ljust(2048, b"\0")) == 2048
        return head.ljust(2048, b"\0") + self.slo.tobytes() + b"".join(map(self._b_scan, self.reflectance))

    def _b_scan(self, values: NDArray[np.float32]) -> bytes:
        head = struct.pack("<12sIdddd", b"HSF-BS-103", self.header_bytes, 1.0, 2.0, 3.0, 2.0)
        head += struct.pack("<IIfI", 0, 256, self.quality, 0)
        return head.ljust(self.header_bytes, b"\0") + values.astype("<f4").tobytes()


def write_vol(path: Path, **changes: Any) -> Path:
    path.write_bytes(Vol(**changes).content())
    return path


XML = """<?xml version="1.0" encoding="{encoding}"?>
<HEDX><BODY><SWVersion><Name>Viewing</Name><Version>6.9</Version></SWVersion><Patient><ID>00001</ID>
<PatientID>{patient}</PatientID><LastName>Doe</LastName><FirstNames>Jane</FirstNames>
<Birthdate><Date><Year>1950</Year><Month>06</Month><Day>07</Day></Date></Birthdate>
<Study><StudyUID>1.2.3</StudyUID><ID>1</ID>
<StudyDate><Date><Year>2021</Year><Month>03</Month><Day>04</Day></Date></StudyDate>
<Series><SeriesUID>LOC.7</SeriesUID><ID>71</ID><ExaminedStructure>{structure}</ExaminedStructure><Type>{kind}</Type>
<Laterality>{eye}</Laterality>
<ReferenceSeries><ExamDate><Date><Year>2011</Year><Month>01</Month><Day>01</Day></Date></ExamDate></ReferenceSeries>
<GeneralEquipment><ManufacturerModelName>Spectralis</ManufacturerModelName></GeneralEquipment>
{images}</Series></Study></Patient></BODY></HEDX>
"""
IMAGE = """<Image><ID>{id}</ID><AcquisitionTime><Time><Hour>9</Hour><Minute>30</Minute><Second>{second}</Second>
<UTCBias>60</UTCBias></Time></AcquisitionTime><ImageType><Type>{kind}</Type>{light}</ImageType>
<OphthalmicAcquisitionContext><Width>{width}</Width><Height>{height}</Height><ScaleX>0.0114</ScaleX>
<ScaleY>0.00387</ScaleY><ImageQuality>27</ImageQuality></OphthalmicAcquisitionContext>
<ImageData><ExamURL>file:///\\\\host\\share\\{name}</ExamURL></ImageData>
<Segmentation><SegLine><Name>ILM</Name><Array>1 2 3e+038</Array></SegLine></Segmentation></Image>
"""


def write_xml(
    folder: Path,
    *,
    patient: str = "P-17",
    eye: str = "R",
    structure: str = "Retina",
    kind: str = "Volume",
    light: str = "<LightSource>IR</LightSource>",
    suffix: str = "tif",
    b_scans: int = 3,
    encoding: str = "UTF-8",
) -> Path:
    """An export in a new folder: ``export.xml``, ``IR0`` and ``B1`` to ``B<n>``."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number in range(b_scans + 1):
        name = f"{'B' if number else 'IR'}{number}.{suffix}"
        pixels = make_pixels(number, 12, 10)
        (folder / name).write_bytes(
            encode_image(pixels, {"tif": "TIFF", "png": "PNG", "bmp": "BMP", "jpg": "JPEG"}[suffix])
        )
        told = ("OCT", "") if number else ("LOCALIZER", light)
        parts.append(
            IMAGE.format(id=number, second=15 + number, kind=told[0], light=told[1], width=10, height=12, name=name)
        )
    text = XML.format(
        encoding=encoding, patient=patient, eye=eye, structure=structure, kind=kind, images="".join(parts)
    )
    path = folder / "export.xml"
    path.write_bytes(text.encode(encoding))
    return path


@dataclass
class Series:
    """One series of an ``.E2E`` file: a volume and its localizer."""

    number: int = 50
    eye: str = "R"
    pattern: int = 1
    series_type: int = 703
    time: datetime = EXAM
    en_face: tuple[str, str] = ("Infra-Red", "IR")
    values: NDArray[np.uint16] = field(default_factory=lambda: make_values(1))
    slo: NDArray[np.uint8] | None = field(default_factory=lambda: make_pixels(2, 8, 8))
    layers: bool = True  # eyepy reads no volume without


PALINDROMES = [m for m in range(1024) if f"{m:010b}" == f"{m:010b}"[::-1]]  # eyepy reads the mantissa backwards


def make_values(seed: int, count: int = 3, height: int = 12, width: int = 10) -> NDArray[np.uint16]:
    """(count, height, width) of a B-scan's 16-bit floats below 1, a column of nothing at the left."""
    random = np.random.default_rng(seed)
    shape = (count, height, width)
    values: NDArray[np.uint16]
    values = (random.integers(35, 63, shape) << 10 | random.choice(PALINDROMES, shape)).astype(np.uint16)
    values[:, :, 0] = 0xFFFF
    return values


def e2e_content(
    series: Sequence[Series], *, patient: str = "P-17", with_patient: bool = True, entries_a_chunk: int = 16
) -> bytes:
    """An ``.E2E`` file of one patient, its directory in as many chunks as it needs."""
    items: list[tuple[tuple[int, int, int, int], int, int, bytes]] = []  # ids, ind, type, content
    if with_patient:
        record = struct.pack("<31s66sIc25s4x", b"Jane", b"Doe", 1, b"F", patient.encode("latin1"))
        items.append(((7, -1, -1, -1), 0xFFFF, 9, record))
    for one in series:
        items += _series_items(one)
    return _e2e_file(items, entries_a_chunk)


def _series_items(series: Series) -> list[tuple[tuple[int, int, int, int], int, int, bytes]]:
    ids = (7, 8, series.number)
    about = struct.pack("<IIIHcI", series.series_type, 6, 23, 1, series.eye.encode(), 1).ljust(27, b"\0")
    items = [((*ids, -1), 0xFFFF, 11, about)]
    items.append(((*ids, -1), 0xFFFF, 10005, struct.pack("<16xQ", ticks(series.time))))
    items.append(((*ids, -1), 0xFFFF, 9007, _texts(series.en_face)))
    items.append(((*ids, -1), 0xFFFF, 9008, _texts(("OCT", "OCT"))))
    if series.slo is not None:
        items.append(((*ids, -1), 0, 1073741824, _image(33620481, series.slo)))
    for place, values in enumerate(series.values):
        part = (*ids, 2 * place if len(series.values) > 1 else 2)
        items.append((part, 0xFFFF, 10004, _b_scan_metadata(series, place)))
        if series.layers:
            layer = struct.pack("<IIIII", 0, 0, 0, values.shape[1], 0) + np.ones(values.shape[1], "<f4").tobytes()
            items.append((part, 0xFFFF, 10019, layer))
        items.append((part, 1, 1073741824, _image(35652097, values)))
    return items


def _texts(texts: Sequence[str]) -> bytes:
    return struct.pack("<II", len(texts), 256) + b"".join(t.encode("utf-16-le").ljust(256, b"\0") for t in texts)


def _image(kind: int, pixels: NDArray[Any]) -> bytes:
    return struct.pack("<IIIII", pixels.nbytes, kind, pixels.size, *pixels.shape) + pixels.tobytes()


def _b_scan_metadata(series: Series, place: int) -> bytes:
    from eyepy.io.he.e2e_format import Type10004, type10004_format

    count, height, width = series.values.shape
    time = series.time.replace(microsecond=1000 * place).isoformat()
    numbers: dict[str, Any] = {"size_y": height, "size_x": width, "n_bscans": count, "aktImage": place}
    numbers |= {"scan_pattern": series.pattern, "start_x": -5.0, "end_x": 5.0, "start_y": place, "end_y": place}
    numbers |= {"acquisitionTime": time, "quality_ui": 28.5, "imgSizeWidth": width, "unknown3": [0.0, 0.0]}
    raw = {"unknown6": 12, "oct_controller_fw_raw": 4, "oct_camera_fw_raw": 4, "oct_camera_fpga_raw": 4}
    raw |= {"unknown7": 4, "unknown8": 12, "rest": 268}
    numbers |= {name: bytes(length) for name, length in raw.items()}
    rest = {name: 0 for name in Type10004.__dataclass_fields__ if name not in numbers}
    built: bytes = type10004_format.build(Type10004(**numbers, **rest))
    return built


def _e2e_file(items: Sequence[tuple[tuple[int, int, int, int], int, int, bytes]], entries_a_chunk: int) -> bytes:
    from eyepy.io.he import e2e_format as form

    ones = [0xFFFF] * 9 + [0]
    out = bytearray(form.version_format.build(form.Version("CMDb", 100, ones)))
    chunks = [items[n : n + entries_a_chunk] for n in range(0, len(items), entries_a_chunk)]
    main_at, previous = len(out), 0
    out += bytes(52)
    for chunk in chunks:
        at = len(out)
        start = at + 52 + 44 * len(chunk)
        entries, data = b"", b""
        for place, ((patient, study, series, part), ind, kind, content) in enumerate(chunk):
            pos = at + 52 + 44 * place
            ids = (patient, study, series, part, ind, 0)
            begin = start + len(data)
            folder = form.FolderHeader(pos, begin, len(content), 0, *ids, form.TypesEnum(kind), 0)
            head = form.ContainerHeader("MDbData", 0, pos, begin, len(content), 0, *ids, form.TypesEnum(kind), 0)
            entries += form.folderheader_format.build(folder)
            data += form.containerheader_format.build(head) + content
        out += form.header_format.build(form.Header("MDbDir", 100, ones, len(chunk), 0, previous, 0))
        out += entries + data
        previous = at
    out[main_at : main_at + 52] = form.header_format.build(form.Header("MDbMDir", 100, ones, 512, previous, 0, 0))
    return bytes(out)


def write_e2e(path: Path, series: Sequence[Series], **changes: Any) -> Path:
    path.write_bytes(e2e_content(series, **changes))
    return path
