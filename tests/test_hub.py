"""The Hugging Face Hub and torch.hub: the folder, who else reads it, the way to a repository and back."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from torch import nn

import metamobile
import metamobile_cli
from hub_server import TOKEN, Hub, serve
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.models.create import create_model, resolved_args
from metamobile.models.pretrained import timm_record
from metamobile.models.variants import VARIANTS
from metamobile.weights.card import Card, current_versions
from metamobile.weights.file import save_weights
from metamobile.weights.published import PUBLISHED
from metamobile.weights.pull import _card as published_card
from small_model import make_run, write_pictures

ROOT = Path(__file__).parents[1]
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CLASSES = ["n01440764", "ants", "bees", "cat", "zebra"]  # not in the order of their names
NAMES = ["tench", "ants", "bees", "cat", "zebra"]


def settled(name: str, **kwargs) -> nn.Module:
    """A network whose vectors are its own: a norm's statistics, say, that were not loaded would show."""
    torch.manual_seed(0)
    network = create_model(name, num_classes=len(CLASSES), **kwargs).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() < 2:
            tensor.uniform_(0.5, 1.5)
    return network


def write_run(folder: Path, network: nn.Module, name: str, **about) -> Path:
    about = {"preprocess": Preprocess(size=(64, 64)), **about}
    card = Card(name, resolved_args(network), classes=CLASSES, names=NAMES, **about)
    save_weights(folder / "model.safetensors", network.state_dict(), card)
    return folder


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(PIXELS)


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


# The folder


def test_a_folder_comes_back(tmp_path: Path, capsys) -> None:
    network = settled("emo_1m", window_size=2)
    run = write_run(tmp_path / "run", network, "emo_1m")
    folder = metamobile.save_pretrained(run, tmp_path / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    for opened in (metamobile.from_pretrained(folder), metamobile.load(folder)):
        torch.testing.assert_close(logits(opened.network), logits(network), rtol=0, atol=0)
        assert opened.card.names == NAMES
    picture = write_pictures(tmp_path / "pictures", 1)[0]
    assert metamobile_cli.run(["predict", str(folder), str(picture)]) == 0
    answered = metamobile.load(run).predict(picture)[0]
    assert answered.labels[0] in capsys.readouterr().out


def test_a_run_folder_becomes_one_in_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").touch()
    before = (run / "model.safetensors").read_bytes()
    metamobile.save_pretrained(run, run)
    assert (run / "model.safetensors").read_bytes() == before
    assert read_config(run)["architecture"] == "emo_1m"


def test_what_config_json_says(tmp_path: Path) -> None:
    record = Preprocess((96, 96), resize=110, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
    network = settled("emo_1m", window_size=[[2, 2], [2, 2], [6, 6], [3, 3]])
    run = write_run(tmp_path / "run", network, "emo_1m", preprocess=record)
    config = read_config(metamobile.save_pretrained(run, tmp_path / "folder"))
    assert config["label_names"] == CLASSES
    assert list(config["label_descriptions"].items()) == list(zip(CLASSES, NAMES, strict=True))
    assert (config["num_classes"], config["num_features"]) == (5, 168)
    assert config["model_args"]["window_size"] == [[2, 2], [2, 2], [6, 6], [3, 3]]
    told = config["pretrained_cfg"]
    assert (told["input_size"], told["interpolation"]) == ([3, 96, 96], "bilinear")
    assert (told["mean"], told["std"]) == ([0.5] * 3, [0.25] * 3)
    assert (told["classifier"], told["first_conv"]) == ("head.fc", "stages.0.0.conv")


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("mobilenetv3_small_050.lamb_in1k", "classifier"),
        ("convnextv2_nano.fcmae_ft_in22k_in1k_384", "head.fc"),
    ],
)
def test_nothing_of_timms_own_weights_is_claimed(tmp_path: Path, name: str, classifier: str) -> None:
    """Trained from timm's weights, the new ones have neither their licence nor their way to crop."""
    run = write_run(tmp_path / "run", settled(name), name)
    config = read_config(metamobile.save_pretrained(run, tmp_path / "folder"))
    assert config["architecture"] == name.split(".")[0]
    told = config["pretrained_cfg"]
    assert not {"tag", "license", "origin_url", "hf_hub_id", "test_input_size", "test_crop_pct"} & told.keys()
    assert (told["classifier"], told["crop_mode"]) == (classifier, "center")


