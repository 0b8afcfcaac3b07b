"""What would a study do at this site? In plain words, for those who decide, and what is new since the last one."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from client.approvals import REFUSED, REVOKED, NotApprovedError, read_decision, short, valid_approval
from client.site import OFF, VETO, WARN, SiteSettings
from shared.code import code_digest
from shared.config import (
    CLINICAL,
    EVALUATE,
    FINETUNE,
    IR,
    OCT,
    SURVEY,
    CodeFeature,
    NumericFeature,
    SecAgg,
    SimCLR,
    Stage,
    Study,
)
from shared.keys import PublicKey
from shared.knobs import Tree, digest
from shared.metrics import BINS
from shared.privacy import NOISED, PrivacyPlan
from shared.text import printable

_WIDTH = 110
_SCANS = {OCT: "OCT B-scans", IR: "infrared scans"}
_ABSENT = "not there"


def review(study: Study, standing: str, previous: Study | None, settings: SiteSettings, budget: str = "") -> list[str]:
    """The lines to read before a decision.

    Args:
        standing: what the site decided so far, in words.
        previous: the study that was approved last, where there is one.
        settings: the site's own, of which some bear on what leaves.
        budget: what the site's privacy ledger states and would state after the study, in words.
    """
    sections = {
        f"Study {study.name}": [
            f"study digest {digest(study)}",
            f"code digest  {code_digest()}, of what is installed here",
            f"at this site: {standing}",
        ],
        "What it does here": _deeds(study),
        "What it reads": _inputs(study),
        "What leaves the site": [*_leaves(study), *_audited(study, settings)],
        "What it costs of the patients' privacy": [*_privacy(study), *([budget] if budget else [])],
        "What it cannot do": _bounds(study),
        "Changes since the study that was approved last": _compared(previous, study),
    }
    lines = []
    for title, items in sections.items():
        lines += ["", title, *(line for item in items for line in _wrapped(item))]
    return [printable(line) for line in lines[1:]]


def standing(folder: Path, key: PublicKey, study: Study, at: datetime | None = None) -> str:
    """What the site decided on a study and whether its gate would let the study pass now, in words."""
    try:
        decision = valid_approval(folder, key, study, at)
        return f"approved on {_day(decision.decided_at)} until {_day(decision.expires_at)}"
    except NotApprovedError as error:
        if error.may_come:
            return "not decided; nothing of it is done"
        refusal = error
    try:
        found = read_decision(folder, key, digest(study))
    except NotApprovedError as error:
        return f"not approved: {error}"
    if found is not None and found.verdict in (REFUSED, REVOKED):
        return f"{found.verdict} on {_day(found.decided_at)}"
    return f"no longer approved: {refusal.name} {refusal.rule}, got {refusal.value}"


def changes(old: Study, new: Study) -> list[str]:
    """Every knob in which two studies differ: its dotted name, both values, its unit and meaning."""
    before, after = _flat(old), _flat(new)
    lines = []
    for name in [*after, *(name for name in before if name not in after)]:
        was, becomes = before.get(name), after.get(name)
        if _shown(was) != _shown(becomes):
            about = (becomes or was or _Knob(None)).about
            lines.append(f"{name}: {_shown(was)} -> {_shown(becomes)}" + (f" ({about})" if about else ""))
    return lines


@dataclasses.dataclass(frozen=True)
class _Knob:
    value: Any
    unit: str = ""
    about: str = ""


def _flat(tree: Tree, path: str = "") -> dict[str, _Knob]:
    """The knobs of a tree by dotted name; those of named entries of a list by the name, so that entries compare."""
    knobs: dict[str, _Knob] = {}
    for field in dataclasses.fields(tree):
        value, name = getattr(tree, field.name), f"{path}{field.name}"
        about: Mapping[str, Any] = field.metadata
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            knobs |= _flat(value, f"{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            knobs[name] = _Knob([entry.name for entry in value], about=about["help"])
            for entry in value:
                knobs |= _flat(entry, f"{name}.{entry.name}.")
        else:
            knobs[name] = _Knob(value, about["unit"], about["help"])
    return knobs


def _shown(knob: _Knob | None) -> str:
    if knob is None:
        return _ABSENT
    return json.dumps(knob.value, sort_keys=True) + (f" {knob.unit}" if knob.unit else "")


def _deeds(study: Study) -> list[str]:
    """Stage by stage."""
    sums = "" if PrivacyPlan.of(study).release_of(SURVEY) else ", and sums each numeric clinical input"
    deeds = [f"survey, once: counts patients, scans and labelled cases{sums}"]
    if study.pretrain.rounds:
        kind = "SimCLR" if isinstance(study.objective, SimCLR) else "masked autoencoding"
        scans = " and ".join(_SCANS[name] for name in study.image_modalities)
        deeds.append(f"pretrain, {_rounds(study.pretrain)}: {kind} on {scans} of training patients, without labels")
    if study.finetune.rounds:
        branches = ", ".join(_SCANS.get(name, "clinical record") for name in study.modalities)
        deeds.append(f"finetune, {_rounds(study.finetune)}: {_label(study)}, on training patients, from {branches}")
        chosen = study.finetune.select == "best" and study.splits.tuning
        last = "the last model on patients that watch training, then the best one" if chosen else "the final model"
        deeds.append(f"evaluate, once: scores {last} on patients that did not train")
    splits = study.splits
    deeds.append(
        f"patients are split by a keyed hash, unless the site fixed its splits by hand: {splits.train:.0%} train, "
        f"{splits.tuning:.0%} watch training, {splits.held_out:.0%} are held out"
    )
    return deeds


def _rounds(stage: Stage) -> str:
    passes = "1 pass" if stage.epochs == 1.0 else f"{stage.epochs:g} passes"
    return f"{stage.rounds} round{'' if stage.rounds == 1 else 's'} of {passes} over the data"


def _rounds_of(stage: Stage, name: str) -> str:
    return f"{stage.rounds} {name} round{'' if stage.rounds == 1 else 's'}"


def _label(study: Study) -> str:
    days = study.task.horizon_days
    meaning = {
        "detection": f"a stroke within {days} days before the scan",
        "risk": f"a stroke within {days} days after the scan",
    }.get(study.task.name, f"the site's own label, horizon {days} days")
    return f"learns {study.task.name} ({meaning})"


def _inputs(study: Study) -> list[str]:
    """Files and columns."""
    reads = []
    if study.image_modalities:
        scans, images = " and ".join(_SCANS[name] for name in study.image_modalities), study.images
        reads.append(
            f"imaging: {scans}, resized to {images.height} x {images.width} pixels; for a labelled case up to "
            f"{images.per_case} of each kind, at most {images.window_days} day(s) before its prediction time"
        )
    if CLINICAL in study.modalities:
        if study.features.age:
            reads.append("clinical: age at the prediction time (MEDS_BIRTH)")
        features: list[NumericFeature | CodeFeature] = [*study.features.numeric, *study.features.codes]
        for feature in features:
            if isinstance(feature, NumericFeature):
                what = f"newest value of {feature.code} in {feature.unit}"
            else:
                what = f"whether any of {', '.join(feature.codes)} was recorded"
            reads.append(f"clinical: {feature.name}: {what}, up to {feature.lookback_days} days before, never after")
    else:
        reads.append("no clinical input: events.parquet is read to check the folder and count patients")
    reads.append(f"labels: labels/{study.task.name}.parquet, each patient's prediction time and outcome")
    return reads


def _leaves(study: Study) -> list[str]:
    """Message by message."""
    scores = f"scores as numbers of cases in {BINS} bins of the predicted risk, by outcome, and two sums of errors"
    encoder, rounds = study.model.image.name, study.pretrain.rounds + study.finetune.rounds
    of = [f"encoder {encoder} of each kind of scan"] if study.image_modalities else []
    of += ["encoder of the clinical record"] if CLINICAL in study.modalities else []
    plan = PrivacyPlan.of(study)
    noised = [stage for stage in study.stages if plan.release_of(stage) is not None]
    leaves = [f"{stage}, each message: {NOISED[stage]}" for stage in noised]
    if SURVEY not in noised:
        leaves.append(
            "survey: numbers of patients, scans, unreadable scans, labelled cases and cases with the outcome; number, "
            "sum and sum of squares of each numeric clinical input over training cases"
        )
    leaves.append(
        f"after each of {rounds} training rounds (a round that failed may be tried {study.strategy.attempts} times): "
        f"the model's weights ({', '.join(of)}, and the layers on top), the number of training examples"
        + (", the mean loss" if not study.training.keys() <= set(noised) else "")
    )
    if study.finetune.rounds and not {FINETUNE, EVALUATE} <= set(noised):
        tuning = study.splits.tuning and FINETUNE not in noised
        when = ["with each finetune round over tuning patients"] if tuning else []
        when += [] if EVALUATE in noised else ["at the end over held-out patients"]
        leaves.append(f"{', and '.join(when)}, {scores}")
        leaves.append("a bin may hold one case only: then its risk and outcome can be read, but not whose they are")
    if study.finetune.site_intercept:
        leaves.append("the site's own intercept stays here")
    if isinstance(study.secure_aggregation, SecAgg):
        leaves = [_hidden(study.secure_aggregation), *leaves]
        leaves.append("with each message the name of the site; or the reason of a failure")
    else:
        leaves.append("with each message the name of the site and the seconds that it took; or the reason of a failure")
    return leaves


def _audited(study: Study, settings: SiteSettings) -> list[str]:
    """What the site's own attack has to say before an update leaves."""
    if not study.finetune.rounds or PrivacyPlan.of(study).release_of(FINETUNE) is not None:
        return []  # the noise bounds every attack
    limit = f"surely more than {settings.audit_tpr_limit:.0%} of the training patients are found in it"
    return {
        OFF: ["no update is attacked before it leaves (audit in site.yaml: off)"],
        WARN: [f"each finetune update is attacked before it leaves; where {limit}, this site's log says so"],
        VETO: [f"each finetune update is attacked before it leaves, and withheld where {limit}"],
    }[settings.audit]


