"""Tasks: each brings its data, model, loss, metric, result and drawing; nothing else asks for its name.

A task is a folder of modules. Without torch: `data` (what its data sets look like), `results` (answers:
decoded, drawn, told), `files` (what an exported file answers), `asked` (what an answer is explained by) and
the metric; with torch: `task`, for the training loop, and `question` (`asked`, with a gradient).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from metamobile.errors import nearest

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from metamobile.data.inspect import Inspection
    from metamobile.data.loader import PictureDataset
    from metamobile.data.preprocess import Preprocess
    from metamobile.deploy.preprocessing import Graph
    from metamobile.deploy.runtimes import Runtime
    from metamobile.study.explain.subject import Subject
    from metamobile.tasks.asked import Asked, Question
    from metamobile.training.recipe import DataSettings, Recipe
    from metamobile.weights.card import Card

TASKS = ("classify", "detect", "segment")
Size = tuple[int, int]
Progress = Callable[[int, int], None]


class Data(Protocol):
    """A data set: classes, samples with a `path` each, and in words how the two splits came about."""

    root: Path
    classes: list[str]
    train: Sequence[Any]
    val: Sequence[Any]
    split: str
    own_split: bool  # the data have a validation split, so that none was held out


class DataModule(Protocol):
    """`metamobile.tasks.<name>.data`."""

    def inspect(
        self, settings: DataSettings, workers: int = 0, progress: Progress | None = None
    ) -> Inspection:
        """Read every file of the data; `progress` is called with (done, total)."""

    def open_data(self, settings: DataSettings, exclude: Collection[Path] = ()) -> Data: ...
    def eval_samples(self, data: str | Path, card: Card) -> tuple[Sequence[Any], str]:
        """What to measure a model on, the validation split if there is one; where it comes from in words."""

    def class_names(self, classes: Sequence[str]) -> list[str]: ...


class Metric(Protocol):
    """Figures over any number of batches."""

    def update(self, answers: Sequence[Any], targets: Sequence[int]) -> None: ...
    def compute(self) -> dict[str, Any]: ...


class ResultsModule(Protocol):
    """`metamobile.tasks.<name>.results`. `outputs` are a network's for a batch, as arrays."""

    HEADLINES: Sequence[
        tuple[str, str, str, str]
    ]  # (key, label, unit, note) of the figures; the main one first
    CLASS_COLUMNS: Sequence[tuple[str, str, str]]  # (key, title, tip) of what is told of each class

    def answers(
        self,
        outputs: Any,
        names: Sequence[str],
        pictures: Sequence[str],
        sizes: Sequence[Size],
        shapes: Sequence[Size],
    ) -> Sequence[Any]:
        """What the metric takes, one a picture: `sizes` (width, height) of the pictures, `shapes` (h, w) of
        the network's inputs."""

    def decode(
        self,
        outputs: Any,
        names: Sequence[str],
        pictures: Sequence[str],
        sizes: Sequence[Size],
        shapes: Sequence[Size],
        **options: Any,
    ) -> Sequence[Any]:
        """Typed results, one a picture."""

    OPTIONS: Sequence[str]  # the options of `decode` and `configure`
    MEASURED: Sequence[str]  # those of them that change figures
    BATCH_SIZE: int  # pictures answered at a time, unless told

    def configure(self, runtime: Runtime, **options: Any) -> Runtime:
        """The runtime with what options ask of it."""

    def save_more(self, result: Any, drawing: Path) -> None:
        """Files of a result beside its drawing."""

    def draw(self, picture: Image.Image, result: Any) -> Image.Image: ...
    def answers_table(self, results: Sequence[Any]) -> tuple[list[str], list[list[str]]]: ...
    def json_text(self, results: Sequence[Any], about: Mapping[str, Any]) -> str: ...
    def csv_text(self, results: Sequence[Any], failures: Sequence[tuple[str, str]]) -> str: ...
    def figures_line(self, figures: Mapping[str, Any]) -> str: ...
    def class_table(self, figures: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]: ...


