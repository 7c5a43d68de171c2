"""`metamobile pull`, the whole way against a server on this machine: what it takes, refuses, keeps and says.

The official names are written here once more, from ours to theirs: the key map is checked from both sides.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import metamobile
import metamobile_cli
from metamobile.data.preprocess import Preprocess
from metamobile.models.create import create_model
from metamobile.models.variants import VARIANTS
from metamobile.weights.card import read_card
from metamobile.weights.find import find_model
from metamobile.weights.network import load_network
from metamobile.weights.official import from_official
from metamobile.weights.published import PUBLISHED, published_name
from metamobile.weights.pull import git_blob_id, pull
from small_model import write_pictures

NAME = "emo_1m.in1k"
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def settled(variant: str, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A network whose every tensor is its own: none is left at a constant that a mix-up would not show."""
    model = create_model(variant, **kwargs).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() < 2:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif not tensor.is_floating_point():
            tensor.fill_(len(name))
    return model


def to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the official names of EMO, or of EMOv2 where it has layer scales."""
    second = any("layer_scale" in name for name in state)
    official = {}
    for name, tensor in state.items():
        block = name.split(".operator")[0].split(".expand")[0]
        attends = f"{block}.operator.attention.qk.weight" in state
        if second:
            stem = [
                (r"^stages\.0\.1\.operator\.conv\.", "stage0.1."),
                (r"^stages\.0\.1\.shrink\.", "stage0.2."),
            ]
            expand = [
                (r"\.expand\.", ".eops.0.v." if attends else ".eops.0.net."),
                (r"\.operator\.attention\.qk\.", ".eops.0.qk.conv."),
            ]
        else:
            stem = [
                (r"^stages\.0\.0\.conv\.", "stage0.0.convs.0.0."),
                (r"^stages\.0\.0\.norm\.", "stage0.0.convs.0.1."),
                (r"\.operator\.conv\.se\.fc1\.", ".se.conv_reduce."),
                (r"\.operator\.conv\.se\.fc2\.", ".se.conv_expand."),
            ]
            expand = [(r"\.expand\.", ".v."), (r"\.operator\.attention\.qk\.", ".qk.conv.")]
        both = [
            (r"\.operator\.conv\.", ".conv_local."),
            (r"\.shrink\.", ".proj."),
            (r"\.layer_scale\.", ".ls."),
            (r"^(stages\.[34]\.\d+)\.norm\.", r"\1.norm.norm."),
            (r"^norm\.", "norm.norm."),
            (r"^stages\.", "stage"),
            (r"^head\.fc\.", "head."),
        ]
        theirs = name
        for pattern, replacement in stem + expand + both:
            theirs = re.sub(pattern, replacement, theirs)
        official[theirs] = tensor[None, :, None, None] if theirs.endswith("gamma") else tensor
    return official


def pth(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def blob_id(content: bytes) -> str:
    return sha1(b"blob " + str(len(content)).encode() + b"\0" + content).hexdigest()


@dataclass
class Server:
    """What lies at `url` and how it is handed out: `cut` closes the connection after so many bytes."""

    url: str = ""
    content: bytes = b""
    kind: str = "application/octet-stream"
    ranges: bool = True
    cut: int | None = None
    asked: list[str | None] = field(default_factory=list)  # the Range header of each request


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.asked.append(asked)
            if self.path != "/net.pth":
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            if start and start >= len(state.content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", state.kind)
            self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            self.wfile.write(state.content[start : None if state.cut is None else start + state.cut])

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}/net.pth"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield state
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAMOBILE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def publish(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a content on the server as the published file of emo_1m, `changes` in its row."""

    def put(content: bytes, name: str = NAME, **changes: Any) -> None:
        server.content = content
        row = replace(PUBLISHED[name], url=server.url, blob=blob_id(content))
        monkeypatch.setitem(PUBLISHED, name, replace(row, **changes))

    return put


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return settled("emo_1m")


@pytest.fixture(scope="module")
def good(network: nn.Module) -> bytes:
    return pth(to_official(network.state_dict()))


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize(("ours", "theirs"), [("emo_1m", "emo_1m"), ("emov2_1m", "emo2_1m")])
def test_names_of_this_test_are_the_official_ones(shared: Path, ours: str, theirs: str) -> None:
    shapes = json.loads((shared / "parity" / f"{theirs}.json").read_text())["shapes"]
    state = create_model(ours).state_dict()
    assert {name: list(t.shape) for name, t in to_official(state).items()} == shapes


