"""Does an import take every scan once, whatever interrupts it, and account for every file?"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from client.images import open_pixels
from client.ingest import index, journal, scans
from client.ingest.export import (
    QUARANTINED,
    SKIPPED,
    ExportError,
    LeftOut,
    LeftOutError,
    Scan,
    ScanImporter,
    ScanOptions,
    Source,
)
from client.ingest.scans import Counts, ScanSummary, import_scans
from shared.errors import KeyFileError, SiteError
from shared.schema import check_site
from shared.site_folder import EVENTS, SiteFolder, write_table
from tests.factories import encode_image, make_pixels

SECRETS = ("Doe^Jane", "4711", "1.2.840")


def find(export: Path, mapping: Path | None) -> Iterator[Source]:
    """Every .png is a source. Its name: patient, eye, seconds, modality, key, [partner]."""
    for file in sorted(export.rglob("*.png")):
        yield Source(file.relative_to(export).as_posix(), (file,))


def read(source: Source, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    content = source.files[0].read_bytes()
    if content == b"skip":
        raise LeftOutError(SKIPPED, "is not meant for us")
    if content == b"fail":
        yield scan_of(source, encode_image(make_pixels(99)))
        raise RuntimeError("Doe^Jane")
    if content == b"part":
        yield LeftOut(QUARANTINED, "has a damaged frame", 3)
        content = encode_image(make_pixels(98))
    yield scan_of(source, content)


def scan_of(source: Source, content: bytes) -> Scan:
    patient, eye, seconds, modality, key, *partner = source.files[0].stem.split("_")
    acquired_at = datetime(2020, 6, 1) + timedelta(seconds=int(seconds))
    named = partner[0] if partner else None
    return Scan(patient, f"1.2.840/{key}", eye, acquired_at, modality, content, "A", named and f"1.2.840/{named}")


TOY = ScanImporter(find, read)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site folder without scans."""
    return new_site(tmp_path / "site")


