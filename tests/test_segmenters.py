"""Segmenters against the published figures, and what every user of one relies on.

What a printed figure counts, by row; all are cut off after the printed digit. "Ours" has the auxiliary head
and no final norm of the classifier, which the maps do not pass.

    part                           EMO-1M, 2M   EMO-5M   EMOv2   size
    parameters: auxiliary head     yes          yes      no      0.22 to 0.41 M
    parameters: final norm         either       either   yes     336 to 896; SegFormer-20M needs it: 20.399798
                                                                 M without, 20.400694 M with, printed 20.4
    FLOPs: attention's products    yes          no       yes     0.08, 0.13, 0.75 G: EMO-5M prints 5.8, it
                                                                 would be 6.6
    FLOPs: resizing in the head    no           no       yes     up to 0.08 G: 4 an element bilinearly, 1 from
                                                                 the nearest (Semantic FPN-2M needs it: 25.045
                                                                 G without, 25.106 G with, printed 25.1)
    FLOPs: auxiliary head, resizing of the logits to the picture      in none

The published Semantic FPN resizes three maps once more at the size they have, which is counted here by hand.
FLOPs are by the papers' rule of `study.complexity`, at 512x512, windows as published.
Source: EMOv2 (arXiv 2412.06674) table 11, README and logs of the official release for 20M and SegFormer.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.segmentation.deeplabv3 import ASPP

from metamobile.models.segmenters import HEADS, Logits, PSPNetHead, Segmenter, create_segmenter
from metamobile.study.complexity import complexity
from metamobile.study.heads import PRINTED, Printed
from test_backbone import NETWORKS

aten = torch.ops.aten


ROWS = [row for row in PRINTED if row.task == "segment"]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.head}-{row.name}")

# In thousands, where three digits are known; cut off as well, EMOv2 with its final norm.
EXACT = {
    ("deeplabv3", "emo_1m"): 5653,
    ("deeplabv3", "emov2_1m"): 5606,
    ("deeplabv3", "emov2_2m"): 6658,
    ("deeplabv3", "emov2_5m"): 9966,
}


@functools.lru_cache
def published(head: str, name: str) -> Segmenter:
    """With 150 classes and the published window; without memory for its weights."""
    window = 10 if name.startswith("emov2") else 16 if name == "emo_5m" else 7
    return create_segmenter(name, head, 150, window_size=window).eval().to("meta")


def count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def tenths(printed: str) -> int:
    return int(printed.replace(".", ""))


@every_row
def test_parameters_to_the_printed_digit(row: Printed) -> None:
    model = published(row.head, row.name)
    counted = count(model)
    if row.name.startswith("emov2"):
        final_norm = 2 * model.backbone.channels[-1]
        counted += final_norm - count(model.auxiliary)
    assert counted // 100_000 == tenths(row.parameters)
    exact = EXACT.get((row.head, row.name))
    assert exact in (None, counted // 1000)


@every_row
def test_flops_to_the_printed_digit(row: Printed) -> None:
    model = published(row.head, row.name)
    counted = complexity(model, 512)[0].flops_paper
    attention, resizing = parts_of_flops(model)
    if row.name == "emo_5m":
        counted -= attention
    if row.name.startswith("emov2"):
        counted += resizing
        if row.head == "fpn":
            counted += 3 * 4 * 128 * 128 * 128
    assert row.flops and counted // 100_000_000 == tenths(row.flops)


def parts_of_flops(model: Segmenter) -> tuple[int, int]:
    """Multiply-adds of attention's products at 512x512, and fvcore's cost of the resizing in the head."""

    def resizing(cost: int) -> Any:
        return lambda *args, out_shape, **kwargs: 2 * cost * torch.Size(out_shape).numel()

    mapping = {aten.upsample_bilinear2d: resizing(4), aten.upsample_nearest2d: resizing(1)}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model(torch.empty(1, 3, 512, 512, device="meta"))
    counts = counter.get_flop_counts()
    head = counts["Segmenter.head"]
    resized = head.get(aten.upsample_bilinear2d, 0) + head.get(aten.upsample_nearest2d, 0)
    return counts["Global"][aten.bmm] // 2, resized // 2


# --- what the heads compute --------------------------------------------------------------------------------


def settle(module: nn.Module) -> nn.Module:
    """In evaluation mode, with norms that are not the identity."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return module.eval()


def test_deeplabv3_is_torchvisions_aspp_but_for_the_convolution_that_joins() -> None:
    torch.manual_seed(0)
    head = settle(HEADS["deeplabv3"].head([1, 1, 1, 20], 5, 16, 0.1))
    reference = ASPP(20, (12, 24, 36), 16)
    reference.project = nn.Sequential(*head.join)
    reference.eval()
    for theirs, ours in zip(reference.convs[:4], head.branches, strict=True):
        theirs.load_state_dict(ours.state_dict())
    pooled = head.mean[1].state_dict()
    reference.convs[4].load_state_dict(
        {f"{int(k.split('.')[0]) + 1}.{k.split('.')[1]}": v for k, v in pooled.items()}
    )
    x = torch.randn(2, 20, 40, 50)
    with torch.no_grad():
        ours = head([x, x, x, x])
        # torchvision joins the mean last, this head first
        head.join[0].weight.copy_(head.join[0].weight.roll(-16, 1))
        theirs = head.classify(reference(x))
    torch.testing.assert_close(ours, theirs)


