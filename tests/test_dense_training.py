"""Detection and segmentation through the same verbs, loop and run folder as classification."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from PIL import Image

import metamobile
from metamobile.data.preprocess import Preprocess, preprocess
from metamobile.data.shape_scenes import write_boxes, write_masks
from metamobile.models.create import create_model
from metamobile.tasks.look import check, find_task
from metamobile.tasks.segment.task import rarity
from metamobile.training.finetune import load_pretrained
from metamobile.training.loop import Interrupted
from metamobile.training.progress import Reporter
from metamobile.training.train import Run, train
from metamobile.weights.card import Card
from metamobile.weights.file import load_weights, save_weights
from small_training import TINY_ARGS, assert_same_run, interrupt_after, metrics

HEADS = {"detect": "ssdlite", "segment": "deeplabv3"}
EPOCHS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return {
        "detect": write_boxes(folder / "boxes", train=16, val=5, size=64, objects=(1, 2)),
        "segment": write_masks(folder / "masks", train=16, val=5, size=64, objects=(1, 2)),
    }


def run_training(task: str, folder: Path, out: Path, *settings: str, **changed: Any) -> Run:
    arguments: dict[str, Any] = {"epochs": EPOCHS, "size": 64, "batch_size": 8, "workers": 0, "device": "cpu"}
    arguments |= {"head": HEADS[task]} | changed
    own = [f"model.args={json.dumps(TINY_ARGS)}", "run.log_every=1", "schedule.warmup_epochs=0.5"]
    return train("emo_1m", folder, out=out, set=[*own, *settings], quiet=True, **arguments)


@pytest.fixture(scope="module")
def runs(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {task: run_training(task, data[task], folder / task) for task in HEADS}


MAIN = {"detect": "ap", "segment": "miou"}


@pytest.mark.parametrize("task", HEADS)
def test_a_run_leaves_what_a_classifiers_leaves(runs: dict[str, Run], task: str) -> None:
    run = runs[task]
    files = {path.name for path in run.folder.iterdir()}
    assert files >= {
        "recipe.yaml",
        "model.safetensors",
        "last",
        "metrics.jsonl",
        "evaluation.json",
        "report.html",
    }
    assert run.card.task == task and run.card.model_args["head"] == HEADS[task]
    assert [line["step"] for line in metrics(run.folder, "step")] == [1, 2, 3, 4, 5, 6]
    epochs = metrics(run.folder, "epoch")
    assert run.metrics[MAIN[task]] == pytest.approx(max(line[MAIN[task]] or 0 for line in epochs))
    drawn = json.loads((run.folder / "evaluation.json").read_text())["wrong"]
    assert drawn and all((run.folder / entry["drawing"]).is_file() for entry in drawn)


@pytest.mark.parametrize("task", HEADS)
def test_evaluate_gives_the_figures_of_the_run(
    runs: dict[str, Run], data: dict[str, Path], task: str
) -> None:
    figures = metamobile.evaluate(runs[task].folder, data[task], batch_size=2, workers=2)
    assert figures["pictures"] == 5 and figures["task"] == task
    expected = json.loads((runs[task].folder / "evaluation.json").read_text())
    for key in (MAIN[task], "per_class", "confusion"):
        assert (
            figures[key] == pytest.approx(expected[key])
            if key == MAIN[task]
            else figures[key] == expected[key]
        )


@pytest.mark.parametrize("task", HEADS)
def test_a_run_that_goes_on_is_one_that_never_stopped(
    runs: dict[str, Run], data: dict[str, Path], tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(1, patch, signal.SIGTERM)
        run_training(task, data[task], tmp_path / "run")
    train(resume=tmp_path / "run", quiet=True)
    assert_same_run(tmp_path / "run", runs[task].folder)


def test_a_segmenter_answers_at_each_pictures_own_size(runs: dict[str, Run], tmp_path: Path) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    for name, size in (("wide", (90, 50)), ("high", (33, 64))):
        Image.effect_noise(size, 80).save(pictures / f"{name}.png")
    found = metamobile.predict(
        runs["segment"].folder,
        pictures,
        out=tmp_path / "out",
        json=tmp_path / "a.json",
        csv=tmp_path / "a.csv",
    )
    assert [result.mask.shape for result in found.results] == [(64, 33), (50, 90)]
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["high.jpg", "high_mask.png", "wide.jpg", "wide_mask.png"]
    with Image.open(tmp_path / "out" / "wide_mask.png") as mask:
        assert np.array_equal(np.asarray(mask), found.results[1].mask)
    (again,) = metamobile.load(runs["segment"].folder).predict(pictures / "high.png")
    assert np.array_equal(again.mask, found.results[0].mask)
    assert json.loads((tmp_path / "a.json").read_text())["classes"][0] == "background"


def test_windows_that_slide_over_a_picture(runs: dict[str, Run], tmp_path: Path) -> None:
    """Each window answers by what it sees alone; one as large as the picture would change nothing."""
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    model = metamobile.load(runs["segment"].folder)
    with pytest.raises(ValueError, match="slide 64: expected .* less than 64"):
        model.predict(picture, slide=64)
    pixels = preprocess(picture, model.card.preprocess)[None]
    total, count = np.zeros((1, 7, 64, 64)), np.zeros((64, 64))
    for top in (0, 21, 32):  # a third of 32 px overlaps, and the last window ends with the picture
        for left in (0, 21, 32):
            total[..., top : top + 32, left : left + 32] += model.runtime.run(
                np.ascontiguousarray(pixels[..., top : top + 32, left : left + 32])
            )
            count[top : top + 32, left : left + 32] += 1
    assert np.array_equal(model.predict(picture, slide=32)[0].mask, (total / count)[0].argmax(0))
    with pytest.raises(ValueError, match="slide is no option of this model, whose task is detect"):
        metamobile.load(runs["detect"].folder).predict(picture, slide=32)


def test_a_detectors_answers_are_cocos(runs: dict[str, Run], data: dict[str, Path], tmp_path: Path) -> None:
    pictures = sorted((data["detect"] / "val").iterdir())
    found = metamobile.predict(runs["detect"].folder, pictures, json=tmp_path / "a.json", conf=0.0, iou=0.9)
    few = metamobile.predict(runs["detect"].folder, pictures, conf=0.3)
    assert sum(map(len, found.results)) > sum(map(len, few.results))
    assert all((result.scores >= 0.3).all() for result in few.results)
    for result, path in zip(found.results, pictures, strict=True):
        assert result.picture == str(path) and result.size == (64, 64)
        assert (result.boxes >= 0).all() and (result.boxes <= 64).all()
    rows = json.loads((tmp_path / "a.json").read_text())
    assert len(rows) == sum(map(len, found.results))
    truth = COCO(str(data["detect"] / "annotations" / "instances_val.json"))
    assert {row["category_id"] for row in rows} <= set(truth.cats)
    with pytest.raises(ValueError, match="top is no option of this model, whose task is detect"):
        metamobile.predict(runs["detect"].folder, pictures, top=3)
    with pytest.raises(ValueError, match="conf is no option of this model, .*expected iou"):
        metamobile.evaluate(runs["detect"].folder, data["detect"], conf=0.5)


def test_mask_rcnn_learns_boxes_and_masks(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "few", train=2, val=1, size=64)
    run = run_training("detect", data, tmp_path / "run", head="mask_rcnn", epochs=1, batch_size=2)
    assert "mask_ap" in run.metrics
    found = metamobile.load(run.folder).predict(data / "val" / "00000.png", conf=0.0)
    assert found[0].masks.shape == (len(found[0]), 64, 64)
    with pytest.raises(ValueError, match="the head mask_rcnn cannot be exported"):
        metamobile.export(run.folder)
    assert not list(run.folder.glob("*.onnx"))


def test_mask_rcnn_asks_for_masks(data: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(data["detect"], tmp_path / "boxes")
    for path in (tmp_path / "boxes" / "annotations").iterdir():
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="boxes without masks; mask_rcnn learns from both"):
        run_training("detect", tmp_path / "boxes", tmp_path / "run", head="mask_rcnn")


def test_a_backbone_starts_from_a_classifier(tmp_path: Path) -> None:
    classifier = create_model("emo_1m", num_classes=3, **TINY_ARGS)
    weights = tmp_path / "c.safetensors"
    save_weights(weights, classifier.state_dict(), _card("classify", list("abc")))
    detector = create_model("emo_1m", task="detect", num_classes=3, **TINY_ARGS)
    heads = {n: p.clone() for n, p in detector.named_parameters() if not n.startswith("backbone.")}
    load_pretrained(detector, list("abc"), str(weights), Reporter(quiet=True))
    given = classifier.state_dict()
    own = detector.backbone.network.model.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in own)
    assert all(torch.equal(p, heads[n]) for n, p in detector.named_parameters() if n in heads)


def test_other_classes_get_a_new_last_layer_alone(runs: dict[str, Run]) -> None:
    state, card = load_weights(runs["segment"].folder / "model.safetensors")
    model = create_model("emo_1m", **card.model_args | TINY_ARGS)
    load_pretrained(model, [*card.classes[:-1], "another"], str(runs["segment"].folder), Reporter(quiet=True))
    own = model.state_dict()
    changed = {name.rsplit(".", 1)[0] for name in own if not torch.equal(own[name], state[name])}
    assert changed == {"head.classify.1", "auxiliary.1.1"}


def _card(task: str, classes: list[str]) -> Card:
    return Card("emo_1m", {"num_classes": len(classes)}, task=task, classes=classes, preprocess=Preprocess())


def test_a_data_set_tells_its_task(data: dict[str, Path], tmp_path: Path) -> None:
    assert {task: find_task(folder) for task, folder in data.items()} == {t: t for t in data}
    (tmp_path / "cats").mkdir()
    (tmp_path / "metadata.json").write_text('{"made": "today", "classes": ["cats"]}')
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    assert find_task(tmp_path) == "classify"
    (tmp_path / "params.yaml").write_text("train:\n  lr: 0.1\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "names.txt").write_text("cats\n")
    assert find_task(tmp_path) == "classify"
    (tmp_path / "data.yml").write_text("train: images/train\n")
    assert find_task(tmp_path) == "detect"
    assert check(data["detect"]).ok and check(data["segment"]).ok
    shutil.copytree(data["detect"], tmp_path / "copy")
    (tmp_path / "copy" / "val" / "00003.png").unlink()
    (problem,) = check(tmp_path / "copy").problems
    assert problem.kind == "missing picture" and problem.path.name == "00003.png"


def test_masks_are_no_boxes(data: dict[str, Path], runs: dict[str, Run], tmp_path: Path) -> None:
    """In one line, where every picture would be named for want of a label."""
    words = "masks and no boxes; a detector needs COCO's json or YOLO's text files, a segmenter"
    with pytest.raises(ValueError, match=words):
        check(data["segment"], task="detect")
    with pytest.raises(ValueError, match=words):
        train("emo_1m", data["segment"], head="ssdlite", out=tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match=words):
        metamobile.evaluate(runs["detect"].folder, data["segment"])


def test_the_task_of_a_training_is_found(data: dict[str, Path], tmp_path: Path) -> None:
    args = [f"model.args={json.dumps(TINY_ARGS)}", "schedule.warmup_epochs=0"]
    run = train("emo_1m", data["segment"], out=tmp_path / "run", epochs=1, size=64, set=args, workers=0)
    assert run.card.task == "segment" and run.card.model_args["head"] == "deeplabv3"
    assert run.card.preprocess.size == (64, 64), "--size is that of validation too"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "64x64 px;" in log


def test_a_file_is_the_training_data_by_its_folder_too(data: dict[str, Path], tmp_path: Path) -> None:
    """Of the json that a model was trained on, eval takes the pictures held out; of another's, all."""
    name = "annotations/instances_train.json"
    shutil.copytree(data["detect"], tmp_path / "others")
    run = run_training("detect", data["detect"] / name, tmp_path / "run", epochs=1)
    pictures = [
        metamobile.evaluate(run.folder, folder / name)["pictures"]
        for folder in (data["detect"], tmp_path / "others")
    ]
    assert pictures == [3, 16]


