"""The diagonal similarity: matrices, curves and half-widths by hand, known reaches, and the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from metamobile import create_model
from metamobile.study.diagonal import (
    diagonal_similarity,
    find_role,
    resized_windows,
    stage_map,
    study_diagonal,
    take_spread,
)
from metamobile.study.diagonal_claim import COMPARISONS, compare, distance_curve, find_reach
from metamobile.study.diagonal_figure import diagonal_tables

SIDE = 8  # of the hand-made maps


class Blur(nn.Module):
    """Positions tell themselves apart, and are then mixed over a square of side `kernel` (0: over the map).

    The dot product of two interior positions at distance d along the diagonal is (kernel - d) squared, by
    the overlap of their squares, and 0 from `kernel` on.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.feature_info = [
            {"num_chs": 3, "reduction": 8, "module": "early"},
            {"num_chs": SIDE**2, "reduction": 16, "module": "late"},
        ]
        self.early, self.late = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.early(x)
        one_hot = torch.eye(SIDE**2).reshape(1, SIDE**2, SIDE, SIDE).expand(len(x), -1, -1, -1)
        if not self.kernel:
            mixed = one_hot.mean((2, 3), keepdim=True).expand_as(one_hot)
        else:
            weight = torch.ones(SIDE**2, 1, self.kernel, self.kernel)
            mixed = F.conv2d(one_hot, weight, padding=self.kernel // 2, groups=SIDE**2)
        return self.late(mixed).mean((1, 2, 3))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (6, 40, 40, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_similarity_by_hand() -> None:
    # features (1,0), (1,1), (0,2) on the diagonal; what lies beside it must not matter
    features = torch.full((1, 2, 3, 3), 77.0)
    for i, values in enumerate([(1, 0), (1, 1), (0, 2)]):
        features[0, :, i, i] = torch.tensor(values, dtype=torch.float32)
    (similarity,) = diagonal_similarity(features)
    assert similarity.tolist() == [[0.25, 0.25, 0], [0.25, 0.5, 0.5], [0, 0.5, 1]]
    curve = distance_curve(similarity)
    assert curve == pytest.approx([1.75 / 3, 0.375, 0])
    # half-way between 7/12 and 0 is 7/24, between the distances 1 (9/24) and 2 (0)
    reach = find_reach(curve)
    assert reach.half_width == pytest.approx(1 + 2 / 9)
    assert reach.near == pytest.approx(0.375)
    assert reach.far == pytest.approx(0)
    assert reach.mean == pytest.approx(0.25)  # (2 * 0.375 + 1 * 0) / 3 pairs


def test_minimum_is_each_pictures_own() -> None:
    torch.manual_seed(1)
    features = torch.randn(3, 5, 4, 4) * torch.tensor([1.0, 10.0, 0.1]).reshape(3, 1, 1, 1)
    similarity = diagonal_similarity(features)
    for one, x in zip(similarity, features, strict=True):
        vectors = np.stack([x[:, i, i].numpy() for i in range(4)]).astype(np.float64)
        products = vectors @ vectors.T
        assert one == pytest.approx((products - products.min()) / (products.max() - products.min()))


def test_half_width_takes_the_first_fall_and_none_without_one() -> None:
    for curve, width in (
        ([1, 0.4, 0.9, 0.0], 0.5 / 0.6),
        ([1.0, 0.0], 0.5),
        ([0.3, 0.5, 0.3], None),
        ([1.0, 1.0, 1.0], None),
        ([0.8, 0.9, 0.8, 0.2, 0.0], 2 + 0.4 / 0.6),
    ):
        found = find_reach(np.array(curve)).half_width
        assert found is None if width is None else found == pytest.approx(width)


def test_features_that_are_infinite_are_refused() -> None:
    with pytest.raises(ValueError, match="infinite or not a number"):
        diagonal_similarity(torch.full((1, 2, 3, 3), float("inf")))


def test_known_reach(pictures: Path) -> None:
    result = study_diagonal([Blur(1), Blur(3), Blur(5), Blur(0)], pictures, size=32)
    one, three, five, whole = result.rows
    assert (one.side, one.channels, one.pictures) == (SIDE, SIDE**2, 6)
    assert one.similarity == np.eye(SIDE).tolist()
    similarity = np.array(three.similarity)
    assert similarity[3, 3:7].tolist() == pytest.approx([9 / 9, 4 / 9, 1 / 9, 0])
    for row, kernel in ((three, 3), (five, 5)):
        distance = np.abs(np.subtract.outer(np.arange(SIDE), np.arange(SIDE)))
        assert ((np.array(row.similarity) > 1e-9) == (distance < kernel)).all()
    assert one.reach.half_width == pytest.approx(0.5)
    assert one.reach.half_width < three.reach.half_width < five.reach.half_width  # type: ignore[operator]
    assert np.array(whole.similarity).tolist() == np.ones((SIDE, SIDE)).tolist()
    assert whole.reach.half_width is None
    (title, columns, cells), *_ = diagonal_tables(result)
    assert cells[3][columns.index(">half-width")] == f"more than {SIDE - 1}"


def test_files_and_a_verdict_that_refutes(pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    result = study_diagonal(
        [Blur(5), Blur(3), Blur(1)],
        pictures,
        size=32,
        roles=["conv", "attention", "both"],
        out=tmp_path / "out",
    )
    written = json.loads((tmp_path / "out" / "diagonal.json").read_text())
    assert Image.open(tmp_path / "out" / "diagonal.png").size[0] > 900
    assert written["verdict"] == result.verdict() == "refuted"  # both reaches least here
    assert {row["verdict"] for row in written["comparisons"] if row["part"] == "most"} == {"refuted"}
    assert written["rows"][0]["curve"] == pytest.approx(result.rows[0].curve)
    assert len(result.failures) == 1 and "broken.png" in result.failures[0]


def curves(level: list[float], noise: float, seed: int, count: int = 200) -> np.ndarray:
    return np.array(level) + noise * np.random.default_rng(seed).standard_normal((count, len(level)))


def test_verdict_confirms_the_claim_and_is_undecided_between_equals() -> None:
    conv = [1.0, 0.6, 0.2, 0.1, 0.0, 0.0]  # at 1.25
    attention = [1.0, 0.65, 0.6, 0.55, 0.3, 0.0]  # half-way down at 3.2
    both = [1.0, 0.9, 0.8, 0.75, 0.6, 0.1]  # at 4.1
    found = compare(
        {
            "conv": [curves(conv, 0.05, 0)],
            "attention": [curves(attention, 0.05, 1)],
            "both": [curves(both, 0.05, 2)],
        }
    )
    assert [(c.part, c.figure, c.more, c.less) for c in found] == list(COMPARISONS)
    assert {c.verdict for c in found} == {"confirmed"}
    alike = {role: [curves(both, 0.3, seed)] for role, seed in (("conv", 3), ("attention", 4), ("both", 5))}
    assert {c.verdict for c in compare(alike)} == {"undecided"}
    assert compare({**alike, "attention": []}) == []


def test_interval_is_that_of_paired_means() -> None:
    """For a figure that is linear in the curve, the bootstrap gives the textbook's interval of the mean."""
    more, less = curves([1, 0.5, 0.2, 0], 0.2, 4), curves([1, 0.4, 0.2, 0], 0.2, 5)
    found = compare({"conv": [less], "attention": [less], "both": [more]})
    near = next(c for c in found if c.figure == "near")
    differences = more[:, 1] - less[:, 1]
    error = 1.96 * differences.std() / np.sqrt(len(differences))
    assert near.difference == pytest.approx(differences.mean())
    assert near.low == pytest.approx(differences.mean() - error, abs=0.15 * error)
    assert near.high == pytest.approx(differences.mean() + error, abs=0.15 * error)


def test_runs_that_differ_widen_the_interval() -> None:
    level = np.array([1, 0.5, 0.2, 0])
    alike = [curves(list(level), 0.02, seed) for seed in (6, 7)]
    apart = [alike[0], alike[1] - np.array([0, 0.3, 0, 0])]
    narrow = next(
        c for c in compare({"conv": alike, "attention": alike, "both": alike}) if c.figure == "near"
    )
    wide = next(c for c in compare({"conv": alike, "attention": alike, "both": apart}) if c.figure == "near")
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_roles_are_told_from_the_network() -> None:
    found = [
        find_role(create_model("emo_1m", num_classes=2, **args), 3)
        for args in (
            {},
            {"attention": [False] * 4},
            {"conv": False},
            {"conv": False, "attention": [False] * 4},
        )
    ]
    assert found == ["both", "conv", "attention", None]
    assert find_role(Blur(3), 3) is None


def test_map_is_the_output_of_the_stage() -> None:
    network = create_model("emo_1m", num_classes=2, window_size=2).eval()
    seen = []
    network.stages[3].register_forward_hook(lambda *given: seen.append(given[2]))  # type: ignore[index, operator]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = stage_map(network, x, 3, "emo_1m")
        network(x)
    assert features.shape == (2, 80, 4, 4)
    assert torch.equal(features, seen[-1])


def test_windows_scale_and_come_back(caplog: pytest.LogCaptureFixture) -> None:
    network = create_model("emo_1m", num_classes=2, window_size=4)
    with resized_windows(network, 256, 128, "scaled", "it") as sides:
        assert sides == [[8, 8]]
        assert {m.window for m in network.modules() if hasattr(m, "window_shape")} == {(8, 8)}
    assert {m.window for m in network.modules() if hasattr(m, "window_shape")} == {4}
    with resized_windows(network, 256, 128, "kept", "it") as sides:
        assert sides == [[4, 4]]
    assert not caplog.messages
    with resized_windows(network, 128, 128, "kept", "it"):
        assert "windows='kept' has no effect" in caplog.messages[-1]
    with (
        pytest.raises(ValueError, match="do not scale to 200 px.*256, or windows='kept'"),
        resized_windows(network, 200, 128, "scaled", "it"),
    ):
        pass


def test_pictures_are_spread_over_the_folder() -> None:
    paths = [Path(f"{i}") for i in range(10)]
    assert [p.name for p in take_spread(paths, 5)] == ["0", "2", "4", "6", "8"]
    assert take_spread(paths, None) == paths == take_spread(paths, 20)


def test_errors_say_what_to_do(pictures: Path) -> None:
    net = Blur(3)
    cases = [
        (dict(models=[]), "expected a list of run folders"),
        (dict(models=[net], roles=["conv", "both"]), "2 roles for 1 models"),
        (dict(models=[net], roles=["convs"]), "did you mean 'conv'"),
        (dict(models=[net], windows="keep"), "known are scaled and kept"),
        (dict(models=[net], stage=4), "no map of stage 4, stride 32; it has strides 8, 16"),
        (dict(models=[nn.Conv2d(3, 3, 1)]), "no feature_info"),
        (dict(models=[net], most=0), "expected at least 1 picture"),
        (dict(models=[net], stage=2, size=32, pictures="nowhere"), "no such file or folder"),
    ]
    for given, words in cases:
        with pytest.raises(ValueError, match=words):
            study_diagonal(**{"pictures": pictures, "size": 32, **given})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected \\(C, H, H\\)"):
        stage_map(create_model("emo_1m", num_classes=2).eval(), torch.zeros(1, 3, 64, 96), 3, "emo_1m")


def test_shipped_model_at_its_own_size(shared: Path) -> None:
    folder = shared / "data" / "imagenette2-160" / "val"
    row = study_diagonal(["emo_1m.imagenette"], folder, most=4).rows[0]
    assert (row.role, row.size, row.side, row.windows) == ("both", 128, 8, [[4, 4]])
    assert np.array(row.similarity).max() <= 1 and row.curve[0] > row.curve[-1]