@pytest.mark.parametrize("size", [33, 64, 128, 224, 443])
def test_timm_resizes_to_the_same_side(size: int) -> None:
    """timm rounds size / crop_pct down; 33 / (33 / 54) is below 54."""
    for side in range(size, 2 * size):
        crop = timm_record(Card("emo_1m", {}, classes=["a"], preprocess=Preprocess((size, size), side)))
        assert math.floor(size / crop["crop_pct"]) == side


# Who else reads it

FRESH = """
import sys
{imports}
import timm, torch
from PIL import Image
pixels, picture = torch.load({pixels!r}), Image.open({picture!r})
out = {{}}
for folder in {folders!r}:
    try:
        network = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    except RuntimeError as error:
        out[folder] = str(error)
        continue
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    with torch.no_grad():
        out[folder] = (network(pixels), transform(picture))
torch.save(out, {out!r})
"""


def read_by_timm(tmp_path: Path, folders: list[Path], imports: str) -> dict[str, Any]:
    """Logits and a preprocessed picture, or an error, by folder: from timm in a process of its own."""
    torch.save(PIXELS, tmp_path / "pixels.pt")
    picture = write_pictures(tmp_path / "pictures", 1)[0]
    values = {"pixels": str(tmp_path / "pixels.pt"), "picture": str(picture), "out": str(tmp_path / "out.pt")}
    done = run_python(FRESH.format(imports=imports, folders=list(map(str, folders)), **values))
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "out.pt")


def test_timm_reads_our_networks(tmp_path: Path) -> None:
    networks = {
        "emo_1m": settled("emo_1m", window_size=2),
        "emov2_1m": settled("emov2_1m", window_size=[[8, 8], [8, 8], [2, 4], [2, 2]]),
    }
    record = Preprocess(size=(64, 64), resize=73, interpolation="bilinear")
    folders = []
    for name, network in networks.items():
        run = write_run(tmp_path / name, network, name, preprocess=record)
        folders.append(metamobile.save_pretrained(run, tmp_path / "hub" / name))
    read = read_by_timm(tmp_path, folders, "import metamobile")
    picture = Image.open(tmp_path / "pictures" / "000.png")
    for folder, (name, network) in zip(folders, networks.items(), strict=True):
        theirs, prepared = read[str(folder)]
        torch.testing.assert_close(theirs, logits(network), rtol=0, atol=1e-6, msg=name)
        np.testing.assert_allclose(prepared.numpy(), preprocess(picture, record), atol=1e-6)
    plain = create_model("emo_1m", num_classes=5)  # the published windows make another function
    plain.load_state_dict(networks["emo_1m"].state_dict())
    assert not torch.allclose(logits(plain.eval()), logits(networks["emo_1m"]), atol=1e-3)


def test_timm_alone_reads_its_own_networks_and_not_ours(tmp_path: Path) -> None:
    networks = {
        "mobilenetv3_small_050": settled("mobilenetv3_small_050"),
        "vit_tiny_patch16_224": settled("vit_tiny_patch16_224", img_size=64),  # built for one size
    }
    folders = []
    for name, network in networks.items():
        run = write_run(tmp_path / name, network, name)
        folders.append(metamobile.save_pretrained(run, tmp_path / "hub" / name))
        assert "import metamobile  #" not in (folders[-1] / "README.md").read_text()
    ours = metamobile.save_pretrained(make_run(tmp_path / "ours"), tmp_path / "hub" / "ours")
    read = read_by_timm(tmp_path, [*folders, ours], "sys.modules['metamobile'] = None")
    for folder, network in zip(folders, networks.values(), strict=True):
        torch.testing.assert_close(read[str(folder)][0], logits(network), rtol=0, atol=1e-6)
    assert read[str(ours)].startswith("Unknown model (emo_1m)")
    readme = (ours / "README.md").read_text()
    assert "timm alone does not know `emo_1m`, and without `import metamobile` it stops" in readme


def test_timm_takes_features_and_another_head(tmp_path: Path) -> None:
    network = settled("emo_1m", window_size=2)
    run = write_run(tmp_path / "run", network, "emo_1m")
    source = f"local-dir:{metamobile.save_pretrained(run, tmp_path / 'hub')}"
    maps = timm.create_model(source, pretrained=True, features_only=True).eval()(PIXELS)
    expected = network.forward_intermediates(PIXELS, intermediates_only=True)
    for got, want in zip(maps, expected, strict=True):
        torch.testing.assert_close(got, want)
    other = timm.create_model(source, pretrained=True, num_classes=7).eval()
    assert logits(other).shape == (2, 7)
    torch.testing.assert_close(other.forward_features(PIXELS), network.forward_features(PIXELS))


