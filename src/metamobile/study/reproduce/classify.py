"""Tables of ImageNet: the EMOs and their peers, transplants, recipes, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm

from metamobile.models.transplants import TRANSPLANTS
from metamobile.study.complexity import count_network
from metamobile.study.criteria import peer_costs
from metamobile.study.opened import is_cached
from metamobile.study.peers import PEERS, Peer
from metamobile.study.reproduce.printed import BATCHES, EMOS, OTHER_RECIPES, SPEED, STRONGER, TRANSPLANTED
from metamobile.study.reproduce.request import Reproduced, Request, other_data
from metamobile.weights.published import PUBLISHED

TOP1 = "top-1 %, ours, or what is missing"
RULE = ">M FLOPs, by the papers' rule"
BENCH = "speed/bench.json"
NOT_IN_TIMM = "not known: timm does not have this network"
UNKNOWN = {"EMOv1-20M": "not known: how this network is built is not published"}
TAGS = {  # where timm's default weights saw other pictures too, or had a recipe stronger than that
    "convnext_tiny": "fb_in1k",
    "resnet152": "a1_in1k",
    "swin_base_patch4_window7_224": "ms_in1k",
    "swin_tiny_patch4_window7_224": "ms_in1k",
}


def text(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def imagenet(request: Request) -> list[Reproduced]:
    """Tables 7 and 19: the EMOs first, then their peers, of which timm's are counted as deployed."""
    columns = ["network", ">px", ">M parameters", ">M parameters, paper's", ">M multiply-adds", RULE]
    columns += [">M FLOPs, paper's", ">top-1 %, paper's", ">with a teacher %, paper's", TOP1]
    rows = []
    for name, (parameters, flops, *top1) in EMOS.items():
        request.step(f"counting {name}")
        counted = count_network(name)
        ours = [f"{n / 1e6:,.1f}" for n in (counted.macs, counted.flops_paper)]
        rows.append([name, "224", f"{counted.parameters / 1e6:.3f}", parameters, *ours, flops, *top1])
        rows[-1].append(emo_top1(request, name))
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
        "A peer's weights are timm's, whose recipe need not be its paper's; eval fetches them once.",
        "No weights of emov2_20m and emov2_50m are published: their commands train them by EMOv2's recipe.",
        *other_data(request, "imagenette-emo_1m/summary.json", "emo_1m, ten classes, 128 px"),
    ]
    return [Reproduced("imagenet", "ImageNet-1K", "EMOv2 tables 7 and 19", columns, rows, notes)]


def emo_top1(request: Request, name: str) -> str:
    """Of published weights, or of a run that stands in for them."""
    weights = next((full for full, row in PUBLISHED.items() if row.variant == name), None)
    if weights is not None:
        return request.classifier(weights)
    return request.trained("imagenet", imagenet_run(name), [train_on_imagenet(request, name)])


def imagenet_run(name: str) -> str:
    """Where a network without published weights is trained, below `runs`."""
    return f"imagenet-{name}"


def train_on_imagenet(request: Request, name: str) -> str:
    return request.train(name, "imagenet-emov2", "imagenet", imagenet_run(name))


def timm_top1(request: Request, peer: Peer) -> str:
    """Of timm's weights, which `metamobile eval` fetches once."""
    if peer.model is None:
        return UNKNOWN.get(peer.name, NOT_IN_TIMM)
    tag = TAGS.get(peer.model)
    config = timm.get_pretrained_cfg(f"{peer.model}.{tag}" if tag else peer.model)
    if config is None or not config.hf_hub_id:
        return "not known: timm has no weights of this network"
    here = is_cached(config.hf_hub_id, "model.safetensors")
    return request.measure("imagenet", f"{peer.model}.{config.tag}", [], here)


