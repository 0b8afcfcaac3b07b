"""How does a test type a command, and what is the smallest study worth typing?"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.e2e.nursery import python, two_cores

# Three hospitals with scans and records, an encoder that is hardly one.
TINY = [
    "cohort.sites=3",
    "cohort.patients=90",
    "cohort.labelled=1.0",
    "cohort.image_height=32",
    "cohort.image_width=32",
    "images={height: 32, width: 32}",
    "model.image.arguments={depths: [1, 1, 1, 1], dims: [8, 8, 8, 8]}",
    "task.horizon_days=3650",  # so that every hospital has both classes
    "modalities=[oct, clinical]",
    "pretrain.rounds=2",
    "finetune.rounds=3",
    "objective.projection_width=8",
]
RECORDS_ONLY = [
    *(setting for setting in TINY if not setting.startswith(("modalities", "pretrain", "finetune"))),
    "modalities=[clinical]",
    "finetune.rounds=2",
]


def command(*arguments: str) -> list[str]:
    """``fedretina`` and what is typed after it."""
    return [python(), "-m", "fedretina", *arguments]


def fedretina(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a folder, as a shell does."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        preexec_fn=two_cores,
    )
