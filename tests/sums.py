"""How does a test get sites that make sums? Folders with a name and a made-up survey, and the steps by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client import secure_aggregation, work
from client.secure_aggregation import take_part
from shared import files
from shared.config import Study
from shared.messages import Masked, SurveyReply, Task, decode_masked, decode_step_reply
from shared.secure_aggregation.masking import Vector
from shared.secure_aggregation.steps import Advert, Advertise, Mask, Opened, Sealed, Share, Step, Unmask, start_digest
from shared.secure_aggregation.summands import lengths
from shared.statistics import Survey, merge
from tests.factories import empty_site
from tests.server.federations import clinical_study

SECAGG: dict[str, Any] = {
    "secure_aggregation": {"kind": "secagg"},
    "strategy": {"norm_limit": 0.0, "round_timeout_s": 20.0},
}
FEATURES = 2  # numeric ones of the tiny study
COUNTS, REALS = lengths("survey", FEATURES)


def summed_study(changes: dict[str, Any] | None = None) -> Study:
    """A tiny study on records of which the coordinator sees sums alone."""
    return clinical_study({**SECAGG, **(changes or {})})


def survey_of(name: str) -> Survey:
    """What a site says of itself, another for every name."""
    place = sum(name.encode())
    return Survey(patients=place, labelled=3, counts=(place, 1), sums=(-1.5 * place, 0.25), squares=(2.0, 1e6))


def total_of(names: Sequence[str]) -> Survey:
    """The survey of some sites together."""
    return merge([survey_of(name) for name in names])


def named_sites(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Sites that know their names and answer a survey without opening data."""
    monkeypatch.setattr(files, "flush", lambda path: None)  # no power is cut here
    monkeypatch.setattr(work, "survey", lambda folder, task: SurveyReply(folder.name, survey_of(folder.name)))
    return [empty_site(f"site-{i:02d}").write(folder / f"site-{i:02d}").path for i in range(count)]


@dataclass
class Coordinator:
    """The four steps of a survey's sum by hand, so that a test may change what the sites hear."""

    sites: Sequence[Path]
    study: Study = field(default_factory=summed_study)
    session: str = "one"
    start: str = field(default_factory=lambda: start_digest({}, None, 0))

    def ask(self, site: Path, step: Step) -> Any:
        return take_part(site, Task(self.study, "survey", 0, 0, "", None, {}, step=step))

    def adverts(self) -> tuple[Advert, ...]:
        return tuple(decode_step_reply(Advert, self.ask(site, Advertise(self.session))) for site in self.sites)

    def share(self, site: Path, roster: tuple[Advert, ...]) -> Sealed:
        return decode_step_reply(Sealed, self.ask(site, Share(self.session, roster, self.start)))

    def shares(self, roster: tuple[Advert, ...]) -> dict[str, Sealed]:
        return {site.name: self.share(site, roster) for site in self.sites}

    def mask(self, site: Path, sealed: dict[str, Sealed]) -> Masked:
        shares = {name: one.shares[site.name] for name, one in sealed.items() if name != site.name}
        content = self.ask(site, Mask(self.session, shares))
        return decode_masked(content, Vector.zeros(0, COUNTS + REALS))

    def unmask(self, site: Path, survivors: Sequence[str]) -> Opened:
        return decode_step_reply(Opened, self.ask(site, Unmask(self.session, tuple(survivors))))

    def up_to_masked(self) -> dict[str, Sealed]:
        """Everything before the unmasking."""
        sealed = self.shares(self.adverts())
        for site in self.sites:
            self.mask(site, sealed)
        return sealed


def session_file(site: Path) -> Path:
    """Where a site keeps its secrets of a sum."""
    (file,) = (site / secure_aggregation.SESSIONS).glob("*.json")
    return file
