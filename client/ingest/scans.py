"""How do the scans of an export come into the site folder? Under pseudonyms, paired, each file accounted for.

Sources are read on threads and settled one by one in their order, so that the outcome does not depend on the threads.
Pictures are drafts until their source is settled; the journal is committed and the index replaced now and then on the
way, and at the end. An import that was killed is run again: it goes on with what is not in the journal.
Nothing that grows with the export is in memory.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter, deque
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from filecmp import cmp
from itertools import count, groupby
from pathlib import Path

from client.ingest import index, journal
from client.ingest.export import QUARANTINED, SKIPPED, LeftOut, LeftOutError, ScanImporter, ScanOptions, Source
from client.ingest.journal import IMPORTED, Entry, Journal, KeptScan, Reasons, Unlisted, open_journal
from client.ingest.met import Met, open_met
from client.ingest.progress import Progress
from client.ingest.pseudonyms import open_pseudonyms
from client.ingest.reading import Desk, Draft, take
from client.ingest.sources import Stamps, examine, export_root, fingerprint, walk_names
from shared.batched import batched
from shared.site_folder import SiteFolder

_TOGETHER = 8  # sources that a thread reads before the next one is told
_AHEAD = 3  # such groups a thread
_LOOKED_UP = 256  # names at once
_SAVE_S, _SAVE_SHARE = 30.0, 0.05  # between two saves at least; of the time, for saving at most
_OURS = re.compile(r"[0-9a-f]{32}\.(png|jpg)")


@dataclass(frozen=True)
class Counts:
    """How many, by what became of them.

    Attributes:
        imported: new or changed, and now in the folder.
        unchanged: in the folder since an earlier import, not read again.
    """

    imported: int = 0
    unchanged: int = 0
    skipped: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class ScanSummary:
    """What an import of scans did.

    Attributes:
        sources: all of the export, with the files that no source names; they add up.
        scans: single scans; a source that is left out whole counts as one.
        reasons: why something was left out, with the number of sources, scans or rows; also what an earlier import
            found of sources that did not change.
        vanished: sources of this export that an earlier import read and that are not there now; their scans stay.
        pairs: OCT scans of the site with an infrared scan.
        unpaired: scans of the site without a partner, by modality; of a volume the central one counts.
    """

    sources: Counts
    scans: Counts
    reasons: tuple[LeftOut, ...]
    vanished: int
    pairs: int
    unpaired: Mapping[str, int]


def import_scans(
    site: SiteFolder | Path,
    export: Path,
    importer: ScanImporter,
    kind: str,
    mapping: Path | None = None,
    options: ScanOptions | None = None,
    progress: Progress | None = None,
    *,
    again: bool = False,
    threads: int | None = None,
) -> ScanSummary:
    """Bring the scans of an export into a site folder, or what is new or changed of them.

    Args:
        kind: names the importer; with the export's path and the source's name it says which source was read before.
        mapping: file that says what an export's columns mean, where the importer needs one.
        again: read every source, also the unchanged ones.
        threads: as many as there are processors when None.

    Raises:
        ExportError: nothing can be imported from there.
        SiteError: no such site folder, a second import at the same time, a full disk.
        KeyFileError: the key of the pseudonyms is missing or open to others.
    """
    folder = site.path if isinstance(site, SiteFolder) else site
    index.check_folder(folder)
    root = export_root(export, folder)
    with journal.importing(folder):
        pseudonyms = open_pseudonyms(folder)  # before there is a journal, which asks for the key it was made with
        with (
            open_journal(folder) as kept,
            _drafts(folder) as drafts,
            open_met(drafts) as met,
            progress or Progress("files") as shown,
        ):
            desk = Desk(importer.read, kind, options or ScanOptions(), pseudonyms, drafts)
            work = _Work(folder, root, desk, again, kept, met)
            try:
                shown.expect(sum(1 for _ in walk_names(root)))
                _settle_all(work, importer.find(root, mapping), shown, threads or os.cpu_count() or 1)
                _account_for_the_rest(work, shown)
            finally:
                _save(work)
            _sweep(work)
            return _summary(work)


@contextmanager
def _drafts(folder: Path) -> Iterator[Path]:
    """A new folder, also where an import that was killed left one."""
    drafts = folder / "imaging" / ".drafts"
    shutil.rmtree(drafts, ignore_errors=True)
    drafts.mkdir(parents=True, mode=0o700)
    try:
        yield drafts
    finally:
        shutil.rmtree(drafts, ignore_errors=True)


@dataclass
class _Work:
    """One import on its way; changed by the main thread alone."""

    folder: Path
    root: Path
    desk: Desk
    again: bool
    journal: Journal
    met: Met  # ids of the sources of this export, and the files that they name
    sources: Counter[str] = field(default_factory=Counter)
    scans: Counter[str] = field(default_factory=Counter)
    reasons: Reasons = field(default_factory=Reasons)
    stopped: bool = False
    next_save: float = field(default_factory=lambda: time.monotonic() + _SAVE_S)

    @property
    def pictures(self) -> Path:
        return self.folder / "imaging" / "files"


@dataclass(frozen=True)
class _Asked:
    """A source that is to be read.

    Attributes:
        before: what the journal knows of it.
        had: the scans that came from it.
    """

    source: Source
    id: str
    before: Entry | None
    had: Sequence[KeptScan]


@dataclass(frozen=True)
class _Taken:
    """A source that was read, or need not be (``drafts`` is None)."""

    asked: _Asked
    stamps: Stamps
    fingerprint: str
    drafts: list[Draft] | None
    left_out: list[LeftOut]


# Reading, on threads


def _settle_all(work: _Work, sources: Iterator[Source], progress: Progress, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[list[_Taken]]] = deque()
        try:
            for batch in _asked(work, sources):
                waiting.append(pool.submit(_take_each, work, batch))
                if len(waiting) > _AHEAD * threads:
                    _settle_next(work, waiting, progress)
            while waiting:
                _settle_next(work, waiting, progress)
        finally:
            work.stopped = True
            pool.shutdown(cancel_futures=True)


def _asked(work: _Work, sources: Iterator[Source]) -> Iterator[list[_Asked]]:
    """The sources, some at once, each of them once."""
    for some in batched(sources, _TOGETHER):
        identities = [journal.source_id(work.desk.kind, str(work.root), source.name) for source in some]
        files = [os.fspath(file) for source in some for file in source.files]
        fresh = set(work.met.add([*identities, *files]))
        new, again = dict[str, Source](), list[Unlisted]()
        for identity, source in zip(identities, some, strict=True):
            if identity in fresh:
                fresh.remove(identity)
                new[identity] = source
            else:
                copy = next(number for number in count(1) if work.met.add([f"{identity} {number}"]))
                again.append(Unlisted(source.name, copy, QUARANTINED, "is listed twice"))
        _leave_out(work, again)
        before = work.journal.entries(list(new))
        had = work.journal.scans_from(list(before))
        yield [_Asked(new[name], name, before.get(name), had.get(name, ())) for name in new]


def _settle_next(work: _Work, waiting: deque[Future[list[_Taken]]], progress: Progress) -> None:
    batch = waiting.popleft().result()
    held = work.journal.scans([draft.scan.image_id for taken in batch for draft in taken.drafts or ()])
    for taken in batch:
        _settle(work, taken, held)
        progress.advance(len(taken.asked.source.files))
    if time.monotonic() > work.next_save:
        _save(work)


def _take_each(work: _Work, batch: list[_Asked]) -> list[_Taken]:
    """Runs on a thread: it reads nothing that the main thread changes."""
    return [_take(work, asked) for asked in batch if not work.stopped]


def _take(work: _Work, asked: _Asked) -> _Taken:
    mark, stamps = fingerprint(asked.source, work.desk.options), Stamps()
    try:
        stamps = examine(asked.source, work.root)
        if not work.again and _is_kept(asked, stamps, mark, work.pictures):
            return _Taken(asked, stamps, mark, None, [])
        drafts, left_out = take(asked.source, asked.id, work.desk)
    except LeftOutError as error:
        drafts, left_out = [], [error.left_out]
    return _Taken(asked, stamps, mark, drafts, left_out)


def _is_kept(asked: _Asked, stamps: Stamps, mark: str, pictures: Path) -> bool:
    """Whether a source is as it was, and each of its pictures whole in the site folder."""
    before = asked.before
    if before is None or (before.files, before.fingerprint) != (stamps, mark):
        return False
    try:
        return all(os.stat(pictures / scan.path).st_size == scan.bytes for scan in asked.had)
    except OSError:
        return False


# Settling, one after another


def _settle(work: _Work, taken: _Taken, held: dict[str, KeptScan]) -> None:
    """Keep what was read of a source, or what it had.

    Args:
        held: the scans of the journal that have the name of one that was read; kept up to date.
    """
    asked = taken.asked
    if taken.drafts is None:
        assert asked.before is not None
        entry = asked.before
        work.sources["unchanged" if entry.outcome == IMPORTED else entry.outcome] += 1
        work.scans["unchanged"] += entry.scans
    else:
        entry = _replace(work, taken, taken.drafts, held)
        work.sources[entry.outcome] += 1
        work.scans[IMPORTED] += entry.scans
    work.reasons.add(*entry.left_out)
    for item in entry.left_out:
        work.scans[item.outcome] += item.count


def _replace(work: _Work, taken: _Taken, drafts: list[Draft], held: dict[str, KeptScan]) -> Entry:
    """Put the scans of a source in the place of those that it had."""
    asked, placed, left_out = taken.asked, set[str](), Reasons()
    left_out.add(*taken.left_out)
    for draft in drafts:
        scan = draft.scan
        problem = _conflict(work, scan, held.get(scan.image_id), placed)
        if problem is None:
            _place(work, draft)
            if held.get(scan.image_id) != scan:
                work.journal.put_scan(scan)
            held[scan.image_id] = scan
            placed.add(scan.image_id)
        else:
            os.unlink(draft.file)
            left_out.add(problem)
    for scan in asked.had:
        if scan.image_id not in placed:
            work.journal.drop_scan(scan.image_id, asked.id)
            if scan.image_id in held and held[scan.image_id].source == asked.id:
                del held[scan.image_id]
    reasons = left_out.counted()
    entry = Entry(
        kind=work.desk.kind,
        export=str(work.root),
        name=asked.source.name,
        files=taken.stamps,
        fingerprint=taken.fingerprint,
        outcome=journal.outcome_of(len(placed), reasons),
        left_out=reasons,
        scans=len(placed),
    )
    if entry != asked.before:
        work.journal.put_entry(entry)
    return entry


def _conflict(work: _Work, scan: KeptScan, held: KeptScan | None, placed: Container[str]) -> LeftOut | None:
    """Why another scan has this key already; None when it is free, or its holder is of another or older export."""
    if held is None:
        return None
    if held.source == scan.source:
        if scan.image_id not in placed:
            return None  # what the source had before it was read again
    else:
        entry = work.journal.entries([held.source]).get(held.source)
        if entry is None or (entry.kind, entry.export) != (work.desk.kind, str(work.root)):
            return None
        if not os.path.lexists(work.root / entry.name) and not work.root.is_file():
            return None
    if held.sha256 == scan.sha256:
        return LeftOut(SKIPPED, "is a copy of another scan of the export")
    return LeftOut(QUARANTINED, "has the key of another scan of the export, but other pixels")


def _place(work: _Work, draft: Draft) -> None:
    file = os.path.join(work.pictures, draft.scan.path)
    if os.path.exists(file) and cmp(draft.file, file, shallow=False):
        os.unlink(draft.file)  # as it is: who decoded it need not do so again
        return
    try:
        os.replace(draft.file, file)
    except FileNotFoundError:  # of its folder, once in a while
        os.makedirs(os.path.dirname(file), exist_ok=True)
        os.replace(draft.file, file)


def _account_for_the_rest(work: _Work, progress: Progress) -> None:
    """Files that no source names; what was remembered of earlier ones is forgotten."""

    def name_of(file: str) -> str:
        return file[len(os.fspath(work.root)) + 1 :] or os.path.basename(file)

    def cannot_list(error: OSError) -> None:
        folder = str(error.filename)
        if work.met.new([folder]):
            _leave_out(work, [Unlisted(name_of(folder), 0, QUARANTINED, "is a folder that cannot be listed")])

    for files in batched(walk_names(work.root, cannot_list), _LOOKED_UP):
        rest = work.met.new(files)
        reasons = ["is a link" if os.path.islink(file) else f"is no {work.desk.kind} file" for file in rest]
        named = zip(map(name_of, rest), reasons, strict=True)
        _leave_out(work, [Unlisted(name, 0, SKIPPED, reason) for name, reason in named])
        progress.advance(len(rest))
    export = work.desk.kind, str(work.root)
    for known in batched(work.journal.unlisted(*export), _LOOKED_UP):
        gone = set(work.met.new([_mark(item) for item in known]))
        work.journal.drop_unlisted(*export, [item for item in known if _mark(item) in gone])


def _leave_out(work: _Work, unlisted: Sequence[Unlisted]) -> None:
    work.journal.put_unlisted(work.desk.kind, str(work.root), unlisted)
    work.met.add([_mark(item) for item in unlisted])
    for item in unlisted:
        work.reasons.add(LeftOut(item.outcome, item.reason))
        work.sources[item.outcome] += 1


def _mark(item: Unlisted) -> str:
    return f"{item.copy}\0{item.name}"


# Keeping


def _save(work: _Work) -> None:
    if work.journal.is_empty():
        return  # nothing was read, now or ever
    started = time.monotonic()
    index.find_pairs(work.journal, work.desk.options.pair_within_s)
    work.journal.commit()
    index.write(work.folder, work.journal)
    ended = time.monotonic()
    work.next_save = ended + max(_SAVE_S, (ended - started) / _SAVE_SHARE)


def _sweep(work: _Work) -> None:
    """Remove pictures that no scan names any more, or that an import had placed when it was killed."""
    for folder, files in groupby(walk_names(work.pictures), os.path.dirname):
        shard = os.path.basename(folder)
        known = work.journal.paths(shard)
        for name in map(os.path.basename, files):
            if _OURS.fullmatch(name) and f"{shard}/{name}" not in known:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, name))


def _summary(work: _Work) -> ScanSummary:
    pairs, unpaired = index.count_pairs(work.journal)
    before = work.journal.sources(work.desk.kind, str(work.root))
    return ScanSummary(
        sources=Counts(**work.sources),
        scans=Counts(**work.scans),
        reasons=work.reasons.counted(),
        vanished=sum(len(work.met.new(names)) for names in batched(before, _LOOKED_UP)),
        pairs=pairs,
        unpaired=unpaired,
    )
