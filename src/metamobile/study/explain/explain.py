"""`metamobile explain`: what networks look at in pictures, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from PIL import Image

from metamobile.data.pictures import find_pictures, read_picture
from metamobile.errors import PictureError
from metamobile.files import aside, expect_folder, write_text
from metamobile.inference.model import model_name
from metamobile.study.explain.frame import Floats, Frame, OutOfSight, centre_of, enlarge
from metamobile.study.explain.methods import METHODS, OCCLUSION, find_method
from metamobile.study.explain.occlusion import ask_answers, occlusion_map
from metamobile.study.explain.subject import Subject, is_exported, is_known, open_subject
from metamobile.tasks.asked import NothingFound, Target

if TYPE_CHECKING:
    from metamobile.study.explain.attention import AttentionMap
    from metamobile.study.explain.receptive import ReceptiveField
    from metamobile.study.opened import AnyModel

Point = tuple[float, float]
Size = int | tuple[int, int]
MOST = 12  # pictures in a figure
ALIKE = 0.5  # rank correlation with maps of shuffled weights from which on it is told


@dataclass(eq=False)
class Row:
    """One network on one picture. `cam` (r, c) at the positions of `layer`, `heat` (h, w) the same at the
    pixels of the network's input, both from 0 to 1; `frame.place` puts such a map on the picture. `point`
    (x, y), in pixels of the picture, is whose attention is shown; None where the network did not see it, and
    why in `unseen`. `correlation` is the rank correlation of `cam` with maps of the network after its weights
    were shuffled."""

    picture: str
    frame: Frame
    target: Target
    layer: str
    cam: Floats
    heat: Floats
    point: Point | None
    attention: list[AttentionMap]
    correlation: float | None
    unseen: str = ""

    def on_picture(self, values: NDArray[Any]) -> NDArray[Any]:
        """(h, w) -> (H, W) at the picture's own pixels, NaN where the network saw nothing."""
        return self.frame.place(values)


@dataclass(eq=False)
class Explained:
    """One network, or exported file: a row a picture, None where nothing was found; the effective receptive
    field over all pictures, or None; why there is no attention or no field."""

    name: str
    task: str
    size: tuple[int, int]
    rows: list[Row | None]
    is_file: bool = False
    no_attention: str = ""
    field: ReceptiveField | None = None
    no_field: str = "no receptive field"


@dataclass(eq=False)
class Explanation:
    """All networks on the same `pictures`; `left_out` are networks that could not be had, `notes` say why and
    what else is to be known, `failures` name pictures that could not be read, `files` what was written."""

    method: str
    pictures: list[str]
    models: list[Explained]
    compares: bool
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def method_name(self) -> str:
        return METHODS[self.method][1]


@dataclass(frozen=True)
class Options:
    """What is shown, as `explain` takes it."""

    method: str
    target: str | int | None
    stage: int | None
    layer: str | None
    point: Point | None
    head: int | None
    check: bool


