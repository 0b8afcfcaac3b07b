"""What did this site agree to? Decisions on studies, signed with the site's key and read before any data is."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from shared.code import code_digest
from shared.config import Study
from shared.errors import ConfigError, FedretinaError
from shared.files import write_atomic
from shared.keys import PrivateKey, PublicKey, is_signed, sign
from shared.knobs import digest, from_json, to_json
from shared.messages import Task
from shared.privacy import PrivacyPlan

APPROVED, REFUSED, REVOKED = "approved", "refused", "revoked"
STUDIES, DECISIONS = "state/studies", "state/decisions"
_SHORT = 12  # digits by which people name a study
_SIGNED = b"fedretina decision 1\n"  # the key signs requests to the coordinator too: neither may pass for the other
_STUDIES_KEPT = 200  # a coordinator must not fill the site's disk
_LONGEST_STUDY_BYTES = 2**20
_LONGEST_DAYS = 3660

log = logging.getLogger(__name__)


class NotApprovedError(FedretinaError):
    """A task that the site has not agreed to; ``may_come`` when nobody has decided yet."""

    def __init__(self, name: str, rule: str, *, may_come: bool = False, value: object = None, remedy: str = "") -> None:
        super().__init__(name, rule, value=value, remedy=remedy)
        self.may_come = may_come


@dataclass(frozen=True)
class Decision:
    """What a site decided on one study.

    Attributes:
        study_digest: of everything that a study says: model, inputs, rounds, privacy, features.
        code_digest: of the code that the site has installed and that will do it.
        rounds: largest number of training rounds in all.
        max_epsilon: largest ε, at the study's δ, that all its releases here may come to; infinite without privacy.
        expires_at: ISO 8601, UTC.
    """

    verdict: str
    study_name: str
    study_digest: str
    code_digest: str
    rounds: int
    decided_at: str
    expires_at: str
    max_epsilon: float = math.inf

    def content(self) -> bytes:
        """What the signature is over."""
        return _SIGNED + json.dumps(self.plain(), sort_keys=True).encode()

    def plain(self) -> dict[str, str | int | float]:
        """As data that JSON can hold: without an infinite ε, as decisions were before there was any."""
        said = asdict(self)
        if math.isinf(self.max_epsilon):
            del said["max_epsilon"]
        return said


def short(study_digest: str) -> str:
    """The first digits of a digest, by which people name a study."""
    return study_digest[:_SHORT]


def planned_rounds(study: Study) -> int:
    """Training rounds of a study, in all its stages."""
    return study.pretrain.rounds + study.finetune.rounds


def remember_study(folder: Path, study: Study) -> str:
    """Keep a study that a coordinator asks for, so that it can be reviewed; its digest.

    Raises:
        NotApprovedError: a study too long to be read by people.
    """
    name, content = digest(study), to_json(study).encode()
    if len(content) > _LONGEST_STUDY_BYTES:
        raise NotApprovedError("study", f"must be of at most {_LONGEST_STUDY_BYTES} bytes", value=len(content))
    file = folder / STUDIES / f"{name}.json"
    if not file.exists() or file.read_bytes() != content:
        write_atomic(file, content)
        _drop_oldest_undecided(folder)
    return name


def _drop_oldest_undecided(folder: Path) -> None:
    undecided = [file for file in _study_files(folder) if not (folder / DECISIONS / file.name).exists()]
    for file in undecided[:-_STUDIES_KEPT]:
        file.unlink()


def _study_files(folder: Path) -> list[Path]:
    """The latest last."""
    return sorted((folder / STUDIES).glob("*.json"), key=lambda file: file.stat().st_mtime_ns)


def find_study(folder: Path, name: str) -> Study:
    """A study that was asked for, by the first digits of its digest, by its name, or by a file.

    Raises:
        FedretinaError: none or several.
    """
    studies = asked_studies(folder)
    found = [study for key, study in studies.items() if key.startswith(name)]
    found = found or [study for study in studies.values() if study.name == name]
    if len(found) == 1:
        return found[0]
    if not found and Path(name).is_file():
        return _read_study(Path(name))
    known = ", ".join(f"{study.name!r} {short(key)}" for key, study in studies.items()) or "none yet"
    rule = "must be one study that was asked for, or a file"
    raise FedretinaError("study", rule, value=name or None, remedy=f"Asked for: {known}.")


def _read_study(file: Path) -> Study:
    try:
        return from_json(Study, file.read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.name}", error.rule, value=error.value, remedy=error.remedy) from None
    except UnicodeDecodeError:
        raise ConfigError(str(file), "must be a study as JSON") from None


def asked_studies(folder: Path) -> dict[str, Study]:
    """The studies that were asked for, by digest, the latest last."""
    studies = {}
    for file in _study_files(folder):
        try:
            if hashlib.sha256(file.read_bytes()).hexdigest() != file.stem:
                raise ConfigError("its content", "must be what its name says")
            studies[file.stem] = _read_study(file)
        except ConfigError as error:  # damaged, or of another version of the code: the others are still there
            log.warning("%s/%s is left out: %s", STUDIES, file.name, error)
    return studies


def decide(
    folder: Path,
    key: PrivateKey,
    study: Study,
    verdict: str,
    days: int = 90,
    at: datetime | None = None,
    max_epsilon: float | None = None,
) -> Decision:
    """Write a signed decision; an earlier one on the same study is replaced.

    Args:
        verdict: approved or refused.
        days: until the decision expires.
        at: now, unless a test says otherwise; in UTC.
        max_epsilon: what all releases of the study may cost a patient here; None: what the study plans, and no more.

    Raises:
        FedretinaError: an unreasonable number of days, or an ε to approve that is less than the study plans.
    """
    planned = PrivacyPlan.of(study).epsilon if verdict == APPROVED else math.inf
    if verdict == APPROVED and max_epsilon is not None and not planned <= max_epsilon:
        shown = "no privacy" if math.isinf(planned) else planned
        raise FedretinaError(f"ε that {study.name!r} plans", f"must be <= {max_epsilon:g} to be approved", value=shown)
    if not 1 <= days <= _LONGEST_DAYS:
        raise FedretinaError("days", f"must be >= 1 and <= {_LONGEST_DAYS}", value=days)
    now = at or datetime.now(UTC)
    decision = Decision(
        verdict=verdict,
        study_name=study.name,
        study_digest=remember_study(folder, study),
        code_digest=code_digest(),
        rounds=planned_rounds(study),
        decided_at=now.isoformat(timespec="seconds"),
        expires_at=(now + timedelta(days=days)).isoformat(timespec="seconds"),
        max_epsilon=planned if max_epsilon is None else max_epsilon,
    )
    _write(folder, key, decision)
    return decision


def revoke(folder: Path, key: PrivateKey, study: Study) -> Decision:
    """Take an approval back; raises ``FedretinaError`` when there is none."""
    decision = read_decision(folder, key.public_key(), digest(study))
    if decision is None or decision.verdict != APPROVED:
        name, found = f"study {study.name!r}", "undecided" if decision is None else decision.verdict
        raise FedretinaError(name, "must be approved at this site to be revoked", value=found)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    revoked = replace(decision, verdict=REVOKED, decided_at=now)
    _write(folder, key, revoked)
    return revoked


def _write(folder: Path, key: PrivateKey, decision: Decision) -> None:
    content = decision.content()
    text = json.dumps({"decision": decision.plain(), "signature": sign(key, content).hex()}, indent=1)
    write_atomic(folder / DECISIONS / f"{decision.study_digest}.json", text.encode())


def read_decision(folder: Path, key: PublicKey, study_digest: str) -> Decision | None:
    """The site's decision on a study, or None.

    Raises:
        NotApprovedError: a file that this site's key did not sign.
    """
    name = f"{DECISIONS}/{study_digest}.json"  # which leaves the site: without the folder
    if not (folder / name).exists():
        return None
    remedy = "Unless the key was made anew, find out who changed it; then decide again: fedretina site approve."
    try:
        data = json.loads((folder / name).read_bytes())
        decision, signature = Decision(**data["decision"]), bytes.fromhex(data["signature"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotApprovedError(name, "must be a decision", remedy=remedy) from None
    if decision.study_digest != study_digest or not is_signed(key, decision.content(), signature):
        raise NotApprovedError(name, "must be signed by this site's key", remedy=remedy)
    return decision


def latest_approved(folder: Path, key: PublicKey) -> Study | None:
    """The study that was approved last, to compare a new one with; a decision that this key did not sign is none."""
    studies, approved = asked_studies(folder), []
    for study_digest in studies:
        try:
            decision = read_decision(folder, key, study_digest)
        except NotApprovedError:
            continue
        if decision is not None and decision.verdict == APPROVED:
            approved.append(decision)
    if not approved:
        return None
    return studies[max(approved, key=lambda decision: decision.decided_at).study_digest]


def accept(folder: Path, key: PublicKey, task: Task, at: datetime | None = None) -> Decision:
    """The site's gate: raises unless the site approved just this study, for just this code, for as long as now.

    Called before any data is opened.

    Raises:
        NotApprovedError: no decision, or one that does not cover the task.
    """
    remember_study(folder, task.study)
    decision = valid_approval(folder, key, task.study, at)
    if task.code != code_digest():
        remedy = "Install the same version at the coordinator and the site."
        raise NotApprovedError("task.code", f"must be {short(code_digest())}", value=short(task.code), remedy=remedy)
    if task.stage not in task.study.stages:
        raise NotApprovedError("task.stage", "must be one that the study has", value=task.stage)
    rounds = decision.rounds
    if task.stage in task.study.training:
        rounds = min(rounds, task.study.stage(task.stage).rounds)
    if task.rounds > rounds:
        raise NotApprovedError("task.rounds", f"must be <= {rounds}, as approved", value=task.rounds)
    return decision


def valid_approval(folder: Path, key: PublicKey, study: Study, at: datetime | None = None) -> Decision:
    """The approval of a study, to be done by the code that is installed, that has not expired.

    Raises:
        NotApprovedError: there is none.
    """
    study_digest = digest(study)
    name = f"study {study.name!r} {short(study_digest)}"
    review = f"At the site: fedretina site review {short(study_digest)}."
    decision = read_decision(folder, key, study_digest)
    if decision is None:
        raise NotApprovedError(name, "must be approved by the site", may_come=True, remedy=review)
    if decision.verdict != APPROVED:
        raise NotApprovedError(name, "must be approved by the site", value=decision.verdict)
    if (at or datetime.now(UTC)) >= datetime.fromisoformat(decision.expires_at):
        raise NotApprovedError(f"approval of {name}", "must not have expired", value=decision.expires_at, remedy=review)
    if decision.code_digest != code_digest():
        rule = "must be of the code that is installed at the site now"
        raise NotApprovedError(f"approval of {name}", rule, value=short(decision.code_digest), remedy=review)
    if planned_rounds(study) > decision.rounds:
        rule = f"must be <= {decision.rounds}, as approved"
        raise NotApprovedError(f"rounds of {name}", rule, value=planned_rounds(study), remedy=review)
    planned = PrivacyPlan.of(study).epsilon
    if planned > decision.max_epsilon:
        rule = f"must be <= {decision.max_epsilon:g}, as approved"
        raise NotApprovedError(f"ε of {name}", rule, value=planned, remedy=review)
    return decision
