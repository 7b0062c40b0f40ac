"""Names, specs, planning without torch, devices, and the cache of loaded models."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryosam_dask import models
from cryosam_dask.errors import CryosamError, DeviceError, ModelError, SettingsError
from cryosam_dask.models import cache, registry, vit, vit_catalog, weights


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("builtin", ("texture", "particle-net")),
        (" paper ", ("dinov2-vitl14", "sam-vith")),
        ("dinov2-vits14+random-walker", ("dinov2-vits14", "random-walker")),
        ("texture + sam-vitb", ("texture", "sam-vitb")),
        ("sam-vitl=/a+b/w.pth+sam-vitb=/c+d.pth", ("sam-vitl=/a+b/w.pth", "sam-vitb=/c+d.pth")),
        ("timm:vit_tiny_patch16_224=w.pth+sam-vitb", (f"timm:vit_tiny_patch16_224={Path.cwd()}/w.pth", "sam-vitb")),
        ("texture+sam-vitb=~/w.pth", ("texture", f"sam-vitb={Path.home()}/w.pth")),
    ],
)
def test_specs_are_parsed(spec: str, expected: tuple[str, str]) -> None:
    assert models.parse_models(spec) == expected


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("built-in", "did you mean builtin?"),
        ("dinov2-vitl14", "expected builtin, paper or ENCODER+SEGMENTER"),
        ("dinov2-vitl+sam-vith", "encoder 'dinov2-vitl' is unknown; did you mean dinov2-vitl14?"),
        ("dinov2-vitl14+sam-vit-h", "segmenter 'sam-vit-h' is unknown; did you mean sam-vith?"),
        ("sam-vith+dinov2-vitl14", "segmenter 'dinov2-vitl14' is unknown"),
        ("texture=w.pth+random-walker", "texture has no weights"),
        ("texture+random-walker=w.pth", "random-walker has no weights"),
        ("dinov2-vitl14=+sam-vith", "expected a path"),
        ("timm:+sam-vith", "encoder 'timm:' is unknown"),
        ("", "expected builtin"),
        ("+", "is unknown"),
    ],
)
def test_specs_that_are_wrong_say_what_is_known(spec: str, words: str) -> None:
    with pytest.raises(ModelError) as error:
        models.parse_models(spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ModelError) as error:
        models.encoder_info("nothing")
    assert all(name in str(error.value) for name in models.ENCODERS)
    for use in (models.weights_identity, models.ensure_weights, models.load_encoder):
        with pytest.raises(ModelError, match="encoder 'nothing' is unknown"):
            use("nothing")
    with pytest.raises(ModelError) as error:
        models.load_segmenter("nothing")
    assert all(name in str(error.value) for name in models.SEGMENTERS)


PLAN = """
import sys
from cryosam_dask import models
for spec in (
    *("texture+random-walker", "paper", "sam-vitb+sam-vitl", "dinov3-vitb16+random-walker"),
    *("texture+sam2.1-large", "texture+mobile-sam", "texture+sam-vitb-em-organelles"),
):
    encoder, segmenter = models.parse_models(spec)
    models.encoder_info(encoder).encode_bytes((930, 960))
    models.segmenter_info(segmenter).predict_bytes((930, 960), 8)
