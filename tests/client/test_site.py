"""Does a hospital's own file decide, and is a wrong one refused?"""

from __future__ import annotations

from pathlib import Path

import pytest

from client.site import SiteSettings, read_settings
from shared.errors import SiteError


def test_a_site_without_the_file_has_the_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == SiteSettings()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    assert read_settings(tmp_path) == SiteSettings()


def test_the_file_decides(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("quarantine_limit: 0.5\n")
    assert read_settings(tmp_path) == SiteSettings(quarantine_limit=0.5)


@pytest.mark.parametrize("text", ["1e-5", "1E-05", "1.0e-5", "0.00001", ".1e-4"])
def test_a_small_number_may_be_written_as_everyone_does(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.yaml").write_text(f"delta_cap: {text}\n")
    assert read_settings(tmp_path).delta_cap == 1e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quarantine: 0.5", "site.yaml: quarantine is not a setting. Did you mean site.yaml: quarantine_limit?"),
        ("quarantine_limit: 2", "site.yaml: quarantine_limit must be <= 1.0, got 2.0"),
        ("quarantine_limit: much", "site.yaml: quarantine_limit must be of type float, got 'much'"),
        ("device: gpu", "site.yaml: device must be one of cpu, cuda, mps, got 'gpu'"),
        ("[1]", "site.yaml"),
        ("delta_cap: 1.2.3e4", "site.yaml: delta_cap must be of type float, got '1.2.3e4'"),
        ("a: [", "site.yaml must be valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(SiteError) as caught:
        read_settings(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
