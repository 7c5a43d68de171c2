"""The weights file and its card: written whole, read without torch, and clear about what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from metamobile.data.preprocess import Preprocess
from metamobile.models.create import create_model
from metamobile.weights import network as network_module
from metamobile.weights.card import Card, current_versions, read_card
from metamobile.weights.file import load_weights, save_weights
from metamobile.weights.find import SHIPPED, find_model
from metamobile.weights.network import load_network, timm_preprocess


def make_card(**changes) -> Card:
    return Card(
        **{
            "variant": "emo_1m",
            "model_args": {"num_classes": 3, "window_size": [[4, 4]] * 4},
            "classes": ["ants", "bees", "n02102040"],
            "names": ["ants", "bees", "English springer"],
            "preprocess": Preprocess(size=(64, 96), interpolation="bilinear"),
            "recipe": {"data": {"path": "insects", "seed": 3}},
            "metrics": {"top1": 91.5},
            "versions": {"torch": "2.14.1"},
            "notes": "three classes, é",
            **changes,
        }
    )


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {
        "conv.weight": torch.randn(8, 3, 3, 3),
        "norm.running_var": torch.rand(8) + 70_000,  # beyond half precision
        "norm.num_batches_tracked": torch.tensor(7),
    }


@pytest.fixture
def weights(tmp_path: Path, state) -> Path:
    path = tmp_path / "model.safetensors"
    save_weights(path, state, make_card())
    return path


def test_card_comes_back(weights: Path) -> None:
    assert read_card(weights) == make_card()
    assert make_card(names=[]).names == ["ants", "bees", "n02102040"]


def test_weights_come_back(weights: Path, state) -> None:
    loaded, card = load_weights(weights)
    assert card == make_card()
    assert loaded.keys() == state.keys()
    for name in state:
        torch.testing.assert_close(loaded[name], state[name], rtol=0, atol=0)


def test_others_may_read_what_the_user_lets_them(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert weights.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_half_precision_keeps_vectors_whole(tmp_path: Path, weights: Path, state) -> None:
    path = tmp_path / "half.safetensors"
    save_weights(path, state, make_card(), half=True)
    loaded, _ = load_weights(path)
    assert loaded["conv.weight"].dtype == torch.float32
    torch.testing.assert_close(loaded["conv.weight"], state["conv.weight"].half().float(), rtol=0, atol=0)
    torch.testing.assert_close(loaded["norm.running_var"], state["norm.running_var"], rtol=0, atol=0)
    assert loaded["norm.num_batches_tracked"] == 7
    assert path.stat().st_size < weights.stat().st_size


def test_shared_tensors_are_written(tmp_path: Path) -> None:
    """A state dict may hold one tensor twice; safetensors itself refuses that."""
    tied = torch.randn(4, 4)
    save_weights(tmp_path / "tied.safetensors", {"a": tied, "b": tied}, make_card())
    assert load_weights(tmp_path / "tied.safetensors")[0].keys() == {"a", "b"}


def test_card_reads_without_torch(weights: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['safetensors'] = None\n"
        "import metamobile_cli\n"
        "from metamobile.weights.card import read_card\n"
        f"print(read_card({str(weights)!r}).variant)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "emo_1m\n", done.stderr


def test_values_that_are_not_finite_are_refused(tmp_path: Path, state) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"conv.weight holds values that are not finite"):
        save_weights(path, state | {"conv.weight": torch.full((2, 2), torch.nan)}, make_card())
    with pytest.raises(ValueError, match="not finite in half precision"):
        save_weights(path, {"conv.weight": torch.full((2, 2), 1e6)}, make_card(), half=True)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_weights(path, state, make_card(metrics={"loss": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(weights: Path, state, monkeypatch) -> None:
    before = weights.read_bytes()

    write = Path.write_bytes

    def stop(path: Path, content: bytes) -> None:
        write(path, content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        save_weights(weights, state, make_card(notes="new"))
    assert weights.read_bytes() == before
    assert list(weights.parent.iterdir()) == [weights]


@pytest.mark.parametrize("keep", [0, 5, 300, -100, -1])
def test_a_truncated_file_is_named(weights: Path, keep: int) -> None:
    whole = weights.read_bytes()
    weights.write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: (truncated|not a safetensors file)"):
        load_weights(weights)
    weights.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="too long"):
        load_weights(weights)


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"without a metamobile card \(its metadata holds format\)"):
        load_weights(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_card(path)
    pickle = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(2)}, pickle)
    with pytest.raises(ValueError, match=r"expected a .safetensors file.*its suffix is .pth"):
        read_card(pickle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clases": []}, "unknown key 'clases'; did you mean 'classes'"),
        ({"classes": None}, "lacks 'classes'"),
        ({"names": ["one"]}, "3 classes has 1 names"),
    ],
)
def test_a_wrong_card_is_named(change: dict, words: str) -> None:
    values = json.loads(make_card().to_json()) | change
    with pytest.raises(ValueError, match=words):
        Card.from_json(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_versions() -> None:
    versions = current_versions()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert set(versions) == {"metamobile", "torch", "torchvision", "timm", "python"}


def test_find_model(tmp_path: Path, weights: Path) -> None:
    assert find_model(tmp_path) == find_model(weights) == weights
    with pytest.raises(ValueError, match=r"no model .*no such file; did you mean .*model.safetensors"):
        find_model(tmp_path / "modle.safetensors")
    with pytest.raises(ValueError, match="did you mean 'emo_1m.imagenette'"):
        find_model("emo_1m.imagenete")
    with pytest.raises(ValueError, match="did you mean 'resnet18.a1_in1k'"):
        find_model("resnet18.a1_in1", others=["resnet18.a1_in1k"])
    other = tmp_path / "model.pth"
    other.touch()
    with pytest.raises(
        ValueError, match=r"not a model file; expected .safetensors or .onnx.* suffix is .pth"
    ):
        find_model(other)


def test_find_model_in_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "pets.onnx").touch()
    with pytest.raises(ValueError, match=r"not a run folder.*holds pets.onnx"):
        find_model(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"no epoch was finished; `metamobile train --resume "):
        find_model(tmp_path)


def test_shipped_weights_that_are_missing(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SHIPPED, "emo_1m.imagenette", tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="missing from this installation"):
        find_model("emo_1m.imagenette")


def test_load_network_builds_the_same_network(tmp_path: Path) -> None:
    network = create_model("emo_1m", num_classes=3, window_size=4).eval()
    save_weights(tmp_path / "model.safetensors", network.state_dict(), make_card())
    loaded, card = load_network(tmp_path)
    assert not loaded.training
    pixels = torch.randn(2, 3, *card.preprocess.size)
    torch.testing.assert_close(loaded(pixels), network(pixels), rtol=0, atol=0)


def test_load_network_names_what_is_wrong(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match="its tensors are not those of emo_1m"):
        load_network(weights)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match="an exported file; expected the run folder"):
        load_network(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="did you mean 'mobilenetv3_small_050.lamb_in1k'"):
        load_network("mobilenetv3_smal_050.lamb_in1k")


def test_networks_without_weights_are_named() -> None:
    with pytest.raises(ValueError, match=r"emo_1m is a network without weights.*emo_1m.imagenette"):
        load_network("emo_1m")
    with pytest.raises(ValueError, match="no model 'emo_1m.imagenete'.*did you mean 'emo_1m.imagenette'"):
        load_network("emo_1m.imagenete")
    with pytest.raises(ValueError, match="did you mean 'resnet18.a1_in1k'"):
        load_network("resnet18.a1_in1")
    with pytest.raises(ValueError, match="these weights have no classifier"):
        load_network("vit_small_patch14_dinov2.lvd142m")


def test_a_hub_out_of_reach_is_one_clear_line(monkeypatch) -> None:
    def offline(*args, **kwargs):
        raise FileNotFoundError("cannot find the requested files\nand more")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", offline)
    with pytest.raises(
        ValueError, match=r"could not be fetched.*\(cannot find the requested files\); offline"
    ):
        load_network("mobilenetv3_small_050.lamb_in1k")


def test_timm_names_bring_preprocessing_and_classes(monkeypatch) -> None:
    """As fetched, but with random weights: the hub is not asked."""

    def untrained(name, *, pretrained, **kwargs):
        assert pretrained
        return create_model(name, pretrained=False, **kwargs)

    monkeypatch.setattr(network_module, "create_model", untrained)
    _, card = load_network("mobilenetv3_small_050.lamb_in1k")
    assert (len(card.classes), card.classes[0]) == (1000, "n01440764")
    assert card.names[0] == "tench"
    assert (card.preprocess.size, card.preprocess.resize) == ((224, 224), 256)
    assert card.model_args == {"num_classes": 1000}


def test_timm_preprocess_matches_timms_own_transform() -> None:
    """Independent reference: timm's evaluation transform on a picture."""
    from PIL import Image

    from metamobile.data.preprocess import preprocess

    network = timm.create_model("vit_tiny_patch16_224")
    config = timm.data.resolve_model_data_config(network)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(**config)(picture).numpy()
    np.testing.assert_allclose(preprocess(picture, timm_preprocess(network)), theirs, atol=1e-6)
