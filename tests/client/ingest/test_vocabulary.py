"""Is every way to write a code led to the study's, and nothing else taken for it?"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.feature_list import read_features
from client.ingest.coverage import STROKE_CODES, is_readable, names, wanted_codes
from client.ingest.export import BIRTH, DEATH, OBSERVED_FROM, ExportError
from client.ingest.vocabulary import (
    UNSECURED,
    Vocabulary,
    is_code,
    normal_code,
    read_vocabulary,
    targets_of,
)

SHIPPED = read_vocabulary()
WANTED = wanted_codes(read_features())


def leads_to(code: str, vocabulary: Vocabulary = SHIPPED) -> tuple[str, ...] | None:
    return targets_of(vocabulary, normal_code(code))


def own(folder: Path, text: str) -> Vocabulary:
    file = folder / "codes.csv"
    file.write_text(text, encoding="utf-8")
    return read_vocabulary(file)


@pytest.mark.parametrize(
    ("written", "code"),
    [
        *[(text, "ICD10//I63.9") for text in ("ICD10//I63.9", "icd10//i639", "ICD-10-CM//I63.9", "ICD10GM//I63.9-")],
        *[(text, "ICD10//I63.9") for text in ("ICD10GM//I63.9G", "ICD10//I63.9 G", "icd10cm//I639", "ICD 10//I63.9*")],
        *[("ICD10//I10", "ICD10//I10"), ("ICD10//I10.-", "ICD10//I10"), ("ICD10GM//I10.90", "ICD10//I10.90")],
        *[("ICD10CM//E11.37X1", "ICD10//E11.37X1"), ("ICD10CM//E11.A", "ICD10//E11.A")],
        *[("ICD9CM//43491", "ICD9//434.91"), ("icd-9//V1254", "ICD9//V12.54"), ("ICD9//430", "ICD9//430")],
        *[("SNOMED CT//44054006", "SNOMED//44054006"), ("SNOMEDCT_US//44054006", "SNOMED//44054006")],
        *[("LOINC//8480-6", "LOINC//8480-6"), ("LNC//8480-6", "LOINC//8480-6"), ("Gender//m", "GENDER//M")],
        *[("Local//a b", "Local//a b"), (BIRTH, BIRTH), (OBSERVED_FROM, OBSERVED_FROM)],
        ("ONSET//icd10//i639", "ONSET//ICD10//I63.9"),
    ],
)
def test_one_spelling(written: str, code: str) -> None:
    assert normal_code(written) == code
    assert code == "ICD10//E11.A" or normal_code(code) == code  # which outside of ICD-10-CM is an excluded diagnosis


@pytest.mark.parametrize("code", ["I63.9V", "I63.9 A", "I63.9Z", "I63V"])
def test_a_suspected_or_excluded_stroke_is_none(code: str) -> None:
    """German outpatient records put V (suspected), A (excluded) or Z (state after) behind a code."""
    for vocabulary in ("ICD10", "ICD10GM"):
        found = normal_code(f"{vocabulary}//{code}")
        assert found.startswith(UNSECURED)
        assert not names(STROKE_CODES, found)
        assert not is_readable(found, WANTED)


@given(st.text(max_size=60), st.sampled_from(["ICD10", "ICD9", "SNOMED", "LOINC", "SEX", "X", ""]))
def test_free_text_is_no_code(text: str, vocabulary: str) -> None:
    code = normal_code(f"{vocabulary}//{text}")
    if is_code(code):
        assert not any(letter.isspace() or letter < " " for letter in code)
        assert len(code) < 500
        assert normal_code(code) == code


@pytest.mark.parametrize(
    ("code", "target"),
    [
        *[("SNOMED//38341003", "ICD10//I10"), ("SNOMED//59621000", "ICD10//I10"), ("ICD9//401.9", "ICD10//I10")],
        *[("SNOMED//44054006", "ICD10//E11"), ("ICD9//250.00", "ICD10//E11"), ("ICD9//250.01", "ICD10//E10")],
        *[("SNOMED//49436004", "ICD10//I48"), ("ICD9//427.31", "ICD10//I48"), ("OMOP//313217", "ICD10//I48")],
        *[("SNOMED//55822004", "ICD10//E78"), ("ICD9//272.4", "ICD10//E78"), ("SNOMED//53741008", "ICD10//I25")],
        *[("ICD9//414.01", "ICD10//I25"), ("SNOMED//709044004", "ICD10//N18"), ("ICD9//585.6", "ICD10//N18")],
        *[("SNOMED//230690007", "ICD10//I64"), ("SNOMED//422504002", "ICD10//I63"), ("ICD9//436", "ICD10//I64")],
        *[("SNOMED//432504007", "ICD10//I63"), ("SNOMED//274100004", "ICD10//I61"), ("SNOMED//21454007", "ICD10//I60")],
        *[("SNOMED//266257000", "ICD10//G45"), ("ICD9//435.9", "ICD10//G45"), ("ICD9//430", "ICD10//I60")],
        *[("ICD9//434.91", "ICD10//I63"), ("ICD9//433.11", "ICD10//I63"), ("ICD9//434.90", "ICD10//I66")],
        *[("ICD9//433.10", "ICD10//I65"), ("ICD9//438.20", "ICD10//I69"), ("ICD9//V12.54", "ICD10//Z86.73")],
        *[("LOINC//8459-0", "LOINC//8480-6"), ("LOINC//17856-6", "LOINC//4548-4"), ("LOINC//59261-8", "LOINC//4548-4")],
        *[("OMOP//8507", "SEX//M"), ("Gender//F", "SEX//F"), ("FHIR//male", "SEX//M"), ("SEX//female", "SEX//F")],
        *[("LOINC//72166-2//LA15920-4", "LOINC//72166-2//former"), ("SNOMED//449868002", "LOINC//72166-2//current")],
        *[("LOINC//72166-2//266919005", "LOINC//72166-2//never"), ("ONSET//SNOMED//230690007", "ONSET//ICD10//I64")],
    ],
)
def test_shipped_tables(code: str, target: str) -> None:
    assert leads_to(code) == (target,)


@pytest.mark.parametrize("code", ["ICD9//434.9", "ICD9//433", "ICD9//250", "ICD9//250.0", "SNOMED//1", "LOINC//2093-3"])
def test_what_does_not_say_enough_is_not_mapped(code: str) -> None:
    assert leads_to(code) is None


def test_every_shipped_row_leads_to_a_code_that_can_be() -> None:
    assert len(SHIPPED.targets) > 200
    for source, targets in SHIPPED.targets.items():
        assert is_code(source)
        assert targets
        for target in targets:
            assert is_code(target)
            assert target not in SHIPPED.targets, "a second step would be needed"


def test_every_diagnosis_of_the_study_and_every_stroke_is_reached_from_icd9_and_snomed() -> None:
    diagnoses = [codes for codes in WANTED.values() if codes[0].startswith("ICD10//") and len(codes) == 1]
    for codes in [*diagnoses, *((code,) for code in STROKE_CODES)]:
        for vocabulary in ("ICD9//", "SNOMED//"):
            sources = [source for source in SHIPPED.targets if source.startswith(vocabulary)]
            targets = [target for source in sources for target in SHIPPED.targets[source]]
            assert any(names(codes, target) for target in targets), (codes, vocabulary)


def test_the_sites_own_table_wins(tmp_path: Path) -> None:
    text = (
        "# ours\nsource_code,target_code,comment\nLAB//RR sys,LOINC//8480-6,\nSNOMED CT//38341003,ICD10//I15,\n"
        "LOCAL//both,icd10//i10,\nLOCAL//both,ICD10//E11,\nLOCAL//nothing,,not wanted\n"
    )
    vocabulary = own(tmp_path, text)
    assert leads_to("LAB//RR sys", vocabulary) == ("LOINC//8480-6",)
    assert leads_to("SNOMED//38341003", vocabulary) == ("ICD10//I15",)
    assert leads_to("LOCAL//both", vocabulary) == ("ICD10//I10", "ICD10//E11")
    assert leads_to("LOCAL//nothing", vocabulary) == ()
    assert leads_to("SNOMED//49436004", vocabulary) == ("ICD10//I48",)


def test_the_digest_names_the_mapping_and_not_its_file(tmp_path: Path) -> None:
    header, rows = "source_code,target_code,comment\n", ["A//1,ICD10//I10,x\n", "A//2,ICD10//E11,y\n"]
    digest = own(tmp_path, header + "".join(rows)).digest
    assert own(tmp_path, header + rows[1] + "# remark\n" + rows[0].replace(",x", ",z")).digest == digest
    assert own(tmp_path, header + rows[0]).digest != digest
    assert own(tmp_path, header).digest == SHIPPED.digest == read_vocabulary().digest


@pytest.mark.parametrize(
    "text",
    [
        *["", "a,b\n", "source_code;target_code\n", "source_code,target_code\nx,ICD10//I10\n", "\0\0\0"],
        *["source_code,target_code\nA//1,free text of somebody\n", "source_code,target_code\nA//1\n"],
        *['source_code,target_code\n"A//1,ICD10//I10\n', "source_code,target_code\nA//1,ICD10//nonsense\n"],
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    if text == "source_code,target_code\nA//1\n":
        text += ",\n"
    with pytest.raises(ExportError) as caught:
        own(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "somebody" not in str(caught.value)


def test_a_table_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "codes.csv").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "codes.csv", tmp_path / "absent.csv", tmp_path):
        with pytest.raises(ExportError):
            read_vocabulary(file)


def test_death_and_birth_are_codes() -> None:
    assert is_code(BIRTH)
    assert is_code(DEATH)
    assert not is_code("anything else")
