"""Does a real federation with noise and secure sums run to its end, and do the sites' own ledgers tell of it truly?"""

from __future__ import annotations

from pathlib import Path

import pytest

from client.departures import audit
from client.ledger import entries, spent
from server.coordinator import FINISHED
from shared.privacy import PrivacyPlan
from tests.e2e.federation import Federation
from tests.server.federations import clinical_sites, clinical_study

ROUNDS = 2
SUM = ["advert", "sealed", "masked", "opened"]


def test_sites_account_for_all_that_left_them(tmp_path: Path) -> None:
    privacy = {"kind": "patient_dpsgd", "target_epsilon": 20.0, "delta": 1e-3, "sampling_rate": 0.5}
    sums = {"kind": "secagg", "fewest": 2}
    study = clinical_study(
        {
            "privacy": privacy,
            "secure_aggregation": sums,
            "finetune.rounds": ROUNDS,
            "finetune.select": "last",
            "finetune.lr": 1e-3,
            "strategy.norm_limit": 0.0,
        }
    )
    plan = PrivacyPlan.of(study)
    federation = Federation(tmp_path / "real", clinical_sites(tmp_path / "sources", count=2))
    for site in federation.sites:
        (site / "site.yaml").write_text("epsilon_cap: 21.0\ndelta_cap: 0.001\nreleases: private\n")
    federation.approve(study)
    with federation:
        run = federation.run(study)
    assert run.status.status == FINISHED, run.status
    for site in federation.sites:
        rows = entries(site)
        assert [row.stage for row in rows] == ["survey", *["finetune"] * ROUNDS, "evaluate"]
        assert spent(rows, plan.delta) == pytest.approx(plan.epsilon)
        record = audit(site)
        assert record["whole"], record["faults"]
        kinds = [departure["kind"] for departure in record["departures"] if departure["kind"] != "error"]
        assert kinds == ["begun", *SUM * (2 + ROUNDS)]
