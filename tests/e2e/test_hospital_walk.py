"""Does the README's walk of a hospital work on real exports, from the first command to a trained model?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from client.ingest.pseudonyms import KEY
from shared.keys import write_secret
from tests.e2e.commands import fedretina

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
IST, OMOP, FHIR = DATA / "ist" / "IST.csv", DATA / "omop" / "Synthea27Nj_5.4.zip", DATA / "fhir"
HEYEX = DATA / "heyex"
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


def blocks_of_the_readme() -> list[str]:
    """What the README tells a hospital's data engineer to type."""
    _, _, section = (
        (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("\n## For a hospital's data engineer\n")
    )
    return re.findall(r"```\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


def typed(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of it, in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command, environment = ["bash", "-c", script], {**os.environ, "PATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(not (HEYEX.exists() and OMOP.exists()), reason="needs the samples in ../shared/data/heyex and omop")
def test_each_line_of_the_readmes_walk_works_on_real_exports(tmp_path: Path) -> None:
    lines = blocks_of_the_readme()[0].splitlines()
    assert [line.split()[2] for line in lines] == ["init", "doctor", "import", "import", "label", "check", "left-out"]
    for line in lines:
        result = typed(tmp_path, line.replace("EXPORT.zip", str(OMOP)).replace("EXPORT", str(HEYEX)))
        assert result.returncode == (1 if " check " in line else 0), (line, result.stdout, result.stderr)
    assert "2 pairs" in typed(tmp_path, f"fedretina site import heidelberg {HEYEX} --site north").stdout
    checked = json.loads((tmp_path / "north" / "check.json").read_text())
    assert (checked["verdict"], checked["faults"]) == ("warn", [])


@pytest.mark.skipif(not IST.exists(), reason="needs the trial's file in ../shared/data/ist")
def test_the_readmes_two_hospitals_train(tmp_path: Path) -> None:
    (script,) = (block for block in blocks_of_the_readme() if "HOSPNUM" in block)
    (tmp_path / "IST.csv").symlink_to(IST)
    result = typed(tmp_path, script)
    assert result.returncode == 0, result.stderr
    summary = tmp_path / "runs" / "latest" / "summary.json"
    sites = json.loads(summary.read_text())["sites"]
    assert [(site["fault"], site["labelled"] > 200) for site in sites] == [(None, True)] * 2
    assert summary.with_name("report.html").exists()


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