def explain(
    models: AnyModel | Sequence[AnyModel],
    pictures: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = "explain",
    compare: str | Sequence[str] = (),
    method: str | None = None,
    target: str | int | None = None,
    stage: int | None = None,
    layer: str | None = None,
    point: Point | None = None,
    head: int | None = None,
    size: Size | None = None,
    check: bool = True,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Draw what models look at: a map of what speaks for the answer, the attention of a point in its windows,
    and the effective receptive field. Writes explain.png and explain.html into the folder `out`.

    `models` are what `metamobile.load` takes, or PyTorch modules; `pictures` files, folders or globs, of
    which the first 12 are shown. `compare` names more networks, ours or timm's: the figure then has a column
    a network, as in the article; one whose weights cannot be had is named in `notes` and left out.

    `method` is gradcam, gradcam++, eigencam, scorecam or occlusion; left out, gradcam, but with an exported
    file among the models occlusion: a file has no gradients, and no attention or receptive field either.
    `target` is a class by name or number, and of a detector "person:2" the second-best person; left out, what
    is answered: the best class, object, or the class of most pixels. `stage` (0 to 4, stride 2^(k+1)) or
    `layer`, a module's name, is what is looked at; left out, it is the last map, and for attention the last
    stage with several windows. `point` is (x, y) in pixels of each picture; left out, the map's peak. `head`
    is one head of the attention; left out, the mean of all. `size` is the pictures' side, or (height, width),
    if not the model's own. `check` compares each map with those of shuffled weights, but for occlusion.
    `progress` gets (done, in all).

    Errors: ValueError for a model that cannot be opened, a method that a file does not allow, a class,
    stage, layer or head that is not there, a point that is seen in no picture, or where nothing is left to
    show, and without grad-cam.
    """
    if out is not None:
        expect_folder(out)
    if stage is not None and layer is not None:
        raise ValueError(f"stage {stage} and layer {layer} are both given; expected one of them")
    given = list(models) if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    others = [compare] if isinstance(compare, str) else list(compare)
    if not given and not others:
        raise ValueError("no model was given; expected a run folder, weights, a file, or a name")
    files = [one for one in [*given, *others] if is_exported(one)]
    options = Options(pick_method(method, files), target, stage, layer, point, head, check)
    paths = find_pictures([pictures] if isinstance(pictures, str | Path) else pictures)
    read, notes, failures = read_pictures(paths)
    names = [str(path) for path, _ in read]
    result = Explanation(options.method, names, [], bool(others), notes=notes, failures=failures)
    if options.method == "eigencam" and target is not None:
        notes.append("eigencam looks at no class: the class given has no effect on the map")
    if options.method == OCCLUSION and not (stage is layer is None):
        notes.append("occlusion looks at no layer: the one given has no effect on the map")
    if others and not (point is head is None):
        notes.append("a comparison draws no attention: that of the point or head is in the table alone")
    steps = (len(given) + len(others)) * len(read)
    for index, model in enumerate([*given, *others]):
        subject = open_or_note(model, index, size, device, notes, may_lack=index >= len(given))
        if subject is None:
            result.left_out.append(str(model))
            continue

        def tell(done: int, before: int = index * len(read)) -> None:
            if progress is not None:
                progress(before + done, steps)

        result.models.append(explain_model(subject, read, options, notes, tell))
    shown = [row for one in result.models for row in one.rows if row]
    if not shown:
        raise ValueError(f"nothing is left to show: {'; '.join(notes)}")
    if all(row.unseen for row in shown):
        raise ValueError(shown[0].unseen)
    if out is not None:
        write(result, [picture for _, picture in read], Path(out))
    return result


def pick_method(name: str | None, files: Sequence[AnyModel]) -> str:
    """The method by name, or what is possible. Errors: ValueError for one that a file does not allow, an
    unknown one, and without the package grad-cam for what needs it."""
    key = find_method(name or (OCCLUSION if files else "gradcam"))
    if key == OCCLUSION:
        return key
    if files:
        first: Any = files[0]
        raise ValueError(
            f"{model_name(first)}: an exported file, which has no gradients or maps for {METHODS[key][1]}; "
            "expected the method occlusion, or the run folder that it was made from"
        )
    from metamobile.study.explain.cam import load_method

    load_method(key)
    return key


def read_pictures(paths: Sequence[Path]) -> tuple[list[tuple[Path, Image.Image]], list[str], list[str]]:
    """The first `MOST`; a note on those left out; what is wrong with each that cannot be read.

    Errors: ValueError for none."""
    read: list[tuple[Path, Image.Image]] = []
    notes, failures = [], []
    if len(paths) > MOST:
        notes.append(f"{len(paths)} pictures were given; the first {MOST} are shown")
    for path in paths[:MOST]:
        try:
            read.append((path, read_picture(path)))
        except PictureError as error:
            failures.append(str(error))
    if not read:
        raise ValueError(f"none of {len(paths)} pictures can be read; the first: {failures[0]}")
    return read, notes, failures


def open_or_note(
    model: AnyModel, index: int, size: Size | None, device: str, notes: list[str], may_lack: bool
) -> Subject | None:
    """The model; or None and a note, for one that `may_lack` its weights, or that nobody here knows."""
    if may_lack and isinstance(model, str) and not is_known(model):
        notes.append(f"{model}: left out, as neither timm nor metamobile has a network of that name")
        return None
    try:
        return open_subject(model, index, size, device)
    except ValueError as error:
        if not may_lack:
            raise
        notes.append(f"left out: {error}")
        return None


def explain_model(
    subject: Subject,
    pictures: Sequence[tuple[Path, Image.Image]],
    options: Options,
    notes: list[str],
    tell: Callable[[int], None],
) -> Explained:
    """All pictures of one network."""
    inputs = [subject.see(picture) for _, picture in pictures]
    result = Explained(subject.name, subject.task, subject.record.size, [], subject.network is None)
    result.no_attention = attention_reason(subject)
    for done, ((path, picture), x) in enumerate(zip(pictures, inputs, strict=True), 1):
        frame = subject.frame(picture, (x.shape[-2], x.shape[-1]))
        try:
            result.rows.append(explain_picture(subject, x, str(path), frame, options))
        except NothingFound as error:
            result.rows.append(None)
            notes.append(f"{subject.name}, {path}: {error}")
        tell(done)
    shown = [row for row in result.rows if row]
    notes += [f"{subject.name}, {row.picture}: {row.unseen}" for row in shown if row.unseen]
    seen = [row for row in shown if not row.unseen]
    if seen and not result.no_attention and not any(row.attention for row in seen):
        result.no_attention = "no window attention in this stage or layer"
    if subject.network is None:
        notes.append(file_note(subject, options))
        result.no_field = "the receptive field\nneeds the weights"
    elif options.head is not None and result.no_attention:
        notes.append(f"{subject.name}: head {options.head} has no effect, as there is {result.no_attention}")
    notes += [
        f"{subject.name}, {row.picture}: the map is empty, as nothing in {row.layer} speaks for "
        f"{row.target.label}"
        for row in shown
        if not row.cam.any()
    ]
    notes += [
        f"{subject.name}, {row.picture}: the map resembles those of shuffled weights (rank correlation "
        f"{row.correlation:.2f}), so that it shows less what was learned than where the picture has something"
        for row in shown
        if row.correlation is not None and row.correlation >= ALIKE
    ]
    if shown and subject.network is not None:
        from metamobile.study.explain import inside

        result.field = inside.field(subject, [subject.tensor(x) for x in inputs], options)
    return result


def file_note(subject: Subject, options: Options) -> str:
    """What is not shown of an exported file, and which options have no effect."""
    given = {"point": options.point, "head": options.head}
    idle = [name for name, value in given.items() if value is not None]
    return (
        f"{subject.name}: an exported file; Grad-CAM, attention and the receptive field need the weights, "
        "the map is how far the answer falls where a patch is hidden"
        + (f"; no effect: {', '.join(idle)}" if idle else "")
    )


def attention_reason(subject: Subject) -> str:
    """Why there is no attention to show, or ""."""
    if subject.network is None:
        return "attention needs the weights"
    from metamobile.study.explain.attention import attention_layers

    return "" if attention_layers(subject) else "no window attention in this network"


def explain_picture(
    subject: Subject, pixels: NDArray[Any], picture: str, frame: Frame, options: Options
) -> Row:
    """One network, or file, on one picture (1, 3, h, w)."""
    if options.method == OCCLUSION:
        asked = ask_answers(subject, pixels, options.target)
        cam = occlusion_map(subject, asked, pixels)
        heat = enlarge(cam, frame.shape)
        row = Row(picture, frame, asked.target, "input", cam, heat, options.point, [], None)
        padded = frame.shape
    else:
        from metamobile.study.explain import inside

        row = inside.activation_row(subject, subject.tensor(pixels), picture, frame, options)
        padded = subject.padded(frame.shape)
    if subject.network is None:
        row.point = None
        return row
    row.point = row.point or frame.to_picture(*peak(row.cam, padded, frame.shape))
    try:
        at = frame.to_input(*row.point)
    except OutOfSight as error:
        row.point, row.unseen = None, str(error)
        return row
    from metamobile.study.explain.attention import attention_maps

    row.attention = attention_maps(
        subject, subject.tensor(pixels), at, stage=options.stage, layer=options.layer, head=options.head
    )
    return row


def peak(cam: Floats, padded: tuple[int, int], shape: tuple[int, int]) -> Point:
    """The middle (x, y) of the position with the largest value, in pixels of the input of `shape`, which the
    map covers up to `padded`; of an empty map, the picture's middle."""
    if not cam.any():
        return shape[1] / 2, shape[0] / 2
    row, column = divmod(int(cam.argmax()), cam.shape[1])
    x, y = centre_of(column, padded[1], cam.shape[1]), centre_of(row, padded[0], cam.shape[0])
    return min(x, shape[1] - 0.5), min(y, shape[0] - 0.5)


def write(result: Explanation, pictures: Sequence[Image.Image], folder: Path) -> None:
    """explain.png and explain.html."""
    from metamobile.study.explain.figure import draw
    from metamobile.study.explain.page import render

    image, page = folder / "explain.png", folder / "explain.html"
    with aside(image) as path:
        draw(result, pictures).savefig(path, format="png", dpi=150)
    write_text(page, render(result, image.read_bytes()))
    result.files = [image, page]
