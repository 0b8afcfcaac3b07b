"""Does Flower's own engine give the numbers of the in-process grid?"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity

from shared.checkpoints import load_arrays
from simulation.arms import Arm
from simulation.federation import run_arm
from tests.server.federations import clinical_sites, clinical_study, rounds_of


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'flwr[simulation]'")
@pytest.mark.timeout(180)  # ray needs 20 s to start where nothing else runs
@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_gives_the_numbers_of_the_local_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = tuple(clinical_sites(tmp_path / "sites", count=3, patients=30))
    study = clinical_study({"finetune.rounds": 2, "strategy": {"round_timeout_s": 120.0}})
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)  # as in a process of its own; put back afterwards
    folders = {}
    for backend in ("ray", "local"):
        folders[backend] = tmp_path / backend
        # One site judges and does not train, as in the centralised arm.
        arm = Arm("federated", "clinical", "", study, sites[:2], sites, folders[backend], None)
        state = run_arm(arm, backend, 1, lambda record: None, workers=1)
        assert sorted(state.evaluations) == ["site-00", "site-01", "site-02"]
        assert [record.sites for record in state.records[:-1]] == [["site-00", "site-01"]] * 3
    ray, local = (load_arrays(folders[backend] / "model.safetensors")[0] for backend in ("ray", "local"))
    assert ray.keys() == local.keys()
    for name in local:
        np.testing.assert_allclose(ray[name], local[name], rtol=0, atol=1e-6, err_msg=name)
    for one, other in zip(rounds_of(folders["ray"]), rounds_of(folders["local"]), strict=True):
        assert {**one, "loss": 0, "tuning_loss": 0} == {**other, "loss": 0, "tuning_loss": 0}
        assert one["tuning_loss"] == pytest.approx(other["tuning_loss"], abs=1e-6)
