"""How does a site folder begin? Empty, its owner's alone, with every setting of the site explained in ``site.yaml``."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from client.site import SiteSettings
from shared.errors import SiteError
from shared.files import flush, naming
from shared.knobs import dump
from shared.site_folder import EVENTS, Dataset, write_table

FOLDERS = ("imaging", "imaging/files", "labels", "state")
_OWNER_ONLY = 0o700
_SITE = ("dataset.yaml", "site.yaml", "events.parquet", "imaging", "labels", "state")  # what only a site folder has
_WIDTH = 100
_HEAD = "What this hospital decides for itself; no coordinator can change it. Remove the # of a setting to change it."


def init_site(folder: Path, name: str, time_zone: str) -> list[str]:
    """Make a site folder without patients, for the importers to fill.

    Args:
        folder: must not exist, or be empty.
        name: of the site, as the coordinator and other sites will see it.
        time_zone: IANA name of the zone in which the exports state times.

    Returns:
        Lines that say what was made and what to type next.

    Raises:
        SiteError: a folder that holds something already, a name or zone that is none.
    """
    _check(folder, name, time_zone)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with naming(folder):
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))  # mode 0700
    try:
        with naming(folder):
            _fill(draft, Dataset(site=name, time_zone=time_zone))
        os.replace(draft, folder)  # at once, or not at all; an empty folder is replaced
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return [f"{folder}: a site folder for {name}, readable by you alone; times are of {time_zone}", *next_steps(folder)]


def _fill(draft: Path, dataset: Dataset) -> None:
    for path in FOLDERS:
        (draft / path).mkdir(mode=_OWNER_ONLY)
    text = yaml.safe_dump(dump(dataset), sort_keys=False, allow_unicode=True)
    (draft / "dataset.yaml").write_text(text, encoding="utf-8")
    (draft / "site.yaml").write_text(annotated_settings(), encoding="utf-8")
    write_table(draft / "events.parquet", EVENTS.empty_table().to_pandas(), EVENTS)
    flush(draft)


def next_steps(folder: Path) -> list[str]:
    """What a data engineer types next, in order."""
    return [
        "Next:",
        f"  edit {folder / 'site.yaml'}",
        f"  fedretina site doctor {folder}",
        f"  fedretina site import KIND PATH --site {folder}      scans and records, as often as there are exports",
        f"  fedretina site label --site {folder} --task FILE",
        f"  fedretina site check {folder}",
    ]


def _check(folder: Path, name: str, time_zone: str) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise SiteError(str(folder), "must be a folder, or not exist yet")
    if folder.exists() and any(folder.iterdir()):
        is_site = any((folder / part).exists() for part in _SITE)
        rule = "must not hold a site yet" if is_site else "must be empty, or not exist yet"
        raise SiteError(str(folder), rule, remedy="Choose another folder." if is_site else "")
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise SiteError("name", "must be words that other sites will see", value=name)
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        remedy = "Such as Europe/Vienna; UTC where the exports are in it."
        raise SiteError("time zone", "must be an IANA name", value=time_zone, remedy=remedy) from None


def annotated_settings(settings: type[SiteSettings] = SiteSettings) -> str:
    """The text of a ``site.yaml`` that changes nothing and explains every setting, from its declaration."""
    paragraphs = [textwrap.fill(_HEAD, _WIDTH, initial_indent="# ", subsequent_indent="# ")]
    for field in dataclasses.fields(settings):
        told = ". ".join(_facts(field.metadata))
        note = textwrap.fill(told, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        value = yaml.safe_dump({field.name: _default(field)}, default_flow_style=True, width=10_000).strip()
        paragraphs.append(f"{note}\n#{value[1:-1]}")  # without the braces: on one line, to be changed by one stroke
    return "\n\n".join(paragraphs) + "\n"


def _facts(rule: Mapping[str, Any]) -> Iterator[str]:
    yield rule["help"][:1].upper() + rule["help"][1:]
    if rule["unit"]:
        yield f"Unit: {rule['unit']}"
    if rule["choices"]:
        yield f"One of {', '.join(rule['choices'])}"
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    bounds = [f"{sign} {rule[key]:g}" for key, sign in signs if rule[key] is not None]
    if bounds:
        yield f"Must be {' and '.join(bounds)}"


def _default(field: dataclasses.Field[Any]) -> Any:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return list(value) if isinstance(value, tuple) else value
