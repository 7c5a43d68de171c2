"""predict and eval: all ways to name pictures, what is written, broken files, and no torch for ONNX."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassAccuracy

from metamobile.data.folder import open_folder
from metamobile.data.pictures import read_picture
from metamobile.data.preprocess import preprocess
from metamobile.deploy.formats.onnx import write as export_onnx
from metamobile.errors import DataError, PictureError
from metamobile.files import write_text
from metamobile.inference.evaluate import evaluate
from metamobile.inference.model import load
from metamobile.inference.predict import predict
from metamobile.tasks.classify.data import eval_samples
from small_model import CLASSES, make_card, make_network, make_run, write_pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "insects")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory) -> Path:
    network = make_network()
    path = tmp_path_factory.mktemp("exported") / "insects.onnx"
    export_onnx(network, make_card(network), path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """five pictures in two folders, two of the same name"""
    write_pictures(tmp_path / "pictures" / "a", 3)
    write_pictures(tmp_path / "pictures" / "b", 2, seed=1)
    return tmp_path / "pictures"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for seed, name in enumerate(CLASSES):
        write_pictures(tmp_path / "data" / "train" / name, 2, seed=10 + seed)
        write_pictures(tmp_path / "data" / "val" / name, 4, seed=seed)
    return tmp_path / "data"


def break_picture(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:200])
    return path


def test_answers_are_the_networks(run: Path, pictures: Path) -> None:
    """Independent reference: each picture by itself through the bare network and torch's softmax."""
    answered = predict(run, pictures, batch_size=2, top=2)
    assert [Path(r.picture).name for r in answered.results] == ["000.png", "001.png", "002.png"] + [
        "000.png",
        "001.png",
    ]
    network, record = make_network(), make_card(make_network()).preprocess
    for result in answered.results:
        pixels = torch.from_numpy(preprocess(read_picture(result.picture), record))[None]
        scores, indices = network(pixels).softmax(1)[0].topk(2)
        assert result.indices == indices.tolist()
        np.testing.assert_allclose(result.scores, scores.detach(), rtol=1e-3)
    assert {label for r in answered.results for label in r.labels} <= {"ants", "bees", "English springer"}


def test_files_folders_globs_and_stdin(run: Path, pictures: Path, monkeypatch) -> None:
    one = pictures / "a" / "000.png"
    assert len(predict(run, one).results) == 1
    assert len(predict(run, [str(one), str(pictures / "b" / "*.png")]).results) == 3
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{one}\n{pictures / 'a' / '002.png'}\n"))
    assert len(predict(run, ["-"]).results) == 2
    with pytest.raises(ValueError, match="no picture was given"):
        predict(run, [])


def test_a_broken_picture_does_not_stop_the_others(run: Path, pictures: Path, tmp_path: Path) -> None:
    broken = break_picture(pictures / "a" / "001.png")
    answered = predict(
        run, pictures, batch_size=2, json=tmp_path / "a.json", csv=tmp_path / "a.csv", out=tmp_path / "out"
    )
    assert len(answered.results) == 4
    (failure,) = answered.failures
    assert failure.picture == str(broken)
    assert "001.png" in str(failure)
    written = json.loads((tmp_path / "a.json").read_text())
    assert [f["picture"] for f in written["failures"]] == [str(broken)]
    assert len(written["results"]) == 4
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["picture"] for row in rows if row["error"]] == [str(broken)]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_only_broken_pictures(run: Path, pictures: Path) -> None:
    answered = predict(run, break_picture(pictures / "a" / "000.png"))
    assert not answered.results
    assert len(answered.failures) == 1


def test_a_missing_path_does_not_stop_the_others(run: Path, pictures: Path, tmp_path: Path) -> None:
    one = pictures / "a" / "000.png"
    given = [tmp_path / "no.png", one, tmp_path / "clip.mp4", pictures / "c", pictures / "b" / "*.gif"]
    answered = predict(run, given, json=tmp_path / "a.json")
    assert [result.picture for result in answered.results] == [str(one)]
    assert [str(failure).removeprefix(f"{failure.picture}: ") for failure in answered.failures] == [
        "no such file or folder",
        "a video or camera is answered alone, without others",
        "no such file or folder",
        "no such file or folder",
    ]
    assert len(json.loads((tmp_path / "a.json").read_text())["failures"]) == 4
    with pytest.raises(ValueError, match="no.png: no such file or folder; .*c: no such file or folder"):
        predict(run, [tmp_path / "no.png", pictures / "c"])


