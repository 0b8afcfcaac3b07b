"""Does every scan become the pixels that it holds, once, and does no bad one stop the others?"""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from client import images as module
from client.images import decode, open_pixels
from shared.errors import SiteError
from shared.site_folder import SiteFolder
from tests.factories import Tables, empty_site, encode_image, make_pixels, small_site


def decoded(content: bytes, folder: Path, height: int = 16, width: int = 16, frame: int = 0) -> NDArray[np.uint8]:
    file = folder / "scan"
    file.write_bytes(content)
    pixels, reason = decode(file, frame, hashlib.sha256(content).hexdigest(), height, width)
    assert pixels is not None, reason
    return pixels


def refused(content: bytes, folder: Path, frame: int = 0) -> str:
    file = folder / "scan"
    file.write_bytes(content)
    pixels, reason = decode(file, frame, hashlib.sha256(content).hexdigest(), 16, 16)
    assert pixels is None
    return reason


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_pixels_of_a_scan_at_its_own_size_are_the_scan(tmp_path: Path, kind: str) -> None:
    pixels = make_pixels(3)
    np.testing.assert_array_equal(decoded(encode_image(pixels, kind), tmp_path), pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40, 3), (10, 12)])
def test_pixels_equal_what_pillow_makes_of_the_file(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    content = encode_image(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8), kind)
    expected = Image.open(io.BytesIO(content)).convert("L").resize((24, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decoded(content, tmp_path, 20, 24), np.asarray(expected))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_16_bit_scan_is_stretched_over_its_own_range(tmp_path: Path, kind: str) -> None:
    deep = (np.arange(256, dtype=np.uint16) * 40 + 3000).reshape(16, 16)
    np.testing.assert_array_equal(decoded(encode_image(deep, kind), tmp_path), np.arange(256).reshape(16, 16))


def test_a_float_scan_is_stretched_over_its_own_range(tmp_path: Path) -> None:
    scan = np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16)
    pixels = decoded(encode_image(scan, "TIFF"), tmp_path)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (np.diff(pixels.ravel().astype(int)) >= 0).all()


def test_a_scan_of_one_value_is_decoded(tmp_path: Path) -> None:
    assert (decoded(encode_image(np.full((16, 16), 700, np.uint16)), tmp_path) == 0).all()


