"""How does a test get a genuine DICOM file? Written by pydicom and the codecs' own encoders, valid unless changed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    OphthalmicPhotography8BitImageStorage,
    OphthalmicPhotography16BitImageStorage,
    OphthalmicTomographyImageStorage,
    RLELossless,
    generate_uid,
)

LOCALIZER = "1.2.826.0.1.3680043.8.498.1"
OCT_SCANNER = ("392012008", "SCT", "Optical Coherence Tomography Scanner")
LASER_SCANNER = ("392001008", "SCT", "Scanning Laser Ophthalmoscope")
RETINA = ("5665001", "SCT", "Retina")


def item(**values: Any) -> Dataset:
    """A data set of these elements, such as an item of a sequence."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def code(value: str, scheme: str, meaning: str) -> Dataset:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _file(sop_class: UID, pixels: NDArray[Any], **values: Any) -> Dataset:
    """The elements that both classes have. ``pixels``: (N, H, W) or (N, H, W, 3)."""
    bits, samples = 8 * pixels.dtype.itemsize, 1 if pixels.ndim == 3 else 3
    dataset = item(
        SOPClassUID=sop_class,
        SOPInstanceUID=generate_uid(),
        PatientName="Doe^Jane",
        PatientID="P-17",
        PatientBirthDate="19510203",
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        Manufacturer="Heidelberg Engineering",
        ManufacturerModelName="Spectralis",
        StudyDate="20200601",
        StudyTime="090000",
        AcquisitionDateTime="20200601101112.250000",
        BurnedInAnnotation="NO",
        AnatomicRegionSequence=[code(*RETINA)],
        Rows=pixels.shape[1],
        Columns=pixels.shape[2],
        NumberOfFrames=len(pixels),
        SamplesPerPixel=samples,
        PhotometricInterpretation="MONOCHROME2" if samples == 1 else "RGB",
        BitsAllocated=bits,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelRepresentation=int(pixels.dtype.kind == "i"),
        PixelData=pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    )
    if samples == 3:
        dataset.PlanarConfiguration = 0
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def volume(pixels: NDArray[Any], **values: Any) -> Dataset:
    """An OCT volume (N, H, W) of a right eye, its B-scans located on ``LOCALIZER`` from top to bottom."""
    frames = [frame_group(place, top=float(place)) for place in range(len(pixels))]
    given = {
        "Modality": "OPT",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "ImageLaterality": "R",
        "AcquisitionDeviceTypeCodeSequence": [code(*OCT_SCANNER)],
        "SharedFunctionalGroupsSequence": [item(PixelMeasuresSequence=[item(PixelSpacing=[0.00387, 0.0113])])],
        "PerFrameFunctionalGroupsSequence": frames,
    }
    return _file(OphthalmicTomographyImageStorage, pixels, **(given | values))


def frame_group(index: int, top: float, **values: Any) -> Dataset:
    """The functional groups of one B-scan."""
    location = item(
        ReferencedSOPClassUID=OphthalmicPhotography8BitImageStorage,
        ReferencedSOPInstanceUID=LOCALIZER,
        ReferenceCoordinates=[top, 0.0, top, 100.0],
    )
    content = item(StackID="1", InStackPositionNumber=index + 1, DimensionIndexValues=[1, index + 1])
    return item(OphthalmicFrameLocationSequence=[location], FrameContentSequence=[content], **values)


def photograph(pixels: NDArray[Any], **values: Any) -> Dataset:
    """An infrared scan (H, W) or (H, W, 3) of a right eye, as a Spectralis has it."""
    sop_class = (
        OphthalmicPhotography16BitImageStorage if pixels.itemsize == 2 else OphthalmicPhotography8BitImageStorage
    )
    given = {
        "SOPInstanceUID": LOCALIZER,
        "Modality": "OP",
        "ImageType": ["ORIGINAL", "PRIMARY", "", "INFRARED"],
        "ImageLaterality": "R",
        "AcquisitionDeviceTypeCodeSequence": [code(*LASER_SCANNER)],
        "PixelSpacing": [0.0113, 0.0113],
    }
    return _file(sop_class, pixels[None], **(given | values))


def save(dataset: Dataset, file: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Write in a transfer syntax; pixels in JPEG-LS near lossless may be 2 off, JPEG's are lossy."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == JPEGLSNearLossless:
        dataset.compress(syntax, jls_error=2, generate_instance_uid=False)
    elif syntax == JPEGBaseline8Bit:
        dataset.PixelData = encapsulate([_jpeg(frame) for frame in dataset.pixel_array.reshape(_shape(dataset))])
        if dataset.SamplesPerPixel == 3:
            dataset.PhotometricInterpretation = "YBR_FULL_422"
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}").byteswap().tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(file, enforce_file_format=True)
    return file


def _shape(dataset: Dataset) -> tuple[int, ...]:
    channels = (3,) if dataset.SamplesPerPixel == 3 else ()
    return int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns, *channels


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
