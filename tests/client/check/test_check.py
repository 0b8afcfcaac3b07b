"""Does the check tell what is in a site folder, and nothing that is a patient's?"""

from __future__ import annotations

import copy
import functools
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from client.check.counting import binned, nested, quantiles, without_rare
from client.check.imports import Shares, band
from client.check.records import feature_figures
from client.check.result import CheckResult, check_folder, lines
from client.check.scans import pairing_counts, scan_counts
from client.check.suppression import WITHHELD, Cell, shown
from client.check.tables import Tables as ReadTables
from client.check.tables import read_tables
from client.check.write import HTML, JSON, to_plain, write_check
from client.feature_list import read_features
from client.ingest.export import QUARANTINED, RECORDS, SKIPPED, FilesRead, LeftOut
from client.ingest.journal import IMPORTED, Entry, open_journal
from client.ingest.mapping import read_mapping
from client.ingest.pseudonyms import Pseudonyms
from client.ingest.records import import_records
from client.ingest.table import read_table
from client.ingest.vocabulary import read_vocabulary
from client.site import SiteSettings
from shared.config import CodeFeature, Features
from shared.errors import ConfigError, SiteError
from shared.site_folder import EVENTS, IMAGES, LABELS, SUBJECT_SPLITS, Dataset, SiteFolder, write_table
from simulation.cohorts.build import Built
from tests.factories import SYSTOLIC, VISIT, Tables, make_events, make_labels, make_study, small_site

FEATURES = make_study().features
NAMES = ("Doe^Jane", "MRN-4711", "1961-03-07", "19610307")


@functools.cache
def _sixty() -> Tables:
    return small_site(patients=60)


def sixty_patients() -> Tables:
    """A correct site of 60, to be changed; made once, as that takes its time."""
    return copy.deepcopy(_sixty())


def few_patients() -> Tables:
    """Twelve of them."""
    return copy.deepcopy(_twelve())


@functools.cache
def _twelve() -> Tables:
    return small_site()


def check(tables: Tables, folder: Path, **options: Any) -> CheckResult:
    """Of a site that is written to ``folder``."""
    return check_folder(tables.write(folder).path, FEATURES, **options)


def concerns(result: CheckResult) -> list[str]:
    return [concern.name for concern in result.concerns]


def found(cell: Cell, *path: str) -> Any:
    """The count at a path of groups and names."""
    for group, name in zip(path[::2], path[1::2], strict=True):
        (cell,) = [child for child in cell.group(group) if child.name == name]
    return cell.count


def cells(data: Any) -> Iterator[dict[str, Any]]:
    """Every cell of a JSON file."""
    if isinstance(data, dict):
        if "count" in data:
            yield data
        for value in data.values():
            yield from cells(value)
    elif isinstance(data, list):
        for value in data:
            yield from cells(value)


# Figures


def test_figures_of_a_site_that_can_be_counted_by_hand(tmp_path: Path) -> None:
    figures = check(small_site(patients=40), tmp_path / "north", images=True).figures
    assert figures.patients.count == 40
    assert found(figures.patients, "scans", "with scans", "records", "with records") == 40
    assert (
        found(figures.patients, "scans", "with scans", "modality", "OCT and infrared", "pairing", "with a pair") == 40
    )
    assert found(figures.scans, "modality", "OCT", "device", "A", "year", "2020", "eye", "R") == 40
    assert found(figures.scans, "modality", "IR", "size", "16 \u00d7 16") == 40
    assert found(figures.scans, "content", "once") == 80
    assert found(figures.pairing, "pairing", "with infrared scan") == 40
    assert figures.years == {"scans": (2020, 2020), "events": (2019, 2020)}
    age, systolic, diabetes, male = figures.features
    assert found(systolic.coverage, "value", "with a value", "range", "all in the plausible range") == 40
    assert systolic.quantiles == {"p25": 111.0, "median": 120.0, "p75": 130.0}  # no 5 %: two patients lie beyond it
    assert age.quantiles["median"] == 70
    assert found(diabetes.coverage, "value", "with a value") == 13
    assert found(male.coverage, "value", "without") == 20
    (task,) = figures.tasks
    assert (task.name, task.count, found(task, "outcome", "with the outcome")) == ("detection", 40, 20)
    assert figures.horizons_days == {"detection": 365}
    assert figures.decoding is not None
    assert found(figures.decoding, "decoding", "readable") == 80


