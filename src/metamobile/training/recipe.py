"""The recipe: everything that decides a training, typed, in YAML, with overrides. Reads without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metamobile.data.preprocess import FITS, INTERPOLATIONS
from metamobile.errors import nearest
from metamobile.training.settings import build, read_yaml, setting_names


@dataclass
class ModelSettings:
    """`pretrained`: weights to start from (a run, file or shipped name). `drop_path_rate` None: the variant's
    own. `qat`: layers round as an int8 file does (`training.qat`). `args` go to the network's constructor as
    they are.

    For dense tasks: `head` None is the task's first; with `norm_eval` the backbone's batch norms keep their
    statistics; `frozen_stages` of the backbone's five stages, the first ones, do not learn at all."""

    name: str = "emo_1m"
    head: str | None = None
    pretrained: str | None = None
    window_size: int | str | list | None = None
    drop_path_rate: float | None = None
    drop_rate: float = 0.0
    qat: bool = False
    norm_eval: bool = False
    frozen_stages: int = 0
    args: dict = field(default_factory=dict)


@dataclass
class DataSettings:
    """`size` is the side in pixels, or (height, width); `resize` the shorter side before evaluation's crop.

    `check` reads every file first, as `metamobile check` does, and stops at bad ones; `drop_bad` leaves those
    out instead. `cache` keeps decoded pictures in memory, if they fit.

    For dense tasks: `fit` "stretch" makes pictures exactly `size`; "inside" the largest of the same shape
    whose shorter side is at most the smaller of `size` and whose longer at most the larger; "crop" is the
    classifiers'. `val_size` is the size at evaluation, if it is not `size`. Of masks, `classes` names the
    classes by number where no classes.txt does, and pixels of value `ignore` count for nothing, nor do those
    of 255."""

    path: str = ""
    size: int | list[int] = 224
    val_size: int | list[int] | None = None
    fit: str = "crop"
    resize: int | None = None
    interpolation: str = "bicubic"
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    val_fraction: float = 0.2
    seed: int = 0
    check: bool = True
    drop_bad: bool = False
    cache: bool = True
    classes: list[str] | None = None
    ignore: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


@dataclass
class AugmentSettings:
    """timm's training transform: `scale` and `ratio` of the random crop's area and shape, `auto_augment` in
    timm's notation, `erase` the probability of random erasing; `mixup` and `cutmix` their alphas.

    Dense tasks use `hflip` of these, and: `photometric`, random brightness, contrast, saturation and hue.
    Detection: `expand`, the probability of a canvas up to 4 times the sides; `iou_crop`, crops that keep a
    least overlap with a box; `mosaic`, the probability of four pictures in one. Segmentation: `resize`, the
    range of the random scale before the crop; `crop_most`, the largest share of one class in a crop."""

    scale: list[float] = field(default_factory=lambda: [0.35, 1.0])
    ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])
    hflip: float = 0.5
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    interpolation: str = "random"
    photometric: bool = False
    expand: float = 0.0
    iou_crop: bool = False
    mosaic: float = 0.0
    resize: list[float] = field(default_factory=lambda: [0.5, 2.0])
    crop_most: float = 0.75


@dataclass
class OptimSettings:
    """`lr` is the peak; with `lr_per` it is meant for that batch size and scaled linearly to the run's.

    `layer_decay` below 1 gives each layer's rate that factor against the layer above it, for starting from
    pretrained weights: the head learns at `lr`, the first layers slowest. `head_lr` multiplies the rate of
    all that a detector or a segmenter has beside its backbone. Gradients are not clipped if `clip_norm` is 0.
    """

    name: str = "adamw"
    lr: float = 2e-3
    lr_per: int | None = None
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    clip_norm: float = 5.0
    layer_decay: float | None = None
    head_lr: float = 1.0


@dataclass
class ScheduleSettings:
    """Linear warm-up from `warmup_lr`, then down to `min_lr`, moved at every optimiser step.

    `name`: "cosine"; "poly", (1 - step / steps) to the `power`; "flat_cosine", the peak until half of the
    steps, then a cosine. The warm-up is counted in these steps, and has `warmup_steps` if given, else
    `warmup_epochs`.

    In the first `frozen_epochs` only the classifier learns; all else, and the norms' statistics, stays as the
    pretrained weights have it."""

    epochs: int = 30
    name: str = "cosine"
    power: float = 0.9
    warmup_epochs: float = 3
    warmup_steps: int | None = None
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    frozen_epochs: int = 0


