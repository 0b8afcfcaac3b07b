"""Does ``fedretina simulate`` refuse what cannot work in one line, with a non-zero exit, and write nothing?"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
import torch

from shared.site_folder import LABELS, SUBJECT_SPLITS, write_table
from simulation.__main__ import main
from simulation.run import EXPERIMENT
from tests.e2e.commands import RECORDS_ONLY, TINY, fedretina
from tests.factories import SYSTOLIC, VISIT, Tables, make_events, small_site
from tests.server.federations import clinical_site

STUDY = [
    "features.age=true",
    f"features.numeric=[{{name: systolic, code: {SYSTOLIC}, unit: 'mm[Hg]', low: 50, high: 300}}]",
    "features.codes=[]",
]

# A site tells others no more of such faults, which may name patients; tests/shared tells which faults these are.
CONTRACT = "site folder breaks the contract in 1 place(s); there, fedretina site check lists them"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main([*arguments, "simulation.workers=1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fedretina: ")
    assert "Traceback" not in lines[0]
    return lines[0]


# Settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune.round=3"], ["finetune.round"]),
        (["+finetune.round=3"], ["finetune.round is not a setting", "Did you mean finetune.rounds?"]),
        (["+studies=3"], ["studies is not a setting"]),
        (["finetune.rounds=many"], ["finetune.rounds must be of type int, got 'many'"]),
        (["finetune.rounds=2.5"], ["finetune.rounds must be of type int, got 2.5"]),
        (["modalities=oct"], ["modalities must be a list, got 'oct'"]),
        (["seed=null"], ["seed must be of type int"]),
        (["finetune.lr=-1"], ["finetune.lr must be > 0", "got -1"]),
        (["cohort.patients=1"], ["cohort.patients must be >= 8", "got 1"]),
        (
            ["finetune.optimizer=adam"],
            ["finetune.optimizer must be one of adamw, sgd", "'adam'", "Did you mean adamw?"],
        ),
        (["modalities=[clinical]", "pretrain.rounds=2"], ["pretrain.rounds must be 0 without images, got 2", "Set"]),
        (["splits.train=0.9"], ["splits.train + tuning + held_out must be 1", "got 1.3"]),
        (["finetune.rounds=0"], ["finetune.rounds must be > 0"]),
        (["comparison=arms"], ["comparison.arms federated_scratch needs a pretraining stage", "Set pretrain.rounds"]),
        (["strategy=fedsgd"], ["fedsgd", "fedavg"]),
        (["experiment=demos"], ["demos", "demo"]),
        (["hospital=north"], ["hospital"]),
        (
            ["strategy=fedavgm", "strategy.arguments={momentum: 0.9}"],
            ["strategy.arguments.momentum", "server_momentum"],
        ),
        (["strategy=fedprox", "strategy.proximal_mu=0"], ["strategy.proximal_mu must be > 0 with fedprox"]),
        (["strategy.name=fedsgd"], ["strategy.name must be one of fedavg", "'fedsgd'"]),
        (["model.image.name=no_such_model"], ["model.image.name", "no_such_model"]),
        (["model.image.weights={oct: absent.pth}"], ["model.image.weights.oct", "absent.pth"]),
        (["finetune.rounds="], ["finetune.rounds"]),
        (["finetune.rounds"], ["finetune.rounds"]),
        (["finetune={rounds: ["], ["rounds: ["]),
        (["experiment=ist", "cohort.file=absent.csv"], ["absent.csv"]),
        (["experiment=oct", "cohort.folder=absent"], ["absent"]),
        (["cohort=folders"], ["cohort.folders must name at least one site folder"]),
        (["cohort=folders", "cohort.folders=[absent]"], ["cohort.folders must name existing folders, got 'absent'"]),
        (["resume=absent"], ["absent must hold experiment.json", "runs/latest"]),
    ],
)
def test_setting_that_cannot_work_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    line = refused(capsys, *arguments, "run.dir=run")
    for word in words:
        assert word in line
    assert content(tmp_path) == {}
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "runs" / "latest").is_symlink()


def test_command_line_itself_is_refused_without_a_traceback(tmp_path: Path) -> None:
    """The whole way, in a process of its own."""
    done = fedretina(tmp_path, "simulate", "finetune.lr=-1")
    assert done.returncode == 2
    assert done.stderr == "fedretina: finetune.lr must be > 0.0, got -1.0\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_one_bad_job_of_a_multirun_is_told_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = clinical_site(tmp_path, "north")
    arguments = ["--multirun", "finetune.lr=-1,0.01", *STUDY, "modalities=[clinical]", "finetune.rounds=1"]
    line = refused(capsys, *arguments, "cohort=folders", f"cohort.folders=[{site}]", "run.dir=runs/both")
    assert "finetune.lr must be > 0" in line
    (done,) = (tmp_path / "runs" / "both").iterdir()
    assert done.name == "finetune.lr=0.01"  # named by what was swept alone
    assert (done / "summary.json").exists()


# Folders of runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    site = clinical_site(folder, "north")
    settings = [*STUDY, "modalities=[clinical]", "finetune.rounds=1", "cohort=folders", f"cohort.folders=[{site}]"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        assert main([*settings, "run.dir=run", "simulation.workers=1"]) == 0
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    """A finished run of the test's own."""
    return shutil.copytree(finished, tmp_path / "run")


