"""USE.md: its code is taken out of it and run; what cannot run here is at least there and well formed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metamobile
from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import Preprocess, fit_picture, preprocess
from metamobile.deploy.form import deploy
from metamobile.deploy.formats import FORMATS, get_format
from metamobile.deploy.preprocessing import scaled_card
from metamobile.deploy.runtimes import DETECTIONS
from metamobile.deploy.usage import describe, write_usage
from metamobile.weights.card import KEY, Card
from small_model import make_card, make_network, make_run, write_pictures
from small_training import TINY_ARGS
from usage_code import code, run_on, run_python

FILES = {name: f"model{one.suffix}" for name, one in FORMATS.items()}
SHAPES = {"landscape": (90, 80), "portrait": (66, 131), "square": (73, 73)}
TASKS = ("classify", "segment", "detect")


def write_file(name: str, folder: Path) -> Path:
    """A small classifier in one format, without the gate; skips where its packages are missing."""
    if name == "coreml":
        pytest.skip("Core ML runs on a Mac alone")
    for package in {*FORMATS[name].writes, *FORMATS[name].runs}:
        pytest.importorskip(package)
    network = make_network(**TINY_ARGS)
    card = make_card(network)
    folder.mkdir(parents=True, exist_ok=True)
    get_format(name).write(deploy(network), card, folder / FILES[name])
    return folder / FILES[name]


def card_of(task: str, names: list[str], **record: object) -> Card:
    return Card("emo_1m", {}, task=task, classes=names, preprocess=Preprocess(size=(64, 96), **record))


@pytest.mark.parametrize("name", FORMATS)
def test_python_names_the_class_that_predict_names(name: str, tmp_path: Path) -> None:
    path = write_file(name, tmp_path)
    page = write_usage(tmp_path, [path])
    pictures = [
        picture
        for shape in SHAPES.values()
        for picture in write_pictures(tmp_path / f"{shape[0]}", 2, shape, seed=shape[0])
    ]
    with Image.open(pictures[0]) as picture:
        see_through = picture.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    see_through.save(tmp_path / "see-through.png")
    pictures.append(tmp_path / "see-through.png")
    expected = [result.labels[0] for result in metamobile.predict(path, pictures).results]
    block = code(page.read_text(), "python")
    assert run_on(block, pictures, tmp_path, then='np.save(f"{number}.npy", pixels)') == expected
    assert len(set(expected)) > 1
    for number, picture in enumerate(pictures):
        wanted = preprocess(read_picture(picture), Preprocess(size=(64, 64)))
        assert np.array_equal(np.load(tmp_path / f"{number}.npy")[0], wanted)


def test_stretched_pictures(tmp_path: Path) -> None:
    """The pixels alone: the code before the file is run."""
    (picture,) = write_pictures(tmp_path, 1, (90, 80))
    record = Preprocess(size=(64, 96), fit="stretch", interpolation="bilinear", mean=(0.5, 0.4, 0.3))
    block = code(describe("model.onnx", Card("emo_1m", {}, classes=["a"], preprocess=record)), "python")
    start, end = block.index("picture ="), block.index("outputs =")
    block = block[start:end].replace("picture.jpg", picture.name)
    head = "import numpy as np\nfrom PIL import Image, ImageOps\n"
    run_python(head + block + "np.save('pixels.npy', pixels)", tmp_path)
    assert np.array_equal(np.load(tmp_path / "pixels.npy")[0], preprocess(read_picture(picture), record))


def constant_onnx(path: Path, card: Card, outputs: dict[str, np.ndarray]) -> Path:
    """A file that takes any picture of the card and always answers the same."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    nodes = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in outputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("pixels", 1, ["batch", 3, *card.preprocess.size])],
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in outputs.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {KEY: card.to_json()})
    onnx.save(model, path)
    return path


def test_a_detectors_boxes_are_named_in_the_pictures_own_pixels(tmp_path: Path) -> None:
    boxes = np.array([[9.6, 6.4, 96, 64], [0, 0, 5, 5]], np.float32)
    values = [boxes, np.array([0.75, 0.25], np.float32), np.array([1, 0]), np.array([0, 0])]
    card = card_of("detect", ["cat", "dog"], fit="stretch")
    path = constant_onnx(tmp_path / "model.onnx", card, dict(zip(DETECTIONS, values, strict=True)))
    shutil.copy(write_pictures(tmp_path / "pictures", 1, (960, 320))[0], tmp_path / "picture.jpg")
    found = run_python(code(write_usage(tmp_path, [path]).read_text(), "python"), tmp_path)
    name, score, *numbers = re.sub(r"[\[\]]", " ", found).split()
    assert (name, score, found.count("\n")) == ("dog", "0.75", 0)  # the second is not sure enough
    np.testing.assert_allclose([float(number) for number in numbers], [96, 32, 960, 320], rtol=1e-6)


