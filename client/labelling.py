"""How does a site get its labels? A task file in, ``labels/<name>.parquet`` and an account of every visit out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml

from client.labels.labelled import Account, Tally, make_labels
from client.labels.task import BEFORE, read_task
from client.labels.verdicts import NEGATIVE, POSITIVE
from shared.files import flush, replacing, write_atomic
from shared.knobs import dump
from shared.site_folder import LABELS, SiteFolder, write_table

_DIGITS = 12  # of a digest, by which people compare rules


def label_site(path: Path, task_file: Path) -> Account:
    """Write the labels of one task, in the place of earlier ones; a second time no file changes.

    Killed at any moment, the folder holds the old labels with the old horizon, the new ones with the new, or none:
    never labels beside another task's horizon.

    Raises:
        ConfigError: a task file that cannot be used.
        SiteError: a folder that breaks the contract, or that holds nothing to label or to label by.
    """
    task, folder = read_task(task_file), SiteFolder(path)
    dataset = folder.dataset()
    labelled = make_labels(folder.events(), folder.images(), dataset, task)
    file = path / "labels" / f"{task.name}.parquet"
    if dataset.horizons_days.get(task.name) != task.horizon_days:
        if file.exists():
            file.unlink()
            flush(file.parent)  # gone for good before the horizon changes
        horizons = {**dataset.horizons_days, task.name: task.horizon_days}
        text = yaml.safe_dump(dump(replace(dataset, horizons_days=horizons)), sort_keys=False, allow_unicode=True)
        write_atomic(path / "dataset.yaml", text.encode())
    with replacing(file, unless_equal=True) as draft:
        write_table(draft, labelled.labels, LABELS)
    return labelled.account


def describe(account: Account, smallest: int = 5) -> Iterator[str]:
    """The account in words, line by line; counts of fewer than ``smallest`` patients are not shown."""
    task, outcomes = account.task, account.outcomes
    side = "in [t - N, t]" if task.window == BEFORE else "in (t, t + N]"
    yield f"{task.name}: a stroke {side}, N = {task.horizon_days} days; rules {task.digest[:_DIGITS]}"
    for name, tally in outcomes.items():
        if tally.visits or name in (POSITIVE, NEGATIVE):
            kind = "" if name in (POSITIVE, NEGATIVE) else "no label: "
            yield f"  {kind}{name}: {_shown(tally, smallest)}"
    if not outcomes[POSITIVE].visits:
        yield "  warning: no positive; does the record have the task's outcome codes? Unmapped codes do not count."
    if not outcomes[NEGATIVE].visits:
        yield "  warning: no negative; the reasons above tell why. observed_days and without_end are the usual ones."


def _shown(tally: Tally, smallest: int) -> str:
    if 0 < tally.patients < smallest:
        return f"fewer than {smallest} patients"
    return f"{tally.visits} visits of {tally.patients} patients"
