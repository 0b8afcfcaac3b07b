"""Does the report count right, and never a few?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from client.feature_list import read_features
from client.ingest.coverage import (
    Coverage,
    FeatureCoverage,
    count_codes,
    coverage_dict,
    coverage_lines,
    is_readable,
    merged,
    wanted_codes,
)
from client.ingest.export import BIRTH

WANTED = wanted_codes(read_features())
CODES = st.sampled_from(["LOCAL//rare-a", "LOCAL//rare-b", "SNOMED//1", "ICD10//I10"])
COUNTED = st.dictionaries(st.tuples(CODES, st.booleans()), st.integers(1, 12), max_size=8)
COUNTS = st.builds(FeatureCoverage, *[st.integers(0, 9)] * 4)
COVERAGES = st.builds(
    lambda counted, patients, unmapped, features: replace(
        count_codes(counted, patients), unmapped=unmapped, features=features
    ),
    COUNTED,
    st.dictionaries(st.tuples(st.sampled_from(["LOCAL", "SNOMED", "ICD10"]), st.booleans()), st.integers(1, 12)),
    st.dictionaries(CODES, st.integers(1, 12)),
    st.dictionaries(st.sampled_from(["age", "hba1c"]), COUNTS),
)


def numbers(data: Any) -> Iterator[int]:
    if isinstance(data, dict):
        for value in data.values():
            yield from numbers(value)
    elif isinstance(data, int):
        yield data


@given(COVERAGES)
def test_no_small_count_and_no_rare_code_is_shown(coverage: Coverage) -> None:
    data = coverage_dict(coverage)
    assert not set(numbers(data)) & {1, 2, 3, 4}
    lines = coverage_lines(coverage)
    for code, count in coverage.unmapped.items():
        assert (code in data["unmapped"]) == (f"  {code}: {count} patients" in lines) == (count >= 5)
    assert set(data["vocabularies"]) == {name for name, (total, _) in coverage.rows.items() if total >= 5}
    assert json.loads(json.dumps(data)) == data


@given(COVERAGES)
def test_no_small_rest_can_be_told_from_two_counts(coverage: Coverage) -> None:
    for table in coverage_dict(coverage)["vocabularies"].values():
        for name in ("rows", "codes"):
            whole, part = table[name], table[f"{name}_readable"]
            if isinstance(whole, int) and isinstance(part, int):
                assert whole - part not in {1, 2, 3, 4}


@given(COUNTED)
def test_rows_add_up(counted: dict[tuple[str, bool], int]) -> None:
    coverage = count_codes(counted, {})
    assert sum(total for total, _ in coverage.rows.values()) == sum(counted.values())
    readable = sum(count for (_, mapped), count in counted.items() if mapped)
    assert sum(mapped for _, mapped in coverage.rows.values()) == readable


@given(COVERAGES, COVERAGES, COVERAGES)
def test_merging_is_associative_and_its_order_does_not_matter(one: Coverage, two: Coverage, three: Coverage) -> None:
    assert merged([merged([one, two]), three]) == merged([one, merged([two, three])]) == merged([three, one, two])


@given(COVERAGES, COVERAGES)
def test_patients_of_several_imports_are_at_least_those_of_each(one: Coverage, two: Coverage) -> None:
    both = merged([one, two]).patients
    for coverage in (one, two):
        for vocabulary, patients in coverage.patients.items():
            assert all(all_of_it >= some for all_of_it, some in zip(both[vocabulary], patients, strict=True))


def test_the_most_frequent_is_listed_first_and_the_list_ends() -> None:
    coverage = Coverage(unmapped={f"LOCAL//{number}": number + 5 for number in range(100)})
    data = coverage_dict(coverage)
    assert list(data["unmapped"])[:2] == ["LOCAL//99", "LOCAL//98"]
    assert len(data["unmapped"]) + data["unmapped_not_listed"] == 100
    assert "  and 70 further codes" in coverage_lines(coverage)


def test_what_the_study_reads() -> None:
    for code in ("ICD10//J45", "ICD10//I63.9", "ONSET//ICD10//I63", "LOINC//8480-6", "SEX//F", BIRTH):
        assert is_readable(code, WANTED)
    for code in ("SNOMED//44054006", "LOINC//2093-3", "LOCAL//1", "ICD9//401", "ICD10-UNSECURED//I63.9V"):
        assert not is_readable(code, WANTED)
