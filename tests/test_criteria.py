"""The criteria of a mobile network: counts of small networks known by hand, and of EMO by its definition."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metamobile
from metamobile.models.create import create_model
from metamobile.models.variants import VARIANTS
from metamobile.study import criteria
from metamobile.study.complexity import complexity
from metamobile.study.criteria import (
    SINGLE_IN_ONNX,
    feature_strides,
    mark_generalisation,
    mark_uniformity,
    peer_costs,
    runs_at,
    study_efficiency,
    study_uniformity,
    study_usability,
)
from metamobile.study.peers import MARKS, PEERS, PREFIXES, TASKS, Peer, find_series
from metamobile.study.trace import find_blocks, trace
from metamobile_cli import run


class Net(nn.Module):
    """A convolution and what a function makes of it."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def traced(function):
    return trace(Net(function).to("meta"), (8, 8))


INDEX = torch.zeros(1, 4, 8, 8, dtype=torch.long, device="meta")


@pytest.mark.parametrize(
    ("function", "other", "indexed", "mark"),
    [
        (lambda x: (x.relu() * 2 + x.mean()).softmax(1).pow(2), {}, {}, "yes"),
        (F.hardswish, {}, {}, "yes"),  # which PyTorch does not tag as elementwise
        (lambda x: F.max_pool2d(F.layer_norm(x, (8, 8)), 2), {}, {}, "yes"),
        (lambda x: x.roll(1, -1).roll(1, -2), {}, {"roll": 2}, "no"),
        (lambda x: x.gather(-1, INDEX), {}, {"gather": 1}, "partly"),
        (lambda x: F.unfold(x, 2), {}, {"im2col": 1}, "no"),
        (lambda x: x[:, INDEX[0, :, 0, 0]], {}, {"index": 1}, "no"),
        (lambda x: F.interpolate(x, scale_factor=2), {"upsample_nearest2d": 1}, {}, "partly"),
        (lambda x: x.cumsum(-1).roll(1), {"cumsum": 1}, {"roll": 1}, "no"),
        (lambda x: torch.fft.rfft(x).real, {"_fft_r2c": 1}, {}, "no"),
    ],
)
def test_what_is_outside_the_set(function, other: dict, indexed: dict, mark: str) -> None:
    usability = study_usability(traced(function))
    assert (usability.other, usability.indexed, usability.mark) == (other, indexed, mark)
    assert usability.inside["convolution"] == 1


def test_only_what_depends_on_the_picture_counts() -> None:
    def positions(x: Tensor) -> Tensor:  # a table from the size alone, rolled and summed up
        return x + torch.ones_like(x).cumsum(-1).roll(1, -1)

    def padded(x: Tensor) -> Tensor:  # the picture written into a constant: it depends on it from there on
        canvas = x.new_zeros(1, 4, 9, 9)
        canvas[:, :, :8, :8] = x
        return canvas.roll(1, -1)

    assert not traced(positions).other and not traced(positions).indexed
    assert traced(padded).indexed == {"roll": 1}


def test_reshapes_are_free_and_copies_are_counted() -> None:
    assert traced(lambda x: x.flatten(2).transpose(1, 2)[:, ::2].unsqueeze(0)).copies == {}
    assert traced(lambda x: x.transpose(1, 3).contiguous()).copies == {"clone": 1}
    assert traced(lambda x: F.pad(torch.cat([x, x]), (1, 1))).copies == {"cat": 1, "constant_pad_nd": 1}


def test_in_place_or_not_is_one_operator() -> None:
    inside = traced(lambda x: F.relu(x.relu(), inplace=True)).inside
    assert inside == {"convolution": 1, "relu": 2}


