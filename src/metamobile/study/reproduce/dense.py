"""Tables of COCO and ADE20K: the EMOs under each head, and their peers."""

from __future__ import annotations

from metamobile.study.heads import PRINTED, HeadRow, count_head
from metamobile.study.reproduce.classify import imagenet_run, train_on_imagenet
from metamobile.study.reproduce.printed import COLUMNS, PEER_ROWS, accuracy
from metamobile.study.reproduce.request import KEYS, Reproduced, Request, other_data
from metamobile.weights.published import PUBLISHED

TITLES = {
    "ssdlite": ("COCO, SSDLite", "EMOv2 table 8"),
    "retinanet": ("COCO, RetinaNet", "EMOv2 table 9"),
    "mask_rcnn": ("COCO, Mask R-CNN", "EMOv2 table 10"),
    "deeplabv3": ("ADE20K, DeepLabv3", "EMOv2 table 11"),
    "fpn": ("ADE20K, Semantic FPN", "EMOv2 table 11"),
    "segformer": ("ADE20K, SegFormer", "EMOv2 table 11"),
    "pspnet": ("ADE20K, PSPNet", "EMOv2 table 11"),
}
# None: EMO's recipe with this head is not published; EMOv2's takes its place, and the cell says so.
RECIPES = {
    "ssdlite": ("coco-ssdlite-emo", "coco-ssdlite-emov2"),
    "retinanet": ("coco-retinanet-emo", "coco-retinanet-emov2"),
    "mask_rcnn": (None, "coco-mask_rcnn-emov2"),
    "deeplabv3": ("ade20k-deeplabv3-emo", "ade20k-deeplabv3-emov2"),
    "fpn": (None, "ade20k-fpn-emov2"),
    "segformer": (None, "ade20k-segformer-emov2"),
    "pspnet": ("ade20k-deeplabv3-emo", "ade20k-deeplabv3-emov2"),
}
EVIDENCE = {
    "ssdlite": (
        "coco128-ssdlite-emo_1m/summary.json",
        "emo_1m on COCO128, trained on these very pictures, so learned by heart",
    ),
    "mask_rcnn": ("shapes-mask_rcnn-emo_1m/summary.json", "emo_1m on drawn shapes, six classes"),
}


def dense(head: str, request: Request) -> list[Reproduced]:
    """Our networks counted as `study heads` does, with what explains each printed figure; then the peers."""
    title, place = TITLES[head]
    kind = "coco" if title.startswith("COCO") else "ade20k"
    name = f"{kind}-{head.replace('_', '-')}"
    columns = ["network", ">px", ">M parameters", ">M parameters, paper's", ">G FLOPs, by the papers' rule"]
    columns += [">G FLOPs, paper's", *(f">{figure}, paper's" for figure in COLUMNS[head])]
    columns += [f"{KEYS[kind][1]}, ours, or what is missing", "what the paper's parameters and FLOPs count"]
    rows = []
    for printed in PRINTED:
        if printed.head != head:
            continue
        request.step(f"counting {printed.name} with {head}")
        counted = count_head(printed)
        side = counted.size[0] if counted.size else None
        flops = "-" if counted.flops is None else f"{counted.flops / 1e9:.3f}"
        rows.append([printed.name, _size(counted), f"{counted.parameters / 1e6:.3f}", printed.parameters])
        rows[-1] += [flops, printed.flops or "-", *accuracy(head, printed.name, side)]
        said = "; ".join(part for part in (counted.explained, counted.exempt) if part)
        rows[-1] += [
            _ours(request, kind, head, printed.name, side, printed.window),
            said or "plain counts, cut off",
        ]
    for peer in PEER_ROWS[head]:
        rows.append([peer.name, "-", "-", peer.parameters, "-", peer.flops, *peer.figures])
        rows[-1] += ["not measured: other authors' network and head", "-"]
    return [Reproduced(name, title, place, columns, rows, notes_of(request, head))]


def notes_of(request: Request, head: str) -> list[str]:
    notes = [
        "Printed figures of costs are cut off after the last digit; FLOPs of SSDLite with EMO are rounded."
    ]
    ours = [printed.name for printed in PRINTED if printed.head == head]
    if RECIPES[head][0] is None and any(name.startswith("emo_") for name in ours):
        notes.append("EMO's recipe with this head is not published; the commands take EMOv2's.")
    if "emov2_20m" in ours:
        notes.append(
            "ImageNet weights of emov2_20m, to start from, are not published: its commands train them first."
        )
    if head in EVIDENCE:
        notes += other_data(request, *EVIDENCE[head])
    return notes


def _size(row: HeadRow) -> str:
    if row.size is None:
        return "-"
    height, width = row.size
    return f"{height}" if height == width else f"{height}x{width}"


def _ours(request: Request, kind: str, head: str, name: str, side: int | None, window: int) -> str:
    """The figure of a run, or the commands that make it; its start is trained too where none is published."""
    own = RECIPES[head][name.startswith("emov2")]
    recipe = own or str(RECIPES[head][1])
    if head == "ssdlite" and side == 512:
        recipe += "-512"
    run = f"{recipe.replace('deeplabv3', head)}-{name}"
    weights = next((full for full, row in PUBLISHED.items() if row.variant == name), None)
    fetch = [f"metamobile pull {weights}"]
    if weights is None:
        start = imagenet_run(name)
        fetch = [] if request.has_run(start) else [train_on_imagenet(request, name)]
        weights = str(request.runs / start)
    settings = {"model.pretrained": weights, "model.window_size": window}
    if head == "pspnet":
        settings["model.head"] = head
    cell = request.trained(kind, run, [*fetch, request.train(name, recipe, kind, run, settings)])
    return cell if own else f"{cell} (by EMOv2's recipe, as EMO's is not published)"
