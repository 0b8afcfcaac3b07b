"""What does privacy cost in time? Private and plain steps in turn: ``python -m simulation.privacy_benchmark``.

A private step makes the gradient of every patient of the same batch, clips it and adds noise. Each pair of steps is
timed one after the other, so that a busy machine slows both; the median ratio of the pairs is stated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator

from client.dpsgd import PatientGradients
from client.gradients import BatchGradients, Gradients
from client.secret import numpy_generator, torch_generator
from client.store import Rows
from shared.accounting import Release
from shared.config import FINETUNE, PRETRAIN, PatientDPSGD, Study
from shared.inputs import Batch, Cases, Scans
from shared.objectives.objective import Objective
from shared.objectives.registry import build_objective
from shared.statistics import Statistics, numeric_names
from simulation.compose import compose_study

DEMO = ("experiment=demo", "objective=mae", "finetune.encoder_lr=1", "finetune.select=last")


def main() -> None:
    """Print the ratio of a private to a plain step, for fine-tuning and for masked pretraining."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", default=list(DEMO), help="of the study whose model is timed")
    parser.add_argument("--patients", type=int, default=64, help="in a step")
    parser.add_argument("--pairs", type=int, default=7, help="of steps that are timed")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    study, device = compose_study(arguments.overrides), torch.device(arguments.device)
    for stage in (PRETRAIN, FINETUNE):
        seconds = time_pairs(study, stage, arguments.patients, arguments.pairs, device)
        plain, private = (statistics.median(times) for times in zip(*seconds, strict=True))
        ratio = statistics.median(b / a for a, b in seconds)
        print(f"{stage:<9} plain {plain * 1e3:8.1f} ms  private {private * 1e3:8.1f} ms  ratio {ratio:.2f}")


def time_pairs(study: Study, stage: str, patients: int, pairs: int, device: torch.device) -> list[tuple[float, float]]:
    """Seconds of a plain and a private step on the same batch, pair by pair; the first pair only warms up."""
    config = study.stage(stage)
    objective = build_objective(study, stage, Statistics.neutral(study)).to(device).train()
    batch = _batch(study, stage, patients)
    privacy = study.privacy if isinstance(study.privacy, PatientDPSGD) else PatientDPSGD(micro_batch=patients)
    key = bytes(32)
    private = PatientGradients(
        lambda rows: batch,
        np.arange(patients),
        config,
        privacy,
        Release(1.0, 1.0),
        numpy_generator(key),
        torch_generator(key, device),
    )
    private.draw(np.arange(patients), 0)
    ways: list[Gradients] = [BatchGradients(lambda rows: batch, config, device), private]
    rows = np.arange(patients)
    found = [
        (_seconds(ways[0], objective, rows, device), _seconds(ways[1], objective, rows, device))
        for _ in range(pairs + 1)
    ]
    return found[1:]


def _seconds(gradients: Gradients, objective: Objective, rows: Rows, device: torch.device) -> float:
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    objective.zero_grad()
    wait()
    started = time.perf_counter()
    gradients.backward(objective, rows, Generator().manual_seed(0))
    wait()
    return time.perf_counter() - started


def _batch(study: Study, stage: str, count: int) -> Batch:
    """Random examples, everything there."""
    random = Generator().manual_seed(0)
    size = (1, study.images.height, study.images.width)

    def images(*shape: int) -> dict[str, torch.Tensor]:
        names = study.image_modalities
        return {name: torch.randint(0, 256, (*shape, *size), generator=random, dtype=torch.uint8) for name in names}

    if stage == PRETRAIN:
        scans = images(count)
        return Scans(scans, {name: torch.ones(count, dtype=torch.bool) for name in scans}, scans)
    scans = images(count, study.images.per_case)
    width = 2 * len(numeric_names(study)) + len(study.features.codes)
    labels = torch.randint(0, 2, (count,), generator=random).float()
    shown = {name: torch.ones(count, study.images.per_case, dtype=torch.bool) for name in scans}
    record = torch.randn(count, width, generator=random)
    return Cases(scans, shown, record, torch.ones(count, dtype=torch.bool), labels)


if __name__ == "__main__":
    main()
