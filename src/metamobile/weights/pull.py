"""`metamobile pull`: the authors' weights, checked and converted, as one file that the verbs find by name."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from timm.data import ImageNetInfo
from torch import Tensor

from metamobile.data.folder import class_names
from metamobile.errors import nearest
from metamobile.models.create import create_model, resolved_args
from metamobile.weights.card import Card, current_versions, read_card
from metamobile.weights.file import save_weights
from metamobile.weights.find import pulled_path
from metamobile.weights.official import from_official
from metamobile.weights.published import PUBLISHED, Published, published_name

CHUNK = 1 << 16  # bytes
PATIENCE = 30  # seconds without a byte
HEAD = "head.fc.weight"
# What PyTorch raises, beside UnpicklingError, on files that were cut or have other bytes here and there.
DAMAGED = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AssertionError, struct.error)

Step = Callable[[int, int | None], Any]  # called with bytes at hand and bytes in all, if known


def pull(
    name: str,
    *,
    source: str | Path | None = None,
    cache: str | Path | None = None,
    progress: Step | None = None,
) -> Path:
    """Fetch the published weights `name`, or convert `source`, their file at hand: a file in `cache`.

    A download that broke is gone on with. What was fetched must be the very file that the authors' repository
    holds; a `source` that is not is taken, and that is told. Nothing in either can run code. `progress` takes
    the place of the bar. Errors: ValueError, one line, for an unknown name, a server out of reach, a file
    that is truncated, foreign or another one than asked for.
    """
    full = published_name(name)
    if full is None:
        raise ValueError(
            f"no published weights are called {name!r}; there are {', '.join(PUBLISHED)}"
            + nearest(name, PUBLISHED)
        )
    row = PUBLISHED[full]
    path = pulled_path(full, cache)
    if source is not None:
        _convert_at_hand(Path(source), full, path)
    elif not _is_here(path, row):
        part = path.with_suffix(".part")
        with nullcontext(progress) if progress else _bar(full, row.url) as step:
            _download(full, part, step)
        try:
            _check_download(full, part)
            _convert(part, full, path, published=True)
        finally:
            part.unlink(missing_ok=True)
    return path


def git_blob_id(path: Path) -> str:
    """What git calls a file of this content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _is_here(path: Path, row: Published) -> bool:
    """Whether the published file itself was pulled before, and not another one converted under its name."""
    if not path.is_file():
        return False
    try:
        return read_card(path).recipe.get("git_blob") == row.blob
    except ValueError:  # truncated by a full disk, or written by a later version: fetched again
        return False


def _convert_at_hand(source: Path, name: str, path: Path) -> None:
    """A file that need not be the published one, which is told. Errors: ValueError if it is another's."""
    if not source.is_file():
        beside = [str(source.parent / other.name) for other in source.parent.glob("*")]
        raise ValueError(f"{source}: no such file to convert{nearest(str(source), beside)}")
    blob = git_blob_id(source)
    owner = next((other for other, row in PUBLISHED.items() if row.blob == blob), None)
    if owner not in (None, name):
        raise ValueError(
            f"{source}: this is the file of {owner}; `metamobile pull {owner} --from {source}` takes it"
        )
    _convert(source, name, path, published=owner is not None)
    if owner is None:
        logging.getLogger(__name__).warning(
            "%s is not the published file of %s (git blob id %s, expected %s): its card states no accuracy",
            source, name, blob, PUBLISHED[name].blob,
        )  # fmt: skip


def _by_hand(name: str) -> str:
    return f"or fetch {PUBLISHED[name].url} elsewhere and give it: `metamobile pull {name} --from FILE`"