# The model card


def card_of(tmp_path: Path, name: str = "emo_1m", **arguments) -> ModelCard:
    return ModelCard.load(
        metamobile.save_pretrained(tmp_path / "run", tmp_path / "hub", **arguments) / "README.md"
    )


def test_the_model_card_of_a_run(tmp_path: Path) -> None:
    metrics = {"top1": 91.52, "top5": 99.5, "loss": 0.25, "chosen": "best averaged weights, epoch 7"}
    recipe = {"data": {"path": "/home/anna/pets"}}
    write_run(
        tmp_path / "run", settled("emo_1m"), "emo_1m",
        metrics=metrics, recipe=recipe, notes="insects and others", versions={"timm": "1.2.3"},
    )  # fmt: skip
    card = card_of(tmp_path, repo_id="anna/pets", license="cc-by-4.0", datasets="anna/pictures")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("timm", "image-classification")
    assert (data["license"], data["datasets"], data["metrics"]) == (
        "cc-by-4.0",
        ["anna/pictures"],
        ["accuracy"],
    )
    assert {"timm", "metamobile", "emo_1m"} <= set(data["tags"])
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_name) == (pytest.approx(0.9152), "pets")
    for words in ("# pets", "insects and others", "| top-1 | 91.52 % |", "validation pictures of `pets`",
                  "best averaged weights, epoch 7", "tench, ants, bees, cat, zebra", "64 x 64 pixels",
                  "shorter side to 73 pixels (bicubic)", "timm 1.2.3", "1389--1400"):  # fmt: skip
        assert words in card.text, words
    assert "/home/anna" not in card.content


def test_the_model_card_of_a_file_that_tells_little(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    card = card_of(tmp_path)
    assert not {"license", "datasets", "metrics", "model-index"} & card.data.to_dict().keys()
    assert "## Accuracy\n\nThe file states none." in card.text


def test_the_model_card_of_published_weights(tmp_path: Path) -> None:
    """Their figures are the authors': told with their source, and not as a result of ours."""
    name = "emov2_5m_512.in1k_kd"
    network = create_model("emov2_5m", window_size=8)
    card = published_card(name, resolved_args(network), 1000, tmp_path / "net.pth", published=True)
    save_weights(tmp_path / "run" / "model.safetensors", network.state_dict(), card)
    written = card_of(tmp_path)
    assert written.data.to_dict()["datasets"] == ["imagenet-1k"]
    assert written.data.eval_results is None
    assert f"82.4 % or 82.9 % ({PUBLISHED[name].source}). It was not measured here" in written.text
    assert "and 970 more" in written.text
    assert "EMOv2: Pushing 5M Vision Model Frontier" in written.text


def test_the_commands_of_the_model_card_work(tmp_path: Path, monkeypatch) -> None:
    """Each of its blocks, run as it stands but for the paths."""
    network = settled("emo_1m", window_size=2)
    write_run(tmp_path / "run", network, "emo_1m")
    text = card_of(tmp_path).text
    picture = write_pictures(tmp_path, 1)[0]
    paths = {"path/to/this/folder": tmp_path / "hub", "photo.jpg": picture, "path/to/metamobile": ROOT}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        for placeholder, path in paths.items():
            block = block.replace(placeholder, str(path))
        names: dict = {}
        exec(block, names)
        if "network" in names:
            torch.testing.assert_close(logits(names["network"]), logits(network), rtol=0, atol=1e-6)
        else:
            assert names["model"].predict(str(picture))[0].labels[0] in NAMES


def test_a_readme_that_is_there_stays(tmp_path: Path, caplog) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("mine")
    metamobile.save_pretrained(tmp_path / "run", tmp_path / "hub")
    assert (tmp_path / "hub" / "README.md").read_text() == "mine"
    assert "README.md is there and was kept" in caplog.text


# What is refused


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "model.onnx").touch()
    (tmp_path / "empty").mkdir()
    for model, words in {
        tmp_path / "model.onnx": "an exported file; expected the run folder or the weights",
        tmp_path / "empty": "holds no model.safetensors",
        "resnet18.a1_in1k": r"a network's name; expected weights of your own.*emo_1m.imagenette",
        "emov2_20m": "a network's name; expected weights",
        "emo_1m": "`metamobile pull emo_1m.in1k` fetches them",
        "emo_1m.imagenete": "did you mean 'emo_1m.imagenette'",
    }.items():
        with pytest.raises(ValueError, match=words):
            metamobile.save_pretrained(model, tmp_path / "hub")
        with pytest.raises(ValueError, match=words):
            metamobile.push_to_hub(model, "anna/pets")
    assert not (tmp_path / "hub").exists()
    with pytest.raises(ValueError, match=r"model.onnx: a file; expected a folder"):
        metamobile.save_pretrained(run, tmp_path / "model.onnx")
    other = make_run(tmp_path / "other")
    (other / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="a run folder, whose own weights would be lost"):
        metamobile.save_pretrained(run, other)


