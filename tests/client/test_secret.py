"""Can nobody but the site predict its noise?"""

from __future__ import annotations

import os
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch

from client.secret import SECRET, derive, numpy_generator, site_secret, torch_generator
from shared.errors import KeyFileError

CPU = torch.device("cpu")


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
