"""Does ``fedretina simulate`` do what it says, from the command line to the report, whether or not it is killed?"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from client.evaluation import predict
from client.store import open_store
from fedretina import app
from shared.checkpoints import load_arrays
from shared.knobs import digest
from shared.metrics import BINS
from shared.models.saved import load_model
from simulation.__main__ import main
from simulation.run import read_experiment
from tests.e2e.commands import RECORDS_ONLY, TINY, fedretina
from tests.e2e.nursery import process_state, two_cores
from tests.server.federations import assert_same_bits, rounds_of

ARMS = ("federated", "centralised", "local", "federated_scratch")
COMPARISON = [
    *TINY,
    f"comparison.arms=[{', '.join(ARMS)}]",
    "comparison.inputs=[multimodal, clinical]",
]
SITES = ("east", "north", "south")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of all commands of this file: they share the cohorts."""
    return tmp_path_factory.mktemp("researcher")


@dataclass(frozen=True)
class Told:
    """What a command printed."""

    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def finished(folder: Path) -> Told:
    """A comparison that nobody interrupted, in ``whole``, made by one process with one thread."""
    stdout, stderr, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.chdir(folder)
        patch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
        code = main([*COMPARISON, "simulation.workers=1", "run.dir=whole"])
    torch.set_num_threads(threads)
    assert code == 0, stderr.getvalue()
    return Told(stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module")
def summary(folder: Path, finished: Told) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "whole" / "summary.json").read_text())
    return read


def test_output_is_plain_with_one_line_a_round(folder: Path, finished: Told) -> None:
    assert finished.stderr == ""
    assert "\x1b" not in finished.stdout
    told = [line.split()[0] for line in finished.stdout.splitlines() if " site" in line and "/" in line]
    done = [json.loads(line)["arm"] for line in (folder / "whole" / "rounds.jsonl").read_text().splitlines()]
    assert sorted(told[1:] if told[0] == "cohort" else told) == sorted(done)
    assert finished.stdout.splitlines()[0] == f"run {folder / 'whole'}"


def test_latest_points_to_the_run(folder: Path, finished: Told) -> None:
    assert (folder / "runs" / "latest").resolve() == (folder / "whole").resolve()


# What summary.json says


def test_summary_has_the_keys_that_later_checks_read(summary: dict[str, Any], folder: Path) -> None:
    assert set(summary["arms"]) == set(ARMS)
    for arm in ARMS:
        assert set(summary["arms"][arm]) == (
            {"multimodal"} if arm == "federated_scratch" else {"multimodal", "clinical"}
        )
        for figures in summary["arms"][arm].values():
            assert 0 <= figures["auroc"] <= 1
            assert 0 <= figures["auprc"] <= 1
    for inputs in ("multimodal", "image", "clinical"):
        assert 0.5 < summary["ceiling"][inputs]["auroc"] < 1
    assert [site["name"] for site in summary["sites"]] == list(SITES)
    for site in summary["sites"]:
        assert {"name", "patients", "scans", "labelled", "modalities", "auroc"} <= set(site)
        assert site["modalities"] == ["oct", "clinical"]
    assert sum(site["patients"] for site in summary["sites"]) == 90
    assert summary["seconds"]["total"] > 0
    assert summary["study_digest"] == digest(read_experiment(folder / "whole").study)