def test_folders_and_files_do_not_replace_each_other(run: Path, pictures: Path, dataset: Path) -> None:
    """A file in place of a folder would take all that is in it; it is refused before any work."""
    one = pictures / "a" / "000.png"
    before = sorted(pictures.rglob("*"))
    for places in ({"json": pictures}, {"csv": pictures}):
        with pytest.raises(ValueError, match="pictures: a folder; expected the name of a file to write"):
            predict(run, one, **places)
    with pytest.raises(ValueError, match="pictures: a folder; expected the name of a file to write"):
        evaluate(run, dataset, json=pictures)
    with pytest.raises(ValueError, match="000.png: a file; expected the name of a folder to write into"):
        predict(run, one, out=one)
    with pytest.raises(ValueError, match="pictures: a folder; expected the name of a file to write"):
        write_text(pictures, "anything")
    assert sorted(pictures.rglob("*")) == before


def test_json_and_csv(run: Path, pictures: Path, tmp_path: Path) -> None:
    answered = predict(run, pictures, top=2, json=tmp_path / "new" / "a.json", csv=tmp_path / "a.csv")
    written = json.loads((tmp_path / "new" / "a.json").read_text())
    assert written["model"] == str(run)
    assert written["results"] == [result.to_dict() for result in answered.results]
    header, *rows = csv.reader((tmp_path / "a.csv").open())
    assert header == ["picture", "label1", "score1", "label2", "score2", "error"]
    assert len(rows) == 5
    assert rows[0][1] == answered.results[0].labels[0]
    assert float(rows[0][2]) == pytest.approx(answered.results[0].scores[0], abs=1e-6)


def test_annotated_pictures_never_replace_a_file(run: Path, pictures: Path) -> None:
    shutil.move(pictures / "b" / "000.png", pictures / "000.png")
    Image.open(pictures / "000.png").save(pictures / "000.jpg")
    before = {path: path.read_bytes() for path in pictures.rglob("*.*")}
    predict(run, pictures, out=pictures)
    assert all(path.read_bytes() == content for path, content in before.items())
    new = {path.name for path in pictures.rglob("*.jpg") if path not in before}
    assert new == {"000-2.jpg", "000-3.jpg", "000-4.jpg", "001.jpg", "001-2.jpg", "002.jpg"}


def test_model_predicts_paths_and_pil_pictures(run: Path, pictures: Path) -> None:
    model = load(run)
    path = pictures / "a" / "000.png"
    by_path, by_picture = model.predict([path, Image.open(path)], top=2)
    assert (by_path.scores, by_path.picture) == (by_picture.scores, str(path))
    assert len(model.predict(str(path))) == 1
    assert model.predict([]) == []
    assert predict(model, path).results[0].labels == model.predict(path)[0].labels
    with pytest.raises(PictureError, match="000.png"):
        model.predict(break_picture(path))


def test_onnx_answers_the_same(run: Path, onnx_file: Path, pictures: Path) -> None:
    ours, theirs = predict(run, pictures), predict(onnx_file, pictures)
    assert [r.labels for r in ours.results] == [r.labels for r in theirs.results]
    np.testing.assert_allclose(
        [r.scores for r in ours.results], [r.scores for r in theirs.results], atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="runs in ONNX Runtime; load its run folder"):
        _ = load(onnx_file).network


def test_evaluate_equals_an_independent_loop(run: Path, dataset: Path, tmp_path: Path) -> None:
    figures = evaluate(run, dataset, batch_size=5, workers=2, json=tmp_path / "figures.json")
    network, record = make_network(), make_card(make_network()).preprocess
    accuracy = MulticlassAccuracy(num_classes=3, average="micro")
    losses = []
    for target, name in enumerate(CLASSES):
        for path in sorted((dataset / "val" / name).iterdir()):
            logits = network(torch.from_numpy(preprocess(read_picture(path), record))[None]).detach()
            accuracy.update(logits, torch.tensor([target]))
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([target])).item())
    assert figures["pictures"] == 12
    assert figures["top1"] == pytest.approx(100 * accuracy.compute().item(), abs=1e-4)
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert json.loads((tmp_path / "figures.json").read_text()) == figures