def test_a_healthy_synthetic_hospital_passes(cohort: Built, tmp_path: Path) -> None:
    # Its folder is not written to: that is what the file's other half is for.
    result = check_folder(cohort.sites[0], read_features())
    assert result.faults == ()
    assert result.verdict in ("pass", "warn")
    assert not set(concerns(result)) & {"patients", "labels", "events.parquet"}


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    tables = small_site(patients=30)
    before = to_plain(check(tables, tmp_path / "a"))
    tables.images = tables.images.sample(frac=1, random_state=1)
    tables.labels["detection"] = tables.labels["detection"].sample(frac=1, random_state=2)
    assert to_plain(check(tables, tmp_path / "b")) == before


def test_frames_of_one_file_are_not_repeated_content(tmp_path: Path) -> None:
    tables = small_site(patients=20)
    volume = tables.images.iloc[[0] * 6].assign(frame=range(1, 7), image_id=[f"f{n}" for n in range(6)], pair_id=None)
    tables.images = pd.concat([tables.images, volume])
    counts = scan_counts(read_tables(tables.write(tmp_path / "north")))
    assert [count.name for count in dict(counts.groups)["content"]] == ["once"]


def test_b_scans_of_a_volume_are_one_visit(tmp_path: Path) -> None:
    # Only the central B-scan has a partner; the visit of the eye is paired all the same.
    tables = small_site(patients=20)
    oct = tables.images[tables.images["modality"] == "OCT"]
    sides = [oct.assign(frame=n, image_id=oct["image_id"] + f"-{n}", pair_id=None) for n in (1, 2)]
    tables.images = pd.concat([tables.images, *sides])
    counts, _ = pairing_counts(read_tables(tables.write(tmp_path / "north")))
    assert counts.value == 20
    assert [(count.name, count.value) for count in dict(counts.groups)["pairing"]] == [("with infrared scan", 20)]


# Verdict


def test_a_good_site_passes_with_exit_code_0(tmp_path: Path) -> None:
    result = check(sixty_patients(), tmp_path / "north", images=True)
    assert (result.verdict, result.exit_code, result.concerns) == ("pass", 0, ())


def test_a_broken_contract_fails_with_exit_code_2(tmp_path: Path) -> None:
    tables = sixty_patients()
    tables.images.loc[3, "eye"] = "left"
    result = check(tables, tmp_path / "north")
    assert (result.verdict, result.exit_code) == ("fail", 2)
    assert "imaging/index.parquet: eye" in str(result.faults[0])


def test_tables_that_cannot_be_read_fail_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = sixty_patients().write(tmp_path / "north").path
    (folder / "events.parquet").write_bytes(b"nothing")
    (folder / "site.yaml").write_text("device: gpu")
    result = check_folder(folder, FEATURES)
    assert result.verdict == "fail"
    assert {fault.name.partition(":")[0] for fault in result.faults} >= {"site.yaml"}
    assert result.figures.scans.count == 120
    assert result.figures.events.count == 0
    write_check(folder, result)


