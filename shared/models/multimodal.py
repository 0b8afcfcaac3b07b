"""How do scans and record become one prediction? Branches x -> f -> z -> g -> p, then masked fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.config import CLINICAL, Study
from shared.inputs import Cases
from shared.models.clinical import RecordEncoder
from shared.models.images import build_image_encoder, embedding_width, encode
from shared.statistics import Statistics


def build_encoders(study: Study) -> nn.ModuleDict:
    """The image encoders f of a study, keyed ``oct`` and ``ir``; one module under both keys when shared."""
    names = study.image_modalities
    if study.model.image.shared and names:
        encoder = build_image_encoder(study.model.image, study.images)
        return nn.ModuleDict(dict.fromkeys(names, encoder))
    return nn.ModuleDict({name: build_image_encoder(study.model.image, study.images) for name in names})


class MultimodalModel(nn.Module):
    """The model of the study: any subset of modalities may be present, for each case apart.

    A branch that is absent contributes a learned vector instead of its output, so its inputs cannot matter.
    Late fusion joins the branch outputs p (arXiv 2505.02677, section 2); intermediate fusion joins the embeddings z.

    Shape:
        ``Cases`` of B cases, images standardised or not, to logits (B,).
    """

    def __init__(self, study: Study, statistics: Statistics) -> None:
        super().__init__()
        config = study.model
        self.encoders = build_encoders(study)
        widths = {name: embedding_width(encoder) for name, encoder in self.encoders.items()}
        if CLINICAL in study.modalities:
            self.record = RecordEncoder(config.clinical, study.features, statistics)
            widths[CLINICAL] = self.record.num_features
        self.intercept = 0.0  # of the site where the model is; not a weight, so it does not travel
        self.modality_dropout = config.modality_dropout
        self.dropout = nn.Dropout(config.dropout)
        late = config.fusion == "late"
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, config.branch_width) if late else nn.Identity() for name, width in widths.items()}
        )
        if late:
            widths = dict.fromkeys(widths, config.branch_width)
        self.absent = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in widths.items()})
        self.fuse = _fusion(sum(widths.values()), config.fusion_hidden, config.dropout)

    def forward(self, cases: Cases) -> Tensor:
        joined = []
        for name, head in self.heads.items():
            embedding, present = self.embed(name, cases)
            output = head(self.dropout(embedding))
            joined.append(torch.where(present[:, None], output, self.absent[name].to(output.dtype)))
        logits: Tensor = self.fuse(torch.cat(joined, dim=1))
        return logits.squeeze(1) + self.intercept

    def embed(self, name: str, cases: Cases) -> tuple[Tensor, Tensor]:
        """The embeddings z of one modality, (B, D), and where they mean anything, (B,)."""
        if name == CLINICAL:
            assert cases.clinical is not None
            assert cases.recorded is not None
            embedding, present = self.record(cases.clinical), cases.recorded
        else:
            embedding, present = self._embed_scans(name, cases)
        if self.training and self.modality_dropout:
            present = present & (torch.rand(len(present), device=present.device) >= self.modality_dropout)
        return embedding, present

    def _embed_scans(self, name: str, cases: Cases) -> tuple[Tensor, Tensor]:
        """Mean embedding of the scans that are there; a case without any is encoded nowhere."""
        width = embedding_width(self.encoders[name])
        if name not in cases.images or not bool(cases.shown[name].any()):
            return cases.labels.new_zeros(len(cases), width), torch.zeros_like(cases.labels, dtype=torch.bool)
        shown = cases.shown[name]
        scans = cases.images[name][shown]
        of_scan = scans if cases.are_embedded(name) else encode(self.encoders[name], scans)
        counts = shown.sum(dim=1)
        case_of_scan = torch.arange(len(cases), device=shown.device).repeat_interleave(counts)
        summed = of_scan.new_zeros(len(cases), width).index_add(0, case_of_scan, of_scan)
        return summed / counts.clamp(min=1)[:, None], counts > 0


def _fusion(width: int, hidden: int, dropout: float) -> nn.Module:
    """g_fuse: from the joined branches to one logit."""
    if not hidden:
        return nn.Linear(width, 1)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1))
