"""Tables of ImageNet: the EMOs and their peers, transplants, recipes, speed."""

from __future__ import annotations

from typing import Any

import timm
from huggingface_hub import try_to_load_from_cache

from metamobile.models.create import create_model
from metamobile.models.transplants import TRANSPLANTS
from metamobile.study.complexity import Complexity, complexity
from metamobile.study.criteria import peer_costs
from metamobile.study.peers import PEERS, Peer
from metamobile.study.reproduce.printed import BATCHES, EMOS, OTHER_RECIPES, SPEED, STRONGER, TRANSPLANTED
from metamobile.study.reproduce.request import Reproduced, Request, other_data
from metamobile.weights.published import PUBLISHED

TOP1 = "top-1 %, ours, or what is missing"
RULE = ">M FLOPs, by the papers' rule"
NOT_IN_TIMM = "not known: timm does not have this network"


def count(name: str, size: int = 224, **args: Any) -> Complexity:
    """Counted on shapes alone: no weights."""
    (row,) = complexity(create_model(name, **args).eval().to("meta"), size)
    return row


def text(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def imagenet(request: Request) -> list[Reproduced]:
    """Tables 7 and 19: the EMOs first, then their peers, of which timm's are counted as deployed."""
    columns = ["network", ">px", ">M parameters", ">M parameters, paper's", ">M multiply-adds", RULE]
    columns += [">M FLOPs, paper's", ">top-1 %, paper's", ">with a teacher %, paper's", TOP1]
    rows = []
    for name, (parameters, flops, *top1) in EMOS.items():
        request.step(f"counting {name}")
        counted = count(name)
        weights = next((full for full, row in PUBLISHED.items() if row.variant == name), None)
        ours = [f"{n / 1e6:,.1f}" for n in (counted.macs, counted.flops_paper)]
        rows.append([name, "224", f"{counted.parameters / 1e6:.3f}", parameters, *ours, flops, *top1])
        rows[-1].append(request.classifier(weights))
    for peer in PEERS:
        if peer.name in EMOS:
            continue
        cells = ["-", "-"]
        if peer.model:
            request.step(f"counting {peer.name}")
            counts = peer_costs(peer)
            cells = [f"{counts[0] / 1e6:.3f}", f"{counts[1] / 1e6:,.1f}"]
        printed = [f"{peer.flops:,.0f}", text(peer.top1), text(peer.distilled)]
        rows.append([peer.name, f"{peer.size}", cells[0], f"{peer.parameters:.1f}", cells[1], "-", *printed])
        rows[-1].append(timm_top1(request, peer))
    notes = [
        "The EMOs' printed millions of parameters are cut off after the digit (1.361 is 1.3), and FLOPs are "
        "by the papers' rule, multiply-adds and norms; of 20M and 50M they are printed in G.",
        "Peers are counted as deployed, mergeable branches merged, in multiply-adds; their printed FLOPs are "
        "those of their own papers.",
        "A peer's weights are timm's default ones, whose recipe need not be its paper's.",
        *other_data(request, "imagenette-emo_1m/summary.json", "emo_1m, ten classes, 128 px"),
    ]
    return [Reproduced("imagenet", "ImageNet-1K", "EMOv2 tables 7 and 19", columns, rows, notes)]


def timm_top1(request: Request, peer: Peer) -> str:
    """Of timm's default weights, which `metamobile eval` fetches once."""
    if peer.model is None:
        return NOT_IN_TIMM
    config = timm.get_pretrained_cfg(peer.model)
    if config is None or not config.hf_hub_id:
        return "not known: timm has no weights of this network"
    here = isinstance(try_to_load_from_cache(config.hf_hub_id, "model.safetensors"), str)
    return request.measure("imagenet", f"{peer.model}.{config.tag}", [], here)


def transplants(request: Request) -> list[Reproduced]:
    """Table 3: Transformer blocks replaced by iRMBs and i2RMBs."""
    columns = ["network", ">M parameters", ">M parameters, paper's", ">G multiply-adds"]
    columns += [">G FLOPs, by the papers' rule", ">G FLOPs, paper's", ">top-1 %, paper's", TOP1]
    rows = []
    for name in TRANSPLANTS:
        request.step(f"counting {name}")
        counted = count(name)
        parameters, flops, top1 = TRANSPLANTED[name]
        run = f"{name}-imagenet"
        command = f"metamobile train {name} --recipe imagenet-emo --set model.window_size=null"
        command += f" --data {request.folder('imagenet')} --out {request.runs / run}"
        ours = [f"{counted.macs / 1e9:.3f}", f"{counted.flops_paper / 1e9:.3f}"]
        rows.append([name, f"{counted.parameters / 1e6:.3f}", parameters, *ours, flops, top1])
        rows[-1].append(request.trained("imagenet", run, [command]))
    notes = [
        "How the paper put its blocks in is not published: these came nearest in parameters and FLOPs of "
        "what was tried, within the printed digits (see `metamobile.models.transplants`). The training "
        "recipe is said to be one for all, and not which; the command takes EMO's.",
    ]
    title = "Transformer blocks replaced by iRMBs"
    return [Reproduced("transplants", title, "EMOv2 table 3", columns, rows, notes)]


def recipes(request: Request) -> list[Reproduced]:
    """Tables 6, 17 (c) and 17 (e): what training makes of the 5M networks."""
    missing = "no such recipe here: its values are not in the papers at hand"
    own = {name: request.classifier(f"{name}.in1k") for name in ("emo_5m", "emov2_5m")}
    rows = [
        [recipe, printed[0], printed[1], *(own.values() if recipe == "EMO" else [missing] * 2)]
        for recipe, printed in OTHER_RECIPES.items()
    ]
    columns = ["recipe of", ">EMO-5M, top-1 %, paper's", ">EMOv2-5M, top-1 %, paper's"]
    columns += ["EMO-5M, ours, or what is missing", "EMOv2-5M, ours, or what is missing"]
    notes = ["NaN is the paper's: training failed. The EMO row is of the published weights."]
    found = [Reproduced("recipes", "The 5M networks by other recipes", "EMOv2 table 6", columns, rows, notes)]
    batches = [
        [
            f"{batch:,}",
            top1,
            request.trained(
                "imagenet",
                f"emov2_5m-batch-{batch}",
                [
                    f"metamobile train emov2_5m --recipe imagenet-emov2 --set run.batch_size={batch} "
                    f"--data {request.folder('imagenet')} --out {request.runs / f'emov2_5m-batch-{batch}'}"
                ],
            ),
        ]
        for batch, top1 in BATCHES.items()
    ]
    columns = [">batch size", ">top-1 %, paper's", TOP1]
    found.append(Reproduced("recipes", "Batch sizes, EMOv2-5M", "EMOv2 table 17 c", columns, batches))
    columns = [">px", "teacher", "longer", ">G FLOPs, by the papers' rule", ">G FLOPs, paper's"]
    columns += [">top-1 %, paper's", TOP1]
    counted = {}
    for size, window in ((224, 7), (256, 8), (512, 8)):
        request.step(f"counting emov2_5m at {size} px")
        counted[size] = f"{count('emov2_5m', size, window_size=window).flops_paper / 1e9:.3f}"
    rows = [
        [f"{size}", teacher, longer, counted[size], flops, top1, _stronger(request, size, teacher, recipe)]
        for size, teacher, longer, flops, top1, recipe in STRONGER
    ]
    notes = [
        "Windows are 7 at 224 px and 8 at 256 and 512. The heads of two of the paper's columns are swapped. "
        "The length of the longer training is not published.",
        "Of the published weights at 512 px, whether they are those of 82.4 or of 82.9 is not told.",
    ]
    found.append(
        Reproduced("recipes", "Stronger training, EMOv2-5M", "EMOv2 table 17 e", columns, rows, notes)
    )
    return found


def _stronger(request: Request, size: int, teacher: str, recipe: str | None) -> str:
    published = {
        "imagenet-emov2": "emov2_5m.in1k",
        "imagenet-emov2-kd": "emov2_5m.in1k_kd",
        "imagenet-emov2-512-kd": "emov2_5m_512.in1k_kd",
    }
    if recipe is None:
        return "not known: the length of the training is not published"
    if recipe in published:
        return request.classifier(published[recipe])
    folder = request.runs / recipe
    command = f"metamobile train --recipe {recipe} --data {request.folder('imagenet')} --out {folder}"
    return request.trained("imagenet", recipe, [command])


def speed(request: Request) -> list[Reproduced]:
    """Table 16. Ours comes from results/speed/speed.json, which another verb writes."""
    measured = request.evidence("speed/speed.json")
    ours = {row["model"]: row["images_per_second"] for row in (measured or {}).get("rows", ())}
    columns = ["network", ">CPU pictures/s, paper's", ">GPU pictures/s, paper's", ">iPhone 15 ms, paper's"]
    columns += [">top-1 %, paper's", "CPU pictures/s, ours, or what is missing"]
    rows = []
    for name, model, *printed in SPEED:
        cell = f"not measured: `metamobile bench {model}`"
        rows.append([name, *printed, f"{ours[model]:.1f}" if model in ours else cell])
    notes = [
        "The paper does not tell its CPU, its GPU, the batch size or the precision, so no figure of ours can "
        "be held against its own; EMOv2-2M's 3312.4 on the GPU, faster than EMOv2-1M, looks like a misprint.",
    ]
    if measured:
        notes.append(f"Ours: {measured['machine']} (results/speed/speed.json).")
    elif not has_verb("bench"):
        notes.append("`metamobile bench` is not part of this version yet.")
    return [Reproduced("speed", "Speed", "EMOv2 table 16", columns, rows, notes)]


def has_verb(name: str) -> bool:
    """Whether a verb is there, as each is a function of the package."""
    import metamobile

    return name in metamobile.__all__