def test_a_detectors_file_gives_a_classifier_its_backbone(runs: dict[str, Run]) -> None:
    state, _ = load_weights(runs["detect"].folder / "model.safetensors")
    classifier = create_model("emo_1m", num_classes=3, **TINY_ARGS)
    load_pretrained(classifier, list("abc"), str(runs["detect"].folder), Reporter(quiet=True))
    own = classifier.state_dict()
    taken = [
        name
        for name in own
        if torch.equal(own[name], state.get(f"backbone.network.model.{name}", own["norm.bias"] + 9))
    ]
    assert set(own) - set(taken) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}


def test_weights_of_another_variant_are_refused(tmp_path: Path) -> None:
    other = create_model("emo_1m", num_classes=3, **TINY_ARGS)
    save_weights(tmp_path / "c.safetensors", other.state_dict(), _card("classify", list("abc")))
    model = create_model("emo_1m", num_classes=3)
    with pytest.raises(ValueError, match=r"of the \d+ kernels .* of its emo_1m, \d+ fit"):
        load_pretrained(model, list("abc"), str(tmp_path / "c.safetensors"), Reporter(quiet=True))


@pytest.mark.parametrize(
    "names", [("JPEGImages", "SegmentationClass"), ("train", "trainannot"), ("img", "mask")]
)
def test_masks_in_a_layout_that_is_not_read_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(
        ValueError, match=f"{names[1]} look like folders of masks, not like classes; expected"
    ):
        find_task(tmp_path)


