"""Which task a data set is for, found by looking; and `metamobile check`. Without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from metamobile.data.coco import looks_like_coco
from metamobile.data.inspect import Inspection
from metamobile.data.masks import MASKS
from metamobile.data.yolo import yamls_of_pictures
from metamobile.tasks import get_data
from metamobile.training.recipe import DataSettings

# folders of masks in layouts that are not read: VOC's, Cityscapes', SegNet's CamVid; and plain ones, which
# are masks only beside pictures, as there are classes of that name
UNREAD = re.compile(r"SegmentationClass|SegmentationObject|gtFine|gtCoarse|(train|val|test)annot")
PLAIN, BESIDE = re.compile(r"masks?|labels?"), re.compile(r"imgs?|images?|pictures?|photos?")


def check(
    data: str | Path,
    *,
    task: str | None = None,
    classes: Sequence[str] | None = None,
    ignore: int | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Read every file of a data set and name each bad one; `task` is found by looking unless given.

    `classes` and `ignore` are for masks, as in a recipe (`data.classes`, `data.ignore`).

    Errors: ValueError for a folder that is missing or holds nothing that a task knows.
    """
    names = None if classes is None else list(classes)
    settings = DataSettings(path=str(data), classes=names, ignore=ignore)
    return get_data(task or find_task(data)).inspect(settings, workers, progress)


def find_task(data: str | Path) -> str:
    """ "detect" where there is a COCO json, a yaml that names pictures, or label files; "segment" where masks
    lie beside pictures; else "classify". A settings file beside class folders is neither.

    Errors: ValueError for folders of masks in a layout that is not read, whose names would become classes.
    """
    root = Path(data)
    if root.suffix in (".json", ".yaml", ".yml"):
        return "detect"
    if not root.is_dir():
        return "classify"  # whose reader names what is missing
    jsons = [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/_annotations.coco.json")]
    labels = [
        folder
        for folder in (root / "labels", *root.glob("*/labels"))
        if folder.is_dir() and (folder.parent / "images").is_dir()
    ]
    if (
        any(looks_like_coco(path) for path in jsons)
        or yamls_of_pictures(root)
        or any(any(folder.rglob("*.txt")) for folder in labels)
    ):
        return "detect"
    sides = [root, *(path for path in root.iterdir() if path.is_dir())]
    if any((side / "images").is_dir() and any((side / name).is_dir() for name in MASKS) for side in sides):
        return "segment"
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    unread = [name for name in folders if UNREAD.fullmatch(name)]
    if any(BESIDE.fullmatch(name) for name in folders):
        unread += [name for name in folders if PLAIN.fullmatch(name)]
    if unread:
        raise ValueError(
            f"{root}: {', '.join(unread)} look like folders of masks, not like classes; expected "
            "images/ and masks/ (train/ and val/ inside), or --task classify if they are classes"
        )
    return "classify"