@dataclass
class LossSettings:
    """`label_smoothing` is the classifiers'. Of segmenters: `auxiliary` is the weight of the auxiliary head's
    loss; `class_weights` "sqrt" weighs a class by 1 / sqrt(its share of the pixels), with a mean of 1."""

    label_smoothing: float = 0.1
    auxiliary: float = 0.4
    class_weights: str | None = None


@dataclass
class DistillSettings:
    """Learning from a teacher's answers besides the labels: `weight` times tau^2 KL(teacher || student),
    both softened by the temperature `tau`.

    `teacher` is a run, a weights file or a name, timm's pretrained ones among them; its classes are matched
    by name. It sees the student's pictures, augmented, in its own normalisation, resized to `size` (None: its
    own side). Source: EMOv2 (arXiv 2412.06674), official configuration: weight 5, tau 1."""

    teacher: str | None = None
    weight: float = 5.0
    tau: float = 1.0
    size: int | None = None


@dataclass
class EmaSettings:
    """Average of the weights over the last steps, some 1 / (1 - decay) of them.

    With `warmup` the decay grows as 1 - step^(-2/3) up to `decay`: the average spans step^(2/3) steps,
    45 of 300, 460 of 10,000; what the weights were before training is forgotten within the first hundred.
    Without it, the start keeps a share of decay^step: after 300 steps at 0.9998, 94 %.
    """

    enabled: bool = True
    decay: float = 0.9998
    warmup: bool = True


@dataclass
class RunSettings:
    """`batch_size` is over all processes; `precision` fp32 or bf16; `device` auto, cpu, cuda, cuda:1 or mps;
    `log_every` in steps, `eval_every` in epochs."""

    batch_size: int = 64
    precision: str = "fp32"
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    workers: int = 2
    device: str = "auto"
    eval_every: int = 1
    log_every: int = 50