def test_pspnet_pools_to_grids() -> None:
    """Against means by reshaping, on a map that 2, 3 and 6 divide."""
    torch.manual_seed(0)
    head = settle(PSPNetHead([1, 1, 1, 8], 5, 16, 0.1))
    x = torch.randn(2, 8, 12, 18)
    parts = [x]
    for side, pooled in zip((1, 2, 3, 6), head.pooled, strict=True):
        cells = x.unflatten(3, (side, -1)).unflatten(2, (side, -1)).mean((3, 5))
        parts.append(nn.Upsample((12, 18), mode="bilinear")(pooled[1](cells)))
    with torch.no_grad():
        torch.testing.assert_close(head([x, x, x, x]), head.classify(head.join(torch.cat(parts, 1))))


def test_segformer_mixes_no_positions_of_a_stage() -> None:
    """With maps at one size, a change at one position changes the logits there alone."""
    torch.manual_seed(0)
    head = settle(HEADS["segformer"].head([4, 6, 8, 10], 3, 12, 0.1))
    maps = [torch.randn(1, c, 5, 5) for c in (4, 6, 8, 10)]
    changed = [m.clone() for m in maps]
    changed[2][..., 3, 1] += 1
    with torch.no_grad():
        differs = (head(maps) != head(changed)).any(1)[0]
    assert torch.nonzero(differs).tolist() == [[3, 1]]


# --- what users rely on -------------------------------------------------------------------------------------

every_head = pytest.mark.parametrize("head", HEADS)


@every_head
@pytest.mark.parametrize(
    "name", ["emo_1m", "mobilenetv3_small_050", "edgenext_xx_small", "vit_tiny_patch16_224"]
)
def test_logits_have_the_size_of_the_picture(name: str, head: str) -> None:
    model = create_segmenter(name, head, 7, **NETWORKS[name]).eval()
    for size in ((64, 96), (97, 131)):
        with torch.no_grad():
            logits = model(torch.randn(1, 3, *size))
        assert isinstance(logits, Tensor)
        assert logits.shape == (1, 7, *size)
        assert torch.isfinite(logits).all()


@every_head
@pytest.mark.parametrize(
    "name", ["emo_1m", "emov2_1m", "resnet18", "edgenext_xx_small", "vit_tiny_patch16_224"]
)
def test_backward_reaches_every_parameter(name: str, head: str) -> None:
    torch.manual_seed(0)
    # timm's ResNets start with norms of zero, behind which nothing gets a gradient yet
    args = {"zero_init_last": False} if name == "resnet18" else NETWORKS[name]
    model = create_segmenter(name, head, 5, **args).train()
    logits = model(torch.randn(2, 3, 67, 64))
    assert isinstance(logits, Logits)
    target = torch.randint(0, 5, (2, 67, 64))
    loss = nn.functional.cross_entropy(logits.main, target)
    if logits.auxiliary is not None:
        loss = loss + 0.4 * nn.functional.cross_entropy(logits.auxiliary, target)
    loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # keys' biases shift all scores of a query alike, which softmax does not see
    assert [n for n in missing if not n.endswith("qk.bias")] == []


@every_head
def test_training_gives_the_same_main_logits_and_auxiliary_ones_where_published(head: str) -> None:
    model = settle(create_segmenter("emo_1m", head, 5))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)
        model.training = True  # this module alone: dropout and norms stay as in evaluation
        main, auxiliary = model(x)
    assert torch.equal(plain, main)
    if head in ("deeplabv3", "pspnet"):
        assert auxiliary.shape == main.shape
    else:
        assert auxiliary is None


@every_head
def test_exports_as_one_graph(head: str) -> None:
    model = create_segmenter("resnet18", head, 3).eval()
    x = torch.randn(1, 3, 64, 96)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x))


def test_the_settings_make_the_same_network() -> None:
    model = create_segmenter("emov2_1m", "segformer", 4, auxiliary=True, dropout=0.2, window_size=10)
    assert model.settings["head_channels"] == 180
    again = create_segmenter("emov2_1m", **model.settings, window_size=10)
    again.load_state_dict(model.state_dict())
    assert again.settings == model.settings


def test_the_auxiliary_head_can_be_left_out() -> None:
    model = create_segmenter("emo_1m", "deeplabv3", 4, auxiliary=False).train()
    assert model(torch.randn(2, 3, 64, 64)).auxiliary is None
    assert not [n for n, _ in model.named_parameters() if n.startswith("auxiliary")]


def test_errors_name_what_exists() -> None:
    known = "there are deeplabv3, pspnet, fpn, segformer"
    with pytest.raises(
        ValueError, match=f"no segmentation head is called 'deeplab'; {known}; did you mean 'dee"
    ):
        create_segmenter("emo_1m", "deeplab", 150)
    with pytest.raises(ValueError, match=f"no segmentation head is called 'ssdlite'; {known}"):
        create_segmenter("emo_1m", "ssdlite", 150)
    with pytest.raises(ValueError, match="num_classes is 0; a segmenter needs at least 1"):
        create_segmenter("emo_1m", "fpn", 0)
    with pytest.raises(ValueError, match="efficientvit_m0 has maps of strides 16, 32, 64; expected are 4, 8"):
        create_segmenter("efficientvit_m0", "fpn", 150)
    with pytest.raises(ValueError, match="window_size is EMO's; 'resnet18' does not take it"):
        create_segmenter("resnet18", "fpn", 150, window_size=7)