def _download(name: str, part: Path, step: Step) -> None:
    """Fetch into `part`, from where it ends; it stays when the connection breaks."""
    url = PUBLISHED[name].url
    part.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.is_file() else 0
    request = Request(url, headers={"User-Agent": "metamobile"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    total = None
    try:
        with urlopen(request, timeout=PATIENCE) as answer:
            if answer.status != 206:  # the whole file, whatever was asked for
                done = 0
            length = answer.headers["Content-Length"]
            total = done + int(length) if length else None
            for chunk in _chunks(name, answer, at_start=not done):
                with part.open("ab" if done else "wb") as file:
                    file.write(chunk)
                done += len(chunk)
                step(done, total)
    except HTTPError as error:
        if error.code == 416:  # nothing lies behind the end of `part`: its hash decides
            return
        raise ValueError(
            f"{name}: {url} answers {error.code} {error.reason}; try again later, {_by_hand(name)}"
        ) from error
    except (URLError, ConnectionError, TimeoutError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if not done:
            raise ValueError(
                f"{name}: the weights could not be fetched ({reason}); "
                f"try again with a network, {_by_hand(name)}"
            ) from error
        raise _broken(name, done, total, str(reason)) from error
    if total is not None and done < total:
        raise _broken(name, done, total, "the connection was closed")


def _chunks(name: str, answer: HTTPResponse, at_start: bool) -> Iterator[bytes]:
    """The bytes of the answer. Errors: ValueError for a web page, before anything of it is handed on."""
    is_page = answer.headers.get_content_type() == "text/html"
    while chunk := answer.read(CHUNK):
        if is_page or (at_start and _starts_page(chunk)):
            raise ValueError(
                f"{name}: {PUBLISHED[name].url} gave a web page and no weights, as the log-in page of a "
                f"network or a proxy does; sort that out and try again, {_by_hand(name)}"
            )
        at_start = False
        yield chunk


def _broken(name: str, done: int, total: int | None, reason: str) -> ValueError:
    of = f" of {total:,}" if total is not None else ""
    return ValueError(
        f"{name}: {done:,}{of} bytes are here, and the rest did not come ({reason}); "
        f"`metamobile pull {name}` goes on from there"
    )


def _check_download(name: str, part: Path) -> None:
    row, blob = PUBLISHED[name], git_blob_id(part)
    if blob != row.blob:
        raise ValueError(
            f"{name}: what {row.url} gave is not the published file (git blob id {blob}, expected "
            f"{row.blob}) and was deleted; try again, and if that stays so, the authors have changed it: "
            "a copy of it can be converted with --from FILE"
        )


def _convert(source: Path, name: str, path: Path, published: bool) -> None:
    """An official checkpoint -> `path` with its card, once it loads strictly into its network."""
    row = PUBLISHED[name]
    try:
        state = from_official(read_checkpoint(source))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if HEAD not in state:
        raise ValueError(
            f"{source}: no classifier (head.weight) in it; expected all tensors of {row.variant}"
        )
    num_classes = len(state[HEAD])
    network = create_model(row.variant, num_classes=num_classes, window_size=row.window_size)
    own = network.state_dict()
    problems = {
        "missing": own.keys() - state.keys(),
        "unknown": state.keys() - own.keys(),
        "of another shape": {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape},
    }
    if any(problems.values()):
        counts = ", ".join(f"{len(keys)} {what} ({min(keys)})" for what, keys in problems.items() if keys)
        raise ValueError(
            f"{source}: these are not the tensors of {row.variant}: {counts}; is it another network's file?"
        )
    network.load_state_dict(state)
    card = _card(name, resolved_args(network), num_classes, source, published)
    save_weights(path, network.state_dict(), card)


def _card(name: str, model_args: dict[str, Any], num_classes: int, source: Path, published: bool) -> Card:
    row = PUBLISHED[name]
    classes = ImageNetInfo().label_names()
    if num_classes != len(classes):
        logging.getLogger(__name__).warning(
            "%s has %d classes and not ImageNet's %d; nothing tells their names, so they are called 0 to %d",
            source, num_classes, len(classes), num_classes - 1,
        )  # fmt: skip
        classes = [str(index) for index in range(num_classes)]
    metrics: dict[str, Any] = {}
    if published:
        metrics = {"published_top1": row.top1, "published_source": row.source}
        metrics |= {"published_top1_or": row.top1_or} if row.top1_or else {}
        about = f"the authors' {name}; published top-1 {row.top1_text} % at {row.size} px ({row.source})"
    else:
        about = f"converted from {source.name}, not the published file of {name}; its accuracy is not known"
    return Card(
        row.variant,
        model_args,
        classes=classes,
        names=class_names(classes),
        preprocess=row.preprocess,
        recipe={"url": row.url, "git_blob": row.blob} if published else {"file": source.name},
        metrics=metrics,
        versions=current_versions(),
        notes=about,
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a PyTorch file: the average `net_E` if there is one, else `net`, else the whole.

    Only tensors are unpickled. Errors: ValueError for anything else.
    """
    with path.open("rb") as file:
        start = file.read(CHUNK)
    if _starts_page(start):
        raise ValueError("a web page and no weights; GitHub's button 'Download raw file' gives the file")
    if not start.startswith((b"PK\3\4", b"\x80")):  # a zip archive, or the bare pickle of PyTorch below 1.6
        raise ValueError(f"not a PyTorch file ({path.stat().st_size:,} bytes); expected the authors' .pth")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            what = f"it holds more than tensors (reading it would call {asked[1]})"
        else:
            what = "it is damaged, or holds more than tensors,"
        raise ValueError(f"{what} and was not read; expected the authors' .pth") from error
    except DAMAGED as error:
        size = path.stat().st_size
        raise ValueError(f"truncated or damaged at {size:,} bytes; copy or download it again") from error
    if isinstance(content, Mapping):
        content = content.get("net_E") or content.get("net") or content
    if not isinstance(content, Mapping):
        raise ValueError(f"{type(content).__name__} in it; expected tensors by name, or 'net' or 'net_E'")
    other = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise ValueError(f"{', '.join(other[:5])} in it; expected tensors by name, or 'net' or 'net_E'")
    return dict(content)


def _starts_page(start: bytes) -> bool:
    return start.lstrip()[:1] == b"<"


@contextmanager
def _bar(name: str, url: str) -> Iterator[Step]:
    """A line that says what is fetched, and on a terminal a bar below it."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{name}: fetching {url}", markup=False)
    size = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *size)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