def _hidden(setting: SecAgg) -> str:
    return (
        "the numbers below leave masked (secure aggregation): the coordinator can read their sum over at least "
        f"{setting.fewest} sites and no site's own, unless it is in league with as many other sites as can unmask; "
        "beside them leave public keys, and encrypted shares of secrets, all made for one sum; who these other sites "
        "are is what the coordinator says, unless site.yaml names the fingerprints of their keys under peers"
    )


def _privacy(study: Study) -> list[str]:
    """What can be learned of one patient, and what bounds it."""
    plan = PrivacyPlan.of(study)
    if math.isinf(plan.epsilon):
        return [
            "no bound: weights can reveal something of the data that they were trained on; this study adds no noise "
            "against that (no differential privacy)"
        ]
    bare = [stage for stage in study.stages if plan.release_of(stage) is None]
    costs = [
        f"ε = {plan.epsilon:.3g} at δ = {plan.delta:g} for each patient, with all visits, over all noised messages of "
        "the study: whatever is seen is at most e^ε times as likely with the patient as without, but for a chance δ",
        "more than that is refused here, however often the coordinator asks (approve --max-epsilon sets another limit)",
    ]
    return costs + [f"no bound for what leaves in {stage}: it is not noised" for stage in bare]


def _bounds(study: Study) -> list[str]:
    """What the site's own code refuses."""
    return [
        "send a scan, a record, a label or an identifier: no message has a place for them",
        "bring code: the site runs what is installed here, and an update of it needs a new approval",
        "change: a study that differs in anything, from features to rounds, needs a new approval",
        f"go beyond {_rounds_of(study.pretrain, 'pretrain')} and {_rounds_of(study.finetune, 'finetune')}",
        "outlast its approval: after its last day, or once it is revoked, every task is refused",
        "use a stroke code as an input, or anything recorded after the prediction time",
    ]


def _compared(previous: Study | None, study: Study) -> list[str]:
    if previous is None:
        return ["no study was approved before"]
    if digest(previous) == digest(study):
        return ["none: it is the study that was approved last"]
    return [f"compared with {previous.name} {short(digest(previous))}:", *changes(previous, study)]


def _wrapped(item: str) -> list[str]:
    return textwrap.wrap(
        item,
        _WIDTH,
        initial_indent="  - ",
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _day(time: str) -> str:
    return time[:10]
