"""Can nobody but the site predict its noise, and does a repeated task have the same, another task another?"""

from __future__ import annotations

import os
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.secret import SECRET, derive, numpy_generator, release_id, site_secret, torch_generator
from client.store import open_store
from shared.errors import KeyFileError
from shared.messages import Task
from shared.statistics import Statistics
from tests.factories import make_study, small_site

CPU = torch.device("cpu")
STUDY = make_study()
TASK = Task(STUDY, "finetune", 1, 2, "", Statistics.neutral(STUDY), {"w": np.ones(3, np.float32)}, code="c")


def test_a_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    with ThreadPool(8) as pool:
        found = set(pool.map(lambda _: site_secret(tmp_path), range(16)))
    assert len(found) == 1
    assert len(found.pop()) == 32
    assert (tmp_path / SECRET).stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "state") == ["privacy.key"]


def test_a_secret_that_others_can_read_or_that_is_cut_is_refused(tmp_path: Path) -> None:
    site_secret(tmp_path)
    (tmp_path / SECRET).chmod(0o640)
    with pytest.raises(KeyFileError, match=r"privacy\.key must be readable by its owner alone, got '0o640'\. chmod"):
        site_secret(tmp_path)
    (tmp_path / SECRET).chmod(0o600)
    (tmp_path / SECRET).write_bytes(bytes(31))
    with pytest.raises(KeyFileError, match=r"privacy\.key must hold 32 bytes, got 31\. Move it away"):
        site_secret(tmp_path)


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
    store = open_store(small_site().write(tmp_path / "north").path, STUDY)
    assert release_id(store, replace(TASK)) == release_id(store, TASK)
    assert release_id(store, replace(TASK, **change)) != release_id(store, TASK)


def test_other_patients_or_scans_change_the_name_of_an_answer(tmp_path: Path) -> None:
    """Or the same noise on the data before and after a patient came would tell that patient by the difference."""
    one = small_site()
    names = {release_id(open_store(one.write(tmp_path / "a" / "north").path, STUDY), TASK)}
    again = small_site()
    names.add(release_id(open_store(again.write(tmp_path / "b" / "north").path, STUDY), TASK))
    assert len(names) == 1
    label, event, scan = small_site(), small_site(), small_site()
    label.labels["detection"].loc[0, "boolean_value"] = True
    event.events.loc[event.events["numeric_value"].first_valid_index(), "numeric_value"] = 101.5
    scan.add_image(1, "OCT", eye="L")
    for number, tables in enumerate((label, event, scan, small_site(patients=11))):
        names.add(release_id(open_store(tables.write(tmp_path / str(number) / "north").path, STUDY), TASK))
    assert len(names) == 5


def test_keys_differ_by_secret_release_and_purpose() -> None:
    keys = {derive(secret, release, use) for secret in (b"a", b"b") for release in ("x", "y") for use in ("p", "q")}
    assert len(keys) == 8
    assert all(len(key) == 32 for key in keys)


def test_every_part_of_a_key_changes_the_noise() -> None:
    """torch's own seeding of a processor's generator takes 32 bits, so all could be tried."""
    base = bytes(32)
    draws = [torch.randn(64, generator=torch_generator(base, CPU))]
    for place in (0, 7, 15, 31):
        key = bytes(1 if k == place else 0 for k in range(32))
        draws.append(torch.randn(64, generator=torch_generator(key, CPU)))
    assert torch.equal(draws[0], torch.randn(64, generator=torch_generator(base, CPU)))
    for a in range(5):
        for b in range(a):
            assert not (draws[a] == draws[b]).any()
    first, other = (numpy_generator(key).random(8) for key in (base, bytes(15) + b"\1" + bytes(16)))
    assert not (first == other).any()


def test_noise_from_a_key_is_normal() -> None:
    drawn = torch.randn(100_000, generator=torch_generator(bytes(range(32)), CPU)).double()
    assert abs(float(drawn.mean())) < 4 / 100_000**0.5
    assert float(drawn.std()) == pytest.approx(1.0, abs=4 / 200_000**0.5)
    assert float((drawn.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.006)
    assert abs(float((drawn[1:] * drawn[:-1]).mean())) < 4 / 100_000**0.5
