"""What tells published weights from others without loading them."""

import json

import huggingface_hub.constants
import pytest

from timelapse.model import weights
from timelapse.model.weights import files_key


def key(source):
    return files_key(str(source), "text_encoder", "tokenizer")


@pytest.fixture
def pipeline(tmp_path):
    """As downloaded into a folder: a network in two shards, and a tokenizer."""
    folder = tmp_path / "pipeline"
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 1000 for i in (1, 2)}
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate(shards)}}
    files = {"text_encoder/config.json": b"{}", "text_encoder/model.safetensors.index.json": json.dumps(index).encode()}
    files |= {f"text_encoder/{name}": data for name, data in shards.items()} | {"tokenizer/spiece.model": b"words"}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_every_byte_counts_and_nothing_else_does(pipeline, tmp_path):
    first = key(pipeline)
    copy = tmp_path / "elsewhere"
    pipeline.rename(copy)
    (copy / "vae").mkdir()
    (copy / "vae" / "model.safetensors").write_bytes(b"another part")
    assert first is not None and key(copy) == first
    seen = {first}
    for name in ("text_encoder/model-00002-of-00002.safetensors", "text_encoder/config.json", "tokenizer/spiece.model"):
        file = copy / name
        file.write_bytes(file.read_bytes()[:-1] + b"?")  # as many bytes as before
        seen.add(key(copy))
    assert len(seen) == 4 and None not in seen


def test_a_file_is_read_once_while_it_stays_as_it_is(pipeline, monkeypatch):
    """The training and the validation cache both ask."""
    first, read = key(pipeline), []
    digest = weights.file_digest
    monkeypatch.setattr(weights, "file_digest", lambda file, name: (read.append(file.name), digest(file, name))[1])
    assert key(pipeline) == first and not read
    (pipeline / "tokenizer" / "spiece.model").write_bytes(b"other")
    assert key(pipeline) != first and len(read) == 1


@pytest.mark.parametrize("missing", ["model-00001-of-00002.safetensors", "model.safetensors.index.json"])
def test_half_a_download_is_not_told(pipeline, missing):
    (pipeline / "text_encoder" / missing).unlink()
    assert key(pipeline) is None


def test_a_hubs_files_are_told_by_its_cache_whatever_else_is_there(pipeline, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert key("nobody/nothing") is None and key("not/a/hub's name") is None
    model = cache / "models--somebody--something"
    for number, file in enumerate(sorted(path for path in pipeline.rglob("*") if path.is_file())):
        blob, link = model / "blobs" / f"digest{number}", model / "snapshots" / "rev" / file.relative_to(pipeline)
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link.symlink_to(blob)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("rev")
    first = key("somebody/something")
    assert first is not None
    (model / "snapshots" / "rev" / "README.md").write_text("fetched later")
    assert key("somebody/something") == first
    shard = model / "snapshots" / "rev" / "text_encoder" / "model-00001-of-00002.safetensors"
    shard.unlink()
    assert key("somebody/something") is None  # one process is still downloading
    shard.symlink_to(model / "blobs" / "digest9")
    (model / "blobs" / "digest9").write_bytes(b"other weights")
    assert key("somebody/something") not in (None, first)


def test_shipped_and_random_weights_are_asked_themselves():
    assert files_key(None, "text_encoder") is None and files_key("cogvideox_tiny_text", "text_encoder") is None