def test_a_class_may_be_called_mask(tmp_path: Path) -> None:
    for name in ("mask", "no_mask"):
        (tmp_path / name).mkdir()
    assert find_task(tmp_path) == "classify"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"head": "sdlite"}, "no head is called 'sdlite'.*did you mean 'ssdlite'"),
        ({"task": "detekt"}, "no task is called 'detekt'.*did you mean 'detect'"),
        ({"task": "detect", "recipe": "small-data"}, "task 'detect' does not fit the recipe"),
        ({"task": "detect", "head": "fpn"}, "no detection head is called 'fpn'"),
        ({"task": "segment", "set": ["data.fit=crop"]}, "data.fit is crop.*expected stretch"),
        ({"task": "classify", "head": "ssdlite"}, "model.head is 'ssdlite', but the task is classify"),
        ({"recipe": "small-data", "head": "fpn"}, "model.head is 'fpn', but the task is classify"),
        ({"task": "detect", "batch_size": 1}, "run.batch_size is 1; ssdlite needs 2 or more"),
        ({"task": "segment", "batch_size": 1}, "run.batch_size is 1; deeplabv3 needs 2 or more"),
    ],
)
def test_wrong_words_are_told_before_anything_is_written(
    data: dict[str, Path], tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    folder = data.get(arguments.get("task", ""), data["detect"])
    with pytest.raises(ValueError, match=words):
        train("emo_1m", folder, out=tmp_path / "run", quiet=True, **arguments)
    assert not (tmp_path / "run").exists()


def test_a_heads_rate_is_told(data: dict[str, Path], tmp_path: Path) -> None:
    """Of a segmenter whose head learns ten times as fast, as in the recipes of Semantic FPN and SegFormer."""
    run = run_training(
        "segment", data["segment"], tmp_path / "run", "optim.head_lr=10", "optim.lr=1e-4", epochs=1
    )
    assert "lr 0.0001 for the backbone, 0.001 for all else" in (run.folder / "log.txt").read_text()


def test_a_class_without_a_pixel_does_not_weigh(data: dict[str, Path]) -> None:
    """Pixels of 1, 4 and none: 1 / sqrt(share) of the two is 2 to 1, with a mean of 1."""
    samples = [type("S", (), {"read_mask": lambda self: np.array([[0, 1, 1, 1, 1, 255]], np.uint8)})()]
    assert rarity(samples, 3).tolist() == pytest.approx([4 / 3, 2 / 3, 1])
