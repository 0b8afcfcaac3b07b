"""What can a study say of privacy? Its plan as facts of ``summary.json``, and the points NIST SP 800-226 asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from server.report.record import Privacy, Round, Run
from server.report.words import NONE, STAGE_NAMES, whole
from shared.accounting import RDP, epsilon
from shared.config import STAGES, Study
from shared.metrics import BINS
from shared.privacy import NOISED, PrivacyPlan
from shared.statistics import numeric_names

NO_PRIVACY, PATIENT_DPSGD = "none", "patient_dpsgd"

UNIT = "One patient: all visits, both eyes, scans and clinical record together."
ADJACENCY = "Adding or removing one patient of one hospital."
SAMPLING = "Poisson: in each step every patient is drawn independently, with the same chance."
RANDOM_SOURCE = (
    "Sampling and noise follow from a secret key of each hospital, which never leaves it and which the coordinator "
    "cannot predict; floating-point samples of software, not of a hardware source."
)
THREATS = (
    "The coordinator, other hospitals and whoever gets the model may look at everything that was sent, work together "
    "and know everything else. They are assumed to change nothing at the hospital itself.",
    "Each hospital adds its noise before anything leaves it: the guarantee does not rest on the coordinator.",
    "Not covered: who runs the hospital\u2019s own machine, how long a reply takes, that a hospital takes part, "
    "refuses or fails, and the number of its training examples, which is treated as public.",
    "Not covered: choices made by people who had seen results, such as settings tuned in earlier runs without privacy.",
)
WITHOUT = (
    "What was sent is exact. Weights can reveal something of the patients behind them: whether somebody took part, and "
    "in bad cases parts of a record or scan. Nothing bounds that here.",
    "Exact counts and sums can reveal a patient to whoever knows all the others.",
    "A bin of the scores may hold one case: then its risk and outcome can be read, but not whose they are.",
    "Each hospital can measure part of this by itself: fedretina audit-model.",
)


def privacy_facts(study: Study) -> dict[str, Any]:
    """What ``summary.json`` says of privacy, from the study's plan; its keys are described in docs/summary.md."""
    plan = PrivacyPlan.of(study)
    facts: dict[str, Any] = {"kind": NO_PRIVACY, "pretraining": _pretraining(study, plan), "sent": _sent(study)}
    if not plan.releases():
        return facts
    stages = {stage: release for stage in STAGES if (release := plan.release_of(stage)) is not None}
    return facts | {
        "kind": PATIENT_DPSGD,
        "epsilon": round(plan.epsilon, 4),
        "epsilon_rdp": round(epsilon(plan.releases(), plan.delta, RDP), 4),
        "delta": plan.delta,
        "clip": plan.clip,
        "accountant": f"PRV, opacus {version('opacus')}",
        "stages": {
            stage: {
                "noise_multiplier": round(each.noise_multiplier, 4),
                "sampling_rate": each.sampling_rate,
                "steps": each.steps,
            }
            for stage, each in stages.items()
        },
    }


def _pretraining(study: Study, plan: PrivacyPlan) -> str:
    """none, foreign (weights from elsewhere), exact (without noise), or private."""
    if study.pretrain.rounds:
        return "exact" if plan.release_of("pretrain") is None else "private"
    return "foreign" if study.model.image.weights else "none"


def _sent(study: Study) -> dict[str, str]:
    """What one message of each stage holds."""
    plan = PrivacyPlan.of(study)
    noised = {stage: what for stage, what in NOISED.items() if plan.release_of(stage) is not None}
    return {stage: what for stage, what in (_exact(study) | noised).items() if stage in study.stages}


def _exact(study: Study) -> dict[str, str]:
    """What a message of each stage holds where nothing is noised."""
    features = len(numeric_names(study))
    learned = "the model\u2019s weights, the number of training examples, the mean loss"
    scores = f"numbers of cases in {BINS:,} bins of the predicted risk, by outcome, and two sums of errors"
    twice = ", and of tuning patients once more" if study.finetune.select == "best" else ""
    return {
        "survey": "numbers of patients, scans, labelled cases and cases with the outcome; "
        f"number, sum and sum of squares of {features} numeric clinical inputs",
        "pretrain": learned,
        "finetune": f"{learned}{f'; of tuning patients, {scores}' if study.splits.tuning else ''}",
        "evaluate": f"of held-out patients{twice}, {scores}",
    }


@dataclass(frozen=True)
class Sent:
    """What left the hospitals in one stage: how many messages of how many hospitals, with what in them."""

    stage: str
    what: str
    messages: int
    hospitals: int
    noise: str


def sent_messages(run: Run) -> list[Sent]:
    """Stage by stage, by the records of the rounds; hospitals that train alone send nothing."""
    rounds = [each for each in run.rounds if each.arm.startswith("federated")] or list(run.rounds)
    found = [_of_stage(run.privacy, stage, what, rounds) for stage, what in run.privacy.sent.items()]
    return [each for each in found if each.messages]


def _of_stage(privacy: Privacy, stage: str, what: str, rounds: Sequence[Round]) -> Sent:
    answered = [each.sites for each in rounds if each.stage == stage]
    noise = privacy.stages.get(stage)
    hospitals = {site for sites in answered for site in sites}
    said = "none, exact" if noise is None else f"\u03c3 {_number(noise.noise_multiplier)}"
    return Sent(STAGE_NAMES[stage].capitalize(), what, sum(map(len, answered)), len(hospitals), said)


def points(privacy: Privacy) -> Iterator[tuple[str, str]]:
    """What a reader of a differential privacy guarantee needs to know, point by point."""
    yield "Unit of privacy", UNIT
    yield "Adjacency", ADJACENCY
    yield (
        "\u03b5 (epsilon)",
        f"{_number(privacy.epsilon)}, planned for the whole study at one hospital, by the PRV accountant.",
    )
    yield "\u03b4 (delta)", _number(privacy.delta)
    yield "\u03b5 by the looser RDP accountant", _number(privacy.epsilon_rdp)
    yield "Accountant", privacy.accountant or NONE
    yield "Clipping norm C", _number(privacy.clip)
    for stage, each in privacy.stages.items():
        yield (
            f"{STAGE_NAMES.get(stage, stage).capitalize()}, each message",
            f"noise multiplier \u03c3 {_number(each.noise_multiplier)}, sampling rate q {_number(each.sampling_rate)}, "
            f"{whole(each.steps)} step{'' if each.steps == 1 else 's'}",
        )
    yield "Sampling", SAMPLING
    yield "Random source", RANDOM_SOURCE
    yield (
        "Spent",
        "What a hospital really spent, over all studies, stands in its own ledger: fedretina site ledger.",
    )


def pretraining(privacy: Privacy) -> str:
    """Whether the guarantee reaches those whose scans pretrained the encoders."""
    return {
        "none": "There was no pretraining: nothing is left out.",
        "private": "Pretraining is covered: its rounds are among those accounted for.",
        "exact": "Pretraining was not private. Patients whose scans it used have no guarantee, whatever \u03b5 "
        "is stated for what followed.",
        "foreign": "Image encoders began with weights made elsewhere. The guarantee says nothing of the patients or "
        "images behind those.",
    }.get(privacy.pretraining, "The run does not say whether pretraining was covered.")


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:g}"
