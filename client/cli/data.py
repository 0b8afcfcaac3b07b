"""How does a hospital get from its exports to a checked site folder?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import DIR, HERE, AsJson, Folder, Site
from client.presets import FEATURES, MAPPINGS, TASKS, find_preset

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
    epilog="KIND: dicom, heidelberg, aireadi, images (scans); csv, omop, fhir (records). PATH: the export.",
)
def import_(
    kind: str,
    path: Path,
    folder: Site = HERE,
    mapping: Annotated[str, typer.Option(metavar="FILE", help="csv, images: what the columns mean.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Scans: read those too that did not change.")] = False,
    b_scans: Annotated[int, typer.Option(help="Scans: B-scans kept of a volume; 1: the central one.")] = 1,
    mirror_left: Annotated[bool, typer.Option("--mirror-left", help="Scans: mirror left eyes.")] = False,
    pair_within_s: Annotated[float, typer.Option(help="Scans: OCT and infrared so far apart may pair.")] = 60.0,
    issuers: Annotated[bool, typer.Option("--issuers", help="dicom: tell patients apart by issuer too.")] = False,
    vocabulary: Annotated[Path | None, typer.Option(help="Records: the site's own table of codes.")] = None,
    extracted_at: Annotated[str, typer.Option(help="Records: ISO date of the extract.")] = "",
    features: Annotated[str, typer.Option(metavar="FILE", help="Records: a study's feature list.")] = "",
    where: Annotated[list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="csv: rows to take.")] = None,
    identifier_system: Annotated[str, typer.Option(help="fhir: whose identifier names the patient.")] = "",
    source_value: Annotated[
        bool, typer.Option("--source-value", help="omop: person_source_value names the patient.")
    ] = False,
) -> None:
    """Brings an export of scans or records into the site folder. Can be repeated: what is unchanged stays."""
    from client.ingest.export import ExportError, ScanOptions
    from client.ingest.kinds import RecordOptions, import_export
    from shared.knobs import load
    from shared.site_folder import SiteFolder

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
    for line in import_export(kind, path, SiteFolder(folder), _preset(mapping, MAPPINGS), scans, records, again):
        typer.echo(line)


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


def _preset(name: str, folder: str) -> Path | None:
    return find_preset(name, folder) if name else None


def _tell(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)
