"""Maps, attention and receptive fields against what a planted network or a perturbation says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from metamobile.data.preprocess import Preprocess, fit_picture
from metamobile.models.create import create_model
from metamobile.models.operators import WindowAttention
from metamobile.study.explain.attention import attention_maps, token_weights
from metamobile.study.explain.cam import (
    activation_map,
    choose_layer,
    correlation_with_shuffled,
    rank_correlation,
)
from metamobile.study.explain.frame import cells, centre_of, enlarge, make_frame, stride_of
from metamobile.study.explain.layers import find_stage, find_stages, to_map
from metamobile.study.explain.methods import METHODS, OCCLUSION, find_method
from metamobile.study.explain.question import ask
from metamobile.study.explain.receptive import field_size, receptive_field
from metamobile.study.explain.subject import Subject, open_subject
from metamobile.tasks.asked import NothingFound
from small_detector import small


class Gate(nn.Module):
    """Lets one region of a map pass, rows 1 to 2 of column 3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(x[:1, :1])
        mask[..., 1:3, 3] = 1
        return x * mask


class Planted(nn.Module):
    """Class 0 is how red one region is, class 1 how green: nothing else can matter."""

    num_classes = 2
    feature_info = [{"module": "conv", "reduction": 8}, {"module": "gate", "reduction": 16}]

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 16, 16, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, 0] = self.conv.weight[1, 1] = 1 / 256
        self.gate = Gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(self.conv(x)).mean((2, 3))


def subject_of(network: nn.Module, size: int = 64) -> Subject:
    return open_subject(network.eval(), size=size)


REGION = np.zeros((4, 4), bool)
REGION[1:3, 3] = True