def held_out(arm: Path, site: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outcome and prediction of each held-out case of a site, by the model of an arm."""
    model, study = load_model(arm / "model.safetensors")
    store = open_store(site, study)
    rows = store.rows_of_cases("held_out")
    logits = predict(model, store, rows, torch.device("cpu"))
    return store.labels[rows].astype(np.float64), np.floor((logits + 10) * BINS / 20)  # risks of a bin count as ties


def site_folders(folder: Path) -> dict[str, Path]:
    return {site.name: site for site in folder.glob("runs/cohorts/*/sites/*")}


@pytest.mark.parametrize("inputs", ["multimodal", "clinical"])
@pytest.mark.parametrize("kind", ARMS)
def test_figures_equal_those_of_the_saved_models(summary: dict[str, Any], folder: Path, kind: str, inputs: str) -> None:
    if kind == "federated_scratch" and inputs == "clinical":
        return
    areas = {}
    for name, site in site_folders(folder).items():
        arm = folder / "whole" / "arms" / kind / (name if kind == "local" else "") / inputs
        areas[name] = roc_auc_score(*held_out(arm, site))  # of a local arm each site's own model
    figures = summary["arms"][kind][inputs]
    assert figures["sites"] == pytest.approx(areas, abs=1e-5)
    assert figures["auroc"] == pytest.approx(np.mean(list(areas.values())), abs=1e-5)


def test_site_rows_state_the_federated_model(summary: dict[str, Any]) -> None:
    areas = {site["name"]: site["auroc"] for site in summary["sites"]}
    assert areas == summary["arms"]["federated"]["multimodal"]["sites"]


def test_held_out_patients_are_the_same_in_every_arm(summary: dict[str, Any]) -> None:
    figures = [arm[inputs] for arm in summary["arms"].values() for inputs in arm]
    assert len({(each["cases"], each["positives"]) for each in figures}) == 1


def test_pretraining_was_done_once_a_federation(folder: Path, finished: Told) -> None:
    lines = [json.loads(line) for line in (folder / "whole" / "rounds.jsonl").read_text().splitlines()]
    arms = [line["arm"] for line in lines if line["stage"] == "pretrain" and line["round"] == 1]
    local = [f"local.{site}.multimodal" for site in SITES]
    assert sorted(arms) == sorted(["federated.multimodal", "centralised.multimodal", *local])


def test_scratch_differs_from_the_pretrained(folder: Path, finished: Told) -> None:
    models = [
        load_arrays(folder / "whole" / "arms" / kind / "multimodal" / "model.safetensors")[0]
        for kind in ("federated", "federated_scratch")
    ]
    assert any(not np.array_equal(models[0][name], models[1][name]) for name in models[0] if "encoders" in name)


# The report and the comparison of runs


def test_report_is_made_anew(folder: Path, finished: Told) -> None:
    page = folder / "whole" / "report.html"
    before = page.read_text()
    page.unlink()
    result = CliRunner().invoke(app, ["report", str(folder / "whole")])
    assert result.exit_code == 0
    assert str(page) in result.stdout.replace("\n", "")
    assert page.read_text() == before
    assert "east" in before


def test_multirun_keeps_each_seed_apart_and_compare_puts_them_together(folder: Path) -> None:
    settings = [*RECORDS_ONLY, "simulation.workers=1", "run.dir=seeds"]
    done = fedretina(folder, "simulate", *settings, "--multirun", "seed=1,2")
    assert done.returncode == 0, done.stderr
    runs = sorted((folder / "seeds").iterdir())
    assert len(runs) == 2
    read = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert [summary["seed"] for summary in read] == [1, 2]
    assert [run.name for run in runs] == ["seed=1", "seed=2"]
    areas = [summary["arms"]["federated"]["clinical"]["auroc"] for summary in read]
    assert areas[0] != areas[1]
    result = CliRunner().invoke(app, ["compare", *map(str, runs)])
    assert result.exit_code == 0
    assert f"{np.mean(areas):.3f} ± {np.std(areas, ddof=1):.3f}" in result.stdout


# A run that is killed


def _wait(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _group_is_gone(group: int) -> bool:
    """Does no process of a group do anything any more? One that has ended stays a zombie until init has time for it."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group, *_ = process_state(file.parent.name)
        except OSError:  # it has ended since
            continue
        if int(its_group) == group and state not in "ZX":
            return False
    return True


def test_killed_comparison_resumes_to_the_same_bits(folder: Path, finished: Told) -> None:
    command = [sys.executable, "-m", "fedretina", "simulate", *COMPARISON, "simulation.workers=2", "run.dir=killed"]
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True, preexec_fn=two_cores
        )
    try:
        # In the middle of training: the pretraining of some arm has begun, no fine-tuning has ended.
        begun = folder / "killed" / "arms" / "federated" / "multimodal" / "rounds.jsonl"
        assert _wait(lambda: begun.exists() and len(begun.read_text().splitlines()) >= 2, 120)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "killed" / "summary.json").exists()
    assert _wait(lambda: _group_is_gone(process.pid), 20), "processes of the killed run go on"

    done = fedretina(folder, "simulate", "resume=killed")
    assert done.returncode == 0, done.stderr
    models = sorted(path.relative_to(folder / "whole") for path in (folder / "whole").rglob("model.safetensors"))
    assert len(models) == 11
    for model in models:
        assert_same_bits(load_arrays(folder / "killed" / model)[0], load_arrays(folder / "whole" / model)[0])
        assert rounds_of((folder / "killed" / model).parent) == rounds_of((folder / "whole" / model).parent)
    assert rounds_of(folder / "killed") == rounds_of(folder / "whole")
    killed, whole = (json.loads((folder / run / "summary.json").read_text()) for run in ("killed", "whole"))
    for summary in (killed, whole):
        for arm in summary["arms"].values():
            for figures in arm.values():
                del figures["seconds"]
    assert killed["arms"] == whole["arms"]
    assert killed["sites"] == whole["sites"]
