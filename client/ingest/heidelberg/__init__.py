"""How are scans of Heidelberg Engineering's devices (Spectralis, HEYEX) imported?

Three formats: the raw export ``.vol``, the XML export with its images, and the patient file ``.E2E`` (``.sdb`` within a
HEYEX data base). Each is read by a small reader of ours that opens nothing but the chosen B-scans. eyepy 0.21, which
the tests compare with, reads whole volumes, refuses circle and radial scans and E2E series without segmentation, drops
the time of day, and need not end on a damaged E2E file.
"""

from __future__ import annotations

from client.ingest.export import ScanImporter
from client.ingest.heidelberg.sources import find, read

HEIDELBERG = ScanImporter(find, read)

__all__ = ["HEIDELBERG"]