models.volume_info(models.parse_models("builtin")[1]).look_bytes((64, 128, 128))
models.resolve_device("auto", uses_torch=False)
assert models.weights_identity("dinov2-vitl14").startswith("dinov2-vitl14 sha256:d5383ea8")
print(sorted({"torch", "timm", "segment_anything", "pooch", "safetensors"} & set(sys.modules)))
"""


def test_planning_imports_neither_torch_nor_timm() -> None:
    found = subprocess.run([sys.executable, "-c", PLAN], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(vit_catalog.VITS))
def test_the_table_of_encoders_is_what_timm_builds(name: str) -> None:
    row = vit_catalog.VITS[name]
    module = vit.build(row.architecture, meta=True)
    assert vit.geometry(module, name) == (row.patch, row.channels)
    assert sum(parameter.numel() for parameter in module.parameters()) == row.parameters
    assert module.embed_dim == row.width
    assert vit.has_dense_attention(module) == row.dense_attention
    info = models.encoder_info(name)
    assert (info.patch, info.channels, info.weights_bytes) == (row.patch, row.channels, 4 * row.parameters)


@pytest.mark.parametrize("name", [name for name in models.SEGMENTERS if name.startswith("sam-vit")])
def test_the_table_of_segmenters_is_what_segment_anything_builds(name: str) -> None:
    import torch
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        model = sam_model_registry[name[:8].removeprefix("sam-").replace("vit", "vit_")](checkpoint=None)
    info = models.segmenter_info(name)
    assert info.weights_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    encoder = model.prompt_encoder
    assert info.embedding_shape((9, 7)) == (encoder.embed_dim, *encoder.image_embedding_size)
    assert info.logits_shape((9, 7)) == encoder.mask_input_size
    assert info.embedding_dtype == np.float16


def test_models_of_timm_outside_the_table_are_built_for_their_shape() -> None:
    info = models.encoder_info("timm:vit_tiny_patch16_224")
    assert (info.patch, info.channels, info.weights_bytes) == (16, 192, 4 * 5_524_416)
    assert models.encoder_info("timm:vit_tiny_patch16_224") is info  # not built again
    with pytest.raises(ModelError, match=r"timm:vit_nothing: timm .* has no such model"):
        models.encoder_info("timm:vit_nothing")
    with pytest.raises(ModelError, match=r"expected a vision transformer|can't be built"):
        models.encoder_info("timm:resnet18")


def test_infos_travel_and_grow_with_the_plane() -> None:
    for encoder in ("dinov2-vitl14", "sam-vitb"):
        info = pickle.loads(pickle.dumps(models.encoder_info(encoder)))
        assert info.encode_bytes((4000, 4000)) > info.encode_bytes((256, 256)) > 0
        assert info.encode_bytes((256, 256), 1000) == info.encode_bytes((256, 256), 2000)  # a few slices at a time
    for segmenter in ("sam-vith", "random-walker"):
        found = pickle.loads(pickle.dumps(models.segmenter_info(segmenter)))
        assert found.predict_bytes((900, 900), 8) > found.predict_bytes((20, 20), 1) > 0
        assert found.embed_bytes((100, 100)) > 0


def test_memory_goes_by_what_is_at_work_at_once() -> None:
    sam, vitb = models.encoder_info("sam-vitb"), models.encoder_info("dinov2-vitb14")
    slice_of_sam = sam.encode_bytes((1024, 1024))
    assert slice_of_sam < 12 * 4096**2 * 4 / 2, "the scores of all pairs of tokens are never held"
    assert sam.encode_bytes((2048, 2048)) < 5 * slice_of_sam
    small = vitb.encode_bytes((518, 518), 1), vitb.encode_bytes((518, 518), 2), vitb.encode_bytes((518, 518), 3)
    assert small[0] < small[1] == small[2], "two slices go in one pass, three in two"
    found = models.segmenter_info("sam-vitb")
    one, more = found.predict_bytes((900, 900), 8), found.predict_bytes((900, 900), 16)
    assert one == more > found.predict_bytes((900, 900), 1), "a batch at a time"
    assert found.walker_bytes((900, 900)) == 4 * 256**2
    walker = models.segmenter_info("random-walker")
    assert walker.predict_bytes((4000, 4000), 64) == walker.predict_bytes((400, 400), 64) < 8 << 20


def test_identities_need_no_file_where_the_hash_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "locate", None)
    source = models.SEGMENTERS["sam-vith"].source()
    assert source is not None
    digest = source.sha256
    assert models.weights_identity("sam-vith") == f"sam-vith sha256:{digest}"
    assert "random-walker" in models.weights_identity("random-walker")
    assert models.weights_identity("sam2.1-tiny").startswith("sam2.1-tiny sha256:7402e0d8")
    assert models.weights_identity("mobile-sam").startswith("mobile-sam sha256:6dbb9052")


@pytest.mark.parametrize("name", [name for name in models.SEGMENTERS if "sam" in name])
def test_every_sam_has_an_address_and_a_published_digest(name: str) -> None:
    source = models.SEGMENTERS[name].source()
    assert source is not None
    assert source.url.startswith("https://")
    assert re.fullmatch("[0-9a-f]{64}", source.sha256 or "") or re.fullmatch("[0-9a-f]{32}", source.xxh128 or "")
    others = [info.source() for other, info in models.SEGMENTERS.items() if other != name]
    assert source.file not in [other.file for other in others if other is not None]


def test_micro_sams_names_lead_to_ours() -> None:
    with pytest.raises(ModelError, match=r"did you mean sam-vitb-em-organelles\?"):
        models.load_segmenter("vit_b_em_organelles")
    assert models.ensure_weights("random-walker") is None


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "auto:1", ""])
def test_devices_of_another_form_are_refused(device: str) -> None:
    with pytest.raises(SettingsError, match="expected auto, cpu, cuda or cuda:N"):
        models.resolve_device(device)


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.resolve_device("auto") == models.resolve_device("cpu") == "cpu"
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="found no CUDA GPU; use --device cpu or auto"):
            models.resolve_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [models.resolve_device(device) for device in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(DeviceError, match="cuda:2 is not there: found 2 GPUs"):
        models.resolve_device("cuda:2")
    with pytest.raises(DeviceError, match="run on the CPU only"):
        models.resolve_device("cuda", uses_torch=False)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Counts loads; each gives a new object, or fails for the spec "broken"."""
    calls: list[tuple[str, ...]] = []
    gate = threading.Event()

    def load(*key: str) -> object:
        calls.append(key)
        gate.wait(0.2)
        if key[0] == "broken":
            raise ModelError("broken")
        return object()

    monkeypatch.setattr(cache, "load_encoder", load)
    monkeypatch.setattr(cache, "load_segmenter", load)
    models.clear()
    yield calls
    models.clear()


def test_a_model_is_loaded_once_however_many_threads_ask(loads: list[tuple[str, ...]]) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: models.get_encoder("a", "cpu", "float32"), range(16)))
    assert len({id(model) for model in found}) == 1
    assert loads == [("a", "cpu", "float32")]


def test_models_are_kept_apart_by_kind_spec_device_and_type(loads: list[tuple[str, ...]]) -> None:
    found = {id(models.get_encoder("a")), id(models.get_segmenter("a")), id(models.get_encoder("b"))}
    found |= {id(models.get_encoder("a", "cuda")), id(models.get_encoder("a", "cpu", "bfloat16"))}
    assert len(found) == len(loads) == 5
    models.clear()
    models.get_encoder("a")
    assert len(loads) == 6


def test_a_load_that_failed_is_tried_again(loads: list[tuple[str, ...]]) -> None:
    for _ in range(2):
        with pytest.raises(CryosamError):
            models.get_encoder("broken")
    assert len(loads) == 2


def test_torch_models_refuse_an_unknown_dtype_before_anything_is_fetched() -> None:
    with pytest.raises(SettingsError, match="dtype"):
        registry.load_encoder("dinov2-vits14", dtype="int8")
