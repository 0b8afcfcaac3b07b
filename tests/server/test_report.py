"""Does the report say what the run found, to everybody, with nothing from elsewhere?"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.report import charts, words
from server.report.page import write_report
from shared.errors import FedretinaError

NAMES = ("north", "east", "west")
VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "col"}
MINIMAL: dict[str, Any] = {
    "study_digest": "ab" * 32,
    "arms": {"federated": {"multimodal": {"auroc": 0.8125}}},
    "sites": [{"name": "north"}],
    "seconds": {"total": 3.0},
}


PRIVATE: dict[str, Any] = {
    "kind": "patient_dpsgd",
    "epsilon": 3.0,
    "epsilon_rdp": 3.4,
    "delta": 1e-5,
    "clip": 1.25,
    "accountant": "PRV, opacus 1.6.0",
    "pretraining": "exact",
    "stages": {"finetune": {"noise_multiplier": 1.875, "sampling_rate": 0.0625, "steps": 16}},
    "sent": {"survey": "counts", "finetune": "weights", "evaluate": "scores"},
}


class Page(HTMLParser):
    """Collects what the laws below speak of; unbalanced tags fail while parsing."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def values(self, key: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == key]


def example(names: tuple[str, ...] = NAMES) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A full run: four arms, three kinds of input, every key of the schema; all numbers differ."""
    numbers = (0.5 + 0.0037 * step for step in range(1000))
    arms = {
        arm: {inputs: _score(numbers, names) for inputs in ("clinical", "multimodal", "image")}
        for arm in ("local", "federated", "centralised", "federated_scratch")
    }
    site = {"patients": 560, "scans": 3100, "labelled": 280, "modalities": ["oct", "clinical"], "auroc": 0.82}
    summary = {
        **MINIMAL,
        "schema": 1,
        "version": "0.1.0",
        "name": "demo",
        "seed": 1,
        "task": {"name": "detection", "horizon_days": 365},
        "cohort": {"kind": "synthetic", "partition": {"alpha": 0.5}},
        "command": "fedretina simulate experiment=demo seed=1",
        "arms": arms,
        "ceiling": {"multimodal": {"auroc": 0.951}},
        "sites": [{"name": name, **site, "prevalence": 0.31, "quarantined": 0, "fault": None} for name in names],
    }
    rounds: list[dict[str, Any]] = [
        {"arm": f"{arm}.multimodal", "stage": stage, "round": number, "loss": 1 / number, "tuning_loss": 1.1 / number}
        | {"auroc": None if number == 1 else 0.7, "sites": list(names), "failed": {}}
        for arm in arms
        for stage in ("pretrain", "finetune")
        for number in (1, 2, 3)
    ]
    return summary, rounds


def _score(numbers: Any, names: tuple[str, ...]) -> dict[str, Any]:
    auroc = next(numbers)
    bins = [{"predicted": 0.1 * step, "observed": 0.1 * step, "cases": 40} for step in range(1, 6)]
    return {
        "auroc": auroc,
        "auroc_interval": [auroc - 0.03, auroc + 0.03],
        "auroc_pooled": next(numbers),
        "auprc": next(numbers),
        "brier": next(numbers),
        "calibration": {"slope": next(numbers), "intercept": -next(numbers), "bins": bins},
        "cases": 1500,
        "positives": 130,
        "roc": [[0, 0], [0.2, 0.6], [1, 1]],
        "sites": {name: next(numbers) for name in names},
        "seconds": 31.2,
    }


def report(run: Path, summary: object, rounds: list[dict[str, Any]] | None = None) -> str:
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if rounds is not None:
        (run / "rounds.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rounds), encoding="utf-8")
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(tmp_path_factory.mktemp("run"), *example())


def test_one_file_needs_nothing_else(full: str) -> None:
    page = Page(full)
    assert not re.search(r"https?:|//\w|@import", full)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not page.values("src")
    assert all(target.startswith("#") for target in page.values("href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", full))


def test_inline_charts_do_not_clash(full: str) -> None:
    page = Page(full)
    assert page.tags["svg"] == 6
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = re.findall(r"url\(#([^)]*)\)", full) + [target[1:] for target in page.values("href")]
    assert targets
    assert set(targets) <= set(ids)


def test_readable_without_sight_or_colour(full: str) -> None:
    page = Page(full)
    assert len([label for label in page.values("aria-label") if len(label) > 20]) == page.tags["svg"]
    assert page.tags["caption"] == page.tags["table"] > 0
    assert ("html", "lang", "en") in page.attributes
    for side in zip(*charts.PENS.values(), charts.OTHER, strict=True):
        assert len(set(side)) == len(side)  # colour, marker and dash each tell all arms apart


def test_every_number_of_the_arms_is_on_the_page(full: str) -> None:
    text = Page(full).text
    for arm in example()[0]["arms"].values():
        for score in arm.values():
            three = [score[key] for key in ("auroc", "auroc_pooled", "auprc", "brier")] + score["auroc_interval"]
            shown = [words.decimal(value) for value in (*three, *score["sites"].values())]
            shown += [words.decimal(score["calibration"][key], 2) for key in ("slope", "intercept")]
            assert [number for number in shown if number not in text] == []
    for other in ("1,500", "130", "31.2", "0.951", "ab" * 32, "experiment=demo", "partition.alpha"):
        assert other in text


def test_same_run_same_bytes(tmp_path: Path, full: str) -> None:
    assert report(tmp_path, *example()) == full
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "rounds.jsonl", "summary.json"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    names = (evil, '" onload="x', 'A$\\frac$ & id="svg" url(#a)', "\x00\x1b\ud800\u202e", "東京" * 40)
    summary, rounds = example(names)
    summary["name"] = summary["command"] = summary["cohort"]["kind"] = summary["sites"][0]["fault"] = evil
    rounds[0]["failed"] = {evil: evil}
    html = report(tmp_path, summary, rounds)
    page = Page(html)
    assert "script" not in page.tags
    assert not page.values("onload")
    assert evil in page.text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", html)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"arms": {}},
        {"arms": {}, "sites": []},
        {"arms": {"federated": {"multimodal": {"auroc": None, "auroc_interval": [None, None]}}}},
        {"arms": {"other_arm": {"other_input": {"auroc": math.nan, "roc": [], "sites": {"north": None}}}}},
        {"arms": {"federated": {"image": {"auroc": 0.5, "calibration": {"bins": [{"predicted": None}]}}}}},
    ],
)
def test_the_page_adapts_to_what_is_there(tmp_path: Path, change: dict[str, Any]) -> None:
    text = Page(report(tmp_path, MINIMAL | change)).text
    assert "None" not in text
    assert "nan" not in text
    assert "Each hospital alone" not in text
    assert "simulated" not in text
    assert "not a medical device" in text


def test_the_finding_is_said_from_the_numbers(full: str, tmp_path: Path) -> None:
    said = Page(full).text.replace("\u00a0", " ")
    best = example()[0]["arms"]["federated"]["multimodal"]["auroc"]
    assert f"{100 * best:.0f} % of the time (95 % interval" in said
    assert "Each hospital alone reaches" in said
    assert "Every patient and scan in this run is simulated" in said
    assert "the two intervals" not in Page(report(tmp_path, MINIMAL)).text


def test_privacy_is_claimed_only_where_it_was_used(tmp_path: Path) -> None:
    without = "No privacy mechanism was used"
    assert without in report(tmp_path, MINIMAL)
    assert without in report(tmp_path, MINIMAL | {"privacy": {"kind": "none"}})
    text = report(tmp_path, MINIMAL | {"privacy": PRIVATE})
    assert without not in text
    assert "\u03b5 3.00 at \u03b4 1e-05" in Page(text).text


def test_a_private_run_states_every_point_of_its_guarantee(tmp_path: Path) -> None:
    text = Page(report(tmp_path, MINIMAL | {"privacy": PRIVATE})).text
    for said in (
        "One patient: all visits",
        "Adding or removing one patient",
        "PRV, opacus 1.6.0",
        "Poisson",
        "secret key",
    ):
        assert said in text
    for figure in ("1e-05", "1.25", "\u03c3 1.875", "q 0.0625", "16 steps", "3.4"):
        assert figure in text
    assert "Pretraining was not private" in text
    assert "Not covered" in text


EXEMPT = "not of the patients of pretraining, which was not private"


@pytest.mark.parametrize(
    ("pretraining", "said"),
    [
        ("private", "Pretraining is covered"),
        ("none", "There was no pretraining"),
        ("foreign", "weights made elsewhere"),
    ],
)
def test_it_is_said_whether_pretraining_was_covered(tmp_path: Path, pretraining: str, said: str) -> None:
    text = Page(report(tmp_path, MINIMAL | {"privacy": PRIVATE | {"pretraining": pretraining}})).text
    assert said in text
    assert EXEMPT not in text


def test_exempt_pretraining_is_said_wherever_epsilon_is_stated(tmp_path: Path) -> None:
    text = Page(report(tmp_path, MINIMAL | {"privacy": PRIVATE | {"pretraining": "exact"}})).text
    assert "at \u03b4 1e-05; " + EXEMPT in text
    assert "Pretraining was not private. Patients whose scans it used have no guarantee" in text


@pytest.mark.parametrize("privacy", [PRIVATE, PRIVATE | {"kind": "none", "stages": {}}])
def test_what_left_the_hospitals_is_counted(tmp_path: Path, privacy: dict[str, Any]) -> None:
    """Message by message, of the joint training alone; what is not private says so beside each."""
    rounds: list[dict[str, Any]] = [
        {"arm": f"{arm}.multimodal", "stage": stage, "round": number, "sites": sites}
        for arm in ("federated", "local.north", "centralised")
        for stage, number, sites in [
            ("survey", 1, ["north", "west"]),
            ("finetune", 1, ["north", "west"]),
            ("finetune", 2, ["west"]),
            ("evaluate", 1, ["north"]),
        ]
    ]
    html = report(tmp_path, MINIMAL | {"privacy": privacy}, rounds)
    section = html[html.index('id="privacy"') : html.index("What did not work")]
    rows = re.findall(
        r"<tr><th scope=\"row\" class=\"whole\">([^<]*)</th><td>(\d+)</td><td>(\d+)</td><td[^>]*>([^<]*)<", section
    )
    noise = "\u03c3 1.875" if privacy["stages"] else "none, exact"
    assert rows == [
        ("Survey", "2", "2", "none, exact"),
        ("Fine-tuning", "3", "2", noise),
        ("Evaluation", "1", "1", "none, exact"),
    ]


def test_sums_are_not_taken_for_means_over_hospitals(tmp_path: Path, full: str) -> None:
    summary, rounds = example()
    said = "ranks the patients of all hospitals in one list"
    assert said not in full
    assert said in report(tmp_path, summary | {"secure_aggregation": {"kind": "secagg"}}, rounds)
    assert said not in report(tmp_path, summary | {"secure_aggregation": {"kind": "none"}}, rounds)


def test_failures_are_gathered_with_their_reason(tmp_path: Path) -> None:
    line = {"arm": "federated.multimodal", "stage": "finetune", "loss": 1.0, "sites": ["north"]}
    rounds: list[dict[str, Any]] = [{**line, "round": n, "failed": {"west": "no answer"}} for n in (1, 2, 3, 7)]
    text = Page(report(tmp_path, MINIMAL, rounds)).text
    assert "1\u20133, 7" in text
    assert text.count("no answer") == 1


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    _, rounds = example()
    report(tmp_path, MINIMAL, rounds)
    with (tmp_path / "rounds.jsonl").open("ab") as file:
        file.write(b'{"arm": "federated.mul\xff')
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "1 line of rounds.jsonl could not be read" in html
    assert Page(html).tags["svg"] == 3


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "must exist"),
        ("", "must be readable JSON"),
        ('{"arms": {', "must be readable JSON"),
        ("[]", "must hold one JSON object"),
        ('{"schema": 2}', "must be 1"),
        ('{"arms": {"federated": {"image": {"auroc": "high"}}}}', "arms.federated.image.auroc must be a number"),
        ('{"arms": {"federated": {"image": {"roc": [[0]]}}}}', "arms.federated.image.roc must be made of pairs"),
        ('{"sites": {"north": 1}}', "sites must be a list"),
    ],
)
def test_a_bad_summary_is_named_and_the_old_report_stays(tmp_path: Path, content: str | None, rule: str) -> None:
    (tmp_path / "report.html").write_text("old")
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(FedretinaError, match=r"summary\.json") as caught:
        write_report(tmp_path)
    assert rule in str(caught.value)
    assert caught.value.remedy
    assert (tmp_path / "report.html").read_text() == "old"


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranges_lose_no_round(numbers: set[int]) -> None:
    spans = [list(map(int, part.split("\u2013"))) for part in words.ranges(numbers).split(", ")]
    assert {number for span in spans for number in range(span[0], span[-1] + 1)} == numbers
