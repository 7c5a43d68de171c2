"""The Hugging Face Hub: a folder in its layout, pushing that folder, and fetching a repository's weights.

The folder holds `model.safetensors` (the weights file as it is, its card included), `config.json` (what
`timm.create_model("local-dir:...")` and "hf-hub:..." read) and `README.md` (the Hub's model card).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library in use, which is another one in each major version
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from timm.models._hub import save_config_for_hf
from torch import nn

from metamobile import __version__
from metamobile.errors import nearest
from metamobile.files import aside, write_text
from metamobile.models.pretrained import timm_record
from metamobile.weights.card import Card
from metamobile.weights.find import SHIPPED, WEIGHTS, find_model
from metamobile.weights.model_card import model_card
from metamobile.weights.network import load_network
from metamobile.weights.published import published_name

CONFIG, README = "config.json", "README.md"
# What timm's record says of a network, whatever its weights; all else in it is of timm's own weights.
_OF_THE_NETWORK = (
    "architecture",
    "first_conv",
    "classifier",
    "min_input_size",
    "fixed_input_size",
    "paper_ids",
)

_log = logging.getLogger(__name__)


def save_pretrained(
    model: str | Path,
    save_directory: str | Path,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    datasets: str | Sequence[str] | None = None,
) -> Path:
    """Write `model.safetensors`, `config.json` and `README.md` into a folder; returns the folder.

    `model` is a run folder, a weights file, or the name of shipped or pulled weights. The README names
    `repo_id` as the place to load from, and tells a `license` and the Hub's names of `datasets` if given. A
    README that is there stays, which is told. Errors: ValueError for a model that is not one of these, or a
    folder that cannot be written to.
    """
    if repo_id is not None:
        _check_repo_id(repo_id)
    path, network, card = _open(model)
    if hasattr(network, "backbone"):
        raise ValueError(
            f"{model}: models that {card.task} cannot be put into the Hub's layout so far; the .safetensors "
            "file holds all that `metamobile.load` needs"
        )
    folder = Path(save_directory)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; expected a folder to write to")
    if (folder / "metrics.jsonl").is_file() and path.resolve() != (folder / WEIGHTS).resolve():
        raise ValueError(f"{folder}: a run folder, whose own weights would be lost; give another folder")
    with aside(folder / WEIGHTS) as temporary:
        shutil.copyfile(path, temporary)
    _write_config(folder / CONFIG, network, card)
    if (folder / README).exists():
        _log.warning(
            "%s is there and was kept; without it, one is written from the weights file", folder / README
        )
    else:
        write_text(folder / README, model_card(network, card, repo_id, license, datasets))
    return folder


def push_to_hub(
    model: str | Path,
    repo_id: str,
    *,
    commit_message: str = "Push model using metamobile",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool | None = None,
    license: str | None = None,
    datasets: str | Sequence[str] | None = None,
) -> str:
    """Put a model into the Hub's repository `repo_id`, made if it is missing; returns the commit's URL.

    What is uploaded is the folder of `save_pretrained`, which takes the same `model`, `license` and
    `datasets`; a README in the repository stays, which is told. The other arguments are huggingface_hub's
    (`create_repo`, `upload_folder`). Errors: ValueError, one line, for a model or a name that cannot be
    used, before anything is sent, and for a Hub that refuses or cannot be reached.
    """
    _check_repo_id(repo_id)
    api = HfApi(token=token, library_name="metamobile", library_version=__version__)
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, repo_id=repo_id, license=license, datasets=datasets)
        with _in_words(repo_id, revision):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if api.file_exists(repo_id, README, revision=revision):
                (Path(folder) / README).unlink()
                _log.warning("%s: the README.md of the repository was kept", repo_id)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
    return commit.pr_url or commit.commit_url


def download(
    repo_id: str,
    *,
    force_download: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
) -> Path:
    """Fetch the weights file of a repository, once; the arguments are those of `hf_hub_download`.

    Errors: ValueError, one line, for a name that is none, a repository or revision that is not there or holds
    no weights, and for a Hub out of reach.
    """
    beside = Path(repo_id).parent.glob("*")  # it may have been meant as a folder
    near = nearest(repo_id, [str(Path(repo_id).parent / other.name) for other in beside])
    hint = f"; nor is there a folder {repo_id}{near}"
    _check_repo_id(repo_id, hint)
    with _in_words(repo_id, revision, hint):
        return Path(
            hf_hub_download(
                repo_id,
                WEIGHTS,
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                revision=revision,
                library_name="metamobile",
                library_version=__version__,
            )
        )


def _open(model: str | Path) -> tuple[Path, nn.Module, Card]:
    """The file, its network and its card. Errors: ValueError, also for tensors that do not fit the card."""
    name = str(model)
    is_file = name in SHIPPED or published_name(name) is not None or Path(model).exists()
    is_network = timm.is_model_pretrained(name) or (timm.is_model(name) and "." not in name)
    if is_network and not is_file:
        raise ValueError(
            f"{name}: a network's name; expected weights of your own, in a run folder or a .safetensors "
            f"file, or the name of shipped or pulled ones ({', '.join(SHIPPED)})"
        )
    path = find_model(model)
    return path, *load_network(path)


def _write_config(path: Path, network: Any, card: Card) -> None:
    """config.json: what timm needs to build the network, load the file beside it and prepare pictures."""
    of_timm = network.pretrained_cfg
    of_network = {key: of_timm[key] for key in _OF_THE_NETWORK if key in of_timm}
    network.pretrained_cfg = {**of_network, **timm_record(card)}
    config: dict[str, Any] = {"label_names": card.classes}
    if card.names != card.classes:
        config["label_descriptions"] = dict(zip(card.classes, card.names, strict=True))
    model_args = {key: value for key, value in card.model_args.items() if key != "num_classes"}
    with aside(path) as temporary:
        target: Any = temporary  # timm says str, and 1.0.20 takes only a Path
        save_config_for_hf(network, target, model_config=config, model_args=model_args)


def _check_repo_id(repo_id: str, hint: str = "") -> None:
    """Errors: ValueError for what cannot be the name of a repository; it ends with `hint`."""
    try:
        validate_repo_id(repo_id)
        is_name = repo_id.count("/") == 1
    except HFValidationError:
        is_name = False
    if not is_name:
        raise ValueError(
            f"{repo_id}: not a repository of the Hub; expected user/name, such as anna/pets, of letters, "
            f"digits, '-', '_' and '.'{hint}"
        )


@contextmanager
def _in_words(repo_id: str, revision: str | None, hint: str = "") -> Iterator[None]:
    """What the Hub answers, or that it does not, as one line; `hint` where the repository was not seen."""
    try:
        yield
    except (HTTPError, OSError, EntryNotFoundError) as error:  # no network, or a full disk, are among them
        raise ValueError(f"{repo_id}: {_what_failed(error, revision, hint)}") from error


def _what_failed(error: Exception, revision: str | None, hint: str) -> str:
    hub, log_in = constants.ENDPOINT, "`hf auth login`, or the argument token, says who asks"
    if isinstance(error, LocalEntryNotFoundError):
        return f"not fetched before, and {hub} cannot be asked ({_reason(error)}){hint}"
    if isinstance(error, RevisionNotFoundError):
        return f"no revision {revision!r} at {hub}; without one, main is taken"
    if isinstance(error, EntryNotFoundError):
        return f"no {WEIGHTS} in this repository at {hub}; push_to_hub writes one"
    if isinstance(error, RepositoryNotFoundError):
        return f"no such repository at {hub}, or a private one; {log_in}{hint}"
    if isinstance(error, HfHubHTTPError):
        return f"{hub} refused ({_reason(error)}); {log_in}"
    return f"{hub} cannot be reached ({_reason(error)}){hint}"


def _reason(error: BaseException) -> str:
    told = getattr(error, "server_message", None) or str(error.__cause__ or error)
    return told.strip().partition("\n")[0].rstrip(".") or type(error).__name__