@pytest.mark.parametrize("name", ["pets", "a/b/c", "anna/my pets", "anna/pets.git"])
def test_names_that_no_repository_has(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    words = f"{name}: not a repository of the Hub; expected user/name, such as anna/pets"
    with pytest.raises(ValueError, match=words):
        metamobile.push_to_hub(run, name)
    with pytest.raises(ValueError, match=words):
        metamobile.save_pretrained(run, tmp_path / "hub", repo_id=name)
    with pytest.raises(ValueError, match=words if "/" in name else "no model 'pets'"):
        metamobile.from_pretrained(name)


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch) -> None:
    make_run(tmp_path / "runs" / "pets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="not a repository.*nor is there a folder.*did you mean '.*/runs/pets'"
    ):
        metamobile.from_pretrained(tmp_path / "runs" / "petz")
    with pytest.raises(ValueError, match=r"runs/petz: not fetched before.*did you mean 'runs/pets'\?$"):
        metamobile.from_pretrained("runs/petz", cache_dir="cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: not a run folder, as it holds no model.safetensors"):
        metamobile.from_pretrained("./empty")


def test_a_revision_of_a_folder_is_told(tmp_path: Path, caplog) -> None:
    metamobile.from_pretrained(make_run(tmp_path / "run"), revision="v1")
    assert "revision v1 has no effect" in caplog.text