def test_frames_of_one_file_are_told_apart(tmp_path: Path) -> None:
    frames = [Image.fromarray(make_pixels(seed)) for seed in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(decoded(buffer.getvalue(), tmp_path, frame=number), np.asarray(frame))
    assert refused(buffer.getvalue(), tmp_path, frame=3) == "is damaged: EOFError"


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data does not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not an image that can be decoded"),
        (b"a note about the patient", "is not an image that can be decoded"),
        (encode_image(make_pixels(1, 64, 64))[:-800], "is damaged"),
        (encode_image(make_pixels(1, 64, 64), "JPEG")[:-800], "is damaged"),
        (encode_image(make_pixels(1, 64, 64), "TIFF")[:-800], "is damaged"),
        (png_of_size(60_000, 60_000), "is not an image that can be decoded"),
        (encode_image(np.full((16, 16), np.nan, np.float32), "TIFF"), "is damaged"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    assert refused(content, tmp_path).startswith(reason)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata in files that it can decode
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_a_damaged_file_never_raises(tmp_path: Path, kind: str) -> None:
    dice = random.Random(7)
    whole = encode_image(make_pixels(2, 20, 20), kind)
    for number in range(150):
        content = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            content[dice.randrange(min(len(content), 400 if number % 2 else 60))] = dice.randrange(256)
        file = tmp_path / "scan"
        file.write_bytes(content)
        pixels, reason = decode(file, 0, hashlib.sha256(content).hexdigest(), 16, 16)
        assert (pixels is None) == bool(reason)


def test_other_bytes_than_were_imported_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "scan.png"
    file.write_bytes(encode_image(make_pixels(1)))
    assert decode(file, 0, "0" * 64, 16, 16) == (None, "has other bytes than when it was imported")


def test_an_absent_file_is_refused_without_its_path(tmp_path: Path) -> None:
    pixels, reason = decode(tmp_path / "Jane-Doe.png", 0, "", 16, 16)
    assert pixels is None
    assert reason == "cannot be read: No such file or directory"


def site_with_bad_scans(folder: Path) -> tuple[SiteFolder, Tables]:
    """Twelve scans, of which the second, the fifth and the last are bad."""
    tables = small_site(patients=4, modalities=("OCT",))
    tables.images = tables.images.iloc[:0]
    for number in range(12):
        content = {1: b"no image", 4: encode_image(make_pixels(9, 64, 64))[:-900]}.get(number)
        tables.add_image(1 + number % 4, "OCT", time=f"2020-01-{number + 1:02d}", content=content)
    site = tables.write(folder)
    (site.image_files / tables.images["path"].iloc[11]).write_bytes(encode_image(make_pixels(77)))
    return site, tables


def test_bad_scans_are_quarantined_and_the_rest_kept_in_order(tmp_path: Path) -> None:
    site, tables = site_with_bad_scans(tmp_path / "s")
    pixels = open_pixels(site, 16, 16)
    kept = [i for i in range(12) if i not in (1, 4, 11)]
    assert pixels.table["image_id"].tolist() == tables.images["image_id"].iloc[kept].tolist()
    for position, row in enumerate(kept):
        np.testing.assert_array_equal(pixels.values[position], make_pixels(row))
    assert pixels.quarantined["image_id"].tolist() == tables.images["image_id"].iloc[[1, 4, 11]].tolist()
    assert pixels.quarantined["path"].tolist() == tables.images["path"].iloc[[1, 4, 11]].tolist()
    not_image, damaged, other = pixels.quarantined["reason"]
    assert not_image == "is not an image that can be decoded"
    assert damaged.startswith("is damaged")
    assert other == "has other bytes than when it was imported"


def test_blocks_of_decoding_do_not_change_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, _ = site_with_bad_scans(tmp_path / "s")
    whole = open_pixels(site, 16, 16)
    monkeypatch.setattr(module, "_DECODED_TOGETHER", 5)
    monkeypatch.setattr(module, "_FORMAT", -1)  # another cache
    blocks = open_pixels(site, 16, 16)
    assert blocks.table["image_id"].tolist() == whole.table["image_id"].tolist()
    assert blocks.quarantined["image_id"].tolist() == whole.quarantined["image_id"].tolist()
    np.testing.assert_array_equal(blocks.values[: len(blocks.table)], whole.values[: len(whole.table)])


def test_pixels_are_memory_mapped_and_cannot_be_written(site: SiteFolder) -> None:
    values = open_pixels(site, 16, 16).values
    assert isinstance(values, np.memmap)
    assert values.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0, 0] = 1


def test_a_site_without_images_has_no_pixels(tmp_path: Path) -> None:
    pixels = open_pixels(empty_site().write(tmp_path / "s"), 16, 16)
    assert len(pixels.table) == len(pixels.quarantined) == 0


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The caches that were built since."""
    made: list[Path] = []
    build = module._build

    def spied(folder: SiteFolder, index: pd.DataFrame, height: int, width: int, cache: Path) -> None:
        made.append(cache)
        build(folder, index, height, width, cache)

    monkeypatch.setattr(module, "_build", spied)
    return made


def test_nothing_is_decoded_twice(site: SiteFolder, builds: list[Path]) -> None:
    first, second = open_pixels(site, 16, 16), open_pixels(site, 16, 16)
    assert len(builds) == 1
    np.testing.assert_array_equal(first.values, second.values)
    pd.testing.assert_frame_equal(first.table, second.table)


def test_a_changed_file_is_decoded_again_and_the_old_pixels_go(site: SiteFolder, builds: list[Path]) -> None:
    before = np.array(open_pixels(site, 16, 16).values)
    index = pd.read_parquet(site.path / "imaging/index.parquet")
    content = encode_image(make_pixels(500))
    (site.image_files / index["path"][3]).write_bytes(content)
    index.loc[3, "sha256"] = hashlib.sha256(content).hexdigest()
    index.to_parquet(site.path / "imaging/index.parquet")
    after = open_pixels(site, 16, 16).values
    assert len(builds) == 2
    np.testing.assert_array_equal(after[3], make_pixels(500))
    np.testing.assert_array_equal(np.delete(after, 3, axis=0), np.delete(before, 3, axis=0))
    assert [path.name for path in (site.state / "cache").iterdir()] == [builds[1].name]


def test_a_file_changed_behind_the_index_is_quarantined(site: SiteFolder, builds: list[Path]) -> None:
    open_pixels(site, 16, 16)
    file = site.image_files / site.images()["path"][0]
    status = file.stat()
    file.write_bytes(file.read_bytes()[:-1] + b"\0")  # same length
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert open_pixels(site, 16, 16).quarantined["image_id"].tolist() == [site.images()["image_id"][0]]
    assert len(builds) == 2


def test_a_file_that_disappears_is_quarantined(site: SiteFolder) -> None:
    open_pixels(site, 16, 16)
    (site.image_files / site.images()["path"][0]).unlink()
    assert len(open_pixels(site, 16, 16).quarantined) == 1


@pytest.mark.parametrize(("column", "value"), [("eye", "L"), ("subject_id", 77), ("pair_id", None), ("modality", "IR")])
def test_a_corrected_index_is_seen_and_nothing_decoded_again(
    site: SiteFolder, builds: list[Path], column: str, value: object
) -> None:
    """The pixels are the same, but whose they are is not."""
    open_pixels(site, 16, 16)
    index = pd.read_parquet(site.path / "imaging/index.parquet")
    index[column] = [value if i == 0 else old for i, old in enumerate(index[column])]
    index.to_parquet(site.path / "imaging/index.parquet")
    expected = [None if pd.isna(x) else x for x in site.images()[column]]
    assert [None if pd.isna(x) else x for x in open_pixels(site, 16, 16).table[column]] == expected
    assert len(builds) == 1


def test_two_sizes_are_kept_beside_each_other(site: SiteFolder, builds: list[Path]) -> None:
    small, large = open_pixels(site, 16, 16), open_pixels(site, 32, 24)
    open_pixels(site, 16, 16)
    assert len(builds) == 2
    assert (small.values.shape[1:], large.values.shape[1:]) == ((16, 16), (32, 24))


def test_a_build_that_fails_leaves_no_cache(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_parquet", full_disk)
        with pytest.raises(OSError, match="No space left"):
            open_pixels(site, 16, 16)
    assert list((site.state / "cache").iterdir()) == []
    assert len(open_pixels(site, 16, 16).table) == 24


@pytest.mark.parametrize("short", [True, False], ids=["part", "nothing"])
def test_a_disk_that_is_full_is_told_and_leaves_no_cache(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    def full_disk(*_: object) -> int:
        if short:
            return 5
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full_disk)
        with pytest.raises(SiteError, match="state/cache must be writable, got 'No space left on device'"):
            open_pixels(site, 16, 16)
    assert list((site.state / "cache").iterdir()) == []
    assert len(open_pixels(site, 16, 16).table) == 24


def test_losing_the_race_to_build_is_no_error(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process renames its draft into place between our look and our rename."""
    rename = os.rename

    def beaten(draft: Path, cache: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        module._build(site, site.images(), 16, 16, cache)
        rename(draft, cache)

    monkeypatch.setattr(os, "rename", beaten)
    pixels = open_pixels(site, 16, 16)
    assert len(pixels.table) == 24
    assert len(list((site.state / "cache").iterdir())) == 1


def test_two_processes_that_build_at_once_end_with_one_whole_cache(tmp_path: Path) -> None:
    site, _ = site_with_bad_scans(tmp_path / "s")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=open_pixels, args=(site, 16, 16)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    (cache,) = (site.state / "cache").iterdir()
    assert {path.name for path in cache.iterdir()} == {"values.npy", "quarantined.parquet"}
    pixels = open_pixels(site, 16, 16)
    np.testing.assert_array_equal(pixels.values[0], make_pixels(0))
    assert len(pixels.table) == 9