def test_a_segmenters_classes_are_told_by_their_share(tmp_path: Path) -> None:
    classes = np.zeros((1, 64, 96), np.int64)
    classes[:, :16] = 2
    outputs = {"logits": np.zeros((1, 3, 64, 96), np.float32), "classes": classes}
    card = card_of("segment", ["road", "sky", "tree"], fit="stretch")
    path = constant_onnx(tmp_path / "model.onnx", card, outputs)
    shutil.copy(write_pictures(tmp_path / "pictures", 1)[0], tmp_path / "picture.jpg")
    found = run_python(code(write_usage(tmp_path, [path]).read_text(), "python"), tmp_path)
    assert found == "road 0.75\ntree 0.25"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_section_is_whole(name: str, task: str) -> None:
    names = ['a "b"', "c$d", "e\\f", "犬", "{{ x }}"]
    text = describe(FILES[name], card_of(task, names, fit="stretch"))
    assert "1 x 3 x 64 x 96" in text or "batch x 3 x 64 x 96" in text
    assert "[0.485, 0.456, 0.406]" in text and "[0.229, 0.224, 0.225]" in text
    outputs = ["boxes", "scores", "labels"] if task == "detect" else ["logits"]
    for output in ["out0"] if name == "ncnn" else outputs:
        assert f"`{output}`" in text
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    assert blocks
    for language, block in blocks:
        assert FILES[name] in block or "load(path)" in block
        if language == "python":
            compile(block, name, "exec")
        elif language == "kotlin":
            assert r'"c\$d"' in block  # "$" alone would fill in a variable
        run_here = language in ("python", "js") or (name, task) == ("openvino", "classify")
        assert run_here or "not run by our tests" in text


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("task", TASKS)
def test_a_file_with_preprocessing_takes_the_picture(name: str, task: str) -> None:
    text = describe(f"model.pictures.int8{FORMATS[name].suffix}", card_of(task, ["a", "b"]))
    block = code(text, "python")
    compile(block, name, "exec")
    assert '{"picture": np.asarray(picture)}' in block and "0.485" not in text
    assert "`picture`, uint8, H x W x 3" in text and "eight bits" in text


@pytest.mark.parametrize("name", ["executorch", "litert", "coreml", "ncnn", "torch-export"])
@pytest.mark.parametrize("task", TASKS)
def test_a_scaled_file_takes_levels(name: str, task: str) -> None:
    text = describe(f"model.scaled{FORMATS[name].suffix}", scaled_card(card_of(task, ["a", "b"])))
    assert "leave levels from 0 to 255 as they are" in text
    for word in ("0.485", "0.003921", "divide", "normalised", "/ 255"):
        assert word not in text
    for _, block in re.findall(r"```(python)\n(.*?)```", text, re.DOTALL):
        compile(block, name, "exec")


def test_many_names_stand_at_the_end() -> None:
    names = [f"class {number}" for number in range(100)]
    text = describe("model.onnx", card_of("classify", names))
    assert "class 99" not in code(text, "js") and text.count('"class 99"') == 1


def test_sections_stay_while_their_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "insects")
    onnx = constant_onnx(run / "model.onnx", card_of("classify", ["a", "b"]), {})
    page = write_usage(run, [*run.iterdir(), run / "notes.txt"])
    first = page.read_text()
    assert "## model.onnx" in first and "## model.safetensors" in first and "notes" not in first
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as in another runtime's environment
    assert write_usage(run, list(run.iterdir())).read_text() == first
    page.unlink()
    assert "Not described here: " in write_usage(run, [onnx]).read_text()
    onnx.unlink()
    assert "## model.onnx" not in write_usage(run, [onnx, run / "model.safetensors"]).read_text()


def test_a_file_that_failed_says_so() -> None:
    text = describe("model.int8.unverified.onnx", card_of("classify", ["a", "b"]))
    assert "eight bits" in text and "failed its gate" in text
    assert "failed its gate" not in describe("model.int8.onnx", card_of("classify", ["a", "b"]))


def raw_pixels(picture: Path, folder: Path, mode: str) -> Path:
    """The picture as its card wants it, 8 bits a channel, rows from the top."""
    fitted = fit_picture(read_picture(picture), Preprocess(size=(64, 64)))
    (folder / "pixels.raw").write_bytes(fitted.convert(mode).tobytes())
    return folder / "pixels.raw"


def test_javascript(tmp_path: Path) -> None:
    if not shutil.which("node"):
        pytest.skip("node is not here")
    root = subprocess.run(["npm", "root", "-g"], capture_output=True, text=True).stdout.strip()
    if not (Path(root) / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not installed: npm install -g onnxruntime-web")
    path = write_file("onnx", tmp_path)
    (tmp_path / "node_modules").symlink_to(root)
    script = code(write_usage(tmp_path, [path]).read_text(), "js")
    script += 'import { readFileSync } from "node:fs";\n'
    script += 'console.log(await answer(readFileSync("pixels.raw")));\n'
    (tmp_path / "use.mjs").write_text(script)
    for picture in write_pictures(tmp_path / "pictures", 3):
        raw_pixels(picture, tmp_path, "RGBA")
        done = subprocess.run(["node", "use.mjs"], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.strip() == metamobile.predict(path, picture).results[0].labels[0], done.stderr


def test_cpp(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    home = Path(openvino.__file__).parent
    if not shutil.which("g++") or not (home / "include/openvino/openvino.hpp").is_file():
        pytest.skip("g++ or OpenVINO's headers are not here")
    path = write_file("openvino", tmp_path)
    source = code(write_usage(tmp_path, [path]).read_text(), "cpp")
    source += """
#include <fstream>
#include <iostream>
int main() {
  std::vector<char> rgb(3 * 64 * 64);
  std::ifstream("pixels.raw", std::ios::binary).read(rgb.data(), rgb.size());
  std::cout << answer(reinterpret_cast<unsigned char*>(rgb.data()));
}
"""
    (tmp_path / "use.cpp").write_text(source)
    library = next((home / "libs").glob("libopenvino.so*"))
    command = ["g++", "-std=c++17", "use.cpp", f"-I{home}/include", str(library), f"-Wl,-rpath,{home}/libs"]
    subprocess.run([*command, "-o", "use"], cwd=tmp_path, check=True)
    for picture in write_pictures(tmp_path / "pictures", 3):
        raw_pixels(picture, tmp_path, "RGB")
        done = subprocess.run(["./use"], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == metamobile.predict(path, picture).results[0].labels[0], done.stderr