def transplants(request: Request) -> list[Reproduced]:
    """Table 3: Transformer blocks replaced by iRMBs and i2RMBs."""
    columns = ["network", ">M parameters", ">M parameters, paper's", ">G multiply-adds"]
    columns += [">G FLOPs, by the papers' rule", ">G FLOPs, paper's", ">top-1 %, paper's", TOP1]
    rows = []
    for name in TRANSPLANTS:
        request.step(f"counting {name}")
        counted = count_network(name)
        parameters, flops, top1 = TRANSPLANTED[name]
        run = f"{name}-imagenet"
        command = request.train(name, "imagenet-emo", "imagenet", run, {"model.window_size": None})
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
    batches = [[f"{batch:,}", top1, _with_batch(request, batch)] for batch, top1 in BATCHES.items()]
    columns = [">batch size", ">top-1 %, paper's", TOP1]
    found.append(Reproduced("recipes", "Batch sizes, EMOv2-5M", "EMOv2 table 17 c", columns, batches))
    columns = [">px", "teacher", "longer", ">G FLOPs, by the papers' rule", ">G FLOPs, paper's"]
    columns += [">top-1 %, paper's", TOP1]
    counted = {}
    for size, window in ((224, 7), (256, 8), (512, 8)):
        request.step(f"counting emov2_5m at {size} px")
        counted[size] = f"{count_network('emov2_5m', size, window_size=window).flops_paper / 1e9:.3f}"
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


def _with_batch(request: Request, batch: int) -> str:
    run = f"emov2_5m-batch-{batch}"
    command = request.train("emov2_5m", "imagenet-emov2", "imagenet", run, {"run.batch_size": batch})
    return request.trained("imagenet", run, [command])


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
    return request.trained("imagenet", recipe, [request.train("emov2_5m", recipe, "imagenet", recipe)])


def speed(request: Request) -> list[Reproduced]:
    """Table 16. Ours come from results/speed/bench.json, which one call of `metamobile bench` writes."""
    measured = request.evidence(BENCH)
    rates = pictures_per_second(measured)
    names = [model for _, model, *_ in SPEED]
    command = f"metamobile bench {' '.join(names)} --size 224 --out results/{Path(BENCH).parent}"
    columns = ["network", ">CPU pictures/s, paper's", ">GPU pictures/s, paper's", ">iPhone 15 ms, paper's"]
    columns += [">top-1 %, paper's", "CPU pictures/s, ours, or what is missing"]
    rows = [
        [name, *printed, f"{rates[model]:.1f}" if model in rates else f"not measured: `{command}`"]
        for name, model, *printed in SPEED
    ]
    notes = [
        "The paper does not tell its CPU, its GPU, the batch size or the precision, so no figure of ours can "
        "be held against its own; EMOv2-2M's 3312.4 on the GPU, faster than EMOv2-1M, looks like a misprint.",
        "No GPU and no iPhone is at hand: of their columns ours has none.",
        *about_bench(request, measured),
    ]
    return [Reproduced("speed", "Speed", "EMOv2 table 16", columns, rows, notes)]


def pictures_per_second(measured: dict[str, Any] | None) -> dict[str, float]:
    """By model, from the medians: by processor time in one thread, where there is one, else the wall's."""
    rates = {}
    for row in (measured or {}).get("rows", ()):
        times = row["cpu_ms"] if row["threads"] == 1 and row["cpu_ms"] else row["wall_ms"]
        rates[row["model"]] = 1e3 * row["batch_size"] / times["median"]
    return rates


def about_bench(request: Request, measured: dict[str, Any] | None) -> list[str]:
    """On what and how ours were measured."""
    if not measured or not measured["rows"]:
        return []
    first, machine = measured["rows"][0], measured["machine"]
    by_processor = first["threads"] == 1 and first["cpu_ms"]
    sizes = ", ".join(sorted({"x".join(map(str, row["size"])) for row in measured["rows"]}))
    return [
        f"Ours: {machine['processor']}, {first['runtime']} {first['precision']}, {sizes} px, batches of "
        f"{first['batch_size']}, {first['threads']} thread{'s' * (first['threads'] != 1)}, medians of "
        f"{'processor time' if by_processor else 'the wall clock'} ({request.called(BENCH)})."
    ]
