"""How is a run said in plain words? Only from the numbers that are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from server.report.record import Run, Score

ARM_NAMES = {
    "federated": "Trained together",
    "centralised": "All data in one place",
    "local": "Each hospital alone",
    "federated_scratch": "Together, no pretraining",
}
SHORT_ARM_NAMES = {
    "federated": "Together",
    "centralised": "One place",
    "local": "Alone",
    "federated_scratch": "No pretraining",
}
INPUT_NAMES = {"multimodal": "Scans + clinical record", "image": "Scans only", "clinical": "Clinical record only"}
STAGE_NAMES = {"survey": "survey", "pretrain": "pretraining", "finetune": "fine-tuning", "evaluate": "evaluation"}
MODALITY_NAMES = {"oct": "OCT", "ir": "Infrared", "clinical": "Clinical"}
NONE = "\u2013"


def arm_name(arm: str) -> str:
    """The arm as the page calls it."""
    return ARM_NAMES.get(arm, arm.replace("_", " ").capitalize())


def short_arm_name(arm: str) -> str:
    """The arm as a chart calls it."""
    return SHORT_ARM_NAMES.get(arm, arm_name(arm))


def input_name(inputs: str) -> str:
    """The kind of input as the page calls it."""
    return INPUT_NAMES.get(inputs, inputs.replace("_", " ").capitalize())


def percent(share: float | None) -> str:
    """0.81 as '81 %', with a space that does not break."""
    return NONE if share is None else f"{100 * share:.0f}\u00a0%"


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with a fixed count of digits."""
    # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
    return NONE if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\u2212")


def whole(count: int | None) -> str:
    """A count with thousands apart."""
    return NONE if count is None else f"{count:,}"


def interval(ends: tuple[float, float] | None) -> str:
    """Both ends of an interval."""
    return "" if ends is None else f"{decimal(ends[0])} to {decimal(ends[1])}"


def duration(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {rest}\u00a0s"


def listed(parts: Iterable[str]) -> str:
    """'a, b and c'."""
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def ranges(numbers: Iterable[int]) -> str:
    """[1, 2, 3, 7] as '1-3, 7', with en dashes."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}\u2013{high}" for low, high in spans)


def flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ('partition.sites', '5') pairs."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value)) or NONE
        else:
            yield f"{prefix}{key}", NONE if value is None or value == {} else str(value)


def is_stroke(run: Run) -> bool:
    """Whether the outcome is a stroke."""
    return run.task in ("detection", "risk")


def question(run: Run) -> str:
    """What the model was asked, in one sentence."""
    window = f"within {run.horizon_days:,} days" if run.horizon_days else "within the study\u2019s window"
    if not run.scores:
        return "Pretraining: no outcome was learned in this run."
    match run.task:
        case "detection":
            return f"Did a stroke happen {window} before the eye scan?"
        case "risk":
            return f"Will a stroke happen {window} after the eye scan?"
        case other:
            return f"Outcome learned: {other.replace('_', ' ') or 'not named'}."


def result(run: Run) -> list[str]:
    """The finding in plain sentences, best known first."""
    best = run.headline
    if best is None:
        return _unlabelled(run)
    if best.auroc is None:
        return ["No ranking score could be computed: no hospital's held-out patients include both outcomes."]
    return [_opening(run, best), *_ablation(run, best), *_comparison(run, best), *_ceiling(run, best)]


def _unlabelled(run: Run) -> list[str]:
    rounds = {each.number for each in run.rounds if each.stage == "pretrain"}
    scans, sites = sum(site.scans or 0 for site in run.sites), len(run.sites)
    learned = f"{len(rounds)} rounds of pretraining" if rounds else "Pretraining"
    return [
        f"{learned} at {_hospitals(sites)}{f' on {scans:,} scans' if scans else ''}, without labels.",
        "No outcome was learned, so there is no score yet: fine-tune the result on labelled patients to get one.",
    ]


def _opening(run: Run, best: Score) -> str:
    who = (
        "Trained together, the hospitals\u2019 model" if best.arm == "federated" else f"{arm_name(best.arm)}: the model"
    )
    case, other = ("stroke case", "other case") if is_stroke(run) else ("case with the outcome", "case without it")
    tested = sum(auroc is not None for auroc in best.sites.values())
    near = " of the same hospital" if tested > 1 else ""
    mean = f", on average over the held-out patients of {_hospitals(tested)}" if tested > 1 else ""
    sure = f"95\u00a0% interval {_span(best.interval)}; " if best.interval else ""
    share = f"{percent(best.auroc)} of the time ({sure}50\u00a0% would be guessing)"
    return f"{who} ranks a random {case} above a random {other}{near} {share}{mean}."


def _comparison(run: Run, best: Score) -> Iterator[str]:
    alone, pooled, scratch = (run.score(arm, best.inputs) for arm in ("local", "centralised", "federated_scratch"))
    if alone and alone.auroc is not None and alone is not best:
        yield f"Each hospital alone reaches {_share(alone)}{_overlap(best, alone)}."
    if pooled and pooled.auroc is not None and pooled is not best:
        reached = percent(pooled.auroc)
        yield f"A model trained with all data in one place, which federated learning avoids, reaches {reached}."
    if scratch and scratch.auroc is not None and scratch is not best:
        yield f"Trained together but without pretraining, a model reaches {percent(scratch.auroc)}."


def _overlap(one: Score, other: Score) -> str:
    """Whether two intervals part the scores; nothing where either is unknown."""
    if one.interval is None or other.interval is None:
        return ""
    if one.interval[0] <= other.interval[1] and other.interval[0] <= one.interval[1]:
        return "; the two intervals overlap, so take the difference as uncertain"
    return "; the two intervals do not overlap"


def _ablation(run: Run, best: Score) -> Iterator[str]:
    fewer = {"image": "the scans alone", "clinical": "the clinical record alone"}
    found = {phrase: run.score(best.arm, inputs) for inputs, phrase in fewer.items() if best.inputs == "multimodal"}
    said = [
        f"{percent(score.auroc)} from {phrase}" for phrase, score in found.items() if score and score.auroc is not None
    ]
    if said:
        yield f"The same training reaches {listed(said)}, against {percent(best.auroc)} from both."


def _ceiling(run: Run, best: Score) -> Iterator[str]:
    if best.inputs in run.ceiling:
        yield f"The best any model could reach on this cohort is about {percent(run.ceiling[best.inputs])}."


def _share(score: Score) -> str:
    sure = f" (95\u00a0% interval {_span(score.interval)})" if score.interval else ""
    return f"{percent(score.auroc)}{sure}"


def _span(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:.0f} to {percent(ends[1])}"


def _hospitals(number: int) -> str:
    return f"{number} hospital{'' if number == 1 else 's'}"
