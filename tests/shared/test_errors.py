"""Do errors say name, value, rule and remedy, wherever they travel?"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from shared.errors import CheckpointError, ConfigError, FedretinaError, MessageError, SiteError
from shared.schema import SiteFaultsError


def test_an_error_reads_name_rule_value_remedy() -> None:
    error = ConfigError("train.lr", "must be > 0", value=-1.0, remedy="Take 0.001.")
    assert str(error) == "train.lr must be > 0, got -1.0. Take 0.001."


def test_what_is_not_given_is_not_said() -> None:
    assert str(SiteError("events.parquet", "must exist")) == "events.parquet must exist"


@pytest.mark.parametrize("kind", [FedretinaError, ConfigError, SiteError, MessageError, CheckpointError])
def test_an_error_survives_a_process_border(kind: type[FedretinaError]) -> None:
    error = kind("a", "must be b", value=[1, "c"], remedy="Do d.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (str(back), back.name, back.rule, back.value, back.remedy) == (
        str(error),
        "a",
        "must be b",
        [1, "c"],
        "Do d.",
    )


def test_a_list_of_faults_survives_a_process_border() -> None:
    error = SiteFaultsError(Path("/x"), [SiteError("a", "must be b", value=1), SiteError("c", "must be d")])
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is SiteFaultsError
    assert str(back) == str(error)
    assert [str(fault) for fault in back.faults] == ["a must be b, got 1", "c must be d"]
