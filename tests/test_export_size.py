"""`--size any`: height and width are free in the file, and its answers are PyTorch's at each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from metamobile.deploy.any_size import GridMeans, compare_sizes, free_sides
from metamobile.deploy.export import export
from metamobile.deploy.form import deploy
from metamobile.deploy.formats import Options, get_format
from metamobile.deploy.formats.onnx import OnnxRuntime
from metamobile.deploy.runtimes import TorchRuntime, open_runtime
from metamobile.models.create import create_model
from metamobile.weights.file import save_weights
from metamobile.weights.network import load_network
from metamobile_cli import run as command
from small_dense import make_dense, make_dense_card, make_dense_run
from small_model import make_card, make_network, make_run, write_pictures

# whole windows, wider and taller ones, padded ones, odd sides, one position in the last stage
SIZES = [(64, 64), (128, 256), (192, 64), (96, 160), (33, 47), (100, 250), (32, 32)]


def agree(runtime: Any, network: nn.Module, sizes: list[tuple[int, int]] = SIZES) -> None:
    """Back and forth between sizes: a runtime may keep something of an earlier one."""
    generator = torch.Generator().manual_seed(0)
    for batch, size in enumerate([*sizes, *sizes[::-1]]):
        pixels = torch.randn(1 + batch % 3, 3, *size, generator=generator)
        with torch.no_grad():
            expected = network(pixels).numpy()
        found = runtime.run(pixels.numpy())
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), size


def with_statistics(network: nn.Module) -> nn.Module:
    """Norms that are not those of a start."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
    return network.eval()


def opened(network: nn.Module, path: Path, name: str = "onnx", options: Options | None = None) -> Any:
    card = make_card(network)
    options = options or Options(dynamic_size=True)
    get_format(name).write(deploy(network), card, path, options)
    return get_format(name).open_file(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 9)[0].parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "insects")


@pytest.fixture(scope="module")
def gates(run: Path, pictures: Path) -> dict[str, Any]:
    pytest.importorskip("openvino")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metamobile.deploy.gate.PICTURES", 9)
        found = export(run, ["onnx", "openvino"], verify=pictures, size="any")
    return dict(zip(["onnx", "openvino"], found, strict=True))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_file_of_any_size_answers_as_the_network(name: str, run: Path, gates: dict[str, Any]) -> None:
    assert gates[name].passed, gates[name].problems
    runtime = open_runtime(gates[name].path)
    assert runtime.any_size and runtime.card == make_card(make_network())
    agree(runtime, load_network(run)[0])


def test_the_gate_compares_at_two_sizes(gates: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    from metamobile.show import print_gate

    rows = gates["onnx"].rows
    assert [(row.batch_size, row.size) for row in rows] == [
        (1, None),
        (3, None),
        (8, None),
        (1, (48, 80)),
        (3, (48, 80)),
    ]
    print_gate(gates["onnx"])
    assert "3 of 48x80\t" in capsys.readouterr().out


def test_how_to_use_them_says_so(run: Path, gates: dict[str, Any]) -> None:
    assert (run / "USE.md").read_text("utf-8").count("Height and width are free, from 32 pixels") == 2


def test_the_axes_have_names(run: Path, gates: dict[str, Any]) -> None:
    model = onnx.load(run / "model.onnx")
    onnx.checker.check_model(model)
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, "height", "width"]


def test_the_gate_finds_a_file_that_is_right_at_one_size_alone(pictures: Path) -> None:
    network = make_network()

    class Stretched(TorchRuntime):
        def run(self, batch: np.ndarray) -> Any:
            return super().run(batch if batch.shape[2:] == (64, 64) else batch[:, :, :, ::-1].copy())

    reference = TorchRuntime(network, make_card(network))
    paths = sorted(pictures.iterdir())
    assert compare_sizes(reference, reference, paths).passed
    gate = compare_sizes(reference, Stretched(network, make_card(network)), paths)
    assert gate.problems and all(problem.startswith("48x80, batch ") for problem in gate.problems)
    assert gate.problems[0].startswith("48x80, batch 1: logits differ by")


VARIATIONS: dict[str, dict[str, Any]] = {
    "both cuts, on expanded values": {"name": "emov2_1m", "window_size": 2},
    "the published window, of another form": {"window_size": [3, 3, 7, (2, 3)]},
    "contiguous": {"partition": "contiguous", "window_size": 3},
    "the whole map": {"window_size": 0},
    "the whole map, both cuts": {"name": "emov2_1m", "window_size": [0, 0, 2, 0]},
}


