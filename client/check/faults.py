"""Which faults of the contract may be told outside? The table and the rule; what was found stays at the site."""

from __future__ import annotations

import re
from collections.abc import Iterator

from client.site import read_settings
from shared.errors import SiteError
from shared.schema import find_faults
from shared.site_folder import SiteFolder

_TABLES = ("dataset.yaml", "site.yaml", "events.parquet", "imaging/index.parquet", "subject_splits.parquet")
_LABELS = re.compile(r"labels[/\\]")
_VALUE = re.compile(r"\s*\S*\d.*$", re.DOTALL)  # a rule may end in a value of the folder's, such as a date


def all_faults(folder: SiteFolder) -> Iterator[SiteError]:
    """Faults of the contract, and of the site's own settings."""
    try:
        read_settings(folder.path)
    except SiteError as fault:
        yield fault
    yield from find_faults(folder)


def faults_for_others(faults: tuple[SiteError, ...]) -> list[tuple[str, str]]:
    """The rules that are broken, by table: no name of a file, no code, no value, and not how often."""
    return list(dict.fromkeys((_table(fault.name), _rule(fault.rule)) for fault in faults))


def _table(name: str) -> str:
    if _LABELS.search(name):
        return "labels"
    return next((table for table in _TABLES if table in name), "site folder")


def _rule(rule: str) -> str:
    return _VALUE.sub("", rule)