# A repository


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """huggingface_hub's own client, against a server on this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    state = Hub()
    with serve(state) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        template = state.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield state
        server.shutdown()
        thread.join()


def test_to_a_repository_and_back(tmp_path: Path, hub: Hub, caplog) -> None:
    network = settled("emo_1m", window_size=2)
    run = write_run(tmp_path / "run", network, "emo_1m")
    url = metamobile.push_to_hub(run, "anna/pets", private=True, token=TOKEN, commit_message="ours")
    assert url.startswith(f"{hub.url}/anna/pets/commit/")
    made = dict(hub.asked)["api/repos/create"][0]
    assert (
        made.get("private") or made.get("visibility") == "private"
    )  # before version 1 of the client, and now
    commit = next(lines for path, lines in hub.asked if "/commit/main" in path)
    assert commit[0]["value"]["summary"] == "ours"

    folder = metamobile.save_pretrained(run, tmp_path / "folder", repo_id="anna/pets")
    assert hub.files["anna/pets"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert b'metamobile.from_pretrained("anna/pets")' in hub.files["anna/pets"]["README.md"]

    opened = metamobile.from_pretrained("anna/pets", cache_dir=tmp_path / "cache")
    torch.testing.assert_close(logits(opened.network), logits(network), rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")] == ["model.safetensors"]
    theirs = timm.create_model("hf-hub:anna/pets", pretrained=True, cache_dir=tmp_path / "timm").eval()
    torch.testing.assert_close(logits(theirs), logits(network), rtol=0, atol=1e-6)

    hub.files["anna/pets"]["README.md"] = b"mine"
    metamobile.push_to_hub(run, "anna/pets", token=TOKEN)
    assert hub.files["anna/pets"]["README.md"] == b"mine"
    assert "anna/pets: the README.md of the repository was kept" in caplog.text


def test_what_was_fetched_answers_offline(tmp_path: Path, hub: Hub, monkeypatch) -> None:
    run = make_run(tmp_path / "run")
    metamobile.push_to_hub(run, "anna/pets", token=TOKEN)
    here = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    with pytest.raises(
        ValueError, match=r"^anna/pets: not fetched before, and http://127.0.0.1:\d+ cannot be asked"
    ):
        metamobile.from_pretrained("anna/pets", **here)
    metamobile.from_pretrained("anna/pets", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert metamobile.from_pretrained("anna/pets", **here).card.classes == metamobile.load(run).card.classes


def test_what_the_hub_refuses_is_one_line(tmp_path: Path, hub: Hub) -> None:
    run = make_run(tmp_path / "run")
    hub.files = {
        "anna/empty": {},
        "anna/pets": {"model.safetensors": (run / "model.safetensors").read_bytes()},
    }
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, foreign)
    hub.files["anna/foreign"] = {"model.safetensors": foreign.read_bytes()}

    def refused(call, *given, words: str, **kwargs) -> None:
        with pytest.raises(ValueError, match=words) as error:
            call(*given, **kwargs)
        assert "\n" not in str(error.value)

    cache = {"cache_dir": tmp_path / "cache"}
    fetch = metamobile.from_pretrained
    refused(fetch, "anna/gone", words="^anna/gone: no such repository at http.*`hf auth login`", **cache)
    refused(fetch, "anna/empty", words="^anna/empty: no model.safetensors in this repository", **cache)
    refused(fetch, "anna/pets", revision="v9", words="^anna/pets: no revision 'v9' at http", **cache)
    refused(fetch, "anna/foreign", words="without a metamobile card", **cache)
    refused(
        metamobile.push_to_hub, run, "anna/pets", token="hf_bad",
        words=r"^anna/pets: http.* refused \(this token may not write\); `hf auth login`",
    )  # fmt: skip


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"^anna/pets: https?://\S+ cannot be reached \(.*offline mode.*\)$"):
        metamobile.push_to_hub(run, "anna/pets")
    with pytest.raises(ValueError, match=r"^anna/pets: not fetched before.*offline mode"):
        metamobile.from_pretrained("anna/pets", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ValueError, match=r"^anna/pets: http://127.0.0.1:9 cannot be reached \(.*refused"):
        metamobile.push_to_hub(run, "anna/pets")


# torch.hub

HUB_CODE = """
import sys
sys.path = [path for path in sys.path if path != {source!r}]  # as if not installed
import importlib.util, json, logging, torch
if getattr(importlib.util.find_spec("metamobile"), "loader", None):  # more than the folder of the recipes
    print("installed"), sys.exit()
torch.hub.set_dir({cache!r})
listed = torch.hub.list("anna/metamobile:main", trust_repo=True, verbose=False)
about = torch.hub.help("anna/metamobile:main", "emo_1m", trust_repo=True)
network = torch.hub.load({root!r}, "emo_1m", source="local", num_classes=10)
trained = torch.hub.load({root!r}, "load", {run!r}, source="local")
torch.save(trained.eval()(torch.load({pixels!r})), {out!r})
try:
    torch.hub.load({root!r}, "emov2_1m", source="local", pretrained=True)
except ValueError as error:
    words = str(error)
print(json.dumps([listed, about, network.num_classes, words, {source!r} in sys.path]))
"""


def test_torch_hub_without_the_package(tmp_path: Path) -> None:
    """The list goes the way of a repository on GitHub that was fetched before."""
    network = settled("emo_1m", window_size=2)
    run = write_run(tmp_path / "run", network, "emo_1m")
    torch.save(PIXELS, tmp_path / "pixels.pt")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "anna_metamobile_main").symlink_to(ROOT)
    values = {
        "source": ROOT / "src",
        "cache": tmp_path / "cache",
        "root": ROOT,
        "run": run,
        "pixels": tmp_path / "pixels.pt",
        "out": tmp_path / "out.pt",
    }
    code = HUB_CODE.format(**{key: str(path) for key, path in values.items()})
    done = run_python(code)
    if done.stdout == "installed\n":
        pytest.skip("needs an editable installation, which can be hidden")
    assert done.returncode == 0, done.stderr
    listed, about, num_classes, words, left_behind = json.loads(done.stdout)
    assert set(listed) == {*VARIANTS, "load"}
    assert f"{VARIANTS['emo_1m'].parameters:,} parameters" in about
    assert num_classes == 10
    assert "`metamobile pull emov2_1m.in1k` fetches them" in words
    assert not left_behind
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), logits(network), rtol=0, atol=1e-6)


def test_the_version_is_told_without_the_package() -> None:
    assert current_versions()["metamobile"] == version("metamobile")
