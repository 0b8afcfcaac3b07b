"""How is an audit said in plain words, to people who neither attack nor train models?"""

from __future__ import annotations

from client.audit.demonstration import Demonstration
from client.audit.result import FAIL, GATE_RATE, LIRA, OFFLINE, PASS, WARN, YEOM, Audit
from client.audit.strength import FALSE_RATES, Rate, strongest

NONE = "\u2013"
VERDICTS = {PASS: "Nothing found", WARN: "Have a look", FAIL: "Patients can be told"}
ATTACKS = {
    LIRA: "Likelihood ratio, with shadow models that had and had not seen the patient",
    OFFLINE: "Likelihood ratio, with shadow models that had not seen the patient",
    YEOM: "Loss threshold, without shadow models",
}
MODALITIES = {"oct": "OCT", "ir": "Infrared"}
NOT_PROVED = (
    "A pass says that these attacks, with this many shadow models, did not tell the patients apart. A stronger attack "
    "may. It is no proof of privacy: only differential privacy bounds every attack, and only as far as its ε and δ do.",
    "What is found on average says little of one unusual patient, such as one with a rare disease or age.",
    "It covers one model. Whoever saw every round of its training, as the coordinator does, has seen more than that.",
    "Who trained by unlabelled scans alone (pretraining) is not asked about here.",
    "A refusal is itself a message: that an update was withheld tells the coordinator something of the data.",
)


def percent(share: float) -> str:
    """0.015 as '1.5 %', with as many digits as tell something, and a space that does not break."""
    digits = 1 if 0.0 < share < 0.0995 else 0
    return f"{100 * share:.{digits}f}\u00a0%"


def decimal(value: float, digits: int = 2) -> str:
    """A number with a fixed count of digits, and a true minus."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\u2212")


def between(ends: tuple[float, float] | None) -> str:
    """Both ends of an interval."""
    return NONE if ends is None else f"{decimal(ends[0])} to {decimal(ends[1])}"


def rate_name(false_rate: float) -> str:
    """A rate as the head of a column: 0.1 %, 1 %, 10 %."""
    return f"{100 * false_rate:g}\u00a0%"


def found(rate: Rate | None) -> str:
    """The share found."""
    return NONE if rate is None else percent(rate.found)


def sure(rate: Rate | None) -> str:
    """Its interval."""
    return "" if rate is None else f"{percent(rate.low)} to {percent(rate.high)}"


def attack_name(attack: str) -> str:
    """What an attack does."""
    return ATTACKS.get(attack, attack)


def modality(name: str) -> str:
    """A kind of scan."""
    return MODALITIES.get(name, name)


def headline(audit: Audit) -> str:
    """The finding, in one sentence."""
    rate = strongest(audit.attacks, FALSE_RATES.index(GATE_RATE))
    if audit.breaks_its_promise:
        return "More patients can be told than the study\u2019s differential privacy permits: do not release the model."
    if audit.verdict == FAIL and rate is not None:
        return (
            f"An attacker who accuses {_people(rate.false_alarms)} of {audit.others:,} wrongly finds "
            f"{percent(rate.found)} of the patients who trained the model: more than the site\u2019s limit allows."
        )
    if rate is None:
        return "There are too few held-out patients to say at 1\u00a0% false alarms whether patients can be told."
    if audit.verdict == WARN:
        return "An attacker does somewhat better than guessing, but stays within the site\u2019s limit."
    return "The attacks did not tell the patients who trained the model from those who did not."


def too_few(audit: Audit) -> list[str]:
    """Which rates could not be measured, and what that would take."""
    return [
        f"{rate_name(rate)} false alarms would be fewer than one of {audit.others:,} patients: it takes "
        f"{round(1 / rate):,} held-out patients before that figure means anything."
        for rate in FALSE_RATES
        if rate * audit.others < 1.0 - 1e-9
    ]


def caveats(audit: Audit) -> list[str]:
    """What about this audit weakens its figures."""
    said = []
    if audit.chosen_splits:
        said.append(
            "This site fixed by hand who is held out. If these patients differ from the others, for example in time, "
            "part of what is found is that difference."
        )
    if audit.own_encoders:
        said.append(
            "Image encoders were pretrained before. The shadow models begin with those of the audited model, so that "
            "what pretraining and later changes of the encoders remember is under-stated."
        )
    if audit.shadows < 64:
        said.append(f"{audit.shadows} shadow models are few, and all patients share one deviation: 64 attack harder.")
    said.append(
        "Shadow models are trained at this site alone. A model of many hospitals remembers each patient less than they "
        "do, and the attack does not know the other hospitals' data; nor would most attackers."
    )
    return said


def redrawn(shown: Demonstration) -> str:
    """What a demonstration came to."""
    size = "a step on one patient" if shown.batch == 1 else f"a step on {shown.batch} patients together"
    recognised = sum(scan.is_recognised for scan in shown.scans)
    said = f"From {size}, {recognised} of {len(shown.scans)} scans came out more like themselves than like any other."
    if shown.inputs:
        said += f" {shown.inputs_read} of {shown.inputs} inputs of the clinical records could be read exactly."
    return said


def _people(number: int) -> str:
    return "1 patient" if number == 1 else f"{number:,} patients"