class FilesModule(Protocol):
    """`metamobile.tasks.<name>.files`. `outputs` are a file's, named `OUTPUTS`."""

    PURPOSE: str  # what such a model does to pictures
    OUTPUTS: Sequence[str]  # what `answers` takes, by name
    NAMED: Sequence[str]  # and all others that such a file has
    FITS: Sequence[str]  # of `Preprocess.fit`, those that can be put into a graph

    def answers(self, outputs: Sequence[Any]) -> Any:
        """Of a batch, as `Runtime.run` gives them."""

    def join(self, outputs: Sequence[Sequence[Any]]) -> Any:
        """The same, where a file was asked picture by picture and suppresses by itself."""

    def finish(self, graph: Graph) -> list[tuple[str, type, list[Any]]]:
        """Put into a graph what makes answers in the picture's own pixels; name, NumPy's type and shape of
        each output that it then has."""


class AskedModule(Protocol):
    """`metamobile.tasks.<name>.asked`."""

    SCORE: str  # what the score of a target is

    def ask(self, subject: Subject, answers: Any, wanted: str | int | None) -> Asked:
        """About the answers to one picture, as `Runtime.run` gives them. Errors: NothingFound, NotFinite."""


class QuestionModule(Protocol):
    """`metamobile.tasks.<name>.question`."""

    def ask(self, subject: Subject, x: Tensor, wanted: str | int | None) -> Question:
        """About one picture (1, 3, h, w). Errors: NothingFound, NotFinite."""


class Task(Protocol):
    """What the training loop knows of a task."""

    name: str
    data: DataModule
    results: ResultsModule
    recipe: str  # where a training starts that names none
    heads: Sequence[str]  # by name; none for a classifier
    ignores: Sequence[str]  # settings of the recipe that it has no use for
    drops_unchecked: bool  # whether `data.drop_bad` leaves something out where `data.check` is false
    collate: Callable[[list[Any]], Any] | None  # items of a data set -> a batch; None: torch's own

    def build_model(self, recipe: Recipe, num_classes: int) -> nn.Module: ...
    def train_dataset(self, data: Data, recipe: Recipe, record: Preprocess) -> PictureDataset: ...
    def val_dataset(self, data: Data, recipe: Recipe, record: Preprocess) -> PictureDataset: ...
    def make_loss(self, recipe: Recipe, data: Data) -> Any:
        """`loss(forward, inputs, targets)` -> a scalar; `loss.about` is said at the start."""

    def answer(
        self, model: nn.Module, inputs: Any, targets: Any, names: Sequence[str]
    ) -> list[tuple[Any, int]]:
        """What the metric takes, with the target of each, for a batch of the validation set."""

    def worst(
        self, metric: Any, data: Data, names: Sequence[str], most: int, folder: Path
    ) -> list[dict[str, Any]]:
        """The validation pictures that the model is most wrong about, for the report; drawings go into
        `folder`."""


def get_task(name: str) -> Task:
    """Errors: ValueError for an unknown task."""
    return _module(name, "task").TASK


def get_results(name: str) -> ResultsModule:
    """Without torch. Errors: ValueError for an unknown task."""
    return _module(name, "results")


def get_data(name: str) -> DataModule:
    """Without torch. Errors: ValueError for an unknown task."""
    return _module(name, "data")


def get_files(name: str) -> FilesModule:
    """Without torch. Errors: ValueError for an unknown task."""
    return _module(name, "files")


def get_asked(name: str) -> AskedModule:
    """Without torch. Errors: ValueError for an unknown task."""
    return _module(name, "asked")


def get_question(name: str) -> QuestionModule:
    """Errors: ValueError for an unknown task."""
    return _module(name, "question")


def make_metric(task: str, names: Sequence[str], samples: Sequence[Any]) -> Metric:
    """The task's metric on `samples`. Without torch. Errors: ValueError for an unknown task."""
    return _module(task, "metric").Metric(names, samples)


def get_targets(samples: Sequence[Any]) -> list[int]:
    """What the metric compares answers with: the sample's class where it is one, else its place."""
    return [getattr(sample, "target", place) for place, sample in enumerate(samples)]


def _module(task: str, part: str) -> Any:
    if task not in TASKS:
        raise ValueError(f"no task is called {task!r}; known are {', '.join(TASKS)}{nearest(task, TASKS)}")
    return import_module(f"metamobile.tasks.{task}.{part}")
