"""Does a review say everything that a study does and changes, and nothing that is not so?"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import approvals
from client.approvals import APPROVED, REFUSED, NotApprovedError, accept, decide, revoke
from client.review import changes, review, standing
from client.site import OFF, VETO, WARN, SiteSettings
from shared.code import code_digest
from shared.config import Study
from shared.keys import new_key
from shared.knobs import digest
from tests.factories import DIABETES, SYSTOLIC, make_study
from tests.memberships import NOW, make_task

STUDY = make_study()
KEY = new_key()
PUBLIC = KEY.public_key()
SYSTOLIC_FEATURE = {"name": "systolic", "code": SYSTOLIC, "unit": "mm[Hg]", "low": 50, "high": 300}
DIABETES_FEATURE = {"name": "diabetes", "codes": [DIABETES]}


def text(study: Study, previous: Study | None = None) -> str:
    return "\n".join(review(study, "not decided", previous, SiteSettings()))


def section(study: Study, title: str) -> str:
    """The lines under a title, joined as they were before they were wrapped."""
    lines = text(study).split(f"{title}\n")[1].split("\n\n")[0].splitlines()
    return " ".join(line.strip() for line in lines)


def test_it_names_study_code_and_every_input() -> None:
    said = text(STUDY)
    for word in (digest(STUDY), code_digest(), SYSTOLIC, "mm[Hg]", "3650 days", DIABETES, "MEDS_BIRTH", "32 x 32"):
        assert word in said
    assert "labels/detection.parquet" in said
    assert "within 365 days before the scan" in section(STUDY, "What it does here")
    assert "convnext_atto" in section(STUDY, "What leaves the site")
    assert "after each of 2 training rounds" in section(STUDY, "What leaves the site")


@pytest.mark.parametrize(
    ("audit", "words"),
    [(OFF, "no update is attacked"), (WARN, "log says so"), (VETO, "withheld where surely more than 7%")],
)
def test_it_says_what_the_site_does_to_an_update_before_it_leaves(audit: str, words: str) -> None:
    settings = SiteSettings(audit=audit, audit_tpr_limit=0.07)
    assert words in " ".join(" ".join(review(STUDY, "not decided", None, settings)).split())
    assert "attacked" not in " ".join(review(make_study({"finetune.rounds": 0}), "not decided", None, settings))


def test_what_is_not_read_is_not_named() -> None:
    scans = make_study({"modalities": ["ir"], "task.name": "risk", "task.horizon_days": 30})
    assert "OCT" not in section(scans, "What it does here")
    assert SYSTOLIC not in text(scans)
    assert "no clinical input" in section(scans, "What it reads")
    assert "within 30 days after the scan" in section(scans, "What it does here")
    records = make_study({"modalities": ["clinical"], "pretrain.rounds": 0})
    for title in ("What it does here", "What it reads", "What leaves the site"):
        assert "scans," not in section(records, title).replace("unreadable scans,", "").replace("patients, scans", "")
        assert "encoder of each kind" not in section(records, title)
    assert "pretrain," not in section(records, "What it does here")


def test_a_study_that_only_pretrains_sends_no_scores() -> None:
    study = make_study({"finetune.rounds": 0})
    assert "finetune," not in section(study, "What it does here")
    assert "bins" not in section(study, "What leaves the site")


def test_it_says_that_there_is_no_differential_privacy() -> None:
    assert "no differential privacy" in section(STUDY, "What it costs of the patients' privacy")


def test_of_a_private_study_it_says_what_is_noised_and_claims_nothing_that_does_not_leave() -> None:
    private = {"privacy": {"kind": "patient_dpsgd"}, "finetune.select": "last", "pretrain.rounds": 0}
    study = make_study(private)
    leaves = section(study, "What leaves the site")
    assert "the number of training patients with the outcome, noised" in leaves
    for claim in ("sum of squares", "mean loss", "tuning patients", "bin"):
        assert claim not in leaves
        assert claim in section(STUDY, "What leaves the site")
    assert "sums each" not in section(study, "What it does here")
    assert "not noised" not in section(study, "What it costs of the patients' privacy")
    exempt = make_study({**private, "privacy.exempt": ["evaluate"]})
    assert "at the end over held-out patients, scores" in section(exempt, "What leaves the site")
    assert "no bound for what leaves in evaluate" in section(exempt, "What it costs of the patients' privacy")


def test_it_says_what_is_masked_and_from_whom() -> None:
    summed = make_study({"secure_aggregation": {"kind": "secagg"}, "strategy": {"norm_limit": 0.0}})
    assert "masked" not in section(STUDY, "What leaves the site")
    leaves = section(summed, "What leaves the site")
    assert "their sum over at least 3 sites and no site's own" in leaves
    assert "who these other sites are is what the coordinator says" in leaves
    assert "seconds" not in leaves


# Changes


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"finetune.rounds": 9}, ["finetune.rounds: 1 -> 9 (rounds; 0 leaves the stage out)"]),
        (
            {"task.horizon_days": 730},
            [
                "task.horizon_days: 365 days -> 730 days (N, the window around the scan in which a stroke counts)",
            ],
        ),
        ({"modalities": ["oct", "clinical"]}, ['modalities: ["oct", "ir", "clinical"] -> ["oct", "clinical"] (']),
        (
            {"features.numeric": [{**SYSTOLIC_FEATURE, "high": 260}]},
            ["features.numeric.systolic.high: 300.0 -> 260.0 ("],
        ),
        ({"model.image.arguments": {}}, ["model.image.arguments: {"]),
        ({"objective": {"kind": "simclr", "projection_width": 16}}, ["objective.projection_width: 8 -> 16 ("]),
    ],
)
def test_a_change_is_told_by_name_with_both_values_and_its_meaning(change: dict[str, Any], lines: list[str]) -> None:
    found = changes(STUDY, make_study(change))
    assert len(found) == len(lines)
    for line, expected in zip(found, lines, strict=True):
        assert line.startswith(expected)


def test_features_are_compared_by_name() -> None:
    found = changes(STUDY, make_study({"features.codes": [DIABETES_FEATURE]}))
    assert 'features.codes: ["diabetes", "male"] -> ["diabetes"] (diagnoses and other codes)' in found
    assert any(line.startswith('features.codes.male.codes: ["SEX//M"] -> not there') for line in found)
    assert not any("diabetes." in line for line in found)
    reordered = make_study({"features.codes": [{"name": "male", "codes": ["SEX//M"]}, DIABETES_FEATURE]})
    assert len(changes(STUDY, reordered)) == 1


def test_another_objective_is_told_knob_by_knob() -> None:
    found = changes(STUDY, make_study({"objective": {"kind": "mae"}}))
    assert 'objective.kind: "simclr" -> "mae"' in found
    assert any(line.startswith("objective.mask_ratio: not there -> 0.75 (") for line in found)
    assert any(line.startswith("objective.temperature: 0.2 -> not there (") for line in found)


CHANGES: list[dict[str, Any]] = [
    {},
    {"seed": 2},
    {"name": "other"},
    {"features.age": False},
    {"features.codes": []},
    {"features.codes": [DIABETES_FEATURE]},
    {"features.numeric": []},
    {"features.numeric": [{**SYSTOLIC_FEATURE, "lookback_days": 30}]},
    {"objective": {"kind": "mae"}},
    {"objective": {"kind": "simclr", "projection_width": 8, "temperature": 0.3}},
    {"strategy": {"arguments": {"a": 1}}},
    {"strategy": {"arguments": {"a": True}}},
    {"strategy": {"arguments": {"a": 1.0}}},
    {"model.image.weights": {"oct": "file"}},
    {"model.clinical.hidden": []},
    {"finetune.augmentation": {"flip": 0.5}},
]


@given(st.sampled_from(CHANGES), st.sampled_from(CHANGES))
def test_changes_are_told_exactly_when_studies_differ(first: dict[str, Any], second: dict[str, Any]) -> None:
    a, b = make_study(first), make_study(second)
    assert bool(changes(a, b)) == (digest(a) != digest(b))
    assert len(changes(a, b)) == len(changes(b, a))


def test_the_review_holds_the_changes() -> None:
    other = make_study({"seed": 2})
    assert "seed: 1 -> 2 (seed of everything random)" in text(other, STUDY)
    assert "none: it is the study that was approved last" in text(STUDY, STUDY)
    assert "no study was approved before" in text(STUDY)


# Standing


def test_the_standing_says_approved_exactly_when_the_gate_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(at: Any = NOW) -> str:
        words = standing(tmp_path, PUBLIC, STUDY, at)
        try:
            accept(tmp_path, PUBLIC, make_task(), at)
            is_open = True
        except NotApprovedError:
            is_open = False
        assert words.startswith("approved on") == is_open
        return words

    assert said() == "not decided; nothing of it is done"
    decide(tmp_path, KEY, STUDY, REFUSED, at=NOW)
    assert said() == "refused on 2030-06-01"
    decide(tmp_path, KEY, STUDY, APPROVED, days=10, at=NOW)
    assert said() == "approved on 2030-06-01 until 2030-06-11"
    assert "must not have expired" in said(NOW + timedelta(days=11))
    with monkeypatch.context() as patched:
        patched.setattr(approvals, "code_digest", lambda: "f" * 64)
        assert "must be of the code that is installed" in standing(tmp_path, PUBLIC, STUDY, NOW)
    revoke(tmp_path, KEY, STUDY)
    assert said().startswith("revoked on")
    decide(tmp_path, new_key(), STUDY, APPROVED, at=NOW)
    assert "must be signed by this site's key" in said()


# What others wrote


@given(st.text(max_size=60))
def test_a_name_cannot_deceive_who_reads_the_review(name: str) -> None:
    lines = review(make_study({"name": name}), "not decided", STUDY, SiteSettings())
    assert all(line.isprintable() for line in lines)
    assert sum(line.startswith("  - at this site:") for line in lines) == 1