@pytest.mark.parametrize("which", VARIATIONS)
def test_variations(which: str, tmp_path: Path) -> None:
    args = {"name": "emo_1m", "num_classes": 3, "depths": (1, 1, 2, 2), **VARIATIONS[which]}
    network = with_statistics(create_model(**args))
    agree(opened(network, tmp_path / "a.onnx"), network)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions(precision: str, pictures: Path, tmp_path: Path) -> None:
    network = with_statistics(create_model("emo_1m", num_classes=3, window_size=2, depths=(1, 1, 2, 1)))
    options = Options(precision, sorted(pictures.iterdir()), dynamic_size=True)
    runtime, reference = (
        opened(network, tmp_path / "a.onnx", options=options),
        TorchRuntime(network, make_card(network)),
    )
    for size in SIZES[:4]:
        pixels = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
        expected = reference.run(pixels)
        allowed = {"fp16": 0.02, "int8": 0.8}[precision]  # of random weights, on noise: large in eight bits
        assert np.abs(runtime.run(pixels) - expected).max() < allowed * np.abs(expected).max()


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet", "fpn", "segformer"])
def test_segmenters_and_their_classes(head: str, tmp_path: Path) -> None:
    network = make_dense(head)
    path = tmp_path / "a.onnx"
    get_format("onnx").write(deploy(network), make_dense_card(network), path, Options(dynamic_size=True))
    runtime = OnnxRuntime(path)
    agree(runtime, network, [(64, 96), (128, 64), (75, 50)])
    pixels = np.random.default_rng(0).normal(size=(1, 3, 70, 90)).astype(np.float32)
    (classes,) = runtime.session.run(["classes"], {"pixels": pixels})
    assert np.array_equal(classes, runtime.run(pixels).argmax(1))


def test_pictures_keep_their_form_in_a_segmenters_file(pictures: Path, tmp_path: Path) -> None:
    import metamobile

    folder = make_dense_run(tmp_path / "run", "segformer", fit="inside")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metamobile.deploy.gate.PICTURES", 9)
        (gate,) = export(folder, "onnx", verify=pictures, size="any")
    assert gate.passed, gate.problems
    assert OnnxRuntime(gate.path).card.preprocess.fit == "inside"
    ours, theirs = (metamobile.load(one).predict(sorted(pictures.iterdir())) for one in (folder, gate.path))
    assert np.mean([(a.mask == b.mask).mean() for a, b in zip(ours, theirs, strict=True)]) > 0.999


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_networks_of_timm(name: str, tmp_path: Path) -> None:
    network = with_statistics(create_model(name, num_classes=3))
    agree(opened(network, tmp_path / "a.onnx"), network)


@pytest.mark.parametrize("sides", [2, 3, 6, (2, 5)])
def test_means_over_a_grid(sides: Any) -> None:
    x = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(GridMeans(sides)(x), nn.AdaptiveAvgPool2d(sides)(x))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(sides))
    assert [type(one).__name__ for one in free_sides(pooled)] == ["AdaptiveAvgPool2d", "GridMeans"]
    assert isinstance(pooled[1], nn.AdaptiveAvgPool2d), "the network itself stays"


@pytest.mark.parametrize("name", ["executorch", "litert", "coreml", "ncnn", "torch-export"])
def test_formats_without_it_say_so(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for need in ("need_writer", "need_runtime"):
        monkeypatch.setattr(f"metamobile.deploy.export.{need}", lambda *_: None)
    words = f"{name}: a file has one picture size here; with --size any there are onnx, openvino"
    with pytest.raises(ValueError, match=f"^{words}$"):
        export(run, ["onnx", name], size="any")


def test_what_has_one_size(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size '128': expected pixels, a pair of height and width, or 'any'"):
        export(run, size="128")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^openvino: in int8 a file takes one picture of one size"):
        export(run, ["onnx", "openvino"], precision="int8", size="any")
    with pytest.raises(ValueError, match="--size any has no effect with preprocessing in the file"):
        export(run, size="any", with_preprocessing=True)
    for head in ("ssdlite", "retinanet"):
        with pytest.raises(ValueError, match="a detector's file holds its anchors, which lie where one"):
            export(make_dense_run(tmp_path / head, head), size="any")
    network = create_model("vit_tiny_patch16_224", num_classes=3, img_size=64, depth=1)
    card = replace(make_card(network), variant="vit_tiny_patch16_224")
    card.model_args.update(depth=1)
    save_weights(tmp_path / "vit.safetensors", network.state_dict(), card)
    with pytest.raises(ValueError, match="the network is built for one picture size; expected no --size any"):
        export(tmp_path / "vit.safetensors", size="any")


def test_what_torch_export_does_not_take_is_one_line(tmp_path: Path) -> None:
    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    card = make_card(make_network())
    with pytest.raises(
        ValueError, match="this network cannot be written for any size of at least 32"
    ) as error:
        get_format("onnx").write(Undecided(), card, tmp_path / "a.onnx", Options(dynamic_size=True))
    assert "\n" not in str(error.value)


def test_as_a_command(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["export", str(run), "--to", "ncnn", "--size", "any"]) == 2
    assert command(["export", str(run), "--to", "onnx", "--size", "anny"]) == 2
    shown = capsys.readouterr().err
    assert "expected pixels such as 128, or height,width such as 96,160, or any" in shown
