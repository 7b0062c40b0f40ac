"""Weights: the layouts of real checkpoints, and every way in which a file can be missing or wrong."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import torch

from cryosam_dask import models
from cryosam_dask.errors import ModelError
from cryosam_dask.models import checkpoint, registry, sam, vit, weights
from cryosam_dask.models.catalog import encoder_entry
from cryosam_dask.models.vit_catalog import VITS

from .contract import noise, picture
from .test_sam import tiny_sam
from .test_vit import TINY, tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "RETRIES", 0)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server on this machine: its address, the directory it serves, and the paths asked of it."""
    root, asked = tmp_path / "served", []
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(root))

        def log_message(self, *arguments: Any) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", root, asked
        httpd.shutdown()
        thread.join()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Layouts -------------------------------------------------------------------------------------------------------------


def official(kind: str, module: torch.nn.Module) -> dict[str, Any]:
    """The tensors of `module` under the names and shapes of the official checkpoint of its kind."""
    ours = {key: value.clone() for key, value in module.state_dict().items()}
    if kind == "dinov2":  # timm's layout, and a token for masked patches
        return {**ours, "mask_token": torch.zeros(1, 32)}
    if kind == "dinov2-giant":  # other names for the gated layers
        ours = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for key, value in ours.items()}
        return {**ours, "mask_token": torch.zeros(1, 32)}
    if kind == "dinov2-reg":  # the position embedding has an entry for the class token, the registers another name
        place = torch.randn(1, 1, 32)
        ours["pos_embed"] = torch.cat([place, ours["pos_embed"]], 1)
        ours["cls_token"] = ours["cls_token"] - place
        ours["register_tokens"] = ours.pop("reg_token")
        return {**ours, "mask_token": torch.zeros(1, 32)}
    if kind == "dinov3":
        names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
        found = {}
        for key, value in ours.items():
            for old, new in names.items():
                key = key.replace(old, new)
            found[key] = value
        for block in range(2):
            found[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(96)
            found[f"blocks.{block}.attn.qkv.bias_mask"] = torch.zeros(96)
        return {**found, "mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.zeros(4)}
    if kind == "sam":  # the encoder of a whole SAM
        found = {f"image_encoder.{key.replace('mlp.fc', 'mlp.lin')}": value for key, value in ours.items()}
        return {**found, "mask_decoder.iou_token.weight": torch.zeros(1, 256)}
    return ours


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", list(TINY))
def test_official_checkpoints_load_by_path(
    kind: str, wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, settings = TINY[kind]
    source, build = tiny(kind), vit.build
    monkeypatch.setattr(vit, "build", lambda name, meta=False: build(name, meta, **settings))
    path = tmp_path / "official.pth"
    tensors = official(kind, source)
    torch.save({"model": tensors} if wrapped else tensors, path)

    encoder = registry.load_encoder(f"timm:{architecture}={path}")
    slices = noise(2, 3 * encoder.patch, 2 * encoder.patch)
    expected = vit.TimmEncoder(source, kind, "random").encode(slices)
    np.testing.assert_allclose(encoder.encode(slices), expected, atol=1e-5)
    assert encoder.identity == f"timm:{architecture} sha256:{digest(path.read_bytes())}"
    assert registry.weights_identity(f"timm:{architecture}={path}") == encoder.identity


def test_safetensors_of_timm_load_by_path_and_their_classifier_is_left_out(tmp_path: Path) -> None:
    import safetensors.torch

    source = tiny("dino")
    tensors = {key: value.contiguous() for key, value in source.state_dict().items()}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({**tensors, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}, path)
    module = vit.build(TINY["dino"][0], **TINY["dino"][1])
    vit.load_checkpoint(module, path, "tiny")
    for key, value in module.state_dict().items():
        assert torch.equal(value, tensors[key])


def test_sam_loads_an_official_checkpoint_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import segment_anything

    source = tiny_sam()
    path = tmp_path / "sam.pth"
    torch.save(source.state_dict(), path)
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda checkpoint: tiny_sam())
    segmenter = registry.load_segmenter(f"sam-vitb={path}")
    plane = (48, 80)
    grey, _, centre = picture(plane)
    expected = sam.SamSegmenter(source, "tiny", "random")
    embedding = segmenter.embed(grey[None])
    np.testing.assert_array_equal(embedding, expected.embed(grey[None]))
    found = segmenter.predict(embedding[0], plane, centre, None)
    np.testing.assert_array_equal(found.logits, expected.predict(embedding[0], plane, centre, None).logits)
    assert segmenter.identity == f"sam-vitb sha256:{digest(path.read_bytes())}"


@pytest.mark.parametrize("prefix", ["", "sam."], ids=["exported", "trained"])
def test_a_checkpoint_of_micro_sam_is_the_sam_in_it(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import segment_anything

    source, path = tiny_sam(), tmp_path / "vit_b.pt"
    tensors = source.state_dict()
    state = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({"model_state": state, "decoder_state": {"decoder.weight": torch.zeros(3)}, "epoch": 3}, path)
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda checkpoint: tiny_sam())
    loaded: Any = registry.load_segmenter(f"sam-vitb-em-organelles={path}")
    assert loaded.name == "sam-vitb-em-organelles"
    for name, value in loaded._model.state_dict().items():
        assert torch.equal(value, tensors[name]), name


def test_a_whole_state_of_a_training_is_refused_and_what_helps_is_said(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"model_state": {"sam.x": torch.zeros(1)}, "init": {"dataset": Trap(tmp_path)}}, path)
    with pytest.raises(ModelError, match=r"Python objects, which are never loaded.*export_custom_sam_model"):
        checkpoint.read_state_dict(path)
    assert not (tmp_path / "executed").exists()


def test_biases_that_the_model_lacks_are_not_dropped_in_silence(tmp_path: Path) -> None:
    tensors = official("dinov3", tiny("dinov3"))
    tensors["blocks.1.attn.qkv.bias"][3] = 0.5
    path = tmp_path / "biased.pth"
    torch.save(tensors, path)
    module = vit.build(TINY["dinov3"][0], **TINY["dinov3"][1])
    with pytest.raises(ModelError, match="biases that tiny lacks"):
        vit.load_checkpoint(module, path, "tiny")


# Files that are missing or wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"<html>404</html>" * 100, b"PK\x03\x04 cut zip", bytes(8) + b"{cut safetensors"],
    ids=["empty", "text", "web page", "zip", "safetensors"],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_that_is_no_checkpoint_is_named(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{path} .*cut or is no checkpoint"):
        checkpoint.read_state_dict(path)


def test_a_cut_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save(tiny("dino").state_dict(), path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ModelError, match=rf"{path} .*cut or is no checkpoint"):
        checkpoint.read_state_dict(path)


class Trap:
    """Unpickling one writes a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.folder / "executed",))


def write_zip(trap: Trap, path: Path) -> None:
    torch.save({"weight": torch.zeros(3), "more": trap}, path)


def write_legacy(trap: Trap, path: Path) -> None:
    torch.save({"weight": trap}, path, _use_new_zipfile_serialization=False)


def write_pickle(trap: Trap, path: Path) -> None:
    path.write_bytes(pickle.dumps(trap))


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin"])
@pytest.mark.parametrize("write", [write_zip, write_legacy, write_pickle])
def test_nothing_in_a_checkpoint_is_executed(write: Any, suffix: str, tmp_path: Path) -> None:
    trap, path = Trap(tmp_path), tmp_path / f"trap.{suffix}"
    write(trap, path)
    with pytest.raises(ModelError, match="no checkpoint") as error:
        checkpoint.read_state_dict(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="no checkpoint"):
        registry.load_segmenter(f"sam-vitb={path}")
    assert not (tmp_path / "executed").exists()
    # The trap itself works.
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "executed").exists()


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "ring.pth")
    with pytest.raises(ModelError, match="expected a dict of tensors"):
        checkpoint.read_state_dict(tmp_path / "ring.pth")


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3)])
def test_a_file_without_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ModelError, match=f"{path}.*expected a dict of tensors"):
        checkpoint.read_state_dict(path)


def test_weights_of_another_size_or_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dinov2.pth"
    torch.save(tiny("dinov2").state_dict(), path)
    architecture, settings = TINY["dinov2"]
    for other, message in (
        ({"embed_dim": 64}, "size mismatch"),
        ({"depth": 3}, "tensors missing"),
        ({"depth": 1}, "no place"),
    ):
        module = vit.build(architecture, **{**settings, **other})
        with pytest.raises(ModelError, match=rf"{path} does not fit tiny: .*{message}.*another model"):
            vit.load_checkpoint(module, path, "tiny")
    for kind in ("dino", "dinov3", "sam"):
        module = vit.build(TINY[kind][0], **TINY[kind][1])
        with pytest.raises(ModelError, match=rf"{path} does not fit tiny: .*another model"):
            vit.load_checkpoint(module, path, "tiny")
    with pytest.raises(ModelError, match="does not fit sam-vitb"):
        registry.load_segmenter(f"sam-vitb={path}")


@pytest.mark.parametrize("path", ["nowhere.pth", "."])
def test_a_path_that_is_no_file_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected a file at .*check sam-vith=PATH"):
        registry.load_segmenter(f"sam-vith={tmp_path / path}")


# Download and checks -------------------------------------------------------------------------------------------------


def test_a_download_is_checked_and_made_once(server: tuple[str, Path, list[str]], cache: Path) -> None:
    address, root, asked = server
    (root / "a.pth").write_bytes(b"good")
    source = weights.Source(f"{address}/a.pth", "a.pth", digest(b"good"))
    for _ in range(2):
        found = weights.locate("a", source, None)
        assert found == weights.WeightsFile(cache / "a.pth", digest(b"good"))
    assert asked == ["/a.pth"]
    assert [path.name for path in cache.iterdir()] == ["a.pth"]


def test_a_download_with_another_hash_is_an_error_and_leaves_no_file(
    server: tuple[str, Path, list[str]], cache: Path
) -> None:
    address, root, _ = server
    (root / "a.pth").write_bytes(b"evil")
    source = weights.Source(f"{address}/a.pth", "a.pth", digest(b"good"))
    with pytest.raises(ModelError, match=rf"(?s)a could not be downloaded.*{digest(b'good')}"):
        weights.locate("a", source, None)
    assert not list(cache.iterdir())


def test_where_only_an_xxh128_is_published_it_is_checked_before_the_file_is_pinned(
    server: tuple[str, Path, list[str]], cache: Path
) -> None:
    address, root, asked = server
    source = weights.Source(f"{address}/a.pt", "a.pt", xxh128="c35c17be97b426c294505e3b981a04d7")  # of b"good"
    (root / "a.pt").write_bytes(b"evil")
    with pytest.raises(ModelError, match=r"(?s)a could not be downloaded.*XXH128 c35c17be97b426c294505e3b981a04d7"):
        weights.locate("a", source, None)
    assert not list(cache.iterdir())
    (cache / "a.pt").write_bytes(b"evil")  # put there by hand
    with pytest.raises(ModelError, match=r"a\.pt has XXH128 .*, expected c35c17be97b426c294505e3b981a04d7"):
        weights.locate("a", source, None)
    assert [path.name for path in cache.iterdir()] == ["a.pt"], "nothing is pinned"
    (cache / "a.pt").unlink()
    (root / "a.pt").write_bytes(b"good")
    for _ in range(2):
        assert weights.locate("a", source, None) == weights.WeightsFile(cache / "a.pt", digest(b"good"))
    assert asked == ["/a.pt"] * 2
    assert (cache / "a.pt.sha256").read_text().startswith(digest(b"good"))


def test_a_download_has_the_mode_of_any_new_file(server: tuple[str, Path, list[str]], cache: Path) -> None:
    address, root, _ = server
    (root / "a.pth").write_bytes(b"good")
    weights.locate("a", weights.Source(f"{address}/a.pth", "a.pth", digest(b"good")), None)
    (cache / "plain").touch()
    assert (cache / "a.pth").stat().st_mode == (cache / "plain").stat().st_mode
    assert sorted(path.name for path in cache.iterdir()) == ["a.pth", "plain"]


@pytest.mark.parametrize("url", ["http://example.org/a.pth", "ftp://127.0.0.1/a.pth", "file:///etc/passwd", "a.pth"])
def test_a_download_that_could_be_changed_on_its_way_is_refused(url: str, cache: Path) -> None:
    with pytest.raises(ModelError, match="expected an https address"):
        weights.locate("a", weights.Source(url, "a.pth", digest(b"good")), None)
    assert not cache.exists()


def test_a_redirect_to_an_open_connection_is_not_followed(tmp_path: Path, cache: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://example.org/a.pth")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        source = weights.Source(f"http://127.0.0.1:{httpd.server_port}/a.pth", "a.pth")
        with pytest.raises(ModelError, match=r"http://example.org: expected an https address"):
            weights.locate("a", source, None)
        httpd.shutdown()
        thread.join()
    assert not list(cache.iterdir())


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"deadbeef  a.pth\n"])
def test_a_damaged_pin_trusts_nothing(content: bytes, cache: Path) -> None:
    cache.mkdir()
    (cache / "a.pth").write_bytes(b"anything")
    (cache / "a.pth.sha256").write_bytes(content)
    source = weights.Source("http://127.0.0.1:9/a.pth", "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth\.sha256 holds no SHA-256"):
        weights.locate("a", source, None)
    assert (cache / "a.pth.sha256").read_bytes() == content


def test_a_token_for_the_hub_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    sent = []

    class Downloader:
        def __init__(self, headers: dict[str, str], **_: Any) -> None:
            sent.append(headers)

        def __call__(self, url: str, output_file: str, pooch: Any) -> None:
            raise OSError("not now")

    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    elsewhere = weights.Source("https://example.org/x/resolve/main/model.safetensors", "a")
    for source in (weights.hub_source("timm/a"), elsewhere):
        with pytest.raises(ModelError, match="not now"):
            weights.locate("a", source, None)
    assert sent == [{"Authorization": "Bearer secret"}, {}]


def test_a_cached_file_that_changed_is_an_error(cache: Path) -> None:
    cache.mkdir()
    (cache / "a.pth").write_bytes(b"changed")
    source = weights.Source("http://127.0.0.1:9/a.pth", "a.pth", digest(b"good"))
    with pytest.raises(ModelError) as error:
        weights.locate("a", source, None)
    for part in (str(cache / "a.pth"), digest(b"changed"), digest(b"good"), "delete the file"):
        assert part in str(error.value)
    (cache / "a.pth").write_bytes(b"good")
    assert weights.locate("a", source, None).sha256 == digest(b"good")


def test_weights_without_a_published_hash_are_pinned_at_the_first_use(
    server: tuple[str, Path, list[str]], cache: Path
) -> None:
    address, root, _ = server
    (root / "a.pth").write_bytes(b"first")
    source = weights.Source(f"{address}/a.pth", "a.pth")
    assert weights.expected_sha256(source) is None
    weights.locate("a", source, None)
    assert (cache / "a.pth.sha256").read_text() == f"{digest(b'first')}  a.pth\n"
    assert weights.expected_sha256(source) == digest(b"first")
    (cache / "a.pth").write_bytes(b"changed since")
    with pytest.raises(ModelError, match=rf"{digest(b'changed since')}, expected {digest(b'first')} \(recorded"):
        weights.locate("a", source, None)


@pytest.mark.parametrize("name", ["dinov2-vitl14", "sam-vith"])
def test_without_a_network_the_error_says_what_to_put_where(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = sources()[name]
    away = weights.Source("http://127.0.0.1:9/x.pth", known.file, known.sha256)
    row: Any = replace(VITS[name], address=away)
    monkeypatch.setitem(models.ENCODERS, name, row)
    if name in models.SEGMENTERS:
        segmenter: Any = models.SEGMENTERS[name]
        monkeypatch.setitem(models.SEGMENTERS, name, replace(segmenter, encoder=row))
    with pytest.raises(ModelError) as error:
        registry.ensure_weights(name)
    message = str(error.value)
    for part in (
        "http://127.0.0.1:9/x.pth",
        str(cache / known.file),
        str(known.sha256),
        f"{name}=PATH",
        "--models builtin",
    ):
        assert part in message
    assert "\n" not in message


def test_a_server_without_the_file_is_an_error(server: tuple[str, Path, list[str]]) -> None:
    with pytest.raises(ModelError, match="404"):
        weights.locate("a", weights.Source(f"{server[0]}/none.pth", "none.pth"), None)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="could not be downloaded"):
        weights.locate("a", weights.Source("http://127.0.0.1:9/a.pth", "a.pth"), None)


def sources() -> dict[str, weights.Source]:
    """Where weights are whose address the catalog has."""
    return {name: row.address for name, row in VITS.items() if row.address is not None}


def test_the_table_has_full_digests_and_a_file_each() -> None:
    for name, source in sources().items():
        assert source.url.endswith(source.file)
        assert source.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert (source.sha256 is None) == name.startswith("dino-")
    files = [source.file for source in sources().values()]
    assert len(set(files)) == len(files)


def test_weights_on_the_hub_have_an_address_and_a_file_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("dinov3-vits16", "dinov3-vitl16", "timm:vit_tiny_patch16_224")
    found = {name: encoder_entry(name)[0].source() for name in names}
    assert all(source is not None for source in found.values())
    assert len({source.file for source in found.values() if source}) == 3
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    small = encoder_entry("dinov3-vits16")[0].source()
    assert small is not None
    repository = "timm/vit_small_patch16_dinov3.lvd1689m"
    assert small.url == f"https://huggingface.co/{repository}/resolve/main/model.safetensors"