@dataclass
class Recipe:
    """All sections; `task` names what is trained."""

    task: str = "classify"
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    ema: EmaSettings = field(default_factory=EmaSettings)
    run: RunSettings = field(default_factory=RunSettings)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Errors: ValueError for an unknown key, with the nearest, or a value of wrong type or range."""
        recipe = build(cls, values)
        _check_ranges(recipe)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def override(self, settings: Sequence[str]) -> Recipe:
        """A copy with `section.key=value` settings, values written as in YAML. Errors: as `from_dict`."""
        values: dict[str, Any] = {}
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"--set {setting!r} is not of the form section.key=value")
            try:
                values[key.strip()] = read_yaml(text)
            except yaml.YAMLError as error:
                raise ValueError(
                    f"--set {setting!r}: the value is not YAML ({error.__class__.__name__})"
                ) from error
        return self.replace(values)

    def replace(self, settings: Mapping[str, Any]) -> Recipe:
        """A copy with other values for {"section.key": value}. Errors: as `from_dict`."""
        values = self.to_dict()
        for key, value in settings.items():
            place = values
            *sections, last = key.split(".")
            for section in sections:
                if not isinstance(place.get(section), dict):
                    raise ValueError(
                        f"the recipe has no setting {key!r}; {section!r} is no section, known are "
                        f"{', '.join(place)}{nearest(section, place)}"
                    )
                place = place[section]
            if last not in place and sections != ["model", "args"]:
                known = setting_names(self.to_dict())
                same = [name for name in known if name.split(".")[-1] == last]  # lr for optim.lr
                near = f"; did you mean {same[0]!r}?" if same else nearest(key, known)
                raise ValueError(f"the recipe has no setting {key!r}{near}")
            place[last] = value
        return Recipe.from_dict(values)

    @property
    def lr(self) -> float:
        """The peak learning rate, after scaling to the batch size."""
        return self.optim.lr * (self.run.batch_size / self.optim.lr_per if self.optim.lr_per else 1)


_RANGES = {
    "data.val_fraction": (0, 0.99),
    "data.ignore": (0, math.inf),
    "augment.hflip": (0, 1),
    "augment.erase": (0, 1),
    "augment.expand": (0, 1),
    "augment.mosaic": (0, 1),
    "augment.resize": (0.01, 100),
    "augment.crop_most": (0.01, 1),
    "model.frozen_stages": (0, 5),
    "model.drop_rate": (0, 0.99),
    "model.drop_path_rate": (0, 0.99),
    "optim.lr": (1e-12, math.inf),
    "optim.weight_decay": (0, math.inf),
    "optim.clip_norm": (0, math.inf),
    "optim.layer_decay": (0.01, 1),
    "optim.head_lr": (1e-6, math.inf),
    "schedule.epochs": (1, math.inf),
    "schedule.power": (0.01, math.inf),
    "schedule.warmup_epochs": (0, math.inf),
    "schedule.warmup_steps": (0, math.inf),
    "schedule.frozen_epochs": (0, math.inf),
    "distill.weight": (0, math.inf),
    "distill.tau": (0.01, math.inf),
    "distill.size": (32, math.inf),
    "loss.label_smoothing": (0, 0.99),
    "loss.auxiliary": (0, math.inf),
    "ema.decay": (0, 1),
    "run.batch_size": (1, math.inf),
    "run.workers": (0, math.inf),
    "run.eval_every": (1, math.inf),
    "run.log_every": (1, math.inf),
}
_LENGTHS = {
    "data.size": 2,
    "data.val_size": 2,
    "data.mean": 3,
    "data.std": 3,
    "optim.betas": 2,
    "augment.scale": 2,
    "augment.ratio": 2,
    "augment.resize": 2,
}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "run.precision": ("fp32", "bf16"),
    "augment.interpolation": ("random", "bilinear", "bicubic"),
    "data.interpolation": tuple(INTERPOLATIONS),
    "data.fit": FITS,
    "schedule.name": ("cosine", "poly", "flat_cosine"),
    "loss.class_weights": (None, "sqrt"),
}


def _check_ranges(recipe: Recipe) -> None:
    def value_of(place: str) -> Any:
        section, key = place.split(".")
        return getattr(getattr(recipe, section), key)

    for place, (low, high) in _RANGES.items():
        value = value_of(place)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(low <= number <= high for number in values):
            wanted = f"at least {low}" if high == math.inf else f"{low} to {high}"
            raise ValueError(f"recipe: {place} is {value}; expected {wanted}")
    for place, length in _LENGTHS.items():
        if isinstance(value_of(place), list) and len(value_of(place)) != length:
            raise ValueError(f"recipe: {place} is {value_of(place)}; expected {length} numbers")
    for place, choices in _CHOICES.items():
        if value_of(place) not in choices:
            words = ["null" if choice is None else choice for choice in choices]
            near = nearest(value_of(place), words)
            raise ValueError(f"recipe: {place} is {value_of(place)!r}; expected {' or '.join(words)}{near}")


def recipe_folder() -> Path:
    """Where the named recipes lie: in the installed package, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by name, or from a YAML file. Errors: ValueError with the nearest name or wrong setting."""
    path = _recipe_file(name)
    try:
        return Recipe.from_dict(_read_with_base(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _recipe_file(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = sorted(p.stem for p in recipe_folder().glob("*.yaml"))
        if str(name) not in known:
            raise ValueError(
                f"no recipe is called {str(name)!r}; known are {', '.join(known)}, or give a .yaml file"
                + nearest(str(name), known)
            )
        path = recipe_folder() / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe file")
    return path


def _read_with_base(path: Path, above: tuple[Path, ...] = ()) -> Any:
    """The settings of a file, over those of the recipe that its `base` names: a name, or a file beside it."""
    if path in above:
        raise ValueError(f"its bases go in a circle: {' -> '.join(p.name for p in (*above, path))}")
    values = _read_file(path)
    if not isinstance(values, dict) or "base" not in values:
        return values
    base = str(values.pop("base"))
    base_path = _recipe_file(path.parent / base if Path(base).suffix else base)
    settings = _read_with_base(base_path, (*above, path))
    for section, own in values.items():
        both = isinstance(own, dict) and isinstance(settings.get(section), dict)
        settings[section] = settings[section] | own if both else own
    return settings


def _read_file(path: Path) -> Any:
    try:
        return read_yaml(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({' '.join(str(error).split())})") from error