@pytest.mark.parametrize("method", [name for name in METHODS if name != OCCLUSION])
def test_only_the_planted_region_lights_up(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    subject = subject_of(Planted())
    x = torch.rand(1, 3, 64, 64) * torch.tensor([1.0, 0.2, 0.1])[:, None, None] + 0.1  # red is everywhere
    question = ask(subject, x)
    assert question.target.index == 0
    assert choose_layer(subject, question, x) == "gate"
    values = activation_map(subject, question, subject.network.gate, x, method)
    assert values.shape == (4, 4)
    assert values[REGION].min() > 0.5
    assert not values[~REGION].any()
    assert not capfd.readouterr().err


def test_a_class_that_nothing_speaks_for_has_an_empty_map() -> None:
    subject = subject_of(Planted())
    x = torch.full((1, 3, 64, 64), -1.0)
    values = activation_map(subject, ask(subject, x, 1), subject.network.gate, x, "gradcam")
    assert not values.any()


def test_shuffled_weights_tell_a_learned_map_from_another() -> None:
    """The gate has no weights, so that its map stays; that of the convolution does not."""
    network = Planted()
    subject = subject_of(network)
    x = torch.rand(1, 3, 64, 64)
    x[:, 1, :32] += 5  # green above
    x[:, 0, 32:] += 5  # red below
    question = ask(subject, x, 0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for layer, low, high in ((network.gate, 0.7, 1.01), (network.conv, -1.01, 0.5)):
        values = activation_map(subject, question, layer, x, "gradcam")
        found = correlation_with_shuffled(subject, question, layer, x, "gradcam", values)
        assert found is not None and low < found < high
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_rank_correlation_by_hand() -> None:
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(one, one**3) == pytest.approx(1)
    assert rank_correlation(one, np.array([2.0, 1.0, 3.0, 4.0])) == pytest.approx(0.8)
    assert rank_correlation(one, np.ones(4)) is None


class Tokens(nn.Module):
    """Patches of 4x4 pixels that do not overlap, then one attention: a pixel is in one token."""

    num_classes = 8

    def __init__(self, window: int, partition: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.attention = WindowAttention(8, 4, window, partition)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(self.patches(x))


@pytest.mark.parametrize("partition", ["strided", "contiguous", "both"])
@pytest.mark.parametrize("window", [2, 4, 5])
def test_attention_reaches_the_pixels_that_a_perturbation_reaches(window: int, partition: str) -> None:
    network = Tokens(window, partition).double()  # a map of 5x5, padded to 6x6 or 8x8
    x = torch.randn(1, 3, 20, 20, dtype=torch.float64)
    subject = Subject("tokens", network.eval(), "classify", [], [], Preprocess(size=(20, 20)))
    changed = x.repeat(400, 1, 1, 1)
    changed[torch.arange(400), :, torch.arange(400) // 20, torch.arange(400) % 20] += 1
    with torch.no_grad():
        difference = (network(changed) - network(x)).abs().amax(1)  # (400, 5, 5)
    for row, column in ((0, 0), (2, 3), (4, 4)):
        maps = attention_maps(subject, x, (column * 4 + 1.5, row * 4 + 2.5))
        assert [one.query for one in maps] == [(row, column)] * len(maps)
        assert len(maps) == 2 if partition == "both" else [one.cut for one in maps] == [partition]
        reached = difference[:, row, column].view(20, 20).numpy() > 1e-12
        shown = sum(one.pixels for one in maps) > 0
        assert (reached == shown).all()
        for one in maps:
            assert one.pixels.sum() + one.padded == pytest.approx(1, abs=1e-12)
            assert one.weights.sum() == pytest.approx(one.pixels.sum(), abs=1e-6)
            assert (one.padded > 0) == (window != 5 and padding_in_window(5, window, (row, column), one.cut))


def padding_in_window(side: int, window: int, query: tuple[int, int], cut: str) -> bool:
    """Whether a window holds padding, from the definitions: its rows and columns one by one."""
    groups = -(-side // window)
    for at in query:
        rows = range(at % groups, groups * window, groups) if cut == "strided" else None
        rows = rows or range(at // window * window, at // window * window + window)
        if max(rows) >= side:
            return True
    return False


@pytest.mark.parametrize("cut", ["strided", "contiguous"])
def test_weights_times_values_are_the_layers_answer(cut: str) -> None:
    attention = WindowAttention(8, 4, 3, cut).double().eval()
    x, values = (torch.randn(1, 8, 7, 6, dtype=torch.float64) for _ in range(2))
    padded = nn.functional.pad(values, (0, 0, 0, 2))
    out = attention(x, lambda _: padded)
    weights, mine = token_weights(attention, x, (4, 2), cut)
    tokens = padded[0].view(2, 4, -1)[:, :, mine]  # (N, D, T)
    expected = (tokens * weights[:, None]).sum(-1).flatten()
    torch.testing.assert_close(out[0, :, 4, 2], expected)
    assert attention.partition == cut


def test_the_two_cuts_of_an_emov2_lie_where_the_definitions_say() -> None:
    network = create_model("emov2_1m", num_classes=3, window_size=4, depths=(1, 1, 2, 1)).eval()
    maps = attention_maps(subject_of(network, 128), torch.randn(1, 3, 128, 128), (16 * 2 + 3, 16 * 5 + 3))
    strided, contiguous = (one.weights > 0 for one in maps[-2:])
    assert {one.layer.split(".operator")[0] for one in maps} == {"stages.3.1"}
    expected = np.zeros((8, 8), bool)
    expected[1::2, 0::2] = True  # the query is row 5, column 2; there are 2 x 2 windows
    assert (strided == expected).all()
    expected = np.zeros((8, 8), bool)
    expected[4:, :4] = True
    assert (contiguous == expected).all()


def test_one_head_of_the_attention() -> None:
    network = Tokens(5, "strided")
    subject = Subject("tokens", network.eval(), "classify", [], [], Preprocess(size=(20, 20)))
    x = torch.randn(1, 3, 20, 20) * 5
    (mean,), *heads = (attention_maps(subject, x, (9, 9), head=head) for head in (None, 0, 1))
    np.testing.assert_allclose(mean.weights, (heads[0][0].weights + heads[1][0].weights) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="head 2: attention has heads 0 to 1"):
        attention_maps(subject, x, (9, 9), head=2)


def test_receptive_field_of_two_convolutions_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1)
    subject = Subject("two", network.eval(), "classify", [], [], Preprocess(size=(11, 11)))
    found = receptive_field(subject, "1", [torch.randn(1, 3, 11, 11) for _ in range(2)])
    assert found is not None and found.centre == (5.5, 5.5) and found.pictures == 2
    line = np.array([1, 2, 3, 2, 1])
    expected = np.zeros((11, 11))
    expected[3:8, 3:8] = np.outer(line, line) * 8  # 2 channels between, 4 behind
    np.testing.assert_allclose(found.field, expected, rtol=1e-5)
    # 81 in all: without the four corners 77, 95.06 %; without two values of 2 less, 73
    assert found.share == pytest.approx(21 / 121)
    assert found.radius == pytest.approx(math.sqrt(5))


def test_size_of_a_field_that_is_one_pixel() -> None:
    field = np.zeros((8, 8))
    field[4, 7] = 1
    assert field_size(field, (4.5, 4.5)) == (3.0, 1 / 64)


def test_a_sum_over_a_layer_norm_has_no_receptive_field() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network[1].weight.data.zero_()
    subject = Subject("none", network.eval(), "classify", [], [], Preprocess(size=(8, 8)))
    assert receptive_field(subject, "1", [torch.randn(1, 3, 8, 8)]) is None


@pytest.mark.parametrize("fit", ["crop", "stretch", "inside"])
@pytest.mark.parametrize("size", [(150, 90), (80, 131), (64, 64)])
def test_frame_is_where_the_preprocessing_took_each_pixel_from(fit: str, size: tuple[int, int]) -> None:
    """A picture of its own coordinates goes through the preprocessing itself."""
    record = Preprocess(size=(48, 64), fit=fit, interpolation="bilinear")
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    columns, rows = (np.asarray(fit_picture(Image.fromarray(a.astype(np.float32)), record)) for a in (x, y))
    frame = make_frame(Image.new("RGB", size), record, columns.shape)
    height, width = columns.shape
    for row, column in ((6, 8), (height // 2, width // 2), (height - 7, width - 9)):
        there = frame.to_picture(column + 0.5, row + 0.5)
        assert there == pytest.approx((columns[row, column], rows[row, column]), abs=0.3)
        assert frame.to_input(*there) == pytest.approx((column + 0.5, row + 0.5))
    placed = frame.place(columns.astype(np.float32))
    assert placed.shape == (size[1], size[0])
    inside = ~np.isnan(placed)
    assert np.abs(placed - x)[inside].max() < 4  # a pixel of the input is up to 3 of the picture
    left, top, right, bottom = frame.box
    assert inside.sum() == pytest.approx((right - left) * (bottom - top), rel=0.06)
    assert inside.all() == frame.is_whole


def test_positions_of_a_map_that_was_rounded_up() -> None:
    assert [stride_of(100, 4), stride_of(224, 16), stride_of(64, 2), stride_of(30, 15)] == [32, 14, 32, 2]
    assert cells(100, 4).tolist() == [i // 32 for i in range(100)]
    assert centre_of(3, 100, 4) == 98  # pixels 96 to 100
    wide = enlarge(np.array([[0, 0, 0, 1]], np.float32).repeat(4, 0), (100, 100))
    assert wide.shape == (100, 100) and wide[:, 99].min() > 0.5 and not wide[:, :80].any()


def test_forms_of_a_layers_answer() -> None:
    numbers = torch.arange(2 * 3 * 4 * 5.0).view(2, 5, 4, 3)  # 64x48 px at stride 16
    shape = (64, 48)
    assert torch.equal(to_map(numbers, shape), numbers)
    assert torch.equal(to_map(numbers.permute(0, 2, 3, 1), shape), numbers)
    tokens = numbers.flatten(2).transpose(1, 2)
    assert torch.equal(to_map(tokens, shape), numbers)
    with_class = torch.cat([torch.zeros(2, 1, 5), tokens], 1)
    assert torch.equal(to_map(with_class, shape, 1), numbers)
    assert torch.equal(to_map(with_class.transpose(1, 2)[:, :, None], shape), numbers)
    for wrong in (torch.zeros(2, 5), torch.zeros(2, 5, 7, 1), [numbers]):
        with pytest.raises(ValueError, match="choose another layer"):
            to_map(wrong, shape)


def test_where_a_class_token_is_classified_the_norm_before_the_last_attention_is_taken() -> None:
    network = create_model("vit_tiny_patch16_224", num_classes=3, img_size=64, depth=2)
    nn.init.normal_(network.head.weight)  # timm begins with zeros
    subject, x = subject_of(network), torch.randn(1, 3, 64, 64)
    question = ask(subject, x, 1)
    assert find_stages(subject) == {}
    assert choose_layer(subject, question, x) == "blocks.1.norm1"
    assert activation_map(subject, question, network.blocks[1].norm1, x, "gradcam").shape == (4, 4)
    with pytest.raises(ValueError, match="stage 3 cannot be chosen, as its maps have one stride"):
        find_stage(subject, 3)


@pytest.mark.parametrize("head", ["ssdlite", "retinanet"])
def test_the_logit_of_an_object_gives_its_score(head: str) -> None:
    network = small(head).eval()
    network.set_thresholds(score=0)
    subject, x = open_subject(network, size=64), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = network(x)[0]
    for wanted, place in ((None, 0), ("1:2", int((found["labels"] == 1).nonzero()[1]))):
        question = ask(subject, x, wanted)
        assert question.target.index == found["labels"][place]
        assert question.target.box == pytest.approx(found["boxes"][place].tolist())
        logits = question.answer(x)[0].detach()
        value = question.value(logits)
        row = int((logits == value).any(1).nonzero()[0])
        scores = logits[row].softmax(-1)[1:] if head == "ssdlite" else logits[row].sigmoid()
        assert scores[question.target.index] == pytest.approx(float(found["scores"][place]), abs=1e-5)
        name = choose_layer(subject, question, x)
        assert name in find_stages(subject).values()
        layer = dict(network.named_modules())[name]
        assert activation_map(subject, question, layer, x, "gradcam").max() <= 1
    network.set_thresholds(score=1)
    with pytest.raises(NothingFound, match="object 1 cannot be shown, as none is found"):
        ask(subject, x)


def test_an_object_from_a_finer_map_is_not_asked_of_the_coarser_one() -> None:
    """SSDLite's first level is stage 3, before stage 4."""
    network = small("ssdlite").eval()
    network.set_thresholds(score=0)
    subject, x = open_subject(network, size=64), torch.randn(1, 3, 64, 64)
    level = network.raw(x).levels[0]
    boxes = network.dense(x)[0][0, :level]
    with torch.no_grad():
        found = network(x)[0]
    place = next(i for i, box in enumerate(found["boxes"]) if (boxes - box).abs().sum(1).min() < 1e-6)
    label = int(found["labels"][place])
    question = ask(subject, x, f"{label}:{(found['labels'][: place + 1] == label).sum()}")
    assert question.target.box == pytest.approx(found["boxes"][place].tolist())
    assert choose_layer(subject, question, x) == "backbone.network.model.stages.3"
    with pytest.raises(ValueError, match="does not depend on the map of backbone.network.model.stages.4"):
        choose_layer(subject, question, x, stage=4)


def test_mask_rcnn_is_asked_for_the_class_of_the_box() -> None:
    network = small("mask_rcnn").eval()
    network.set_thresholds(score=0, limit=4)
    subject, x = open_subject(network, size=72), torch.randn(1, 3, 72, 72)  # padded to 96
    question = ask(subject, x)
    box = torch.tensor([question.target.box])
    seen = []
    handle = network.roi_heads.box_predictor.register_forward_hook(lambda *given: seen.append(given[2][0]))
    features = network.fpn(
        {str(i): m for i, m in enumerate(network.backbone(nn.functional.pad(x, (0, 24, 0, 24)))[-4:])}
    )
    network.roi_heads(features, [box], [(72, 72)])
    handle.remove()
    label = question.target.index
    value = float(question.value(question.answer(x)[0]).detach())
    assert value == pytest.approx(float(seen[0][0, label + 1].detach()), abs=1e-5)
    name = choose_layer(subject, question, x)
    values = activation_map(subject, question, dict(network.named_modules())[name], x, "gradcam")
    assert values.shape == (3, 3)


def test_a_region_is_the_mean_logit_of_its_pixels() -> None:
    torch.manual_seed(1)
    network = create_model(
        "emo_1m", task="segment", head="fpn", num_classes=3, depths=(1, 1, 1, 1), window_size=2
    )
    nn.init.normal_(network.head.classify[1].weight)
    subject, x = open_subject(network.eval(), size=64), torch.randn(1, 3, 64, 64)
    logits = network(x)[0]
    best = logits.argmax(0)
    counts = best.flatten().bincount(minlength=3)
    question = ask(subject, x)
    label = question.target.index
    assert counts[label] == counts.max() and question.target.score == pytest.approx(counts.max() / 64**2)
    assert (question.target.mask == (best == label).numpy()).all()
    torch.testing.assert_close(question.value(question.answer(x)[0]), logits[label][best == label].mean())
    assert choose_layer(subject, question, x).endswith("stages.4")


def test_methods_by_any_spelling() -> None:
    assert [find_method(name) for name in ("Grad-CAM", "Grad-CAM++", "GradCAMPlusPlus", "Eigen-CAM")] == [
        "gradcam",
        "gradcam++",
        "gradcam++",
        "eigencam",
    ]
    with pytest.raises(ValueError, match="no map is called 'gradcan'.*did you mean 'gradcam'"):
        find_method("gradcan")
