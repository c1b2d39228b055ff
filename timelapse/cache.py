"""Latent moments, text embeddings and encoder features of a dataset, computed once.

One safetensors file a clip under `<cache>/<hash>/`, on disk or in an object store (`paths.cache=s3://bucket/cache`,
whatever fsspec opens), where the hash covers everything that shaped the numbers: the
dataset and its files, the weights of codec, text encoder and vision encoder. Posterior samples, any-frame conditions
and random crops are redrawn each step and never stored.
"""

from __future__ import annotations

import json
import os
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timelapse.dataset.module import collate

VERSION = 1  # raise when the meaning of a stored number changes


def fingerprint(module: nn.Module | None, without: str = "?") -> str:
    """Digest of a module's weights: names, shapes and two float64 sums a tensor (fast, and any change shows).

    without: names that begin so are left out.
    """
    if module is None:
        return "none"
    digest = blake2b(digest_size=8)
    for name, value in sorted(module.state_dict().items()):
        if name.startswith(without):
            continue
        x = value.double()
        digest.update(f"{name}{tuple(value.shape)}{x.sum().item():.17g}{x.abs().sum().item():.17g}".encode())
    return digest.hexdigest()


class Cached(Dataset):
    """A dataset whose items also carry, from the cache, `mean`, `std` (t,c,h,w) of the clip, `first_mean`, `first_std`
    (1,c,h,w) of its first frame alone, `tokens` (L,D) and `feature` (N,D).

    pixels: False leaves the video out. The dataset is touched for what the cache does not hold only: where the frames
    are stored too (8 bits), or nobody asks for them, nothing is decoded or painted again.
    A file whose digest is not the index's raises ValueError, naming it and the way out: it is never silently used.
    """

    def __init__(self, dataset: Dataset, folder: Path | str, pixels: bool = True):
        self.dataset, self.folder, self.pixels = dataset, folder, pixels
        made = json.loads(Store(folder).read("index.json"))
        self.index, self.captions = made["clips"], made["captions"]
        self.keys = keys(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> dict[str, Any]:
        key = self.keys[i]
        data = Store(self.folder).read(f"{key}.safetensors")
        if digest(data) != self.index[key]:
            raise ValueError(f"cache file {self.folder}/{key}.safetensors is damaged; delete it and run again")
        stored = load(data)
        video = stored.pop("video", None)
        item = {"key": key, "caption": self.captions[key]}
        if self.pixels and video is None:
            item = self.dataset[i]
        elif self.pixels:
            item["video"] = video.float() / 127.5 - 1
        return {**item, **{k: v if k == "seconds" else v.float() for k, v in stored.items()}}


class Store:
    """Files of one folder, each written whole or not at all: local, or behind any protocol that fsspec opens."""

    def __init__(self, folder: Path | str):
        self.folder = folder
        self.remote = "://" in str(folder)
        if self.remote:
            import fsspec

            self.files, self.root = fsspec.core.url_to_fs(str(folder))  # kept by fsspec, in a forked worker anew

    def read(self, name: str) -> bytes:
        """FileNotFoundError where there is none."""
        return self.files.cat_file(f"{self.root}/{name}") if self.remote else (Path(self.folder) / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        if not self.remote:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            return write(Path(self.folder) / name, data)
        self.files.makedirs(self.root, exist_ok=True)
        self.files.pipe_file(f"{self.root}/{name}", data)

    def exists(self, name: str) -> bool:
        return self.files.exists(f"{self.root}/{name}") if self.remote else (Path(self.folder) / name).exists()

    def remove(self, name: str) -> None:
        if self.exists(name):
            self.files.rm_file(f"{self.root}/{name}") if self.remote else (Path(self.folder) / name).unlink()


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


@torch.no_grad()
def cached(
    dataset: Dataset,
    root: Path | str,
    spec: dict[str, Any],
    model: Any,
    encoder: nn.Module | None,
    device: torch.device,
    batch_size: int = 4,
    pixels: bool = True,
    store_pixels: bool = False,
) -> Cached:
    """Build what is missing or damaged of the dataset's cache, then return the dataset on top of it.

    spec: what else shaped the clips (the dataset's config); JSON-able. store_pixels: keep the frames too, with
    8 bits: 0.2 MB a clip of 17 x 64 x 64, but 50 MB at 49 x 480 x 720.
    """
    parts = {
        "version": VERSION,
        "spec": spec,
        "files": getattr(dataset, "fingerprint", lambda: "")(),
        "codec": fingerprint(model.codec, without="vae.decoder."),  # another decoder leaves the latents as they are
        "text": fingerprint(model.text),
        "encoder": fingerprint(encoder),
    }
    if store_pixels:
        parts["pixels"] = "uint8"
    name = blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    folder = f"{root}/{name}" if "://" in str(root) else Path(root) / name
    store = Store(folder)
    if rank() != 0:  # one process computes, the others wait for its word
        while not store.exists("complete"):
            time.sleep(1)
        return Cached(dataset, folder, pixels)

    made = json.loads(store.read("index.json")) if store.exists("index.json") else {"clips": {}, "captions": {}}
    index, captions = made["clips"], made["captions"]
    missing = [i for i, key in enumerate(keys(dataset)) if not intact(store, key, index)]
    if missing:
        store.remove("complete")
        for part in (model.codec, model.text, encoder):
            if part is not None:
                part.to(device)
        loader = DataLoader(dataset, batch_sampler=chunks(missing, batch_size), collate_fn=collate)
        for n, batch in enumerate(tqdm(loader, desc=f"cache {len(missing)} clips", leave=False)):
            video = batch["video"].to(device)
            mean, std = model.codec.moments(video)
            first_mean, first_std = model.codec.moments(video[:, :1])
            rows = {"mean": mean, "std": std, "first_mean": first_mean, "first_std": first_std}
            rows |= {"tokens": model.text.encode(batch["caption"]), "seconds": batch["seconds"]}
            if encoder is not None:
                rows["feature"] = encoder(video, model.grid_of(mean.shape)).half()
            if store_pixels:
                rows["video"] = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            for b, key in enumerate(batch["key"]):
                data = save({k: v[b].cpu().contiguous() for k, v in rows.items()})
                store.write(f"{key}.safetensors", data)
                index[key], captions[key] = digest(data), batch["caption"][b]
            if n % 50 == 49:  # a kill loses no more than this
                save_index(store, parts, index, captions)
        save_index(store, parts, index, captions)
    store.write("complete", b"")
    return Cached(dataset, folder, pixels)


def save_index(store: Store, parts: dict[str, Any], index: dict[str, str], captions: dict[str, str]) -> None:
    made = {"made_from": parts, "clips": index, "captions": captions}
    store.write("index.json", json.dumps(made, indent=1, default=str).encode())


def keys(dataset: Dataset) -> list[str]:
    """Clip keys without decoding a frame where the dataset knows them."""
    return dataset.keys if hasattr(dataset, "keys") else [dataset[i]["key"] for i in range(len(dataset))]


def intact(store: Store, key: str, index: dict[str, str]) -> bool:
    name = f"{key}.safetensors"
    return key in index and store.exists(name) and digest(store.read(name)) == index[key]


def chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def rank() -> int:
    """Global rank as launchers tell it, before torch.distributed exists."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0))))