def _unpaired(tables: Tables) -> str:
    tables.images.loc[tables.images.index[: len(tables.images) // 2], "pair_id"] = None
    return "visits of an eye with an OCT that have an infrared scan"


def _no_values(tables: Tables) -> str:
    tables.events = tables.events[tables.events["code"] != SYSTOLIC]
    return "feature systolic"


def _other_unit(tables: Tables) -> str:
    tables.events["numeric_value"] /= 7.5
    return "feature systolic"


def _few_outside(tables: Tables) -> str:
    rows = tables.events.index[tables.events["code"] == SYSTOLIC][:8]
    tables.events.loc[rows, "numeric_value"] = 999
    return "feature systolic"


def _two_patients_one_scan(tables: Tables) -> str:
    tables.images.loc[:19, "sha256"] = tables.images.loc[0, "sha256"]
    return "scans whose content another patient has too"


def _one_class(tables: Tables) -> str:
    tables.labels["detection"]["boolean_value"] = False
    return "task detection: cases with the outcome"


def _no_labels(tables: Tables) -> str:
    tables.labels = {}
    return "labels"


def _strangers(tables: Tables) -> str:
    tables.images["subject_id"] += 1000
    tables.labels = {}
    return "patients with scans who have records"


def _ancient(tables: Tables) -> str:
    tables.images.loc[:29, "acquired_at"] = pd.Timestamp("1900-01-01")
    return "years of scans"


def _unordered(tables: Tables) -> str:
    return "events.parquet"


@pytest.mark.parametrize(
    "spoil",
    [
        *(_unpaired, _no_values, _other_unit, _few_outside, _two_patients_one_scan),
        *(_one_class, _no_labels, _strangers, _ancient, _unordered),
    ],
)
def test_each_thing_to_look_at_is_told_with_rule_and_remedy(tmp_path: Path, spoil: Any) -> None:
    tables = sixty_patients()
    expected = spoil(tables)
    site = tables.write(tmp_path / "north")
    if spoil is _unordered:
        write_table(site.path / "events.parquet", site.events().iloc[::-1], EVENTS)
    result = check_folder(site.path, FEATURES)
    assert (result.verdict, result.exit_code, result.faults) == ("warn", 1, ())
    assert expected in concerns(result)
    assert len(result.concerns) <= 2
    assert all(each.value and each.rule and each.remedy for each in result.concerns)


def test_scans_that_cannot_be_read_fail_beyond_the_limit(tmp_path: Path) -> None:
    tables = sixty_patients()
    for file in list(tables.files)[:10]:
        tables.files[file] = b"nothing"
    folder = tables.write(tmp_path / "north").path
    assert check_folder(folder, FEATURES).verdict == "pass"  # nobody asked to read them
    assert check_folder(folder, FEATURES, images=True).verdict == "fail"
    (folder / "site.yaml").write_text("quarantine_limit: 0.2\n")
    assert check_folder(folder, FEATURES, images=True).verdict == "warn"


def test_progress_of_decoding_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    check(small_site(patients=3), tmp_path / "north", images=True, progress=lambda *done: told.append(done))
    assert told[-1] == (6, 6)


def test_a_site_without_images_or_without_records_passes(tmp_path: Path) -> None:
    assert check(small_site(patients=60, modalities=()), tmp_path / "records").verdict == "pass"
    tables = sixty_patients()
    tables.events, tables.labels = make_events([]), {}
    result = check(tables, tmp_path / "scans")
    assert {name.partition(" ")[0] for name in concerns(result)} == {"feature", "labels"}


def test_quarantine_at_import_is_told(tmp_path: Path) -> None:
    folder = sixty_patients().write(tmp_path / "north").path
    _journal(folder, {IMPORTED: 90, QUARANTINED: 9, SKIPPED: 40})
    result = check_folder(folder, FEATURES)
    assert result.figures.imports == (Shares("dicom", {QUARANTINED: "5 to 20 %", SKIPPED: "over 20 %"}),)
    assert "files quarantined at import" in concerns(result)
    assert result.figures.left_out == (
        Shares("dicom: quarantined", {"is damaged": "5 to 20 %"}),
        Shares("dicom: skipped", {"is damaged": "over 20 %"}),
    )


def test_quarantine_of_records_is_told_by_files_and_by_rows(tmp_path: Path) -> None:
    row = ("p1", pd.Timestamp("2020-01-01"), "ICD10//I10", np.nan, "")
    rows = pd.DataFrame([row] * 200, columns=list(RECORDS))
    damaged = LeftOut(QUARANTINED, "a .json file that is damaged", 6)
    site = _imported(tmp_path / "files", rows, damaged, FilesRead(9, 6))
    (files,) = [each for each in check_folder(site, FEATURES).concerns if "quarantined" in each.name]
    assert (files.name, files.value) == ("files of records quarantined at import", "more than 5%")
    assert "import" in files.remedy
    wrong = LeftOut(QUARANTINED, "a value that is not a number", 20, "column rr")
    site = _imported(tmp_path / "rows", rows, wrong, LeftOut(SKIPPED, "a row without a label", 900))
    assert [name for name in concerns(check_folder(site, FEATURES)) if "quarantined" in name] == [
        "rows of records quarantined at import"
    ]
    (site / "site.yaml").write_text("quarantine_limit: 0.1\n")
    assert not any("quarantined" in name for name in concerns(check_folder(site, FEATURES)))


def _imported(folder: Path, *tables: Any) -> Path:
    """A site folder with one import of records."""
    folder.mkdir(parents=True)
    (folder / "dataset.yaml").write_text("site: north\n")
    import_records(
        folder, "csv", Path("/exports/a"), tables, read_vocabulary(), Pseudonyms(b"k" * 32), today=date(2024, 6, 1)
    )
    return folder


def test_no_text_of_an_export_or_a_mapping_is_in_either_file(tmp_path: Path) -> None:
    patients = [f"p{n}" for n in range(9)]
    for name in ("doe_jane", "stroke"):
        rows = pd.DataFrame(
            [(who, "x", "maybe", name) for who in patients], columns=["who", "doe_value", "code", "said"]
        )
        rows.loc[0, "said"] = "yes"
        csv, mapping = tmp_path / f"{name}.csv", tmp_path / f"{name}.yaml"
        rows.assign(day="2020-01-01", sex="f").to_csv(csv, index=False)
        mapping.write_text(
            "patient: [who]\ntime: {columns: [day], format: '%Y-%m-%d'}\n"
            "columns: {sex: {values: {f: SEX//F}}, doe_value: {code: LOINC//8480-6, unit: mmHg},"
            " code: {values: {known: ICD10//I10}}}\n"
            f"labels: {{{name}: {{column: said, values: {{'yes': true}}, horizon_days: 30}}}}\n"
        )
        site = tmp_path / f"site-{name}"
        _imported(site, *read_table(csv, read_mapping(mapping)))
        write_check(site, check_folder(site, FEATURES), date(2026, 1, 2))
        data = json.loads((site / JSON).read_text())
        reasons = {reason for each in data["figures"]["left_out"] for reason in each["reason"]}
        assert {"a value that is not a number", "a value that the mapping does not name"} <= reasons
        assert "a row without a label" in reasons
        for file in (HTML, JSON):
            text = (site / file).read_text()
            assert all(secret not in text for secret in ("doe_value", "doe_jane", "column ", "task stroke"))


def test_equal_reasons_about_different_things_are_added_up(tmp_path: Path) -> None:
    rows = pd.DataFrame([("p1", pd.NaT, "SEX//F", np.nan, "")] * 90, columns=list(RECORDS))
    parts = [LeftOut(QUARANTINED, "is none", 4, f"column {name}") for name in "abc"]
    (one,) = [
        each
        for each in check_folder(_imported(tmp_path / "a", rows, *parts), FEATURES).figures.left_out
        if each.name == "records: quarantined"
    ]
    assert one.parts == {"is none": "5 to 20 %"}


@pytest.mark.parametrize("patients", [1, 4, 5, 24])
def test_rows_of_a_vocabulary_are_told_when_they_belong_to_enough_patients(tmp_path: Path, patients: int) -> None:
    def rows(code: str, patients: int) -> list[tuple[Any, ...]]:
        return [(f"p{n % patients}", pd.Timestamp(2020, 1, 1 + n), code, np.nan, "") for n in range(24)]

    frame = pd.DataFrame([*rows("ICD9//401.9", patients), *rows("ICD10//I10", 12)], columns=list(RECORDS))
    figures = check_folder(_imported(tmp_path / "a", frame), FEATURES).figures
    told = {cell.name: cell.count for cell in figures.vocabularies}
    # Of few patients neither the count is told nor the other one, which is all rows but these.
    assert told == ({"ICD9": 24, "ICD10": 24} if patients >= 5 else {"ICD9": "<5", "ICD10": WITHHELD})


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_band_holds_its_share(part: int, rest: int) -> None:
    share = part / (part + rest)
    bounds = {"none": (0, 0), "under 1 %": (0, 0.01), "1 to 5 %": (0.01, 0.05), "5 to 20 %": (0.05, 0.2)}
    low, high = bounds.get(band(share), (0.2, 1))
    assert low <= share <= high


def _journal(folder: Path, outcomes: dict[str, int], rare: str = "is damaged", kind: str = "dicom") -> None:
    with open_journal(folder) as journal:
        for outcome, count in outcomes.items():
            for number in range(count):
                left_out = () if outcome == IMPORTED else (LeftOut(outcome, rare if number < 3 else "is damaged"),)
                name, scans = f"{NAMES[0]}/{outcome}-{number}.dcm", int(outcome == IMPORTED)
                entry = Entry(kind, f"/exports/{NAMES[1]}", name, ((1, 2),), "f", outcome, left_out, scans)
                journal.put_entry(entry)
        journal.commit()


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="must be a site folder"):
        check_folder(tmp_path / "nowhere", FEATURES)
    assert list(tmp_path.iterdir()) == []


INDEX, EVENT_TABLE = "imaging/index.parquet", "events.parquet"
FILES = (INDEX, EVENT_TABLE, "dataset.yaml", "labels/detection.parquet", "subject_splits.parquet")


@settings(max_examples=8, phases=[Phase.generate])  # each takes a while: a failure is not made smaller
@given(st.data())
def test_no_folder_however_broken_stops_the_check(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        site = few_patients().write(Path(scratch) / "north")
        columns = [(site.images(), IMAGES, INDEX), (site.events(), EVENTS, EVENT_TABLE)]
        for frame, schema, file in columns:
            for name in data.draw(st.lists(st.sampled_from(schema.names), max_size=3)):
                rows = data.draw(st.sampled_from([slice(None), slice(0, 3), slice(5, 9)]))
                frame[name] = frame[name].astype(object)
                frame.iloc[rows, frame.columns.get_loc(name)] = None
            write_table(site.path / file, frame, schema)
        for file in data.draw(st.lists(st.sampled_from(FILES), max_size=2)):
            content = data.draw(st.sampled_from([b"", b"PAR1", b"\xff\xfe[", b"[1]"]))
            (site.path / file).write_bytes(content)
        result = check_folder(site.path, FEATURES, images=True, thumbnails=True)
        page, file = write_check(site.path, result, date(2026, 1, 2))
        assert result.verdict in page.read_text()
        for cell in cells(json.loads(file.read_text())["figures"]):
            assert isinstance(cell["count"], str) or cell["count"] == 0 or cell["count"] >= 5


# Nothing of a patient


def _planted(folder: Path) -> Path:
    """A site with a patient's name, number and birth date in every place that an export fills."""
    tables = sixty_patients()
    name, number, day, digits = NAMES
    for place, image in enumerate(tables.images.index[:8]):  # eight scans of four patients
        path = f"{name}/{number}-{day}-{place}.png"
        tables.files[path] = tables.files.pop(tables.images.loc[image, "path"])
        tables.images.loc[image, ["path", "image_id", "device"]] = [path, f"{name}-{place}", f"Spectralis of {name}"]
    tables.images.loc[tables.images.index[:4], "pair_id"] = [f"{number}-{n // 2}" for n in range(4)]
    rows = [(1, day, f"LOCAL//{name}", None), (1, day, f"{number}//x", 1.0)] * 10
    tables.events = pd.concat([tables.events, make_events(rows)])
    tables.events["text_value"] = f"{name}, born {day}"
    tables.labels[f"{name}_{digits}"] = make_labels([(subject, VISIT, True) for subject in range(1, 40)])
    tables.labels["doe_jane"] = make_labels([(1, VISIT, True)])
    folder = tables.write(folder).path
    (folder / "site.yaml").write_text(f"# {name}, {number}\nsmallest_cell: 5\n")
    write_table(folder / "subject_splits.parquet", pd.DataFrame({"subject_id": [1], "split": [name]}), SUBJECT_SPLITS)
    _journal(folder, {IMPORTED: 9, QUARANTINED: 30}, rare=f"belongs to {name}")
    return folder


@pytest.mark.parametrize("broken", [False, True])
def test_identifiers_that_are_planted_everywhere_are_in_neither_file(tmp_path: Path, broken: bool) -> None:
    folder = _planted(tmp_path / "north")
    if broken:
        site = SiteFolder(folder)
        images = site.images()
        images["eye"], images["modality"] = NAMES[0], NAMES[1]
        images["path"] = [f"{NAMES[0]}/{n}.png" for n in range(len(images))]
        write_table(folder / "imaging" / "index.parquet", images, IMAGES)
        (folder / "dataset.yaml").write_text(f"site: north\nextracted_at: '{NAMES[2]}'\n")
        labels = site.labels("detection").assign(subject_id=10**12)
        write_table(folder / "labels" / f"{NAMES[0]}.parquet", labels, LABELS)
    result = check_folder(folder, FEATURES, images=True)
    write_check(folder, result, date(2026, 1, 2))
    assert len(result.faults) > (3 if broken else 0)  # the split of that name
    for file in (HTML, JSON):
        text = (folder / file).read_text()
        for secret in (*NAMES, "doe_jane", "Doe", "image-", ".png", str(tmp_path), "LOCAL", "text_value", "born"):
            assert secret not in text, (file, secret)
        for _, sha256 in zip(range(5), SiteFolder(folder).images()["sha256"], strict=False):
            assert sha256[:12] not in text
    assert not re.search(r"\d{4}-\d\d-\d\d|\d{6,}", (folder / JSON).read_text())


def test_thumbnails_are_on_the_page_only_when_asked_for_and_never_in_the_json(tmp_path: Path) -> None:
    folder = small_site(patients=8).write(tmp_path / "north").path
    texts = {}
    for asked in (False, True):
        page, data = write_check(folder, check_folder(folder, FEATURES, thumbnails=asked), date(2026, 1, 2))
        texts[asked] = page.read_text()
        assert "data:image" not in data.read_text()
    assert "data:image" not in texts[False].replace("img-src data:", "")
    assert texts[True].count("data:image/png;base64,") == 12
    assert "must not leave the hospital" in texts[True]
    assert "must not leave the hospital" not in texts[False]


def test_a_path_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    tables = small_site(patients=8)
    outside = tables.images.loc[0, "path"]
    site = tables.write(tmp_path / "north")
    secret = tmp_path / "secret.png"
    (site.image_files / outside).rename(secret)
    images = site.images()
    images.loc[0, "path"] = "../../../secret.png"
    write_table(site.path / "imaging" / "index.parquet", images, IMAGES)
    result = check_folder(site.path, FEATURES, images=True, thumbnails=True)
    assert result.verdict == "fail"
    assert len(result.thumbnails) == 12 - 1


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    folder = small_site(patients=8).write(tmp_path / "north").path
    text = write_check(folder, check_folder(folder, FEATURES), date(2026, 1, 2))[0].read_text()
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text
    assert "2 January 2026" in text


def test_a_name_with_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    folder = small_site("<b>north</b>", patients=8).write(tmp_path / "north").path
    text = write_check(folder, check_folder(folder, FEATURES), date(2026, 1, 2))[0].read_text()
    assert "<b>north" not in text
    assert "&lt;b&gt;north" in text


# Small counts


def test_no_small_count_is_in_the_json_of_any_site(tmp_path: Path, cohort: Built) -> None:
    for folder in cohort.sites:
        data = json.loads(json.dumps(to_plain(check_folder(folder, images=True))))
        for cell in cells(data["figures"]):
            assert isinstance(cell["count"], str) or cell["count"] == 0 or cell["count"] >= 5
            assert cell["count"] in ("<5", WITHHELD) or isinstance(cell["count"], int)


def test_no_hidden_count_of_the_json_can_be_reckoned_from_a_total(tmp_path: Path, cohort: Built) -> None:
    # Each partition: either all is shown, or two are hidden, or the hidden rest is large enough for any small count.
    seen = 0
    for folder in cohort.sites:
        for cell in cells(to_plain(check_folder(folder, images=True))["figures"]):
            for group in cell.get("by", {}).values():
                hidden = [child["count"] for child in group if isinstance(child["count"], str)]
                rest = cell["count"] - sum(child["count"] for child in group if isinstance(child["count"], int))
                seen += len(hidden)
                assert not hidden or len(hidden) >= 2
                small, withheld = hidden.count("<5"), hidden.count(WITHHELD)
                assert not hidden or rest - (small - 1) - 5 * withheld >= 5
                assert rest == 0 or hidden
    assert seen


@settings(max_examples=25)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_few_unpaired_scans_cannot_be_reckoned_from_both_totals(paired: int, oct_only: int, ir_only: int) -> None:
    kinds = [("OCT", "IR")] * paired + [("OCT",)] * oct_only + [("IR",)] * ir_only
    rows = [
        (subject, "R", VISIT, modality, f"pair-{subject}" if len(modalities) > 1 else None)
        for subject, modalities in enumerate(kinds)
        for modality in modalities
    ]
    images = pd.DataFrame(rows, columns=["subject_id", "eye", "acquired_at", "modality", "pair_id"])
    counts, at_least = pairing_counts(_only(images))
    cell = shown(counts, 5)
    pairs = {child.name: child.count for child in cell.group("pairing")}
    if 0 < ir_only < 5:
        assert not pairs  # the number of pairs, taken from that of infrared scans, would tell
        assert at_least is None or at_least * (paired + oct_only) <= paired
    assert not any(isinstance(count, int) and 0 < count < 5 for count in pairs.values())


def _only(images: pd.DataFrame) -> ReadTables:
    nothing = pd.DataFrame()
    return ReadTables(SiteSettings(), Dataset(site="north"), nothing, images, {}, nothing)


def test_a_device_is_named_by_enough_patients_not_by_enough_scans() -> None:
    rows = pd.DataFrame({"subject_id": [*[1] * 30, *range(2, 9)], "device": [*["Doe^Jane"] * 30, *["A"] * 7]})
    assert set(without_rare(rows, "device", 5)["device"]) == {"other", "A"}


def test_a_larger_smallest_cell_hides_more(tmp_path: Path) -> None:
    folder = small_site(patients=20).write(tmp_path / "north").path
    (folder / "site.yaml").write_text("smallest_cell: 15\n")
    result = check_folder(folder, FEATURES)
    (task,) = result.figures.tasks
    assert (task.count, task.groups) == (20, ())  # ten and ten
    assert result.figures.features[3].coverage == Cell("patients", 20)  # of ten men
    assert "fewer than 15 patients" in write_check(folder, result)[0].read_text()
    assert result.figures.features[1].quantiles == {}


def _answers(question: str, **patients: Sequence[int]) -> dict[str, Any]:
    """With how many of 34 patients each code of a question is shown."""
    rows = [(subject, f"{question}//{code}") for code, subjects in patients.items() for subject in subjects]
    rows += [(subject, "VISIT") for subject in range(34)]
    events = pd.DataFrame(rows, columns=["subject_id", "code"]).assign(time=pd.Timestamp("2020-01-01"))
    codes = tuple(CodeFeature(name=code, codes=(f"{question}//{code}",)) for code in patients)
    nothing = pd.DataFrame(columns=["subject_id", "acquired_at"])
    tables = ReadTables(SiteSettings(), Dataset(site="north"), events, nothing, {}, nothing)
    figures = feature_figures(tables, Features(age=False, numeric=(), codes=codes))
    return {figure.name: figure.coverage.find("value", "with a value") for figure in figures}


def test_a_rare_answer_cannot_be_reckoned_from_the_others() -> None:
    alert, drowsy = range(20), range(20, 28)
    assert _answers("IST//RCONSC", F=alert, D=drowsy, U=range(28, 34)) == {"F": 20, "D": 8, "U": 6}
    assert _answers("IST//RCONSC", F=alert, D=range(20, 32), U=[32, 33]) == {"F": "*", "D": 12, "U": "<5"}
    # Few patients without an answer are as telling.
    assert _answers("IST//RCONSC", F=alert, D=range(20, 32)) == {"F": "*", "D": 12}


def test_codes_that_a_patient_can_have_together_are_no_answers_to_one_question() -> None:
    alert, drowsy = range(20), range(19, 32)
    assert _answers("IST//RCONSC", F=alert, D=drowsy, U=[32, 33])["F"] == 20
    assert _answers("ICD10", I10=alert, E11=range(20, 32), I48=[32, 33])["I10"] == 20  # a vocabulary


# Counting


@given(st.lists(st.floats(-1e6, 1e6), max_size=120), st.integers(3, 20))
def test_a_quantile_is_told_where_enough_patients_lie_beyond(values: list[float], smallest: int) -> None:
    told = quantiles(pd.Series(values, dtype=float), smallest)
    assert ("median" in told) == (len(values) >= 2 * smallest)
    for at, name in ((0.05, "p5"), (0.25, "p25"), (0.75, "p75"), (0.95, "p95")):
        assert (name in told) == (min(at, 1 - at) * len(values) >= smallest)
    assert list(told.values()) == sorted(told.values())


def test_missing_values_are_no_patients() -> None:
    assert quantiles(pd.Series([1.0] * 9 + [np.nan] * 90), 5) == {}


@given(st.lists(st.integers(1, 100), max_size=60))
def test_bins_hold_everybody_once(values: list[int]) -> None:
    bins = binned(pd.Series(values, dtype="int64"), (1, 3, 5, 9, 17, 33))
    assert sum(count.value for count in bins) == len(values)


def test_nested_counts_add_up_at_every_level() -> None:
    random = np.random.default_rng(0)
    rows = pd.DataFrame({name: random.integers(0, 4, 300) for name in ("subject_id", "a", "b", "c")})
    top = nested(rows, "a", "b", "c")
    assert sum(count.value for count in top) == 300
    for count in top:
        assert sum(child.value for child in dict(count.groups)["b"]) == count.value


# Files


def test_the_same_folder_gives_the_same_files_and_nothing_else_changes(tmp_path: Path) -> None:
    folder = sixty_patients().write(tmp_path / "north").path
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for _ in range(2):
        write_check(folder, check_folder(folder, FEATURES, images=True), date(2026, 1, 2))
        written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert {path: written[path] for path in before} == before
        assert {path.name for path in set(written) - set(before)} == {HTML, JSON}
    assert check_folder(folder, FEATURES).verdict == "pass"  # the files are no fault of the contract


def test_the_feature_list_of_the_study_is_read_from_its_preset(tmp_path: Path) -> None:
    assert "systolic_pressure" in [feature.name for feature in read_features().numeric]
    file = tmp_path / "features.yaml"
    file.write_text("age: false\ncodes:\n  - {name: diabetes, codes: [ICD10//E11]}\n")
    assert isinstance(read_features(file), Features)
    for text in ("[1]", "a: [", "ages: true", "\x00"):
        file.write_text(text)
        with pytest.raises(ConfigError):
            read_features(file)
    with pytest.raises(ConfigError):
        read_features(tmp_path / "absent.yaml")


def test_the_terminal_is_told_every_fault_and_how_it_ends(tmp_path: Path) -> None:
    tables = sixty_patients()
    tables.images.loc[3, "eye"] = "left"
    told = lines(check(tables, tmp_path / "north"))
    remedy = "Write the others as one of these, or leave their rows out."
    assert told[0] == f"fault: imaging/index.parquet: eye must be one of R, L, got 'left'. {remedy}"
    assert told[-1] == "north: 60 patients, 120 scans, 200 events: fail"
