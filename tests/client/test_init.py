"""Does a site folder begin as the contract wants it, private, and with settings that cannot drift from the code?"""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest
import yaml

from client.check.result import check_folder
from client.init import annotated_settings, init_site
from client.site import SiteSettings, read_settings
from shared.errors import SiteError
from shared.knobs import knob, load
from shared.schema import find_faults
from shared.site_folder import Dataset, SiteFolder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_keeps_the_contract_and_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "sites" / "north"
    lines = init_site(folder, "north", "Europe/Vienna")
    assert list(find_faults(SiteFolder(folder))) == []
    assert SiteFolder(folder).dataset() == Dataset(site="north", time_zone="Europe/Vienna")
    assert read_settings(folder) == SiteSettings()
    assert {mode(path) for path in [folder, *folder.rglob("*")] if path.is_dir()} == {0o700}
    assert "fedretina site import" in "\n".join(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["sites"]  # no draft is left
    assert [path.name for path in folder.parent.iterdir()] == ["north"]


def test_an_empty_site_can_be_checked(tmp_path: Path) -> None:
    init_site(tmp_path / "north", "north", "UTC")
    result = check_folder(tmp_path / "north", images=True, thumbnails=True)
    assert result.verdict == "warn"
    assert [concern.name for concern in result.concerns] == ["patients", "labels"]


def test_every_setting_is_explained_by_its_declaration() -> None:
    text = annotated_settings()
    assert yaml.safe_load(text) is None
    settings = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#") and not line.startswith("# "))
    assert load(SiteSettings, yaml.safe_load(settings)) == SiteSettings()
    flowing = " ".join(text.replace("# ", "").split())
    for field in dataclasses.fields(SiteSettings):
        assert f"\n#{field.name}:" in text
        assert field.metadata["help"][1:] in flowing


def test_settings_of_every_kind_are_explained() -> None:
    @dataclasses.dataclass(frozen=True)
    class Settings(SiteSettings):
        hours: tuple[str, ...] = knob(("20:00",), "when to train", unit="local time")
        limits: dict[str, float] = knob({"epsilon": 8.0}, "largest", gt=0)

    text = annotated_settings(Settings)
    settings = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#") and not line.startswith("# "))
    assert yaml.safe_load(settings)["hours"] == ["20:00"]
    assert yaml.safe_load(settings)["limits"] == {"epsilon": 8.0}
    assert "# When to train. Unit: local time\n" in text
    assert "Must be > 0" in text


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "north"
    folder.mkdir()
    init_site(folder, "north", "UTC")  # empty: taken
    before = (folder / "dataset.yaml").read_bytes()
    with pytest.raises(SiteError, match="must not hold a site yet"):
        init_site(folder, "south", "UTC")
    assert (folder / "dataset.yaml").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(SiteError, match="must be empty"):
        init_site(tmp_path / "other", "north", "UTC")
    (tmp_path / "file").touch()
    with pytest.raises(SiteError, match="must be a folder"):
        init_site(tmp_path / "file", "north", "UTC")


@pytest.mark.parametrize("zone", ["Vienna", "", "../etc", "Europe/Vienna\n"])
def test_a_zone_that_is_none_is_refused_and_nothing_is_made(tmp_path: Path, zone: str) -> None:
    with pytest.raises(SiteError, match="time zone must be an IANA name"):
        init_site(tmp_path / "north", "north", zone)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", " ", " north", "a\nb"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SiteError, match="name must be words"):
        init_site(tmp_path / "north", name, "UTC")