def test_evaluate_never_measures_on_pictures_that_were_trained_on(tmp_path: Path) -> None:
    """A folder without val/ was split by the tool: the same split is used again."""
    for seed, name in enumerate(CLASSES):
        write_pictures(tmp_path / "data" / name, 8, seed=seed)
    trained_here = make_run(tmp_path / "run", data=str(tmp_path / "data"))
    elsewhere = make_run(tmp_path / "other", data=str(tmp_path / "other-data"))
    assert evaluate(trained_here, tmp_path / "data")["pictures"] == 6
    broken = break_picture(tmp_path / "data" / "ants" / "003.png")
    without = open_folder(tmp_path / "data", val_fraction=0.25, seed=0, exclude=[broken])
    card = make_card(make_network(), data=str(tmp_path / "data"), drop_bad=True)
    assert eval_samples(tmp_path / "data", card) == (without.val, without.split)
    (tmp_path / "data" / "wasps").mkdir()
    write_pictures(tmp_path / "data" / "wasps", 3)
    with pytest.raises(DataError, match="its classes are no longer those of the model"):
        evaluate(trained_here, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "wasps")
    broken.unlink()
    assert evaluate(elsewhere, tmp_path / "data")["pictures"] == 23


def test_evaluate_stops_at_a_broken_picture(run: Path, dataset: Path) -> None:
    """A figure over fewer pictures than the folder holds would be another figure."""
    break_picture(dataset / "val" / "ants" / "002.png")
    with pytest.raises(DataError, match=r"002.png.*`metamobile check .*` names every such file"):
        evaluate(run, dataset)


def test_evaluate_names_a_class_the_model_does_not_know(run: Path, dataset: Path) -> None:
    (dataset / "val" / "bees").rename(dataset / "val" / "beas")
    with pytest.raises(ValueError, match="beas"):
        evaluate(run, dataset)


def test_onnx_needs_no_torch(onnx_file: Path, pictures: Path, dataset: Path, tmp_path: Path) -> None:
    break_picture(pictures / "a" / "001.png")
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
        "import metamobile_cli\n"
        f"code = metamobile_cli.run(['predict', {str(onnx_file)!r}, {str(pictures)!r},\n"
        f"    '--out', {str(tmp_path / 'out')!r}, '--csv', {str(tmp_path / 'a.csv')!r}])\n"
        "assert code == 1, code\n"
        f"code = metamobile_cli.run(['eval', {str(onnx_file)!r}, '--data', {str(dataset)!r}])\n"
        "assert code == 0, code\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "002.png" in done.stdout
    assert "12 pictures" in done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "001.png" in errors[0]


def test_errors_of_models(onnx_file: Path, pictures: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx_file.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"broken.onnx: ONNX Runtime cannot read it, it may be truncated"):
        predict(broken, pictures)
    with pytest.raises(ValueError, match=r"no model .*did you mean .*broken.onnx"):
        predict(tmp_path / "brokn.onnx", pictures)
    with pytest.raises(ValueError, match=r"device 'gpu' cannot be used.*expected auto, cpu"):
        predict(make_run(tmp_path / "run"), pictures, device="gpu")
    with pytest.raises(ValueError, match="cannot use device 'gpu'; it has auto, cpu"):
        predict(onnx_file, pictures, device="gpu")


def test_foreign_onnx_file(tmp_path: Path, pictures: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="foreign.onnx: ONNX without a metamobile card"):
        predict(tmp_path / "foreign.onnx", pictures)


def test_missing_onnxruntime_names_the_extra(onnx_file: Path, pictures: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r'needs onnxruntime: pip install "metamobile\[onnx\]"'):
        predict(onnx_file, pictures)


def test_the_trained_folder_is_known_wherever_it_lies(tmp_path: Path) -> None:
    """A relative path in the recipe means nothing in another working folder; the folder's name does."""
    for seed, name in enumerate(CLASSES):
        write_pictures(tmp_path / "far" / "pets" / name, 8, seed=seed)
    samples, split = eval_samples(tmp_path / "far" / "pets", make_card(make_network(), data="pets"))
    assert samples == open_folder(tmp_path / "far" / "pets", val_fraction=0.25, seed=0).val
    assert "of each class held out with seed 0" in split
