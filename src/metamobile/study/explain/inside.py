"""What a network shows beside its answers, and an exported file does not.

Shapes: h w of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metamobile.study.explain.cam import activation_map, choose_layer, correlation_with_shuffled
from metamobile.study.explain.explain import Options, Row
from metamobile.study.explain.frame import Frame, enlarge
from metamobile.study.explain.layers import find_layer, find_stage, last_map
from metamobile.study.explain.question import ask
from metamobile.study.explain.receptive import ReceptiveField, receptive_field
from metamobile.study.explain.subject import Subject


def activation_row(subject: Subject, x: Tensor, picture: str, frame: Frame, options: Options) -> Row:
    """A class activation map, and its check."""
    question = ask(subject, x, options.target)
    name = choose_layer(subject, question, x, options.stage, options.layer)
    layer = find_layer(subject, name)
    cam = activation_map(subject, question, layer, x, options.method)
    correlation = (
        correlation_with_shuffled(subject, question, layer, x, options.method, cam) if options.check else None
    )
    heat = enlarge(cam, subject.padded(frame.shape))[: frame.shape[0], : frame.shape[1]]
    return Row(picture, frame, question.target, name, cam, heat, options.point, [], correlation)


def field(subject: Subject, pixels: Sequence[Tensor], options: Options) -> ReceptiveField | None:
    """The effective receptive field of the chosen layer over pictures (1, 3, h, w)."""
    return receptive_field(subject, field_layer(subject, options, pixels[0]), pixels)


def field_layer(subject: Subject, options: Options, x: Tensor) -> str:
    """The layer or stage given, else the network's last stage."""
    if options.layer is not None:
        return options.layer
    return last_map(subject, x) if options.stage is None else find_stage(subject, options.stage)