def test_folder_that_holds_a_run_is_not_written_over(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(tmp_path)
    line = refused(capsys, *RECORDS_ONLY, "run.dir=run")
    assert "run.dir must not hold a run yet, got 'run'. Go on with it by resume=run, or choose another folder." in line
    assert content(tmp_path) == before


def test_folder_of_something_else_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    line = refused(capsys, "resume=photos")
    assert "photos must hold experiment.json" in line
    assert content(tmp_path) == {"photos/cat.jpg": b"cat"}


@pytest.mark.parametrize("damage", ["", "{", '{"seed": 1, "sed": 2}', '{"seed": -1}', "[]"])
def test_damaged_experiment_cannot_be_resumed(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (run / EXPERIMENT).write_text(damage)
    before = content(tmp_path)
    refused(capsys, "resume=run")
    assert content(tmp_path) == before


def test_checkpoint_of_another_study_is_refused(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = json.loads((run / EXPERIMENT).read_text())
    settings["seed"] = 2
    (run / EXPERIMENT).write_text(json.dumps(settings))
    models = {name: data for name, data in content(run).items() if "safetensors" in name}
    line = refused(capsys, "resume=run")
    assert "must be of study" in line
    assert "Resume with the study's own settings" in line
    assert {name: data for name, data in content(run).items() if "safetensors" in name} == models


def test_damaged_state_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = sorted(run.rglob("states/*.safetensors"))
    for state in states:  # should only the newest be, the run goes on from the one before
        state.write_bytes(state.read_bytes()[:-1])
    assert str(states[-1]) in refused(capsys, "resume=run")


# Faults of a site


def _missing_column(site: Path) -> None:
    events = pd.read_parquet(site / "events.parquet").drop(columns="code")
    events.to_parquet(site / "events.parquet")


def _empty_held_out(site: Path) -> None:
    fixed = pd.DataFrame({"subject_id": range(1, 13), "split": ["train"] * 10 + ["tuning"] * 2})
    write_table(site / "subject_splits.parquet", fixed, SUBJECT_SPLITS)


def _no_train(site: Path) -> None:
    fixed = pd.DataFrame({"subject_id": range(1, 13), "split": ["held_out"] * 12})
    write_table(site / "subject_splits.parquet", fixed, SUBJECT_SPLITS)


def _two_splits(site: Path) -> None:
    fixed = pd.DataFrame({"subject_id": [1, 1], "split": ["train", "held_out"]})
    write_table(site / "subject_splits.parquet", fixed, SUBJECT_SPLITS)


def _one_class(site: Path) -> None:
    labels = pd.read_parquet(site / "labels" / "detection.parquet").assign(boolean_value=True)
    write_table(site / "labels" / "detection.parquet", labels, LABELS)


def _twice(site: Path) -> None:
    images = pd.read_parquet(site / "imaging" / "index.parquet")
    images["image_id"] = images["image_id"].iloc[0]
    images.to_parquet(site / "imaging" / "index.parquet")


def _not_a_table(site: Path) -> None:
    (site / "events.parquet").write_bytes(b"subject_id,time\n1,2020\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_missing_column, [CONTRACT]),
        (_empty_held_out, ["north: split held_out must not be empty", "Label more patients"]),
        (_no_train, ["north: split train must not be empty", "Label more patients"]),
        (_two_splits, [CONTRACT]),
        (_one_class, ["north: labels must hold both classes"]),
        (_twice, [CONTRACT]),
        (_not_a_table, [CONTRACT]),
    ],
)
def test_fault_of_the_only_site_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], words: list[str]
) -> None:
    site = small_site("north").write(tmp_path / "north").path
    change(site)
    settings = [*STUDY, "modalities=[clinical]", "finetune.rounds=1", "cohort=folders", f"cohort.folders=[{site}]"]
    line = refused(capsys, *settings, "run.dir=run")
    for word in words:
        assert word in line
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()


def _other_unit(tables: Tables) -> None:
    tables.dataset.units[SYSTOLIC] = "kPa"


def _later_data_only(tables: Tables) -> None:
    tables.events = make_events([(s, VISIT + pd.Timedelta(days=9), SYSTOLIC, 120.0) for s in range(1, 13)])
    tables.images["acquired_at"] = (VISIT + pd.Timedelta(days=9)).as_unit("us")


def _truncated_scans(tables: Tables) -> None:
    tables.files = {path: content[:50] for path, content in tables.files.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_unit, [f"units: {SYSTOLIC} must be mm[Hg], got 'kPa'", "Convert the values at import"]),
        (_later_data_only, [CONTRACT]),
        (_truncated_scans, ["north: unreadable scans must be at most 5%", "quarantine_limit"]),
    ],
)
def test_fault_of_the_data_of_the_only_site_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Tables], None], words: list[str]
) -> None:
    tables = small_site("north")
    change(tables)
    site = tables.write(tmp_path / "north").path
    small = [setting for setting in TINY if setting.startswith(("images", "model"))]
    settings = [*STUDY, *small, "finetune.rounds=1", "cohort=folders", f"cohort.folders=[{site}]"]
    line = refused(capsys, *settings, "run.dir=run")
    for word in words:
        assert word in line


def test_faulty_site_among_others_is_told_on_one_line_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = clinical_site(tmp_path, "good"), clinical_site(tmp_path, "bad", first=500)
    _missing_column(bad)
    settings = [*STUDY, "modalities=[clinical]", "finetune.rounds=1", "cohort=folders"]
    assert main([*settings, f"cohort.folders=[{good},{bad}]", "run.dir=run", "simulation.workers=1"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(told) == 2  # survey and evaluation; who was not surveyed does not train
    assert all(CONTRACT in line for line in told)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["sites"][0]["name"] == "good"
    assert CONTRACT in summary["sites"][1]["fault"]
