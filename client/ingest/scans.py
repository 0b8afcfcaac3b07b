"""How do the scans of an export come into the site folder? Under pseudonyms, paired, each file accounted for.

Sources are read on threads and settled one by one in their order, so that the outcome does not depend on the threads.
Pictures are drafts until their source is settled; the journal and the index are replaced as a whole, also now and then
on the way. An import that was killed is run again: it goes on with what is not in the journal.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from filecmp import cmp
from itertools import islice
from pathlib import Path

from client.ingest import index, journal
from client.ingest.export import QUARANTINED, SKIPPED, LeftOut, LeftOutError, ScanImporter, ScanOptions, Source
from client.ingest.journal import IMPORTED, Entry
from client.ingest.progress import Progress
from client.ingest.pseudonyms import open_pseudonyms
from client.ingest.reading import Desk, Draft, take
from client.ingest.sources import Stamps, examine, export_root, fingerprint, walk_names
from shared.site_folder import SiteFolder

_TOGETHER = 8  # sources that a thread reads before the next one is told
_AHEAD = 3  # such groups a thread
_SAVE_S, _SAVE_SHARE = 30.0, 0.05  # between two saves at least; of the time, for saving at most
_MOST_ROWS = 10_000  # that wait for a save
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
        work = _open(folder, root, importer, kind, options or ScanOptions(), again)
        try:
            with progress or Progress("files") as shown:
                shown.expect(sum(1 for _ in walk_names(root)))
                _settle_all(work, importer.find(root, mapping), shown, threads or os.cpu_count() or 1)
                _account_for_the_rest(work, shown)
        finally:
            _save(work)
            shutil.rmtree(work.desk.drafts, ignore_errors=True)
        _sweep(work)
        return _summary(work)


@dataclass
class _Work:
    """One import on its way; changed by the main thread alone."""

    folder: Path
    root: Path
    files: Path
    desk: Desk
    again: bool
    tables: index.Tables
    entries: dict[str, Entry]
    changed: dict[str, dict[str, object]] = field(default_factory=dict)  # rows since the last save, by image_id
    reread: set[str] = field(default_factory=set)  # sources whose earlier rows go at the next save
    seen: set[str] = field(default_factory=set)  # sources of this export
    named: set[int] = field(default_factory=set)  # hashes of the files that they name
    unlisted: list[LeftOut] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    scans: Counter[str] = field(default_factory=Counter)
    reasons: list[LeftOut] = field(default_factory=list)
    stopped: bool = False
    next_save: float = field(default_factory=lambda: time.monotonic() + _SAVE_S)


@dataclass(frozen=True)
class _Taken:
    """A source that was read, or need not be (``drafts`` is None)."""

    source: Source
    id: str
    stamps: Stamps
    fingerprint: str
    drafts: list[Draft] | None
    left_out: list[LeftOut]


def _open(folder: Path, root: Path, importer: ScanImporter, kind: str, options: ScanOptions, again: bool) -> _Work:
    drafts = folder / "imaging" / ".drafts"
    shutil.rmtree(drafts, ignore_errors=True)  # of an import that was killed
    for table in (index.INDEX, journal.SCANS_FILE, journal.SOURCES_FILE):
        journal.remove_drafts(folder / table)
    drafts.mkdir(parents=True)
    desk = Desk(importer.read, kind, options, open_pseudonyms(folder), drafts)
    return _Work(
        folder, root, folder / "imaging" / "files", desk, again, index.open_tables(folder), journal.read_entries(folder)
    )


# Reading, on threads


def _settle_all(work: _Work, sources: Iterator[Source], progress: Progress, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[list[_Taken]]] = deque()
        left = _once_each(work, sources)
        try:
            while batch := list(islice(left, _TOGETHER)):
                waiting.append(pool.submit(_take_each, work, batch))
                if len(waiting) > _AHEAD * threads:
                    _settle_next(work, waiting, progress)
            while waiting:
                _settle_next(work, waiting, progress)
        finally:
            work.stopped = True
            pool.shutdown(cancel_futures=True)


def _settle_next(work: _Work, waiting: deque[Future[list[_Taken]]], progress: Progress) -> None:
    for taken in waiting.popleft().result():
        _settle(work, taken)
        progress.advance(len(taken.source.files))
    if time.monotonic() > work.next_save or len(work.changed) > _MOST_ROWS:
        _save(work)


def _once_each(work: _Work, sources: Iterator[Source]) -> Iterator[Source]:
    for source in sources:
        identity = journal.source_id(work.desk.kind, str(work.root), source.name)
        if identity in work.seen:
            work.unlisted.append(LeftOut(QUARANTINED, "is listed twice"))
            continue
        work.seen.add(identity)
        work.named.update(hash(os.fspath(file)) for file in source.files)
        yield source


def _take_each(work: _Work, sources: list[Source]) -> list[_Taken]:
    """Runs on a thread: of what the main thread changes it reads only what is of these sources."""
    return [_take(work, source) for source in sources if not work.stopped]


def _take(work: _Work, source: Source) -> _Taken:
    identity = journal.source_id(work.desk.kind, str(work.root), source.name)
    mark, stamps = fingerprint(source, work.desk.options), Stamps()
    before = work.entries.get(identity)
    try:
        stamps = examine(source, work.root)
        if (
            before
            and not work.again
            and (before.files, before.fingerprint) == (stamps, mark)
            and (identity not in work.tables.broken)
        ):
            return _Taken(source, identity, stamps, mark, None, [])
        drafts, left_out = take(source, identity, work.desk)
    except LeftOutError as error:
        drafts, left_out = [], [error.left_out]
    return _Taken(source, identity, stamps, mark, drafts, left_out)


# Settling, one after another


def _settle(work: _Work, taken: _Taken) -> None:
    if taken.drafts is None:
        entry = work.entries[taken.id]
        work.sources["unchanged" if entry.outcome == IMPORTED else entry.outcome] += 1
        work.scans["unchanged"] += entry.scans
    else:
        work.reread.add(taken.id)
        kept, left_out = 0, list(taken.left_out)
        for draft in taken.drafts:
            problem = _conflict(work, draft, taken.id)
            if problem is None:
                _place(work, draft, taken.id)
                kept += 1
            else:
                os.unlink(draft.file)
                left_out.append(problem)
        entry = Entry(
            kind=work.desk.kind,
            export=str(work.root),
            name=taken.source.name,
            files=taken.stamps,
            fingerprint=taken.fingerprint,
            outcome=journal.outcome_of(kept, left_out),
            left_out=journal.count_reasons(left_out),
            scans=kept,
        )
        work.entries[taken.id] = entry
        work.sources[entry.outcome] += 1
        work.scans[IMPORTED] += kept
    work.reasons += entry.left_out
    for item in entry.left_out:
        work.scans[item.outcome] += item.count


def _conflict(work: _Work, draft: Draft, source: str) -> LeftOut | None:
    """Why another scan has this key already; None when it is free, or its holder is of another or older export."""
    row = work.changed.get(draft.image_id)
    if row is None:
        holder, sha256 = work.tables.holders.get(draft.image_id, (None, ""))
        if holder is None or holder in work.reread:
            return None
    else:
        holder, sha256 = str(row["source"]), str(row["sha256"])
    if holder != source:
        entry = work.entries.get(holder)
        if entry is None or (entry.kind, entry.export) != (work.desk.kind, str(work.root)):
            return None
        if not os.path.lexists(work.root / entry.name) and not work.root.is_file():
            return None
    if sha256 == draft.row["sha256"]:
        return LeftOut(SKIPPED, "is a copy of another scan of the export")
    return LeftOut(QUARANTINED, "has the key of another scan of the export, but other pixels")


def _place(work: _Work, draft: Draft, source: str) -> None:
    file = os.path.join(work.files, str(draft.row["path"]))
    if os.path.exists(file) and cmp(draft.file, file, shallow=False):
        os.unlink(draft.file)  # as it is: who decoded it need not do so again
    else:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        os.replace(draft.file, file)
    work.changed[draft.image_id] = {**draft.row, "source": source}


def _account_for_the_rest(work: _Work, progress: Progress) -> None:
    """Files that no source names; remembered as one entry without a name."""
    unlisted: list[LeftOut] = list(work.unlisted)

    def cannot_list(error: OSError) -> None:
        if hash(error.filename) not in work.named:
            unlisted.append(LeftOut(QUARANTINED, "is a folder that cannot be listed"))

    for file in walk_names(work.root, cannot_list):
        if hash(file) not in work.named:
            reason = "is a link" if os.path.islink(file) else f"is no {work.desk.kind} file"
            unlisted.append(LeftOut(SKIPPED, reason))
            progress.advance()
    left_out = journal.count_reasons(unlisted)
    rest = Entry(work.desk.kind, str(work.root), "", (), "", journal.outcome_of(0, left_out), left_out, 0)
    work.entries.pop(rest.id, None)
    if left_out:
        work.entries[rest.id] = rest
    work.seen.add(rest.id)
    work.reasons += left_out
    work.sources.update(Counter({item.outcome: 0 for item in left_out}))
    for item in left_out:
        work.sources[item.outcome] += item.count


# Keeping


def _save(work: _Work) -> None:
    if not work.entries:
        return  # nothing was read, now or ever
    started = time.monotonic()
    work.tables = index.merge(work.tables, work.changed, work.reread)
    journal.write(work.folder, work.tables.scans, work.entries)
    index.write(work.folder, work.tables, work.desk.options.pair_within_s)
    work.changed, work.reread = {}, set()
    ended = time.monotonic()
    work.next_save = ended + max(_SAVE_S, (ended - started) / _SAVE_SHARE)


def _sweep(work: _Work) -> None:
    """Remove pictures that no scan names any more, or that an import had placed when it was killed."""
    known = set(work.tables.scans["path"].to_pylist())
    for file in walk_names(work.files):
        shard, name = file.split(os.sep)[-2:]
        if _OURS.fullmatch(name) and f"{shard}/{name}" not in known:
            with suppress(FileNotFoundError):
                os.unlink(file)


def _summary(work: _Work) -> ScanSummary:
    export = (work.desk.kind, str(work.root))
    vanished = sum((e.kind, e.export) == export for identity, e in work.entries.items() if identity not in work.seen)
    pairs, unpaired = index.count_pairs(work.folder, work.tables)
    return ScanSummary(
        sources=Counts(**work.sources),
        scans=Counts(**work.scans),
        reasons=journal.count_reasons(work.reasons),
        vanished=vanished,
        pairs=pairs,
        unpaired=unpaired,
    )
