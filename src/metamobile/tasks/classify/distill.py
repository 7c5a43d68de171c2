"""Distillation: a student learns from a teacher's answers too. B batch, K the student's classes.

Source: EMOv2 (arXiv 2412.06674), official configuration: cross-entropy plus 5 KL(teacher || student), both at
temperature 1, summed over classes and averaged over the batch; the teacher sees the student's pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamobile.data.preprocess import Preprocess
from metamobile.errors import nearest
from metamobile.weights.card import Card
from metamobile.weights.network import load_network


class Teacher(nn.Module):
    """Pictures as the student gets them, (B, 3, H, W), -> the teacher's logits for the student's K classes.

    They are normalised anew, as the teacher was trained, and resized to (`size`, `size`), or to the size on
    its card. Of a teacher with more classes, the logits of the student's are taken, so that its softmax is
    over these alone.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, network: nn.Module, card: Card, classes: Sequence[str], student: Preprocess, size: int | None
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.size = (size, size) if size else card.preprocess.size
        # (x * std_s + mean_s - mean_t) / std_t as one factor and one offset a channel
        own_mean, own_std = (torch.tensor(v) for v in (card.preprocess.mean, card.preprocess.std))
        mean, std = torch.tensor(student.mean), torch.tensor(student.std)
        self.register_buffer("scale", (std / own_std)[:, None, None], persistent=False)
        self.register_buffer("offset", ((mean - own_mean) / own_std)[:, None, None], persistent=False)
        self.register_buffer("index", torch.tensor(match_classes(card, classes)), persistent=False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        pictures = pictures * self.scale + self.offset
        if pictures.shape[2:] != self.size:
            pictures = F.interpolate(pictures, self.size, mode="bicubic", antialias=True)
        return self.network(pictures).float()[:, self.index]


def load_teacher(name: str, classes: Sequence[str], student: Preprocess, size: int | None) -> Teacher:
    """Errors: ValueError as `load_network`, for another task's network, and as `match_classes`."""
    network, card = load_network(name)
    if card.task != "classify":
        raise ValueError(f"distill.teacher {name!r} is a network to {card.task}; expected a classifier")
    return Teacher(network, card, classes, student, size)


def match_classes(card: Card, classes: Sequence[str]) -> list[int]:
    """For each of the student's classes its index in the teacher's, by folder name or else readable name.

    Errors: ValueError for a class that the teacher does not know, with the nearest name.
    """
    # a readable name that two classes share says nothing
    names = {name: i for i, name in enumerate(card.names) if card.names.count(name) == 1}
    place = names | {name: i for i, name in enumerate(card.classes)}
    for name in classes:
        if name not in place:
            raise ValueError(
                f"distill.teacher ({card.variant}) has no class {name!r} among its {len(card.classes)}; "
                f"expected class folders that are called as the teacher's classes{nearest(name, place)}"
            )
    return [place[name] for name in classes]


def soft_distillation(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """tau^2 KL(teacher || student) of logits (B, K), summed over classes, mean over the batch.

    The factor keeps the gradient's size at any temperature; at 1, the papers', it does nothing.
    """
    student, teacher = (F.log_softmax(logits / tau, dim=1) for logits in (student, teacher))
    return tau**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
