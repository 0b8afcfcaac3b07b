"""Does the README's walk of a hospital work on real exports, from the first command to a trained model?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.ingest.pseudonyms import KEY
from shared.keys import write_secret
from tests.e2e.commands import fedretina

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
IST, OMOP, FHIR = DATA / "ist" / "IST.csv", DATA / "omop" / "Synthea27Nj_5.4.zip", DATA / "fhir"
SEED = 3


def done(folder: Path, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """What a command says that ends as it should."""
    result = fedretina(folder, *arguments)
    assert result.returncode in codes, (arguments, result.returncode, result.stdout, result.stderr)
    return result.stdout


def made(folder: Path, name: str) -> None:
    """A new site, with a known key of its pseudonyms: which patients train does not depend on chance."""
    done(folder, "site", "init", name)
    write_secret(folder / name / KEY, name.encode().ljust(32, b"."))


def trained(folder: Path, *settings: str) -> dict[str, object]:
    """The summary of a two-site study."""
    done(folder, "simulate", "cohort=folders", "cohort.folders=[north,south]", "run.dir=run", *settings)
    summary: dict[str, object] = json.loads((folder / "run" / "summary.json").read_text())
    assert [site["fault"] for site in summary["sites"]] == [None, None]  # type: ignore[attr-defined]
    return summary


@pytest.mark.skipif(not IST.exists(), reason="needs the trial's file in ../shared/data/ist")
def test_two_hospitals_of_the_stroke_trial_import_check_and_train(tmp_path: Path) -> None:
    for name, number in (("north", "39"), ("south", "121")):
        made(tmp_path, name)
        row = f"HOSPNUM={number}"
        command = ["site", "import", "csv", str(IST), "--site", name, "--mapping", "ist", "--where", row]
        assert "labels outcome" in done(tmp_path, *command, "--features", "ist")
        before = (tmp_path / name / "events.parquet").read_bytes()
        done(tmp_path, *command, "--features", "ist")
        assert (tmp_path / name / "events.parquet").read_bytes() == before
        done(tmp_path, "site", "check", name, "--features", "ist", codes=(0, 1))
        assert json.loads((tmp_path / name / "check.json").read_text())["faults"] == []
    summary = trained(tmp_path, "experiment=ist", "finetune.rounds=3")
    assert summary["arms"]["federated"]["clinical"]["auroc"] > 0.6  # type: ignore[index]


@pytest.mark.skipif(not (OMOP.exists() and FHIR.exists()), reason="needs the samples in ../shared/data/omop and fhir")
def test_hospitals_with_omop_and_fhir_import_label_check_and_train(tmp_path: Path) -> None:
    for name, kind, export in (("north", "omop", OMOP), ("south", "fhir", FHIR)):
        made(tmp_path, name)
        said = done(tmp_path, "site", "import", kind, str(export), "--site", name)
        assert "systolic_pressure" in said
        assert "positive" in done(tmp_path, "site", "label", "--task", "stroke_detection_records", "--site", name)
        done(tmp_path, "site", "check", name, codes=(0, 1))
        assert json.loads((tmp_path / name / "check.json").read_text())["faults"] == []
    settings = ["modalities=[clinical]", "pretrain.rounds=0", "finetune.rounds=2", "task.horizon_days=3650"]
    # One patient of the OMOP sample had a stroke: of this seed, that one trains.
    summary = trained(tmp_path, *settings, "splits={train: 0.7, tuning: 0.1, held_out: 0.2}", f"seed={SEED}")
    assert [site["labelled"] > 0 for site in summary["sites"]] == [True, True]  # type: ignore[attr-defined]
