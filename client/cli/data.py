"""How does a hospital get from its exports to a checked site folder?"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import DIR, HERE, AsJson, Folder, Site
from client.ingest.options import RECORDS, SCANS, check_options, help_of
from client.presets import FEATURES, MAPPINGS, TASKS, Presets, find_preset

data = typer.Typer()


@data.command(epilog="DIR: the folder to make.")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    name: Annotated[str, typer.Option(help="Name of the site, for others.", show_default="the folder's")] = "",
    time_zone: Annotated[str, typer.Option(help="IANA name of the zone in which the exports state times.")] = "UTC",
) -> None:
    """Makes an empty site folder, with every setting explained in its site.yaml."""
    from client.init import init_site

    _tell(init_site(folder, name or folder.resolve().name, time_zone))


@data.command(
    "import",
    epilog=f"KIND: {', '.join(SCANS)} (scans); {', '.join(RECORDS)} (records). PATH: the export.",
)
def import_(
    context: typer.Context,
    kind: str,
    path: Path,
    folder: Site = HERE,
    mapping: Annotated[str, typer.Option(metavar="FILE", help=help_of("mapping", "what the columns mean."))] = "",
    again: Annotated[
        bool, typer.Option("--again", help=help_of("again", "read those too that did not change."))
    ] = False,
    b_scans: Annotated[int, typer.Option(help=help_of("b_scans", "B-scans kept of a volume; 1: the central one."))] = 1,
    mirror_left: Annotated[
        bool, typer.Option("--mirror-left", help=help_of("mirror_left", "mirror left eyes."))
    ] = False,
    pair_within_s: Annotated[
        float, typer.Option(help=help_of("pair_within_s", "OCT and infrared so far apart may pair."))
    ] = 60.0,
    issuers: Annotated[
        bool, typer.Option("--issuers", help=help_of("issuers", "tell patients apart by issuer too."))
    ] = False,
    vocabulary: Annotated[
        Path | None, typer.Option(help=help_of("vocabulary", "the site's own table of codes."))
    ] = None,
    extracted_at: Annotated[str, typer.Option(help=help_of("extracted_at", "ISO date of the extract."))] = "",
    features: Annotated[str, typer.Option(metavar="FILE", help=help_of("features", "a study's feature list."))] = "",
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help=help_of("where", "rows to take."))
    ] = None,
    identifier_system: Annotated[
        str, typer.Option(help=help_of("identifier_system", "whose identifier names the patient."))
    ] = "",
    source_value: Annotated[
        bool, typer.Option("--source-value", help=help_of("source_value", "person_source_value names the patient."))
    ] = False,
) -> None:
    """Brings an export of scans or records into the site folder. Can be repeated: what is unchanged stays."""
    from client.ingest.export import ExportError, ScanOptions
    from client.ingest.kinds import RecordOptions, import_export
    from shared.knobs import load
    from shared.site_folder import SiteFolder

    check_options(kind, _typed(context))
    pairs = [tuple(pair.partition("=")[::2]) for pair in where or []]
    if not all("=" in pair for pair in where or []):
        raise ExportError("--where", "must be COLUMN=VALUE", value=(where or [""])[0])
    given = {"b_scans": b_scans, "mirror_left": mirror_left, "pair_within_s": pair_within_s, "issuers": issuers}
    scans = load(ScanOptions, given, "--")
    records = RecordOptions(
        vocabulary=vocabulary,
        extracted_at=extracted_at,
        where=tuple((column, value) for column, value in pairs),
        identifier_system=identifier_system,
        source_value=source_value,
        features=_preset(features, FEATURES),
    )
    file = _preset(mapping, MAPPINGS)
    with _to_be_run_again():
        _tell(import_export(kind, path, SiteFolder(folder), file, scans, records, again))


@data.command("left-out", epilog=DIR)
def left_out(
    folder: Folder = HERE,
    skipped: Annotated[bool, typer.Option("--skipped", help="Files too that were not meant for us.")] = False,
) -> None:
    """Names the files out of which imports could not use a scan, for the hospital's own eyes; a table with tabs."""
    from client.ingest.export import QUARANTINED
    from client.ingest.index import check_folder
    from client.ingest.journal import read_left_out_files
    from shared.text import printable

    check_folder(folder)
    typer.echo("\t".join(["outcome", "kind", "export", "file", "count", "reason"]))
    for kind, export, name, item in read_left_out_files(folder):
        if skipped or item.outcome == QUARANTINED:
            cells = (item.outcome, kind, export, name, str(item.count), item.told)
            typer.echo("\t".join(map(printable, cells)))


@data.command()
def label(
    task: Annotated[str, typer.Option("--task", metavar="FILE", help="Such as stroke_risk, which comes along.")],
    folder: Site = HERE,
) -> None:
    """Labels the visits of the site folder by the rules of a task file, and says how many fell under which rule."""
    from client.labelling import describe, label_site
    from client.site import read_settings

    for line in describe(label_site(folder, find_preset(task, TASKS)), read_settings(folder).smallest_cell):
        typer.echo(line)


@data.command(epilog=DIR)
def check(
    folder: Folder = HERE,
    images: Annotated[bool, typer.Option("--images", help="Decode every scan as well.")] = False,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Show some scans on the page, which must then not leave the site.")
    ] = False,
    features: Annotated[str, typer.Option(metavar="FILE", help="A study's feature list.")] = "",
) -> None:
    """Checks a site folder and writes check.html and check.json into it. Exit code 0: pass, 1: warn, 2: fail.

    Lists every fault at once. Of the two files, check.json may be shared with a coordinator.
    """
    from client.check.result import check_folder, lines
    from client.check.write import write_check
    from client.feature_list import read_features
    from client.ingest.progress import Progress

    with Progress("scans") as shown:
        result = check_folder(folder, read_features(_preset(features, FEATURES)), thumbnails, images, shown.reach)
    page, table = write_check(folder, result)
    _tell([*lines(result), f"written: {page}, {table}"])
    raise typer.Exit(result.exit_code)


@data.command(epilog=DIR)
def doctor(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Looks for what keeps this site from working, and says how to mend it; changes nothing."""
    from client.doctor.diagnosis import as_json as written
    from client.doctor.diagnosis import diagnose, print_table
    from client.doctor.finding import exit_code

    findings = diagnose(folder)
    if as_json:
        typer.echo(written(findings))
    else:
        print_table(findings)
    raise typer.Exit(exit_code(findings))


def _preset(name: str, presets: Presets) -> Path | None:
    return find_preset(name, presets) if name else None


def _typed(context: typer.Context) -> list[str]:
    """Names of the parameters that are on the command line, also where they say what is so by default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


@contextmanager
def _to_be_run_again() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        line = (
            "fedretina: interrupted; what was imported is kept, the folder is whole, and the command can be run again"
        )
        typer.echo(line, err=True)
        raise typer.Exit(128 + signal.SIGINT) from None  # as shells tell it


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)