def test_onnx_has_one_operator_for_those_named() -> None:
    """The exporter is the judge: one node each, while a roll and an unfold need several."""

    class Single(nn.Module):
        def forward(self, x: Tensor, where: Tensor, rows: Tensor, grid: Tensor, columns: Tensor):
            sizes = [F.interpolate(x, scale_factor=2.0, mode=m) for m in ("nearest", "bilinear", "bicubic")]
            found = x.gather(-1, where), x.index_select(-1, rows), F.grid_sample(x, grid, align_corners=False)
            sums = torch.linalg.vector_norm(x, dim=-1), x.cumsum(-1), x.topk(2, dim=-1)[0]
            return (*sizes, *found, *sums, x.flip(-1), F.fold(columns, (5, 5), 2))

    class Several(nn.Module):
        def forward(self, x: Tensor):
            return x.roll(1, -1), F.unfold(x, 2)

    def nodes(module: nn.Module, *inputs: Tensor) -> list[str]:
        program = torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False)
        return [node.op_type for node in program.model.graph if node.op_type not in ("Constant", "Reshape")]

    x = torch.rand(1, 4, 4, 4)
    index = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    single = nodes(Single(), x, index, index[0, 0, 0], torch.rand(1, 4, 4, 2), torch.rand(1, 4, 16))
    assert len(single) == len(SINGLE_IN_ONNX) == 11
    assert len(nodes(Several(), x)) > 2


class Block(nn.Module):
    """1x1, depthwise or k x k, 1x1; with attention where asked: one class that hides what it holds."""

    def __init__(self, dim: int, kernel: int = 3, groups: int = 0, attention: bool = False) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, dim, 1, bias=False)
        self.mix = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=groups or dim, bias=False)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.expand(x))
        if self.attention:
            tokens = x.flatten(2)
            x = (tokens @ tokens.transpose(1, 2) @ tokens).reshape(x.shape)
        return x