def new_site(folder: Path) -> Path:
    folder.mkdir()
    (folder / "dataset.yaml").write_text("site: north\n")
    write_table(folder / "events.parquet", pd.DataFrame(columns=EVENTS.names), EVENTS)
    return folder


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Three patients, each with an OCT and an infrared scan of one eye, of different pixels."""
    folder = tmp_path / "export"
    (folder / "Doe^Jane").mkdir(parents=True)
    for number in range(3):
        put(folder, f"4711{number}_R_{number * 300}_OCT_o{number}", 2 * number)
        put(folder / "Doe^Jane", f"4711{number}_R_{number * 300 + 20}_IR_i{number}", 2 * number + 1)
    return folder


def put(folder: Path, name: str, content: int | bytes) -> Path:
    file = folder / f"{name}.png"
    file.write_bytes(encode_image(make_pixels(content)) if isinstance(content, int) else content)
    return file


def run(folder: Path, export: Path, **settings: object) -> ScanSummary:
    settings.setdefault("importer", TOY)
    return import_scans(folder, export, kind="toy", threads=2, **settings)  # type: ignore[arg-type]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file below."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def contents(folder: Path) -> dict[str, bytes]:
    """But for the journal, which says when files were changed, and in which order it was written."""
    return {name: content for name, (content, _) in snapshot(folder).items() if name != journal.JOURNAL}


def total(counts: Counts) -> int:
    return counts.imported + counts.unchanged + counts.skipped + counts.quarantined


def test_scans_come_in_whole_paired_and_by_the_contract(folder: Path, export: Path) -> None:
    summary = run(folder, export)
    assert summary == ScanSummary(Counts(6), Counts(6), (), 0, 3, {})
    site = SiteFolder(folder)
    check_site(site)
    index = site.images()
    assert index["image_id"].is_monotonic_increasing
    assert index.groupby("pair_id")["modality"].apply(sorted).tolist() == [["IR", "OCT"]] * 3
    assert index["subject_id"].nunique() == 3
    found = {np.asarray(Image.open(site.image_files / path)).tobytes() for path in index["path"]}
    assert found == {make_pixels(seed).tobytes() for seed in range(6)}
    assert len(open_pixels(site, 16, 16).quarantined) == 0


def test_nothing_original_is_outside_state_and_nothing_of_state_is_open_to_others(folder: Path, export: Path) -> None:
    put(export, "47119_L_0_OCT_x", b"fail")
    run(folder, export)
    for file in folder.rglob("*"):
        inside = file.relative_to(folder)
        if inside.parts[0] == "state":
            assert file.stat().st_mode & 0o077 == 0
        else:
            content = str(inside).encode() + (file.read_bytes() if file.is_file() else b"")
            assert not [secret for secret in SECRETS if secret.encode() in content]
    assert "Doe" not in str(journal.read_journal(folder))


def test_a_second_run_reads_nothing_and_changes_no_byte(folder: Path, export: Path) -> None:
    put(export, "1_L_0_OCT_x", b"skip")
    put(export, "1_L_0_OCT_y", b"fail")
    (export / "note.txt").write_text("x")
    first, before = run(folder, export), snapshot(folder)

    def forbidden(source: Source, options: ScanOptions) -> Iterator[Scan | LeftOut]:
        raise AssertionError("read again")

    second = run(folder, export, importer=ScanImporter(find, forbidden))
    assert snapshot(folder) == before
    assert second.sources == Counts(unchanged=6, skipped=2, quarantined=1)
    assert (second.reasons, second.pairs) == (first.reasons, first.pairs)


def test_what_is_new_or_changed_is_read_and_what_vanished_stays(folder: Path, export: Path) -> None:
    run(folder, export)
    before = SiteFolder(folder).images().set_index("image_id")
    put(export, "47110_R_0_OCT_o0", 50)
    put(export, "8_L_0_OCT_new", 51)
    (export / "47111_R_300_OCT_o1.png").unlink()
    summary = run(folder, export)
    assert (summary.sources, summary.vanished) == (Counts(imported=2, unchanged=4), 1)
    after = SiteFolder(folder).images().set_index("image_id")
    assert len(after) == 7
    changed = [name for name in before.index if before["sha256"][name] != after["sha256"][name]]
    assert len(changed) == 1
    check_site(SiteFolder(folder))


def test_scans_that_a_changed_source_has_no_more_go_with_their_files(folder: Path, export: Path) -> None:
    run(folder, export)
    (export / "47110_R_0_OCT_o0.png").write_bytes(b"fail")
    assert run(folder, export).sources == Counts(unchanged=5, quarantined=1)
    assert len(SiteFolder(folder).images()) == len(list((folder / "imaging" / "files").rglob("*.png"))) == 5


def test_options_that_change_pixels_are_part_of_what_is_compared(folder: Path, export: Path) -> None:
    put(export, "8_L_0_OCT_left", 51)
    run(folder, export)
    assert run(folder, export, options=ScanOptions(pair_within_s=5)).sources.unchanged == 7
    summary = run(folder, export, options=ScanOptions(mirror_left=True))
    assert summary.sources == Counts(imported=7)
    index = SiteFolder(folder).images()
    [path] = index.loc[index["eye"] == "L", "path"]
    found = np.asarray(Image.open(folder / "imaging" / "files" / path))
    np.testing.assert_array_equal(found, make_pixels(51)[:, ::-1])


def test_another_tolerance_pairs_anew_without_reading(folder: Path, export: Path) -> None:
    assert run(folder, export, options=ScanOptions(pair_within_s=19)).pairs == 0
    summary = run(folder, export)
    assert (summary.pairs, summary.sources.unchanged) == (3, 6)
    assert SiteFolder(folder).images()["pair_id"].notna().all()


def test_pairs_are_found_between_two_imports(folder: Path, export: Path, tmp_path: Path) -> None:
    whole = new_site(tmp_path / "whole")
    run(whole, export)
    assert run(folder, export / "Doe^Jane").unpaired == {"IR": 3}
    elsewhere = tmp_path / "oct"
    elsewhere.mkdir()
    for file in export.glob("*.png"):
        file.rename(elsewhere / file.name)
    assert run(folder, elsewhere).pairs == 3
    ours, theirs = SiteFolder(folder).images(), SiteFolder(whole).images()
    assert len(ours.groupby("pair_id")) == len(theirs.groupby("pair_id")) == 3


def test_two_exports_with_files_of_one_name_stay_apart(folder: Path, tmp_path: Path) -> None:
    for number, month in enumerate(("may", "june")):
        (tmp_path / month).mkdir()
        put(tmp_path / month, f"7_R_0_OCT_{month}", number).rename(tmp_path / month / "7_R_0_OCT_scan.png")
    # One key, as the toy takes it from the name: the newer export holds. No key in common: both stay.
    run(folder, tmp_path / "may")
    run(folder, tmp_path / "june")
    assert len(SiteFolder(folder).images()) == 1
    put(tmp_path / "may", "7_R_9_OCT_more", 5)
    assert run(folder, tmp_path / "may").sources == Counts(imported=1, unchanged=1)
    assert len(SiteFolder(folder).images()) == 2


def test_a_named_partner_is_found_and_is_a_pseudonym(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    put(tmp_path / "e", "7_R_0_OCT_o_far", 1)
    put(tmp_path / "e", "7_R_9000_IR_far", 2)
    assert run(folder, tmp_path / "e").pairs == 1


def test_one_key_with_two_contents_keeps_the_first_and_tells_of_the_second(folder: Path, export: Path) -> None:
    put(export / "Doe^Jane", "9_L_0_OCT_o0", 77)
    put(export / "Doe^Jane", "9_L_0_OCT_o1", 2)  # as 47111
    for _ in range(2):
        summary = run(folder, export)
        assert summary.reasons == (
            LeftOut(QUARANTINED, "has the key of another scan of the export, but other pixels"),
            LeftOut(SKIPPED, "is a copy of another scan of the export"),
        )
        assert len(SiteFolder(folder).images()) == 6
    assert (SiteFolder(folder).images()["eye"] == "R").all()


def test_equal_pixels_of_two_keys_are_both_kept(folder: Path, export: Path) -> None:
    put(export, "47110_R_900_OCT_again", 0)
    run(folder, export)
    assert SiteFolder(folder).images()["sha256"].duplicated().sum() == 1


def test_every_file_is_accounted_for(folder: Path, export: Path) -> None:
    put(export, "1_L_0_OCT_a", b"skip")
    put(export, "1_L_0_OCT_b", b"fail")
    put(export, "1_L_0_OCT_c", b"part")
    put(export, "1_L_0_OCT_d", b"")
    put(export, "1_X_0_OCT_e", 5)
    put(export, " _L_0_OCT_f", 5)
    put(export, "1_L_0_FA_g", 5)
    put(export, "1_L_-9999999999_OCT_h", 5)
    put(export, "no-toy", 5)
    (export / "note.txt").write_text("x")
    summary = run(folder, export)
    assert total(summary.sources) == len([file for file in export.rglob("*") if file.is_file()])
    assert summary.sources == Counts(imported=7, skipped=2, quarantined=7)
    assert {item.reason: item.count for item in summary.reasons} == {
        "is not meant for us": 1,
        "is no toy file": 1,
        "cannot be read (RuntimeError)": 1,
        "cannot be read (ValueError)": 1,
        "has a damaged frame": 3,
        "is not an image that can be decoded": 1,
        "is of neither eye": 1,
        "has no patient": 1,
        "is of no modality that is known": 1,
        "has no plausible date": 1,
    }
    told = journal.read_journal(folder)
    assert sum(told.sources.values()) == total(summary.sources)
    assert sum(told.reasons.values()) == sum(item.count for item in summary.reasons)


def test_what_is_left_out_is_named(folder: Path, export: Path) -> None:
    put(export, "1_L_0_OCT_a", b"fail")
    put(export, "1_L_0_OCT_b", b"part")
    (export / "note.txt").write_text("x")
    (export / "more").mkdir()
    (export / "more" / "link").symlink_to(export / "note.txt")

    def twice(root: Path, mapping: Path | None) -> Iterator[Source]:
        yield from [*find(root, mapping), *list(find(root, mapping))[:2], *list(find(root, mapping))[:1]]

    for _ in range(2):
        summary = run(folder, export, importer=ScanImporter(twice, read))
        assert list(journal.read_left_out_files(folder)) == [
            ("toy", str(export), name, LeftOut(*left_out))
            for name, *left_out in (
                ("1_L_0_OCT_a.png", QUARANTINED, "cannot be read (RuntimeError)"),
                ("1_L_0_OCT_a.png", QUARANTINED, "is listed twice"),
                ("1_L_0_OCT_a.png", QUARANTINED, "is listed twice"),
                ("1_L_0_OCT_b.png", QUARANTINED, "has a damaged frame", 3),
                ("1_L_0_OCT_b.png", QUARANTINED, "is listed twice"),
                ("more/link", SKIPPED, "is a link"),
                ("note.txt", SKIPPED, "is no toy file"),
            )
        ]
        assert summary.sources.quarantined == 4
    (export / "note.txt").unlink()
    (export / "more" / "link").unlink()
    put(export, "1_L_0_OCT_a", 40)
    run(folder, export)
    assert [item.name for item in journal.read_left_out_files(folder)] == ["1_L_0_OCT_b.png"]


def test_links_and_odd_files_do_no_harm(folder: Path, export: Path, tmp_path: Path) -> None:
    put(tmp_path, "5_L_0_OCT_out", 5)
    (export / "5_L_0_OCT_out.png").symlink_to(tmp_path / "5_L_0_OCT_out.png")
    (export / "5_L_0_OCT_loop.png").symlink_to(export / "5_L_0_OCT_loop.png")
    (export / "5_L_0_OCT_gone.png").symlink_to(export / "nowhere")
    (export / "5_L_0_OCT_in.png").symlink_to(export / "47110_R_0_OCT_o0.png")
    (export / "up").symlink_to(export.parent)
    (export / "circle").symlink_to(export)
    os.mkfifo(export / "5_L_0_OCT_pipe.png")
    (export / "5_L_0_OCT_folder.png").mkdir()
    (export / os.fsdecode(b"5_L_0_OCT_\xff\xfe.png")).write_bytes(encode_image(make_pixels(8)))
    summary = run(folder, export)
    assert {item.reason: item.count for item in summary.reasons} == {
        "lies outside the export": 1,
        "cannot be looked at (OSError)": 1,
        "is not there": 1,
        "is no regular file": 2,
        "is a link": 2,
    }
    assert summary.scans.imported == 8
    assert run(folder, export).sources.unchanged == 8
    check_site(SiteFolder(folder))


def test_a_picture_that_is_lost_or_cut_short_is_read_again(folder: Path, export: Path) -> None:
    run(folder, export)
    before = contents(folder)
    files = sorted((folder / "imaging" / "files").rglob("*.png"))
    files[0].unlink()
    files[1].write_bytes(b"")
    assert run(folder, export).sources == Counts(imported=2, unchanged=4)
    assert contents(folder) == before


def test_again_reads_all_and_changes_nothing(folder: Path, export: Path) -> None:
    run(folder, export)
    before = snapshot(folder)
    assert run(folder, export, again=True).sources == Counts(imported=6)
    assert snapshot(folder) == before


@pytest.mark.parametrize("threads", [1, 8])
def test_the_outcome_does_not_depend_on_the_threads(folder: Path, export: Path, tmp_path: Path, threads: int) -> None:
    put(export / "Doe^Jane", "9_L_0_OCT_o0", 77)
    other = new_site(tmp_path / "other")
    run(folder, export)
    (other / "state").mkdir()
    (folder / "state" / "keys").rename(other / "state" / "keys")
    import_scans(other, export, TOY, "toy", threads=threads)
    (other / "state" / "keys").rename(folder / "state" / "keys")
    assert contents(folder / "imaging") == contents(other / "imaging")


def slow(source: Source, options: ScanOptions) -> Iterator[Scan | LeftOut]:
    time.sleep(0.02)
    yield from read(source, options)


def import_slowly(folder: Path, export: Path) -> None:
    scans._SAVE_S = 0.0
    scans._SAVE_SHARE = 10.0
    scans._TOGETHER = 1
    import_scans(folder, export, ScanImporter(find, slow), "toy", threads=1)


@pytest.mark.parametrize("after_s", [0.0, 0.15, 0.4])
def test_an_import_that_was_killed_is_run_again_to_the_same_end(folder: Path, tmp_path: Path, after_s: float) -> None:
    export = tmp_path / "many"
    export.mkdir()
    for number in range(30):
        put(export, f"{number}_R_0_OCT_o{number}", number)
    process = multiprocessing.get_context("fork").Process(target=import_slowly, args=(folder, export))
    process.start()
    while not (folder / "imaging" / ".drafts").exists():
        time.sleep(0.005)
    time.sleep(after_s)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    if (folder / "imaging" / "index.parquet").exists():
        check_site(SiteFolder(folder))  # whenever it was killed
    summary = run(folder, export)
    assert summary.sources.imported + summary.sources.unchanged == 30
    assert len(list((folder / "imaging" / "files").rglob("*.png"))) == len(SiteFolder(folder).images()) == 30
    assert not (folder / "imaging" / ".drafts").exists()
    check_site(SiteFolder(folder))
    whole = new_site(tmp_path / "whole")
    (whole / "state").mkdir()
    (folder / "state" / "keys").rename(whole / "state" / "keys")
    run(whole, export)
    assert contents(folder / "imaging") == contents(whole / "imaging")


def test_an_interruption_keeps_what_was_done(folder: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "_TOGETHER", 1)
    settle, calls = scans._settle, []

    def interrupted(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        settle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(scans, "_settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, export)
    monkeypatch.setattr(scans, "_settle", settle)
    assert len(SiteFolder(folder).images()) == 3
    check_site(SiteFolder(folder))
    assert run(folder, export).sources == Counts(imported=3, unchanged=3)


def test_a_full_disk_stops_the_import_and_blames_no_scan(
    folder: Path, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def full(path: object, *arguments: int, **named: int) -> int:
        if ".drafts" in str(path):
            raise OSError(28, "No space left on device")
        return open_file(path, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        with pytest.raises(SiteError, match="imaging/files must be writable, got 'No space left"):
            run(folder, export)
    assert run(folder, export).sources == Counts(imported=6)


def endless(count: int) -> ScanImporter:
    """As many scans as wanted, of one picture, of which half have an infrared partner and some are left out."""

    def sources(export: Path, mapping: Path | None) -> Iterator[Source]:
        return (Source(f"a folder of the hospital/{number:09d}.png", (export / "one.png",)) for number in range(count))

    def scan(source: Source, options: ScanOptions) -> Iterator[Scan | LeftOut]:
        number = int(source.name[-13:-4])
        if number % 7 == 0:
            raise LeftOutError(QUARANTINED, "is damaged")
        modality, taken = ("OCT", "IR")[number % 2], datetime(2020, 6, 1) + timedelta(hours=number // 2)
        content = source.files[0].read_bytes()
        yield Scan(f"patient {number // 8}", source.name, "R", taken, modality, content, "A")

    return ScanImporter(sources, scan)


def test_memory_does_not_grow_with_the_number_of_scans(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_AT_ONCE", 64)  # rows in memory while the index is written
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "one.png").write_bytes(encode_image(make_pixels(1)))
    run(folder, tmp_path / "e", importer=endless(100))  # whatever is made once
    peaks = []
    for number, count in enumerate((200, 1000)):
        site = new_site(tmp_path / f"site{number}")
        tracemalloc.start()
        try:
            for _ in range(2):
                run(site, tmp_path / "e", importer=endless(count))
                gc.collect()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # Bytes a scan more. A journal in memory takes 2300; what is left is what Python keeps of tuples that it freed.
    assert (peaks[1] - peaks[0]) / 800 < 600


def test_two_imports_at_once_are_refused(folder: Path, export: Path) -> None:
    with journal.importing(folder), pytest.raises(SiteError, match="one process at a time"):
        run(folder, export)
    assert run(folder, export).sources.imported == 6


def test_an_export_that_cannot_be_meant_is_refused_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def none(export: Path, mapping: Path | None) -> Iterator[Source]:
        raise ExportError("mapping", "must be given")
        yield

    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "absent", tmp_path / "loop", folder, folder / "imaging", tmp_path):
        with pytest.raises(ExportError):
            run(folder, path)
    (tmp_path / "e").mkdir()
    with pytest.raises(ExportError, match="mapping must be given"):
        run(folder, tmp_path / "e", importer=ScanImporter(none, read))
    assert sorted(file.name for file in folder.rglob("*.*") if file.is_file()) == [
        "dataset.yaml",
        "events.parquet",
        "pseudonyms.key",
    ]
    assert run(folder, tmp_path / "e").sources == Counts()


def test_an_index_that_no_import_made_is_not_replaced(folder: Path, export: Path) -> None:
    run(folder, export)
    (folder / journal.JOURNAL).unlink()
    with pytest.raises(SiteError, match="must have been made by imports"):
        run(folder, export)


def test_a_lost_key_is_not_replaced(folder: Path, export: Path) -> None:
    run(folder, export)
    (folder / "state" / "keys" / "pseudonyms.key").unlink()
    with pytest.raises(KeyFileError):
        run(folder, export)


def test_what_is_no_site_folder_is_refused(tmp_path: Path, export: Path) -> None:
    with pytest.raises(SiteError, match="site init"):
        run(tmp_path / "nowhere", export)