@pytest.mark.parametrize("variant", ["emo_1m", "emov2_1m"])
def test_official_names_come_back_as_ours(variant: str) -> None:
    state = settled(variant).state_dict()
    back = from_official(to_official(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_the_table() -> None:
    rows = PUBLISHED.values()
    assert len(PUBLISHED) == len({row.blob for row in rows}) == len({row.url for row in rows}) == 11
    for name, row in PUBLISHED.items():
        assert re.fullmatch(r"[0-9a-f]{40}", row.blob) and row.variant in VARIANTS
        if name == f"{row.variant}.in1k":  # the log's three digits, and the paper's one
            assert row.top1 == pytest.approx(VARIANTS[row.variant].top1, abs=0.051)
    assert published_name("emov2_5m") == "emov2_5m.in1k"
    assert published_name("emov2_5m_512") == "emov2_5m_512.in1k_kd"
    assert published_name("emov2_20m") is None
    assert PUBLISHED[NAME].preprocess == Preprocess(size=(224, 224), resize=256, interpolation="bicubic")


def test_git_names_the_same_content(tmp_path: Path) -> None:
    """`git hash-object` of a file that holds "hello" and a line's end."""
    (tmp_path / "file").write_text("hello\n")
    assert git_blob_id(tmp_path / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_from_a_name_to_a_network(
    server: Server, publish: Callable[..., None], cache: Path, good: bytes, network: nn.Module, tmp_path: Path
) -> None:
    publish(good)
    seen: list[tuple[int, int | None]] = []
    path = pull("emo_1m", progress=lambda done, total: seen.append((done, total)))
    assert path == cache / f"{NAME}.safetensors" and list(cache.iterdir()) == [path]
    assert seen[-1] == (len(good), len(good)) and len(seen) > 10

    card = read_card(path)
    assert (card.variant, card.task) == ("emo_1m", "classify")
    assert card.model_args == {"num_classes": 1000, "window_size": [7] * 4}
    assert (card.classes[0], card.names[0], len(card.classes)) == ("n01440764", "tench", 1000)
    assert card.preprocess == PUBLISHED[NAME].preprocess
    assert card.metrics["published_top1"] == 71.498 and "README" in card.metrics["published_source"]
    assert card.recipe == {"url": server.url, "git_blob": blob_id(good)}

    assert find_model("emo_1m") == find_model(NAME) == path
    for name in ("emo_1m", NAME):
        assert same(load_network(name)[0], network)
        assert same(create_model(name, pretrained=True), network)
        assert same(timm.create_model(name, pretrained=True), network)
    expected = network(PIXELS)
    features = timm.create_model("emo_1m", pretrained=True, features_only=True)
    assert len(features(PIXELS)) == 5
    torch.testing.assert_close(metamobile.load("emo_1m").network(PIXELS), expected)
    (picture,) = write_pictures(tmp_path / "pictures", 1)
    (answer,) = metamobile.predict(NAME, [str(picture)]).results
    assert answer.labels[0] in card.names

    assert pull(NAME) == path and server.asked == [None]  # it is here: nothing is fetched again
    path.write_bytes(path.read_bytes()[:-1])
    assert pull(NAME) == path and server.asked == [None, None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_gone_on_with(
    ranges: bool, server: Server, publish: Callable[..., None], cache: Path, good: bytes, network: nn.Module
) -> None:
    publish(good)
    server.ranges, server.cut = ranges, 1_000_000
    words = rf"1,000,000 of {len(good):,} bytes are here.*`metamobile pull {NAME}` goes on"
    with pytest.raises(ValueError, match=words):
        pull(NAME)
    part = cache / f"{NAME}.part"
    assert list(cache.iterdir()) == [part] and part.read_bytes() == good[:1_000_000]
    server.cut = None
    assert same(load_network(pull(NAME))[0], network)
    assert server.asked == [None, "bytes=1000000-"]
    assert not part.exists()


def test_a_whole_download_that_was_not_converted_is_not_fetched_again(
    server: Server, publish: Callable[..., None], cache: Path, good: bytes
) -> None:
    publish(good)
    cache.mkdir(parents=True)
    (cache / f"{NAME}.part").write_bytes(good)
    assert pull(NAME).is_file()
    assert server.asked == [f"bytes={len(good)}-"]


@pytest.mark.parametrize("part", [b"", b"PK\3\4 of another file"])
def test_another_content_than_published_is_refused(
    part: bytes, server: Server, publish: Callable[..., None], cache: Path, good: bytes
) -> None:
    publish(good, **({} if part else {"blob": "0" * 40}))
    if part:  # what an earlier download left is not the start of this file
        cache.mkdir(parents=True)
        (cache / f"{NAME}.part").write_bytes(part)
    words = r"is not the published file \(git blob id .* was deleted; try again.*--from"
    with pytest.raises(ValueError, match=words):
        pull(NAME)
    assert list(cache.iterdir()) == []
    if part:
        assert pull(NAME).is_file()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_no_weights(
    kind: str, server: Server, publish: Callable[..., None], cache: Path
) -> None:
    publish(b"\n<!DOCTYPE html><html>Log in to the hotel's network</html>")
    server.kind = kind
    with pytest.raises(ValueError, match=r"gave a web page and no weights.*pull emo_1m.in1k --from FILE`"):
        pull(NAME)
    assert list(cache.iterdir()) == []


class Touch:
    """Unpickled by an unguarded reader, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", [pth, lambda content: pickle.dumps(content, protocol=2)])
def test_code_in_a_pickle_does_not_run(
    form: Callable[[Any], bytes], publish: Callable[..., None], cache: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    harmful = form({"net": Touch(mark)})
    pickle.loads(pickle.dumps(Touch(mark)))
    assert mark.exists()  # the trap works
    mark.unlink()
    publish(harmful)
    with pytest.raises(ValueError, match="it holds more than tensors .* and was not read"):
        pull(NAME)
    (tmp_path / "net.pth").write_bytes(harmful)
    with pytest.raises(ValueError, match="it holds more than tensors .* and was not read"):
        pull(NAME, source=tmp_path / "net.pth")
    assert not mark.exists()
    assert list(cache.iterdir()) == []


def test_wrappings_of_the_state_dict(publish: Callable[..., None], network: nn.Module) -> None:
    state = to_official(network.state_dict())
    other = to_official(settled("emo_1m", seed=1).state_dict())
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    both = {"net": other, "net_E": prefixed}
    for content in (prefixed, both, {"net": state}, {"net": state, "net_E": None}):
        publish(pth(content))
        assert same(load_network(pull(NAME))[0], network)


def test_another_number_of_classes_is_told(
    publish: Callable[..., None], cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = settled("emo_1m", num_classes=3)
    (tmp_path / "net.pth").write_bytes(pth(to_official(small.state_dict())))
    path = pull("emo_1m", source=tmp_path / "net.pth")
    card = read_card(path)
    assert card.classes == card.names == ["0", "1", "2"]
    assert card.metrics == {} and "not the published file" in card.notes
    told = caplog.text
    assert "is not the published file of emo_1m.in1k (git blob id " in told and "states no accuracy" in told
    assert "has 3 classes and not ImageNet's 1000" in told and "called 0 to 2" in told
    assert same(load_network("emo_1m")[0], small)
    assert same(timm.create_model("emo_1m", pretrained=True), small)

    caplog.clear()
    model = create_model("emo_1m", pretrained=True, num_classes=10)
    assert "its head for 3 classes is left out, and the new one for 10 is untrained" in caplog.text
    assert torch.equal(model.stages[4][1].expand.conv.weight, small.stages[4][1].expand.conv.weight)


def test_a_converted_file_is_replaced_by_the_published_one(
    server: Server, publish: Callable[..., None], cache: Path, tmp_path: Path, good: bytes, network: nn.Module
) -> None:
    publish(good)
    (tmp_path / "mine.pth").write_bytes(pth(to_official(settled("emo_1m", seed=1).state_dict())))
    assert not same(load_network(pull(NAME, source=tmp_path / "mine.pth"))[0], network)
    assert server.asked == []
    assert same(load_network(pull(NAME))[0], network)
    (tmp_path / "net.pth").write_bytes(good)  # the published file at hand has its figures
    assert read_card(pull(NAME, source=tmp_path / "net.pth")).metrics["published_top1"] == 71.498


def test_weights_for_other_settings_bring_them(
    publish: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    big = settled("emov2_1m", window_size=8)  # in the place of the 5M, which this name is of
    publish(pth(to_official(big.state_dict())), "emov2_5m_512.in1k_kd", variant="emov2_1m")
    card = read_card(pull("emov2_5m_512"))
    assert (card.model_args["window_size"], card.preprocess.size) == ([8] * 4, (512, 512))
    assert (card.metrics["published_top1"], card.metrics["published_top1_or"]) == (82.4, 82.9)
    assert "82.4 or 82.9 %" in card.notes and "is not told" in card.notes
    for name in ("emov2_5m_512", "emov2_5m_512.in1k_kd"):
        model = create_model(name, pretrained=True).eval()
        assert same(model, big) and model.window_size == [8] * 4
        assert model.pretrained_cfg["input_size"] == (3, 512, 512)
        torch.testing.assert_close(load_network(name)[0](PIXELS), big(PIXELS))
    assert caplog.text == ""


def test_out_of_reach(publish: Callable[..., None], server: Server, cache: Path, good: bytes) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    publish(good, url=f"http://127.0.0.1:{closed}/net.pth")
    with pytest.raises(
        ValueError, match=r"could not be fetched \(.*refused\).*pull emo_1m.in1k --from FILE`"
    ):
        pull(NAME)
    assert list(cache.iterdir()) == []
    (cache / f"{NAME}.part").write_bytes(good[:1000])
    with pytest.raises(ValueError, match=r"1,000 bytes are here, and .* not come \(.*refused\); .* goes on"):
        pull(NAME)
    assert (cache / f"{NAME}.part").read_bytes() == good[:1000]
    publish(good, url=server.url.replace("net", "gone"))
    (cache / f"{NAME}.part").unlink()
    with pytest.raises(ValueError, match=r"gone.pth answers 404 Not Found; try again later, or fetch"):
        pull(NAME)
    assert list(cache.iterdir()) == []


def test_files_at_hand_that_cannot_be_converted(
    publish: Callable[..., None],
    cache: Path,
    tmp_path: Path,
    good: bytes,
    network: nn.Module,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish(good)
    file = tmp_path / "net.pth"
    lacking = to_official(network.state_dict())
    lacking["extra"] = lacking.pop("stage1.1.norm.weight")
    legacy = io.BytesIO()
    torch.save(to_official(network.state_dict()), legacy, _use_new_zipfile_serialization=False)
    wrong = [
        (good[:-1000], "truncated or damaged at .* bytes; copy or download it again"),
        (good[:3], "not a PyTorch file"),
        (legacy.getvalue()[:-1000], "truncated or damaged at .* bytes"),
        (b"\x80\x02" + bytes(range(100)), "damaged"),
        (b"<html>the page of the file</html>", "GitHub's button 'Download raw file'"),
        (b"\x89PNG and so on", "not a PyTorch file"),
        (pth([1, 2]), "list in it; expected tensors by name"),
        (pth({"epoch": 3}), "epoch in it; expected tensors by name"),
        (pth({"conv1.weight": torch.zeros(1)}), "not an official EMO state dict: it starts with 'conv1"),
        (pth({k: v for k, v in lacking.items() if "head" not in k}), r"no classifier \(head.weight\) in it"),
        (pth(lacking), r"not the tensors of emo_1m: 1 missing \(stages.1.1.norm.*1 unknown \(extra\)"),
    ]  # fmt: skip
    for content, words in wrong:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"net.pth: .*{words}") as caught:
            pull(NAME, source=file)
        assert "\n" not in str(caught.value) and caplog.text == ""
    with pytest.raises(ValueError, match="no such file to convert; did you mean .*net.pth"):
        pull(NAME, source=tmp_path / "nett.pth")
    file.write_bytes(good)
    with pytest.raises(ValueError, match=f"this is the file of {NAME}; `metamobile pull {NAME} --from "):
        pull("emo_2m", source=file)
    assert not cache.exists()


def test_names_without_weights_are_told_what_to_do(cache: Path) -> None:
    for make in (create_model, timm.create_model):
        with pytest.raises(ValueError, match=r"emo_5m.in1k: these .* not here yet.*`metamobile pull emo_5m"):
            make("emo_5m", pretrained=True)
        with pytest.raises(ValueError, match="emov2_20m has no published weights; there are emo_1m.in1k"):
            make("emov2_20m", pretrained=True)
    with pytest.raises(
        ValueError, match="emo_5m is a network without weights.*`metamobile pull emo_5m` fetches"
    ):
        load_network("emo_5m")
    with pytest.raises(ValueError, match="`metamobile pull emov2_5m.in1k_kd` fetches them"):
        load_network("emov2_5m.in1k_kd")
    with pytest.raises(ValueError, match="did you mean 'emov2_5m.in1k_kd'"):
        find_model("emov2_5m.in1k_dk")
    with pytest.raises(ValueError, match="no published weights are called 'emo_7m'.*did you mean 'emo_"):
        pull("emo_7m")


def test_on_the_command_line(
    publish: Callable[..., None], cache: Path, good: bytes, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    publish(good)
    assert metamobile_cli.run(["pull", "emo_1m"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{NAME}  {cache / NAME}.safetensors\n"
    assert captured.err.startswith(f"{NAME}: fetching http://127.0.0.1:")
    assert metamobile_cli.run(["models", "emo_1m*"]) == 0
    assert f"{NAME}\temo_1m\t224\t71.5\tyes" in capsys.readouterr().out
    assert metamobile_cli.run(["pull", "emo_2m", "--from", str(tmp_path / "none.pth")]) == 2
    assert "error: " in capsys.readouterr().err
