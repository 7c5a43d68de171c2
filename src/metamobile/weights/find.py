"""From what a user calls a model to a file. Without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from metamobile.deploy.formats import FORMATS, format_of
from metamobile.errors import nearest
from metamobile.files import cache_folder
from metamobile.weights.published import PUBLISHED, published_name

SHIPPED: dict[str, Path] = {
    name: Path(__file__).parent / "shipped" / f"{name}.safetensors"
    for name in ("emo_1m.imagenette", "emov2_1m.imagenette")
}
WEIGHTS = "model.safetensors"  # in a run folder
SUFFIXES = (".safetensors", *(one.suffix for one in FORMATS.values()))


def find_model(name: str | Path, others: Iterable[str] = ()) -> Path:
    """The file behind a run folder, a weights or exported file, or the name of shipped or pulled weights.

    Errors: ValueError that says what was found in its place, with the nearest name, of `others` too.
    """
    if str(name) in SHIPPED:
        shipped = SHIPPED[str(name)]
        if not shipped.is_file():
            raise ValueError(
                f"{name}: its weights are missing from this installation (expected at {shipped})"
            )
        return shipped
    path = Path(name)
    if path.is_dir():
        return path if format_of(path) else _in_folder(path)  # some formats are folders
    if not path.exists():
        published = published_name(str(name))
        if published is not None:
            return find_pulled(published)
        known = [*SHIPPED, *PUBLISHED, *_beside(path), *others]
        if path.suffix in SUFFIXES:
            raise ValueError(f"no model {str(name)!r}: no such file{nearest(str(name), known)}")
        raise ValueError(
            f"no model {str(name)!r}; expected a run folder, a file ({', '.join(SUFFIXES)}), "
            f"shipped weights ({', '.join(SHIPPED)}), published ones ({', '.join(PUBLISHED)}) "
            f"or one of timm's names{nearest(str(name), known)}"
        )
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: not a model file; expected {' or '.join(SUFFIXES)}, or a run folder, "
            f"but its suffix is {path.suffix or 'missing'}"
        )
    return path


def pulled_path(name: str, cache: str | Path | None = None) -> Path:
    """Where `metamobile pull` leaves the published weights of that full name; they need not be there."""
    return Path(cache or cache_folder()) / "weights" / f"{name}.safetensors"


def find_pulled(name: str) -> Path:
    """The same, and they are there. Errors: ValueError that says how to fetch them."""
    path = pulled_path(name)
    if not path.is_file():
        raise ValueError(
            f"{name}: these published weights are not here yet (expected at {path}); "
            f"`metamobile pull {name}` fetches them"
        )
    return path


def _in_folder(folder: Path) -> Path:
    weights = folder / WEIGHTS
    if weights.is_file():
        return weights
    if (folder / "metrics.jsonl").is_file():
        raise ValueError(
            f"{folder}: this run has no {WEIGHTS} yet, so no epoch was finished; "
            f"`metamobile train --resume {folder}` goes on"
        )
    exported = sorted(path for path in folder.iterdir() if format_of(path))
    hint = f"; it holds {exported[0].name}, which can be given itself" if exported else ""
    raise ValueError(f"{folder}: not a run folder, as it holds no {WEIGHTS}{hint}")


def _beside(path: Path) -> list[str]:
    """Paths in the same folder, written as the user wrote theirs."""
    return [str(path.parent / other.name) for other in path.parent.glob("*")]
