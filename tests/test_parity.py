"""EMO against the outputs of the official networks, and against the published counts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from metamobile.models.variants import VARIANTS
from metamobile.study.complexity import complexity
from metamobile.weights import from_official

REFERENCES = ["emo_1m", "emo_5m", "emo_5m_window10", "emo2_1m", "emo2_5m"]


def load_rule(shared: Path) -> Any:
    spec = importlib.util.spec_from_file_location("parity_rule", shared / "parity" / "rule.py")
    assert spec is not None and spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    return rule


def relative_difference(ours: Any, reference: Any) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
@pytest.mark.parametrize("reference", REFERENCES)
def test_equals_the_official_network(
    shared: Path, reference: str, dtype: torch.dtype, tolerance: float
) -> None:
    rule = load_rule(shared)
    official = json.loads((shared / "parity" / f"{reference}.json").read_text())
    state = {k: torch.from_numpy(np.asarray(v)) for k, v in rule.weights(official["shapes"]).items()}
    model = timm.create_model(
        official["model"].replace("emo2", "emov2"), window_size=official["window"]
    ).eval()
    model.load_state_dict(from_official(state))
    model = model.to(dtype)
    for case in official["cases"]:
        x = torch.from_numpy(rule.image(*case["size"])).to(dtype)
        with torch.no_grad():
            logits = model(x)
            maps = model.forward_intermediates(x, intermediates_only=True)
        assert relative_difference(logits[:, :32], case["logits"]) < tolerance
        assert (
            relative_difference([logits.mean(), logits.std()], [case["logits_mean"], case["logits_std"]])
            < tolerance
        )
        for ours, stage in zip(maps, case["stages"], strict=True):
            assert list(ours.shape) == stage["shape"]
            flat = ours.contiguous().flatten()
            assert (
                relative_difference(torch.cat([flat[:8], flat[-8:]]), stage["first"] + stage["last"])
                < tolerance
            )
            statistics = [flat.mean(), flat.std()]
            assert relative_difference(statistics, [stage["mean"], stage["std"]]) < tolerance


# Per stage, then norm and head together. Parameters and MFLOPs as the official training logs print them.
PUBLISHED_STAGES = {
    "emo_1m": [(2_760, 19.269), (11_504, 57.702), (27_840, 33.800), (452_704, 107.508), (697_024, 42.355)],
    "emo_2m": [
        (2_760, 19.269),
        (16_432, 72.956),
        (40_896, 43.942),
        (1_062_624, 234.579),
        (1_053_360, 68.369),
    ],
    "emo_5m": [
        (2_760, 19.269),
        (29_040, 112.294),
        (105_792, 115.116),
        (2_346_384, 508.252),
        (2_335_296, 147.295),
    ],
    "emo_6m": [
        (2_760, 19.269),
        (29_040, 112.294),
        (105_792, 115.116),
        (2_346_384, 508.252),
        (3_362_880, 205.424),
    ],
    "emov2_1m": [(912, 11.239), (10_912, 43.553), (32_416, 37.312), (453_344, 139.778), (781_900, 52.651)],
    "emov2_2m": [
        (912, 11.239),
        (16_896, 62.018),
        (47_440, 48.959),
        (1_063_704, 289.898),
        (1_053_960, 75.092),
    ],
    "emov2_5m": [
        (1_560, 19.268),
        (33_792, 126.745),
        (117_528, 124.148),
        (2_347_824, 606.596),
        (2_336_160, 158.359),
    ],
    "emov2_20m": [
        (2_336, 28.901),
        (56_320, 213.950),
        (303_616, 294.935),
        (13_225_280, 3035.196),
        (6_157_760, 443.625),
    ],
}
# Conv, linear and matrix products alone, counted on the official code (millions).
PUBLISHED_MACS = {
    "emo_1m": 255.2,
    "emo_2m": 431.9,
    "emo_5m": 892.2,
    "emo_6m": 950.3,
    "emov2_1m": 279.9,
    "emov2_2m": 480.8,
    "emov2_5m": 1025.1,
}


@pytest.mark.parametrize("name", PUBLISHED_STAGES)
def test_counts_equal_the_published_ones(name: str) -> None:
    model = timm.create_model(name)
    whole, *stages = complexity(model, 224, ["", *(f"stages.{i}" for i in range(5))])
    assert whole.parameters == VARIANTS[name].parameters
    assert round(whole.flops_paper / 1e6, 3) == VARIANTS[name].flops
    assert round(whole.macs / 1e6, 3) == VARIANTS[name].macs
    if name in PUBLISHED_MACS:
        assert round(whole.macs / 1e6, 1) == PUBLISHED_MACS[name]
    assert [(s.parameters, round(s.flops_paper / 1e6, 3)) for s in stages] == PUBLISHED_STAGES[name]


def test_fused_attention_is_not_free() -> None:
    """DeiT-Tiny: 1,254 M multiply-adds with attention's two products, 1,075 M without them."""
    (whole,) = complexity(timm.create_model("deit_tiny_patch16_224"), 224)
    assert round(whole.macs / 1e6) == 1254


def test_foreign_state_dict_is_named() -> None:
    with pytest.raises(ValueError, match="not an official EMO state dict: it starts with 'conv1.weight'"):
        from_official({"conv1.weight": torch.zeros(1)})


def test_emov2_at_larger_pictures_with_window_8() -> None:
    """Source: count of the official network; the paper prints 5,627 M at 512 px."""
    model = timm.create_model("emov2_5m", window_size=8)
    assert round(complexity(model, 256)[0].flops_paper / 1e6, 1) == 1407.0
    assert round(complexity(model, 512)[0].flops_paper / 1e6, 1) == 5627.3


def test_emov2_50m_is_counted_as_the_official_one() -> None:
    (whole,) = complexity(timm.create_model("emov2_50m"), 224)
    assert round(whole.flops_paper / 1e6, 3) == VARIANTS["emov2_50m"].flops
    assert round(whole.macs / 1e6, 3) == VARIANTS["emov2_50m"].macs
