"""How much of a patient could be redrawn from one step's update? Shown on a few patients of the site itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from client.audit.inversion import gradient, input_of_linear, invert, like_original, psnr, ssim
from client.audit.patients import Patients
from client.optimizers import build_optimizer
from shared.config import CLINICAL, Study
from shared.inputs import Cases
from shared.objectives.supervised import SupervisedObjective

_SMOOTHNESS = 1e-2
_SAME = 1e-3  # relative error below which a clinical input counts as read
_UNCHANGED = 1e-6
_CLEARLY = 0.05  # of structural similarity; less is chance

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Likeness:
    """How alike two images are: PSNR in dB, and structural similarity, at most 1."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Redrawn:
    """One scan and what was made of its gradient, both (H, W).

    Attributes:
        own: likeness of the reconstruction to the scan.
        unrelated: mean likeness to this scan of what was made of the other patients' gradients.
        other_scan: likeness of the most similar scan of the other patients.
    """

    modality: str
    original: Pixels
    found: Pixels
    own: Likeness
    unrelated: Likeness
    other_scan: Likeness

    @property
    def is_recognised(self) -> bool:
        """Whether it is more like this scan than any other patient's is, and than unrelated reconstructions are."""
        return self.own.ssim > max(self.unrelated.ssim, self.other_scan.ssim) + _CLEARLY


@dataclass(frozen=True)
class Demonstration:
    """What was redrawn of batches of one size.

    Attributes:
        batch: patients in a step.
        scans: of all batches.
        inputs_read, inputs: clinical inputs that could be read exactly, of how many; both 0 but for batches of one.
        frozen: whether the study leaves the image encoders as they are, so that their gradient is never sent.
    """

    batch: int
    scans: tuple[Redrawn, ...]
    inputs_read: int
    inputs: int
    frozen: bool


def demonstrate(
    objective: SupervisedObjective,
    study: Study,
    patients: Patients,
    batches: list[NDArray[np.int64]],
    seed: int,
    steps: int = 400,
) -> Demonstration:
    """Redraw some batches of cases, of one size, from the gradient of one plain step each, in so many steps of search.

    The attacker is given more than a coordinator has: the gradient of a single step without dropout or augmentation,
    the labels, and of each case everything but its pixels.
    """
    build_optimizer(objective, study, study.finetune)  # which tells the weights that this study trains
    objective.eval()
    generator = Generator().manual_seed(seed)
    originals, found, owners, read, inputs = [], [], list[int](), 0, 0
    for rows in batches:
        cases = patients.store.take_cases(rows).to(next(objective.parameters()).device)
        originals.append(_shown(cases))
        owners += [int(subject) for shown in cases.shown.values() for subject in _owners(patients, rows, shown)]
        found.append(_redraw(objective, cases, generator, steps))
        if len(rows) == 1 and CLINICAL in study.modalities and bool(cases.recorded is not None and cases.recorded[0]):
            right = _read_record(objective, cases)
            read, inputs = read + int(right.sum()), inputs + len(right)
    frozen = study.finetune.encoder_lr == 0.0 and not any(
        p.requires_grad for name, p in objective.named_parameters() if "encoders." in name
    )
    return Demonstration(len(batches[0]), tuple(_compare(originals, found, owners)), read, inputs, frozen)


def _redraw(objective: SupervisedObjective, cases: Cases, generator: Generator, steps: int) -> dict[str, Tensor]:
    """Per modality (S, H, W) reconstructions of the scans that are there."""
    places = {name: shown for name, shown in cases.shown.items() if bool(shown.any())}
    if not places:
        return {}
    height, width = next(iter(cases.images.values())).shape[-2:]
    counts = [int(shown.sum()) for shown in places.values()]
    parameters = [p for p in objective.parameters() if p.requires_grad]

    def gradient_of(images: Tensor) -> list[Tensor]:
        parts = dict(zip(places, torch.split(images, counts), strict=True))
        return gradient(_loss(objective, _with_images(cases, parts)), parameters, again=True)

    with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
        sent = gradient(_loss(objective, cases), parameters)
        found = invert(gradient_of, sent, (sum(counts), height, width), steps, _SMOOTHNESS, generator)
    return dict(zip(places, torch.split(found.cpu(), counts), strict=True))


def _loss(objective: SupervisedObjective, cases: Cases) -> Tensor:
    return objective.loss(cases)


def _with_images(cases: Cases, parts: dict[str, Tensor]) -> Cases:
    """The cases with the scans that are there put in the place of theirs."""
    images = {}
    for name, old in cases.images.items():
        images[name] = torch.zeros(old.shape, device=old.device)
        if name in parts:
            images[name] = images[name].index_put((cases.shown[name],), parts[name][:, None])
    return replace(cases, images=images)


def _shown(cases: Cases) -> dict[str, Tensor]:
    """Per modality (S, H, W) scans that are there, as float."""
    return {name: images[cases.shown[name]][:, 0].float().cpu() for name, images in cases.images.items()}


def _owners(patients: Patients, rows: NDArray[np.int64], shown: Tensor) -> NDArray[np.int64]:
    """The patient of each scan that is there."""
    subjects: NDArray[np.int64] = patients.store.case_subjects[rows[shown.nonzero()[:, 0].cpu().numpy()]]
    return subjects


def _read_record(objective: SupervisedObjective, cases: Cases) -> NDArray[np.bool_]:
    """Which inputs of the clinical record of a single case its gradient gives away, as the first layer sees them."""
    layers = chain(objective.model.record.modules(), [objective.model.heads[CLINICAL]])
    first = next((layer for layer in layers if isinstance(layer, nn.Linear)), None)
    if first is None:
        return np.zeros(0, dtype=bool)
    seen: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()[0]))
    slopes = gradient(_loss(objective, cases), [first.weight, first.bias])
    hook.remove()
    if not bool(slopes[1].any()):
        return np.zeros(len(seen[0]), dtype=bool)
    right = torch.isclose(input_of_linear(slopes[0], slopes[1]), seen[0], rtol=_SAME, atol=_UNCHANGED)
    found: NDArray[np.bool_] = right.cpu().numpy()
    return found


def _compare(originals: list[dict[str, Tensor]], found: list[dict[str, Tensor]], owners: list[int]) -> list[Redrawn]:
    """Each scan beside its reconstruction, with the likeness of unrelated ones of the same modality."""
    scans, redrawn = _flat(originals), _flat(found)
    compared = []
    for place, (modality, original) in enumerate(scans):
        others = [i for i, (name, _) in enumerate(scans) if name == modality and owners[i] != owners[place]]
        unrelated = [likeness(redrawn[i][1], original) for i in others]
        real = [likeness(scans[i][1], original) for i in others]
        compared.append(
            Redrawn(
                modality,
                _bytes(original),
                _bytes(like_original(redrawn[place][1], original)),
                likeness(redrawn[place][1], original),
                Likeness(_mean([each.psnr for each in unrelated]), _mean([each.ssim for each in unrelated])),
                max(real, key=lambda each: each.ssim, default=Likeness(0.0, 0.0)),
            )
        )
    return compared


def likeness(found: Tensor, original: Tensor) -> Likeness:
    """How alike an image (H, W) is to the original, at the gain and offset that fit best."""
    fitted = like_original(found, original)
    return Likeness(psnr(fitted, original), ssim(fitted, original))


def _flat(parts: list[dict[str, Tensor]]) -> list[tuple[str, Tensor]]:
    return [(name, image) for part in parts for name, images in part.items() for image in images]


def _bytes(image: Tensor) -> Pixels:
    pixels: Pixels = image.round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
