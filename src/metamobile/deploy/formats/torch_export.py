"""A network as torch.export's program, .pt2: any batch size, a fixed picture size; the card is beside it in
the archive."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamobile.deploy.formats import PLAIN, Options
from metamobile.deploy.runtimes import UNREADABLE, UNVERIFIED, Pixels, to_arrays
from metamobile.tasks import get_files
from metamobile.weights.card import KEY, Card

if TYPE_CHECKING:
    from torch import nn


def write(network: nn.Module, card: Card, path: str | Path, options: Options = PLAIN) -> None:
    """Write `network`, as it computes in evaluation mode, for pictures of the card's size."""
    import torch

    from metamobile.deploy.decoding import output_names

    module, _ = output_names(network.cpu().eval(), suppression=True)
    # Two pictures, as torch.export takes a size of one for a constant.
    example = torch.zeros(2, 3, *card.preprocess.size)
    program = torch.export.export(
        module.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )
    torch.export.save(program, path, extra_files={KEY: card.to_json()})


class TorchExport:
    """A .pt2 file, run by PyTorch."""

    name = "torch.export"

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        import torch

        from metamobile.deploy.runtimes import pick_device

        self.path = Path(path)
        extra = {KEY: "", UNVERIFIED: ""}
        try:
            program = torch.export.load(self.path, extra_files=extra)
        except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.path}: torch cannot read it, {UNREADABLE} ({reason})") from error
        if not extra[KEY]:
            raise ValueError(
                f"{self.path}: a program without a metamobile card; expected a file that `metamobile "
                "export` wrote"
            )
        self.card = Card.from_json(extra[KEY])
        self.device = pick_device(device)
        self.module: Any = program.module().to(self.device)
        if extra[UNVERIFIED]:
            logging.getLogger(__name__).warning("%s failed its gate: %s", self.path, extra[UNVERIFIED])

    def run(self, batch: Pixels) -> Any:
        import torch

        try:
            with torch.inference_mode():
                found = self.module(torch.from_numpy(batch).to(self.device))
        except (AssertionError, RuntimeError) as error:  # the first from a guard on the size
            raise ValueError(
                f"{self.path} cannot run on {batch.shape} ({str(error).splitlines()[0]})"
            ) from error
        return get_files(self.card.task).answers(
            to_arrays(list(found) if isinstance(found, tuple) else [found])
        )


open_file = TorchExport


def mark(path: str | Path, reason: str) -> None:
    """Say in the archive that the file failed its gate."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/extra/{UNVERIFIED}", reason)