class Stage(nn.Module):
    def __init__(self, dim: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.down = nn.Conv2d(dim, dim, 2, 2)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return x


class Nested(nn.Module):
    """A block of which a list of other modules is a part."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(Block(dim), Block(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def uniformity(**parts: nn.Module):
    net = nn.Module()
    for name, part in parts.items():
        net.add_module(name, part)
    net.forward = nn.Sequential(*parts.values()).forward  # type: ignore[method-assign]
    net.to("meta")
    blocks = find_blocks(net)
    return study_uniformity(net, blocks, trace(net, (16, 16), blocks)), blocks


def test_two_kinds_of_blocks_in_one_class() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
    stages = nn.Sequential(Stage(8, Block(8), Block(8, kernel=5)), Stage(8, Block(8, attention=True)))
    found, blocks = uniformity(stem=stem, stages=stages)
    assert list(blocks) == ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"]
    assert (found.classes, found.mark) == ({"Block": 3}, "partly")
    total = (8 * 27 + 8 + 16) + 2 * (8 * 32 + 8) + 3 * 64 + 8 * (9 + 25 + 9)
    convolutional, attentive = found.kinds
    assert (convolutional.contents, convolutional.blocks) == (("1x1", "depthwise"), 2)
    assert convolutional.share == pytest.approx((2 * 64 + 8 * (9 + 25)) / total)
    assert (attentive.contents, attentive.blocks) == (("1x1", "attention", "depthwise"), 1)
    assert attentive.share == pytest.approx((64 + 72) / total)


def test_blocks_that_differ_in_sizes_and_norms_are_one_kind() -> None:
    widths = nn.Sequential(
        nn.Sequential(Block(3), Block(3, kernel=7)),
        nn.Conv2d(3, 8, 1),
        nn.Sequential(Block(8), nn.Sequential(Block(8), nn.BatchNorm2d(8), nn.GELU())),
    )
    found, blocks = uniformity(features=widths)
    assert len(blocks) == 4 and found.mark == "yes"


def test_a_list_in_a_block_is_not_opened() -> None:
    """Stages are; so is a list of lists. A block inside of them stays whole."""
    found, blocks = uniformity(stages=nn.Sequential(nn.Sequential(Nested(3), Block(3, groups=1))))
    assert [type(block).__name__ for block in blocks.values()] == ["Nested", "Block"]
    assert {kind.contents for kind in found.kinds} == {("1x1", "depthwise"), ("1x1", "convolution")}


def test_no_blocks_are_no_mark() -> None:
    found, blocks = uniformity(a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
    assert blocks == {} and (found.kinds, found.mark) == ([], None)


def test_a_tiny_kind_does_not_count() -> None:
    assert [mark_uniformity(shares) for shares in ([], [0.5], [0.5, 0.0099], [0.5, 0.01], [0.3] * 3)] == [
        None,
        "yes",
        "yes",
        "partly",
        "no",
    ]


def test_ahead_by_hand() -> None:
    def peer(name: str, parameters: float, flops: float, top1: float | None, distilled: float | None = None):
        return Peer(name, None, parameters, flops, 224, top1, distilled)

    peers = [
        peer("small", 1, 300, 70.0),
        peer("light", 3, 100, 75.0),
        peer("strong", 5, 900, 80.0),
        peer("taught", 1, 50, None, 79.0),
    ]

    def study(own: Peer):
        found = study_efficiency(own, (224, 224), round(own.parameters * 1e6), round(own.flops * 1e6), peers)
        return found.no_more_parameters, found.no_more_multiply_adds, found.no_more_of_both, found.mark

    assert study(peers[0]) == ([], ["light"], [], "partly")  # its own row is no rival
    assert study(peers[1]) == ([], [], [], "yes")  # one with a teacher is not compared with one without
    assert study(peers[2]) == ([], [], [], "yes")
    assert study(peer("equal", 3, 100, 75.0)) == (["light"], ["light"], ["light"], "no")
    assert study(peer("beaten", 6, 950, 74.0)) == (
        ["strong", "light"],
        ["strong", "light"],
        ["strong", "light"],
        "no",
    )
    assert study(peer("pupil", 4, 60, None, 74.0)) == (["taught", "light"], ["taught"], ["taught"], "no")
    nothing_known = study_efficiency(None, (224, 224), 1, 1, peers)
    assert (nothing_known.top1, nothing_known.mark) == (None, None)


def test_marks_of_generalisation() -> None:
    assert mark_generalisation([2, 4, 8, 16, 32], True) == "yes"
    assert mark_generalisation([4, 8, 16, 32], False) == "partly"
    assert mark_generalisation([8, 16, 32], True) == "partly"
    assert mark_generalisation([16, 16, 16], False) == "no"


def test_a_transformer_for_one_size_and_a_convolutional_network() -> None:
    fixed, free = (
        create_model(name).eval().to("meta") for name in ("deit_tiny_patch16_224", "mobilenetv2_035")
    )
    assert runs_at(fixed, (224, 224)) and not runs_at(fixed, (320, 256))
    assert runs_at(free, (320, 256))
    assert feature_strides("deit_tiny_patch16_224") == [16, 16, 16]
    assert feature_strides("mobilenetv2_035") == [2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    "name", ["emov2_1m", "mobilevit_xxs", "xcit_nano_12_p16_224", "mobilenetv3_small_050"]
)
def test_multiply_adds_are_those_of_the_package(name: str) -> None:
    model = timm.create_model(name).eval()
    assert trace(model.to("meta"), (224, 224)).macs == complexity(model, 224)[0].macs


def test_the_tables_name_networks_rightly() -> None:
    """What the paper prints and what is counted here are the same network: within 15 % of either number."""
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert set(PREFIXES.values()) | {"EdgeViT", "EfficientVMamba", "MogaNet"} == set(MARKS)
    assert set(TASKS) <= set(MARKS)
    for peer in PEERS:
        if peer.model is not None:
            parameters, multiply_adds = peer_costs(peer)
            assert parameters == pytest.approx(1e6 * peer.parameters, rel=0.15), peer
            assert multiply_adds == pytest.approx(1e6 * peer.flops, rel=0.15), peer
    assert find_series("emo_5m") == "EMO" and find_series("emov2_5m") == "EMOv2"
    assert find_series("mobilevitv2_050") == "MobileViT" and find_series("resnet50") is None


def test_emo_by_its_definition(tmp_path: Path) -> None:
    """One class; attention in all blocks of stages 3 and 4 but the first; two cuts of it in EMOv2."""
    rows = metamobile.study_criteria(["emo_1m", "emov2_1m", "mobilenetv2_140"], tmp_path)
    for row, cuts in zip(rows, (1, 2), strict=False):
        variant = VARIANTS[row.model]
        attentive = variant.depths[2] - 1 + variant.depths[3] - 1
        assert row.usability.inside["_softmax"] == cuts * attentive
        assert row.usability.inside["bmm"] == 2 * cuts * attentive
        assert row.usability.inside["native_batch_norm"] == 2 + sum(variant.depths) + sum(variant.depths[:2])
        assert (row.usability.other, row.usability.indexed, row.usability.mark) == ({}, {}, "yes")
        assert row.uniformity.classes == {"MetaMobileBlock": sum(variant.depths) + 1}  # and the stem's
        largest = row.uniformity.kinds[0]
        assert (largest.contents, largest.blocks) == (("1x1", "attention", "depthwise"), attentive)
        stages = create_model(row.model).stages[3:]
        inside = sum(p.numel() for stage in stages for block in stage[1:] for p in block.parameters())
        assert largest.share == pytest.approx(inside / variant.parameters)
        assert (row.uniformity.counted, row.uniformity.mark) == (2, "partly")
        assert row.efficiency.parameters == variant.parameters
        assert row.efficiency.multiply_adds == pytest.approx(1e6 * variant.macs, abs=500)
        # printed in table 7: more accurate with fewer multiply-adds, but with more parameters
        assert "MNetv3-L-0.75" in row.efficiency.no_more_multiply_adds
        assert row.efficiency.no_more_parameters == [] and row.efficiency.mark == "partly"
        assert (row.generalisation.strides, row.generalisation.other_size) == ([2, 4, 8, 16, 32], True)
        assert set(row.paper().values()) == ({"yes", "no"} if row.series == "EMO" else {"yes"})
        assert "uniformity" in row.differences() and "usability" not in row.differences()

    mobilenet = rows[2]  # 17 blocks of one kind, 52 convolutions, no attention
    assert mobilenet.usability.inside["convolution"] == 52 and "_softmax" not in mobilenet.usability.inside
    assert [(kind.contents, kind.blocks) for kind in mobilenet.uniformity.kinds] == [
        (("1x1", "depthwise"), 17)
    ]
    assert "EfficientNet-B0" in mobilenet.efficiency.no_more_of_both and mobilenet.efficiency.mark == "no"

    written = json.loads((tmp_path / "criteria.json").read_text())
    assert list(written["rules"]) == list(written["rows"][0]["ours"]) == list(criteria.CRITERIA)
    assert [row["model"] for row in written["rows"]] == ["emo_1m", "emov2_1m", "mobilenetv2_140"]
    assert written["rows"][0]["paper"]["generalisation"] == "no"
    assert written["versions"]["timm"] == timm.__version__


def test_the_list_without_names_has_every_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        criteria, "count_criteria", lambda name: criteria.CriteriaRow(name, find_series(name))
    )
    rows = metamobile.study_criteria()
    assert {row.series for row in rows} == set(MARKS)
    assert all(timm.is_model(name) for name in criteria.DEFAULT_MODELS)
    (absent,) = [row for row in rows if row.series == "EfficientVMamba"]
    assert set(absent.ours().values()) == {None} and absent.differences() == []
    assert list(absent.paper().values()) == ["no", "no", "partly", "no"]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["study", "criteria", "mobilenetv1_100", "pit_ti_224", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[-2:] for line in lines if line[0] == "network"] == [["by count", "the paper's"]] * 5
    first = [line for line in lines if line[0] == "mobilenetv1_100"]
    assert first[0][1:] == ["5", "-", "-", "0", "yes", "yes"]  # convolution, norm, clamp, mean, linear
    assert first[1][1:4] == ["1", "1", "1x1 + depthwise"]
    assert first[2][1:] == ["224", "4.23", "569", *"------", "partly"]
    assert first[3][1:3] == ["2, 4, 8, 16, 32", "yes"]
    assert first[4][1:] == ["generalisation", "yes", "no"]  # the only one of the four that differs
    assert Counter(line[0] for line in lines)["pit_ti_224"] == 4  # the paper has no mark that could differ
    assert "criteria.json" in err and (tmp_path / "criteria.json").is_file()


def test_a_series_that_timm_does_not_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(criteria, "DEFAULT_MODELS", ())
    assert run(["study", "criteria"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert ["EdgeViT, not in timm", *"----", "-", "yes"] in lines
    assert ["MogaNet, not in timm", *"---", "-", "no"] in lines


def test_what_cannot_be_studied(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(["study", "criteria", "edgenext_smal"]) == 2
    error = capsys.readouterr().err
    assert "no network is called 'edgenext_smal'" in error and "did you mean 'edgenext_small'?" in error
    with pytest.raises(ValueError, match="no network given; expected names such as emo_1m"):
        metamobile.study_criteria([])

    def branches(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    net = Net(branches).to("meta")
    net.pretrained_cfg = {"input_size": (3, 8, 8)}  # type: ignore[assignment]
    monkeypatch.setattr(criteria, "build", lambda name: net)
    with pytest.raises(ValueError, match="toy cannot be counted without data, leave it out: "):
        metamobile.study_criteria(["toy"])
