"""What defines a study? Every knob once, with its unit and rule; a site receives exactly this as JSON.

Fixed by the RetStroke paper (arXiv 2505.02677): the inputs, the two label tasks, self-supervised pretraining before
fine-tuning, and late fusion of the branch outputs. Backbone, augmentations, epochs, horizon, splits and the feature
list are not published there: the defaults below are this project's choices.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import ConfigError
from shared.knobs import knob, to_json
from shared.privacy_rules import check_private

SURVEY, PRETRAIN, FINETUNE, EVALUATE = "survey", "pretrain", "finetune", "evaluate"
STAGES = (SURVEY, PRETRAIN, FINETUNE, EVALUATE)
OCT, IR, CLINICAL = "oct", "ir", "clinical"
MODALITIES = (OCT, IR, CLINICAL)
IMAGE_MODALITIES = (OCT, IR)

UNBOUNDED = 1e9
ONSET = "ONSET//"  # before a code: when it began, where an export tells that beside when it was recorded
# Codes that state the outcome itself: never an input (I6x, G45, G46 and Z86.73 in ICD-10, stroke in SNOMED CT).
STROKE_FAMILY = ("ICD10//I6", "ICD10//G45", "ICD10//G46", "ICD10//Z86.73", "SNOMED//230690007")

# Strategies that compare, sort or choose among the updates of single sites.
SEE_SINGLE_UPDATES = ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan")


@dataclass(frozen=True)
class Task:
    """The label that is learned: ``labels/<name>.parquet`` of each site."""

    name: str = knob("detection", "detection: stroke in [t - N, t]; risk: stroke in (t, t + N]; or a site's own label")
    horizon_days: int = knob(365, "N, the window around the scan in which a stroke counts", unit="days", ge=1, le=36500)


@dataclass(frozen=True)
class Images:
    """How scans enter the model."""

    height: int = knob(224, "height to which scans are resized", unit="pixels", ge=8, le=4096)
    width: int = knob(224, "width to which scans are resized", unit="pixels", ge=8, le=4096)
    window_days: int = knob(1, "scans up to this long before the prediction time belong to a case", unit="days", ge=0)
    per_case: int = knob(2, "scans of one modality in a case at most, the newest of each eye first", ge=1, le=64)


@dataclass(frozen=True)
class NumericFeature:
    """The newest value of one measurement before the prediction time."""

    name: str = knob(help="name of the feature")
    code: str = knob(help="MEDS code of the measurement")
    unit: str = knob(help="unit in which sites must state it (UCUM)")
    lookback_days: int = knob(3650, "older values count as missing", unit="days", ge=1)
    low: float = knob(-UNBOUNDED, "plausible minimum; lower values count as missing")
    high: float = knob(UNBOUNDED, "plausible maximum; higher values count as missing")
    usual_low: float | None = knob(None, "few patients have less (2.5 %), by what is known in public; not given: low")
    usual_high: float | None = knob(None, "few patients have more (2.5 %), by what is known in public; not given: high")

    @property
    def is_bounded(self) -> bool:
        """Was a plausible range declared?"""
        return self.low > -UNBOUNDED and self.high < UNBOUNDED

    @property
    def usual(self) -> tuple[float, float]:
        """The range of most values, by which a private study standardises them: their true ones would cost ε."""
        return (
            self.low if self.usual_low is None else self.usual_low,
            self.high if self.usual_high is None else self.usual_high,
        )

    def check_consistent(self, path: str) -> None:
        if not self.low < self.high:
            raise ConfigError(f"{path}low", f"must be < {path}high ({self.high})", value=self.low)
        low, high = self.usual
        if not self.low <= low < high <= self.high:
            rule = f"must be < {path}usual_high ({high}), both between {path}low and {path}high"
            raise ConfigError(f"{path}usual_low", rule, value=low)


@dataclass(frozen=True)
class CodeFeature:
    """Whether any of some codes was recorded before the prediction time."""

    name: str = knob(help="name of the feature")
    codes: tuple[str, ...] = knob(help="MEDS codes; ICD10//E11 stands for E11.9 as well")
    lookback_days: int = knob(36500, "older records do not count", unit="days", ge=1)


@dataclass(frozen=True)
class Features:
    """The clinical inputs. The study owns the list; a site maps its codes to it."""

    age: bool = knob(True, "age at the prediction time, from MEDS_BIRTH")
    numeric: tuple[NumericFeature, ...] = knob((), "measurements")
    codes: tuple[CodeFeature, ...] = knob((), "diagnoses and other codes")

    def check_consistent(self, path: str) -> None:
        features: list[NumericFeature | CodeFeature] = [*self.numeric, *self.codes]
        names = [feature.name for feature in features]
        for name in names:
            if names.count(name) > 1 or name == "age_years":
                raise ConfigError(f"{path}names", "must be unique", value=name)
        for feature in features:
            for code in (feature.code,) if isinstance(feature, NumericFeature) else feature.codes:
                if code.startswith(STROKE_FAMILY) or any(family.startswith(code) for family in STROKE_FAMILY):
                    remedy = "Stroke codes state the outcome and never enter as inputs."
                    raise ConfigError(f"{path}{feature.name}", "must not name a stroke code", value=code, remedy=remedy)
                if code.startswith(ONSET):
                    remedy = "When something began is dated before anybody knew of it: name the code without ONSET//."
                    raise ConfigError(f"{path}{feature.name}", "must not name an onset", value=code, remedy=remedy)


@dataclass(frozen=True)
class Splits:
    """Fractions of the patients; a keyed hash of the patient decides, unless the site fixed its splits by hand."""

    train: float = knob(0.6, "fraction that trains", gt=0.0, lt=1.0)
    tuning: float = knob(0.1, "fraction that watches training", ge=0.0, lt=1.0)
    held_out: float = knob(0.3, "fraction on which results are stated", gt=0.0, lt=1.0)

    def check_consistent(self, path: str) -> None:
        total = self.train + self.tuning + self.held_out
        if abs(total - 1.0) > 1e-6:
            raise ConfigError(f"{path}train + tuning + held_out", "must be 1", value=round(total, 6))


@dataclass(frozen=True)
class ImageEncoder:
    """A timm model with one input channel and no classifier."""

    name: str = knob("resnet18", "name of a timm model")
    arguments: dict[str, object] = knob({}, "further arguments of timm.create_model")
    group_norm: bool = knob(True, "put GroupNorm in the place of BatchNorm")
    shared: bool = knob(False, "one encoder for OCT and infrared scans")
    weights: dict[str, str] = knob(
        {}, "local file to start from (safetensors, .pth, or an earlier run's model.safetensors), keyed oct or ir"
    )


@dataclass(frozen=True)
class ClinicalEncoder:
    """A perceptron over values, missing masks and ages of measurement; no hidden layer makes it linear."""

    hidden: tuple[int, ...] = knob((32,), "widths of the hidden layers", ge=1)
    dropout: float = knob(0.1, "dropout of hidden units", ge=0.0, lt=1.0)


@dataclass(frozen=True)
class Model:
    """Branches x -> f -> z -> g -> p for each modality, then fusion (arXiv 2505.02677, section 2)."""

    image: ImageEncoder = knob(ImageEncoder())
    clinical: ClinicalEncoder = knob(ClinicalEncoder())
    fusion: str = knob(
        "late", "late: of branch outputs p; intermediate: of embeddings z", choices=["late", "intermediate"]
    )
    branch_width: int = knob(16, "width of a branch output p", ge=1)
    fusion_hidden: int = knob(0, "hidden units of g_fuse; 0 makes it linear", ge=0)
    dropout: float = knob(0.1, "dropout of embeddings z and before g_fuse", ge=0.0, lt=1.0)
    modality_dropout: float = knob(0.0, "chance that a present branch is masked in training", ge=0.0, lt=1.0)


@dataclass(frozen=True)
class SimCLR:
    """NT-Xent between two views (arXiv 2002.05709)."""

    kind: str = knob("simclr", choices=["simclr"])
    temperature: float = knob(0.2, "temperature of NT-Xent", gt=0.0)
    projection_width: int = knob(64, "width of the projections", ge=1)
    positives: str = knob(
        "views",
        "views: of one scan; patient: of two scans of a patient where there are two",
        choices=["views", "patient"],
    )
    between_modalities: bool = knob(False, "OCT and infrared scan of one eye are a positive pair too")


@dataclass(frozen=True)
class MAE:
    """Masked autoencoding (arXiv 2111.06377): a patient's loss depends on that patient alone."""

    kind: str = knob("mae", choices=["mae"])
    mask_ratio: float = knob(0.75, "fraction of the patches that is hidden", gt=0.0, lt=1.0)
    patch: int = knob(16, "side of a patch; a ViT's own patch must agree", unit="pixels", ge=2)
    decoder_width: int = knob(64, "width of the decoder", ge=4)
    decoder_depth: int = knob(1, "blocks of the decoder", ge=0)
    normalise_patches: bool = knob(True, "predict each patch standardised by its own mean and deviation")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the images on which an encoder trains, drawn for each image. Zero everywhere means none."""

    crop_area: float = knob(0.0, "largest fraction of the area that a crop removes", ge=0.0, lt=1.0)
    flip: float = knob(0.0, "chance of a left-right flip", ge=0.0, le=1.0)
    rotate_degrees: float = knob(0.0, "largest rotation", unit="degrees", ge=0.0, le=180.0)
    gamma: float = knob(0.0, "largest change of the logarithm of gamma", ge=0.0, le=2.0)
    noise: float = knob(0.0, "largest deviation of added noise, in deviations of the image", ge=0.0, le=2.0)
    blur: float = knob(0.0, "chance of a 3 x 3 blur", ge=0.0, le=1.0)


@dataclass(frozen=True)
class Stage:
    """How sites train in one stage."""

    rounds: int = knob(10, "rounds; 0 leaves the stage out", ge=0)
    epochs: float = knob(1.0, "passes over a site's training data in a round", gt=0.0)
    batch_size: int = knob(32, "patients' cases or image pairs in a batch", ge=2)
    optimizer: str = knob("adamw", "optimizer at the sites", choices=["adamw", "sgd"])
    lr: float = knob(1e-3, "peak learning rate", gt=0.0)
    encoder_lr: float = knob(
        1.0, "learning rate of pretrained encoders relative to lr; 0 freezes them", ge=0.0, le=10.0
    )
    weight_decay: float = knob(1e-4, "decoupled weight decay", ge=0.0)
    schedule: str = knob("cosine", "learning rate over the rounds", choices=["cosine", "constant"])
    warmup: float = knob(0.1, "fraction of the rounds in which the rate rises", ge=0.0, le=1.0)
    clip_norm: float = knob(
        5.0,
        "largest norm of a batch's gradient; 0 leaves it as it is. With privacy, privacy.clip stands instead",
        ge=0.0,
    )
    precision: str = knob("float32", "arithmetic of the forward pass", choices=["float32", "bfloat16"])
    augmentation: Augmentation = knob(Augmentation())


@dataclass(frozen=True)
class Finetune(Stage):
    """Supervised training on labelled cases."""

    class_balance: float = knob(0.5, "0: cases count alike; 1: classes count alike", ge=0.0, le=1.0)
    select: str = knob("best", "final weights: best tuning loss, or last round", choices=["best", "last"])
    site_intercept: bool = knob(False, "each site fits its own intercept, which never leaves it")


@dataclass(frozen=True)
class NoPrivacy:
    """Weights, sums and counts leave a site as they are."""

    kind: str = knob("none", choices=["none"])

    def check_study(self, study: Study, path: str) -> None:
        """Anything goes."""


@dataclass(frozen=True)
class PatientDPSGD:
    """Differential privacy of a patient's whole record, by DP-SGD (arXiv 1607.00133) and noised counts.

    The noise of every step follows from these knobs and the stages' rounds and epochs (``shared.privacy``).
    """

    kind: str = knob("patient_dpsgd", choices=["patient_dpsgd"])
    target_epsilon: float = knob(8.0, "ε of all that the study lets out of a site, together", gt=0.0, le=1000.0)
    delta: float = knob(1e-5, "δ of the same; a site refuses one that is not below 1 / its patients", gt=0.0, lt=0.5)
    clip: float = knob(1.0, "largest norm of a patient's gradient", gt=0.0)
    sampling_rate: float = knob(
        0.1,
        "chance of a patient to be in a step, in the place of batch_size; a pass has 1 / this steps",
        gt=0.0,
        le=1.0,
    )
    survey_share: float = knob(0.02, "share of the budget for the number of positive patients", gt=0.0, lt=1.0)
    evaluation_share: float = knob(0.2, "share of the budget for the scores of held-out patients", gt=0.0, lt=1.0)
    per_patient: int = knob(4, "examples of one patient in a step at most; their gradients are averaged", ge=1)
    micro_batch: int = knob(64, "patients whose gradients are in memory at once", unit="patients", ge=1)
    exempt: tuple[str, ...] = knob(
        (), "stages that are knowingly not private, which the statement of ε names", choices=[PRETRAIN, EVALUATE]
    )

    def check_study(self, study: Study, path: str) -> None:
        """Raise ``ConfigError`` for a study that cannot be private."""
        check_private(study, self, path)


@dataclass(frozen=True)
class Strategy:
    """How updates become the next weights: a strategy of Flower and its arguments."""

    name: str = knob("fedavg", "name in the registry of strategies")
    arguments: dict[str, object] = knob({}, "arguments of the strategy's constructor")
    fraction: float = knob(1.0, "fraction of the sites asked in a round", gt=0.0, le=1.0)
    proximal_mu: float = knob(0.0, "pull of local weights to the global ones (FedProx)", ge=0.0)
    minimum_sites: int = knob(1, "sites without which a round does not count", ge=1)
    start_sites: int = knob(1, "sites that must have joined before the study begins", ge=1)
    gathering_timeout_s: float = knob(
        3600.0, "longest wait at the start for enrolled sites that are absent or have not approved", unit="s", gt=0.0
    )
    round_timeout_s: float = knob(3600.0, "longest wait for the answers of a round", unit="s", gt=0.0)
    patience: float = knob(
        0.0, "wait this many times as long as the stage's rounds took so far, but 30 s; 0: round_timeout_s", ge=0.0
    )
    attempts: int = knob(3, "times a round is tried for which too few sites answered in time", ge=1)
    bench_after: int = knob(3, "rounds in a row that a site fails before it is left out for a while; 0: never", ge=0)
    bench_rounds: int = knob(5, "rounds for which it is left out", ge=1)
    norm_limit: float = knob(
        10.0, "updates this many times larger than is usual in the federation are rejected; 0: none", ge=0.0
    )


@dataclass(frozen=True)
class NoSecureAggregation:
    """The coordinator receives the update, the counts and the scores of each site."""

    kind: str = knob("none", choices=["none"])


@dataclass(frozen=True)
class SecAgg:
    """The coordinator receives sums over sites alone (docs/secure-aggregation.md)."""

    kind: str = knob("secagg", choices=["secagg"])
    dropouts: float = knob(
        1 / 3, "fraction of the sites that may vanish in a round; as many fewer must collude", ge=0.0, lt=0.5
    )
    fewest: int = knob(3, "sites in a sum at least: of two, each could subtract its own part", ge=2)
    largest_change: float = knob(
        16.0, "largest change of one weight in a round; a site with a larger one sends nothing but an error", gt=0.0
    )

    def check_strategy(self, strategy: Strategy, path: str) -> None:
        """Raise ``ConfigError`` for a strategy that must see single updates, which here nobody does."""
        if strategy.name in SEE_SINGLE_UPDATES:
            rule = "must work on the mean of the updates with secure aggregation, which shows no single one"
            raise ConfigError(f"{path}name", rule, value=strategy.name, remedy="Take fedavg, fedadam or the like.")
        if strategy.norm_limit:
            remedy = "Set it to 0; secure_aggregation.largest_change bounds what a site's own code sends."
            rule = "must be 0 with secure aggregation, which shows the size of no single update"
            raise ConfigError(f"{path}norm_limit", rule, value=strategy.norm_limit, remedy=remedy)


@dataclass(frozen=True)
class Study:
    """One study: what every site and the coordinator agree on. Its digest names it."""

    name: str = knob("study", "name of the study")
    seed: int = knob(1, "seed of everything random", ge=0, lt=2**31)
    modalities: tuple[str, ...] = knob(MODALITIES, "branches of the model", choices=MODALITIES)
    task: Task = knob(Task())
    images: Images = knob(Images())
    features: Features = knob(Features())
    splits: Splits = knob(Splits())
    model: Model = knob(Model())
    objective: SimCLR | MAE = knob(SimCLR())
    pretrain: Stage = knob(Stage(rounds=0))
    finetune: Finetune = knob(Finetune())
    strategy: Strategy = knob(Strategy())
    privacy: NoPrivacy | PatientDPSGD = knob(NoPrivacy())
    secure_aggregation: NoSecureAggregation | SecAgg = knob(NoSecureAggregation())

    @property
    def image_modalities(self) -> tuple[str, ...]:
        """The image branches, in fixed order."""
        return tuple(m for m in IMAGE_MODALITIES if m in self.modalities)

    @property
    def training(self) -> dict[str, Stage]:
        """The stages in which sites train, in order: those that have rounds."""
        return {name: self.stage(name) for name in (PRETRAIN, FINETUNE) if self.stage(name).rounds}

    @property
    def stages(self) -> tuple[str, ...]:
        """All stages of the study, in order."""
        return (SURVEY, *self.training, *([EVALUATE] if self.finetune.rounds else []))

    def stage(self, name: str) -> Stage:
        """How sites train in pretrain or finetune."""
        return self.finetune if name == FINETUNE else self.pretrain

    def __hash__(self) -> int:
        return hash(to_json(self))  # mappings among the knobs have no hash of their own

    def check_consistent(self, path: str) -> None:
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ConfigError(f"{path}modalities", "must name each branch once", value=self.modalities)
        if CLINICAL in self.modalities and not (self.features.age or self.features.numeric or self.features.codes):
            remedy = "Choose a feature list, such as features=retstroke."
            raise ConfigError(f"{path}features", "must not be empty with the clinical branch", remedy=remedy)
        if self.pretrain.rounds and not self.image_modalities:
            remedy = "Set pretrain.rounds=0 or add oct or ir to modalities."
            raise ConfigError(
                f"{path}pretrain.rounds", "must be 0 without images", value=self.pretrain.rounds, remedy=remedy
            )
        if self.finetune.rounds and self.finetune.select == "best" and not self.splits.tuning:
            remedy = "Set finetune.select=last or give splits.tuning a part."
            raise ConfigError(f"{path}finetune.select", "best needs splits.tuning > 0", remedy=remedy)
        if not self.pretrain.rounds and not self.finetune.rounds:
            raise ConfigError(f"{path}finetune.rounds", "must be > 0 when pretrain.rounds is 0", value=0)
        between = isinstance(self.objective, SimCLR) and self.objective.between_modalities
        if between and self.pretrain.rounds and len(self.image_modalities) < 2:
            remedy = "Set it to false, or use both."
            raise ConfigError(f"{path}objective.between_modalities", "needs oct and ir", value=True, remedy=remedy)
        if isinstance(self.objective, MAE) and self.pretrain.rounds:
            for side, pixels in (("height", self.images.height), ("width", self.images.width)):
                if pixels % self.objective.patch:
                    rule = f"must be a multiple of objective.patch ({self.objective.patch})"
                    raise ConfigError(f"{path}images.{side}", rule, value=pixels)
        if isinstance(self.secure_aggregation, SecAgg):
            self.secure_aggregation.check_strategy(self.strategy, f"{path}strategy.")
        unknown = set(self.model.image.weights) - set(IMAGE_MODALITIES)
        if unknown:
            raise ConfigError(f"{path}model.image.weights", "must be keyed oct or ir", value=sorted(unknown)[0])
        self.privacy.check_study(self, path)
