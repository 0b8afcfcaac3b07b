"""Does a state survive the disk: the same after a round trip, refused when damaged or of another study?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from server.state import KEPT, ROUNDS, STATES, RoundRecord, State, load_state, load_weights, save_state
from shared.checkpoints import load_arrays, save_arrays
from shared.errors import CheckpointError
from shared.metrics import score
from shared.statistics import Statistics, Survey
from tests.server.federations import assert_same_bits, clinical_study

STUDY = clinical_study()
STATE = Path(STATES, "000002.safetensors")  # of the state below, after two phases


def full_state() -> State:
    """A state in which nothing has its default."""
    random = np.random.default_rng(0)

    def weights(seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        return {
            "layer/with.odd name": random.normal(size=(2, 3)).astype(np.float32),
            "scalar": np.array(random.normal()),  # no dimension
            "empty": np.zeros((0, 4), np.float16),
        }

    return State(
        surveys={"north": Survey(patients=3, sums=(0.1, 1e-300), counts=(1, 2)), "a/b": Survey(patients=1)},
        nodes={2: "north", 2**63 - 1: "a/b"},
        statistics=Statistics(mean=(0.1 + 0.2,), deviation=(1 / 3,), prevalence=0.123456789),
        stage="finetune",
        round=7,
        weights=weights(1),
        memory={"list/momentum/000000/a": random.normal(size=5), "mapping/m_t/000001/b/c": random.normal(size=2)},
        best=1,
        best_loss=0.1 + 0.2,
        evaluations={"a/b": score(random.normal(size=9), np.arange(9) % 2), "north": score(np.zeros(1), np.ones(1))},
        records=(RoundRecord("survey", 1, 1, sites=["a/b", "north"]), RoundRecord("finetune", 7, 9, 0.5, 0.4, 0.7)),
    )


def test_every_field_of_the_example_differs_from_its_default() -> None:
    fresh, full = State(), full_state()
    same = [f.name for f in dataclasses.fields(State) if getattr(fresh, f.name) == getattr(full, f.name)]
    assert same == []  # else the round trip below would not see a field that is forgotten


def test_round_trip_is_the_identity(tmp_path: Path) -> None:
    state = full_state()
    save_state(tmp_path, STUDY, state)
    found = load_state(tmp_path, STUDY)
    for name in ("weights", "memory"):
        assert_same_bits(getattr(found, name), getattr(state, name))
    for site, scores in state.evaluations.items():
        assert_same_bits(
            {"+": found.evaluations[site].positives, "-": found.evaluations[site].negatives},
            {"+": scores.positives, "-": scores.negatives},
        )
        assert found.evaluations[site].log_loss == scores.log_loss
        assert found.evaluations[site].squares == scores.squares
    arrays = ("weights", "memory", "evaluations")
    for field in dataclasses.fields(State):
        if field.name not in arrays:
            assert getattr(found, field.name) == getattr(state, field.name), field.name


def test_empty_folder_is_a_new_study(tmp_path: Path) -> None:
    assert load_state(tmp_path, STUDY) == State()


def test_rounds_are_one_json_object_a_line(tmp_path: Path) -> None:
    state = full_state()
    save_state(tmp_path, STUDY, state)
    lines = (tmp_path / ROUNDS).read_text().splitlines()
    assert [RoundRecord(**json.loads(line)) for line in lines] == list(state.records)


def test_state_of_another_study_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, STUDY, full_state())
    other = clinical_study({"finetune.lr": 0.021})
    with pytest.raises(CheckpointError, match=r"must be of study [0-9a-f]{12}, got '[0-9a-f]{12}'\. Resume with"):
        load_state(tmp_path, other)


@pytest.mark.parametrize("part", ["header", "body", "end", "truncated", "empty"])
def test_damaged_state_is_refused(tmp_path: Path, part: str) -> None:
    save_state(tmp_path, STUDY, full_state())
    file = tmp_path / STATE
    content = bytearray(file.read_bytes())
    if part == "truncated":
        content = content[: len(content) // 2]
    elif part == "empty":
        content.clear()
    else:
        place = {"header": 40, "body": len(content) // 2, "end": len(content) - 1}[part]
        content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_state(tmp_path, STUDY)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_facts_that_were_changed_are_refused(tmp_path: Path) -> None:
    save_state(tmp_path, STUDY, full_state())
    arrays, facts = load_arrays(tmp_path / STATE)
    save_arrays(tmp_path / "other.safetensors", arrays, facts | {"round": 8})
    mixed = (tmp_path / "other.safetensors").read_bytes()
    original = (tmp_path / STATE).read_bytes()
    forged = mixed.replace(_digest(mixed), _digest(original))
    (tmp_path / STATE).write_bytes(forged)
    with pytest.raises(CheckpointError, match="must be undamaged"):
        load_state(tmp_path, STUDY)


def _digest(content: bytes) -> bytes:
    start = content.index(b'"digest":"') + len(b'"digest":"')
    return content[start : start + 64]


def test_interrupted_write_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, STUDY, full_state())
    before = (tmp_path / STATE).read_bytes()

    def crash(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, STUDY, dataclasses.replace(full_state(), round=8))
    assert (tmp_path / STATE).read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [ROUNDS, STATES]
    assert [file.name for file in (tmp_path / STATES).iterdir()] == [STATE.name]


def states(count: int, best: int | None = None) -> list[State]:
    """A study after 1 to ``count`` phases, the weights of each its own."""
    record = RoundRecord("finetune", 1, 9)
    return [
        State(weights={"a": np.full(3, phase, np.float32)}, best=best, records=(record,) * phase)
        for phase in range(1, count + 1)
    ]


def test_damaged_state_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for state in states(3):
        save_state(tmp_path, STUDY, state)
    (tmp_path / STATES / "000003.safetensors").write_bytes(b"torn")
    found = load_state(tmp_path, STUDY)
    assert found.phase == 2
    assert_same_bits(found.weights, states(2)[-1].weights)


def test_last_states_and_the_best_are_kept(tmp_path: Path) -> None:
    for state in states(9, best=2):
        save_state(tmp_path, STUDY, state)
    kept = sorted(int(file.stem) for file in (tmp_path / STATES).iterdir())
    assert kept == [2, *range(10 - KEPT, 10)]
    assert_same_bits(load_weights(tmp_path, 2), states(2)[-1].weights)
