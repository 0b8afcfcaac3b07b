"""What does a site decide for itself? ``site.yaml``: settings of the hospital, which no coordinator can change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from shared.errors import FedretinaError, SiteError
from shared.knobs import knob, load

ANY, PRIVATE = "any", "private"  # of what may leave
OFF, WARN, VETO = "off", "warn", "veto"  # of the audit of updates
_MEND = "Mend site.yaml; a new one of fedretina site init explains every setting."


class _Loader(yaml.SafeLoader):
    """YAML, in which 1e-5 is a number as well: YAML 1.1 wants it written 1.0e-5."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class SiteSettings:
    """Settings of one hospital; every one has a default, so the file may be absent."""

    quarantine_limit: float = knob(0.05, "largest fraction of unreadable scans with which to take part", ge=0.0, le=1.0)
    device: str = knob("cpu", "where to train", choices=["cpu", "cuda", "mps"])
    smallest_cell: int = knob(
        5,
        "counts of fewer patients than this are hidden in the files that site check writes",
        unit="patients",
        ge=3,
        le=100,
    )
    epsilon_cap: float = knob(
        10.0, "largest epsilon that all studies together may spend of a patient's privacy here, ever", ge=0.0
    )
    delta_cap: float = knob(
        1e-5, "delta at which that epsilon is stated; a study that plans a larger one is refused", gt=0.0, lt=1.0
    )
    releases: str = knob(
        ANY,
        "any: what an approved study asks for may leave; private: only what its privacy plan noises",
        choices=[ANY, PRIVATE],
    )
    audit: str = knob(
        OFF,
        "attack each fine-tuning update before it leaves, and warn in the log or withhold it where patients are found; "
        "in studies without differential privacy, whose epsilon bounds what an attack can find",
        choices=[OFF, WARN, VETO],
    )
    audit_tpr_limit: float = knob(
        0.1,
        "largest lower bound of the share of patients that an attack finds at 1 % false alarms, with which to pass",
        gt=0.0,
        lt=1.0,
    )
    peers: dict[str, str] = knob(
        {}, "sites with whom to make a secure sum, and the fingerprints of their keys; none: as the coordinator says"
    )
    threads: int = knob(
        0,
        "processor threads to train with; 0: as many as there are; several sites on one machine share them out",
        ge=0,
        le=1024,
    )


def read_settings(folder: Path) -> SiteSettings:
    """The settings in ``site.yaml`` of a site folder.

    Raises:
        SiteError: not YAML, an unknown setting, or a value out of range.
    """
    file = folder / "site.yaml"
    if not file.exists():
        return SiteSettings()
    try:
        settings = yaml.load(file.read_text(encoding="utf-8"), _Loader) or {}
        if isinstance(settings, dict) and settings.get("audit") is False:
            settings["audit"] = OFF  # which YAML reads as no
        return load(SiteSettings, settings, "site.yaml: ")
    except yaml.YAMLError as error:
        raise SiteError(str(file), "must be valid YAML", value=str(error).splitlines()[0], remedy=_MEND) from None
    except FedretinaError as error:
        raise SiteError(error.name, error.rule, value=error.value, remedy=error.remedy or _MEND) from None
