"""Is a release the same one just when nothing of what it depends on changed?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.identity import release_identity
from shared.messages import Task
from shared.statistics import Statistics
from tests.factories import make_study, small_site

STUDY = make_study()
TASK = Task(STUDY, "finetune", 1, 2, "", Statistics.neutral(STUDY), {"w": np.ones(3, np.float32)}, code="c")


OTHERS: list[dict[str, Any]] = [
    {"study": make_study({"seed": 2})},
    {"stage": "pretrain"},
    {"round": 2},
    {"rounds": 3},
    {"split": "tuning"},
    {"statistics": replace(Statistics.neutral(STUDY), prevalence=0.25)},
    {"weights": {"w": np.ones(3, np.float32) * (1 + 1e-6)}},
    {"weights": {"v": np.ones(3, np.float32)}},
    {"code": "d"},
]


@pytest.mark.parametrize("change", OTHERS)
def test_whatever_can_change_an_answer_changes_its_name(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = small_site().write(tmp_path / "north").path
    assert release_identity(folder, replace(TASK)) == release_identity(folder, TASK)
    assert release_identity(folder, replace(TASK, **change)) != release_identity(folder, TASK)


def test_other_patients_or_scans_change_the_name_of_an_answer(tmp_path: Path) -> None:
    """Or the same noise on the data before and after a patient came would tell that patient by the difference."""
    one = small_site()
    names = {release_identity(one.write(tmp_path / "a" / "north").path, TASK)}
    again = small_site()
    names.add(release_identity(again.write(tmp_path / "b" / "north").path, TASK))
    assert len(names) == 1
    label, event, scan = small_site(), small_site(), small_site()
    label.labels["detection"].loc[0, "boolean_value"] = True
    event.events.loc[event.events["numeric_value"].first_valid_index(), "numeric_value"] = 101.5
    scan.add_image(1, "OCT", eye="L")
    for number, tables in enumerate((label, event, scan, small_site(patients=11))):
        names.add(release_identity(tables.write(tmp_path / str(number) / "north").path, TASK))
    assert len(names) == 5
