"""Tasks: each brings its data, model, loss, metric, result and drawing; nothing else asks for its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from metamobile.errors import nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metamobile.data.folder import FolderData
    from metamobile.data.inspect import Inspection
    from metamobile.data.loader import PictureDataset
    from metamobile.data.preprocess import Preprocess
    from metamobile.training.recipe import Recipe

TASKS = ("classify",)


class Task(Protocol):
    """What the training loop knows of a task."""

    name: str

    def check_data(self, recipe: Recipe, progress: Callable[[int, int], None]) -> Inspection:
        """Read every file of the recipe's data; `progress` is called with (done, total)."""

    def open_data(self, recipe: Recipe, exclude: Collection[Path] = ()) -> FolderData: ...
    def class_names(self, classes: Sequence[str]) -> list[str]: ...
    def build_model(self, recipe: Recipe, num_classes: int) -> nn.Module: ...
    def train_dataset(self, data: FolderData, recipe: Recipe) -> PictureDataset: ...
    def val_dataset(self, data: FolderData, recipe: Recipe, record: Preprocess) -> PictureDataset: ...
    def make_loss(self, recipe: Recipe, classes: Sequence[str]) -> Any:
        """`loss(forward, inputs, targets)` -> (scalar loss, outputs); `loss.about` is said at the start."""

    def make_metric(self, names: Sequence[str]) -> Any:
        """`update(outputs, targets)` with arrays, `compute()` -> figures, `main_figure` among them."""

    main_figure: str  # the figure, the higher the better, that chooses the best epoch

    def worst(
        self, outputs: Tensor, data: FolderData, names: Sequence[str], most: int
    ) -> list[dict[str, Any]]:
        """The validation pictures that the model is most wrong about, for the report."""


def get_task(name: str) -> Task:
    """Errors: ValueError for an unknown task."""
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; known are {', '.join(TASKS)}{nearest(name, TASKS)}")
    from metamobile.tasks.classify.task import ClassifyTask

    return ClassifyTask()
