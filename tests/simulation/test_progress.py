"""What does somebody see while rounds go by: one plain line a round, with what was left out and why?"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from server.state import RoundRecord
from simulation.arms import Arm
from simulation.progress import Progress
from tests.factories import make_study

STUDY = make_study({"pretrain.rounds": 2, "finetune.rounds": 2})
ARM = Arm("federated", "multimodal", "", STUDY, (), (), Path("a"), None)
RECORDS = [
    RoundRecord("survey", 1, 1, sites=["a", "b"], seconds=0.5),
    RoundRecord("pretrain", 1, 2, loss=3.25, sites=["a", "b"], seconds=4.0),
    RoundRecord("pretrain", 2, 2, loss=3.0, sites=["a", "b"], seconds=4.0),
    RoundRecord("finetune", 1, 2, loss=0.7, tuning_loss=0.71, auroc=0.5, sites=["a"], failed={"b": "no"}, seconds=1.0),
    RoundRecord("finetune", 2, 2, loss=0.6, tuning_loss=0.61, auroc=0.625, sites=["a", "b"], seconds=1.0),
    RoundRecord("evaluate", 1, 1, auroc=0.75, sites=["a", "b"], seconds=0.1),
]


def shown(records: list[RoundRecord], *, terminal: bool = False, width: int = 40) -> str:
    """What a narrow console shows of some rounds."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, _environ={})
    with Progress([ARM], console) as progress:
        for record in records:
            progress.show(ARM, record)
    return file.getvalue()


def test_one_plain_line_a_round_where_there_is_no_terminal() -> None:
    whole = [record for record in RECORDS if not record.failed]
    text = shown(whole)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == len(whole)
    for line, record in zip(lines, whole, strict=True):
        assert line.startswith("federated.multimodal")
        assert record.stage in line
        assert f"{record.round}/{record.rounds}" in line
        assert line == line.rstrip()


def words(record: RoundRecord) -> str:
    return " ".join(record.describe().split())


def test_line_states_loss_auroc_sites_and_seconds() -> None:
    assert words(RECORDS[4]) == "finetune 2/2 loss 0.6000 AUROC 0.625 2/2 sites 1.0 s"
    assert words(RECORDS[3]) == "finetune 1/2 loss 0.7000 AUROC 0.500 1/2 sites 1.0 s"
    assert words(RECORDS[0]) == "survey 1/1 2/2 sites 0.5 s"
    assert "1/1 site " in RoundRecord("survey", 1, 1, sites=["a"]).describe()


@pytest.mark.parametrize(
    "reason",
    [
        "short",
        "long " * 50 + "end",
        "update x must be float32[3], got [/tmp/file] and [red]text[/red]",
        "breaks the contract in 2 place(s):\n  one\n  two",
    ],
)
def test_site_that_was_left_out_is_one_more_line_with_its_whole_reason(reason: str) -> None:
    lines = shown([RoundRecord("finetune", 1, 2, sites=["a"], failed={"b": reason})]).splitlines()
    assert len(lines) == 2
    assert lines[1] == f"federated.multimodal: b left out: {' '.join(reason.split())}"


def test_seconds_left_end_at_nought() -> None:
    lines = shown([record for record in RECORDS if not record.failed] + RECORDS[3:4]).splitlines()
    assert "left" not in lines[0]  # nothing is known yet
    assert all(" s left" in line for line in lines[1:5])
    assert lines[5].endswith(" 0 s left")


def test_arm_that_had_ended_before_is_not_waited_for() -> None:
    file = io.StringIO()
    other = Arm("centralised", "multimodal", "", STUDY, (), (), Path("b"), None)
    with Progress([ARM, other], Console(file=file, width=200, _environ={})) as progress:
        progress.skip(other)
        for record in RECORDS:
            progress.show(ARM, record)
    assert file.getvalue().splitlines()[-1].endswith(" 0 s left")


def test_terminal_shows_a_live_table() -> None:
    assert "\x1b" in shown(RECORDS, terminal=True, width=120)
