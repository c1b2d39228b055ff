"""Latent moments, text embeddings and encoder features of a dataset, computed once.

One safetensors file a clip under `<cache>/<hash>/`, on disk or in an object store (`paths.cache=s3://bucket/cache`,
whatever fsspec opens), where the hash covers everything that shaped the numbers: the dataset and its files, the weights
and numbers of codec, text encoder and vision encoder, the token grids that its features lie on. Posterior samples,
any-frame conditions and random crops are redrawn each step and never stored.

`index.json` names every clip with the digest of its file. Processes that were started together each check and encode a
share and write down what they made in a `part-<n>-<start>.json` that no other start writes to: whoever is killed, in
how many processes a fill goes on and which jobs share the folder, what is written down counts. A process goes on when
it has found every clip as somebody wrote it down; process 0 then makes one index of all.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timelapse.atomic import write
from timelapse.dataset.module import alike, collate
from timelapse.fingerprint import code, fingerprint

VERSION = 1  # raise when the meaning of a stored number changes
WRITE_DOWN = 60.0  # seconds between two writes of a part: a kill loses no more, and those who wait see a sign of life
PATIENCE = 3600.0  # seconds without such a sign until those who wait give up
READERS = 8  # files at a time that are checked
AGAIN = 300.0  # seconds that training waits for a clip that another process found damaged too and makes again

log = logging.getLogger("timelapse")


class Cached(Dataset):
    """A dataset whose items also carry, from the cache, `mean`, `std` (t,c,h,w) of the clip, `first_mean`, `first_std`
    (1,c,h,w) of its first frame alone, `tokens` (L,D) and `feature` (N,D).

    pixels: False leaves the video out. The dataset is touched for what the cache does not hold only: where the frames
    are stored too (8 bits), or nobody asks for them, nothing is decoded or painted again.
    A file whose digest is not the index's raises ValueError, naming it and the way out: it is never silently used.
    patience: seconds to wait for such a file, which another process may just be making again.
    """

    def __init__(self, dataset: Dataset, folder: Path | str, pixels: bool = True, patience: float = 0.0):
        self.dataset, self.folder, self.pixels, self.patience = dataset, folder, pixels, patience
        self.index, self.captions = known(Store(folder))
        self.keys = keys(dataset)

    @property
    def shapes(self) -> list[tuple[int, int, int]] | None:
        return getattr(self.dataset, "shapes", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> dict[str, Any]:
        key = self.keys[i]
        stored = load(self.read(key))
        video = stored.pop("video", None)
        item = {"key": key, "caption": self.captions[key]}
        if self.pixels and video is None:
            item = self.dataset[i]
        elif self.pixels:
            item["video"] = video.float() / 127.5 - 1
        return {**item, **{k: v if k == "seconds" else v.float() for k, v in stored.items()}}

    def read(self, key: str) -> bytes:
        """A clip's file, found intact."""
        store, missed = Store(self.folder), None
        while True:
            try:
                if digest(data := store.read(f"{key}.safetensors")) in self.index[key]:
                    return data
            except FileNotFoundError:
                pass
            said = f"cache file {self.folder}/{key}.safetensors is damaged or gone"
            if missed is None:
                missed = time.monotonic()
                if self.patience:
                    log.warning(f"{said}; waiting up to {self.patience:.0f} s for a process that makes it again")
            if time.monotonic() - missed >= self.patience:
                raise ValueError(f"{said}; delete it and run again")
            time.sleep(1)
            self.index, self.captions = known(store)


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

    def names(self, pattern: str) -> list[str]:
        if not self.remote:
            return sorted(path.name for path in Path(self.folder).glob(pattern))
        self.files.invalidate_cache()  # other processes write beside this one
        return sorted(str(path).rsplit("/", 1)[-1] for path in self.files.glob(f"{self.root}/{pattern}"))

    def remove(self, name: str) -> None:
        """Nothing where there is none: another job's process may have been faster."""
        if not self.remote:
            (Path(self.folder) / name).unlink(missing_ok=True)
        elif self.files.exists(f"{self.root}/{name}"):
            self.files.rm_file(f"{self.root}/{name}")


def empty_caption(store: Store) -> Tensor | None:
    """(1,L,D) tokens of the empty caption, which guidance reads; None where the cache has none that is intact."""
    for name in store.names("empty-*.tokens"):
        try:
            data = store.read(name)
        except FileNotFoundError:  # another process found it damaged too
            continue
        if name == f"empty-{digest(data)}.tokens":
            return load(data)["tokens"].float()
    return None


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def text_key(model: Any) -> str:
    """Of the text encoder, which a full cache need not load: T5-XXL is 9.5 GB in every process."""
    key = getattr(model, "text_key", None)
    if key is None:
        weights = fingerprint(model.text)
        key = getattr(model, "text_key", None) or weights  # a hub's files are here now
    return key


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
    captions: bool = True,
    workers: int = 0,
    shape: tuple[int, int, int] | None = None,
) -> Cached:
    """Build what is missing or damaged of the dataset's cache, then return the dataset on top of it.

    spec: what else shaped the clips (the dataset's config); JSON-able. store_pixels: keep the frames too, with
    8 bits: 0.2 MB a clip of 17 x 64 x 64, but 50 MB at 49 x 480 x 720. captions: False leaves `tokens` out, for a text
    encoder that is trained; its weights then do not matter to what is kept. workers: processes that decode.
    shape: (frames, height, width) of the clips, which an encoder needs where the dataset's `shapes` do not tell.
    """
    parts = {
        "version": VERSION,
        "code": code(),
        "spec": spec,
        "files": getattr(dataset, "fingerprint", lambda: "")(),
        "codec": fingerprint(model.codec, without="vae.decoder."),  # another decoder leaves the latents as they are
        "text": text_key(model) if captions else fingerprint(None),
        "encoder": fingerprint(encoder),
    }
    if store_pixels:
        parts["pixels"] = "uint8"
    if encoder is not None:  # its features lie on the network's token grid, a rule of each backbone's own
        shapes = {*(getattr(dataset, "shapes", None) or [shape])}
        parts["grids"] = sorted({tuple(model.grid_of((1, *model.latent_shape(*shape)))) for shape in shapes})
    name = blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    folder = f"{root}/{name}" if "://" in str(root) else Path(root) / name
    store, names, (which, of) = Store(folder), keys(dataset), share()
    # Whole batches, cut where any number of processes would cut them: the last bits depend on the neighbours.
    batches_of = alike(dataset, range(len(names)), batch_size)
    batches = batches_of[which::of] if which < of else []
    own = [names[i] for batch in batches for i in batch]
    verified = intact(store, own, known(store)[0], shown=which == 0)
    missing = {*own} - verified.keys()
    if captions and which == 0 and empty_caption(store) is None:
        data = save({"tokens": model.text.to(device).encode([""]).cpu()})
        damaged = store.names("empty-*.tokens")
        store.write(name := f"empty-{digest(data)}.tokens", data)
        for other in {*damaged} - {name}:
            store.remove(other)
        model.text.to("cpu")
    if missing:
        for part in (model.codec, model.text, encoder):
            if part is not None:
                part.to(device)
        batches = [batch for batch in batches if any(names[i] in missing for i in batch)]
        loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers)
        made: dict[str, dict[str, str]] = {"clips": {}, "captions": {}}
        mine, written = f"part-{which}-{uuid.uuid4().hex[:8]}.json", time.monotonic()
        for batch in tqdm(loader, desc=f"cache {len(missing)} clips", leave=False, disable=which > 0):
            video = batch["video"].to(device)
            mean, std = model.codec.moments(video)
            first_mean, first_std = model.codec.moments(video[:, :1])
            rows = {"mean": mean, "std": std, "first_mean": first_mean, "first_std": first_std}
            rows["seconds"] = batch["seconds"]
            if captions:
                rows["tokens"] = model.text.encode(batch["caption"])
            if encoder is not None:
                rows["feature"] = encoder(video, model.grid_of(mean.shape)).half()
            if store_pixels:
                rows["video"] = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            for b, key in enumerate(batch["key"]):
                if key in missing:
                    data = save({k: v[b].cpu().contiguous() for k, v in rows.items()})
                    store.write(f"{key}.safetensors", data)
                    made["clips"][key], made["captions"][key] = digest(data), batch["caption"][b]
            if time.monotonic() - written > WRITE_DOWN:
                store.write(mine, json.dumps(made).encode())
                written = time.monotonic()
        store.write(mine, json.dumps(made).encode())
        for part in (model.text, encoder):  # training reads what they gave
            if part is not None:
                part.to("cpu")
        verified |= made["clips"]
    verified = wait_for_others(store, names, verified, batches_of, of)
    until = time.monotonic() + AGAIN
    while captions and which and of > 1 and empty_caption(store) is None and time.monotonic() < until:
        time.sleep(1)  # process 0 makes it
    if which == 0:
        merge(store, parts, {key: verified[key] for key in names})
    return Cached(dataset, folder, pixels, patience=AGAIN if of > 1 else 0.0)


def wait_for_others(
    store: Store, names: list[str], verified: dict[str, str], batches: list[list[int]], of: int
) -> dict[str, str]:
    """Digests of all clips, once the file of each is there and written down. TimeoutError after PATIENCE without a
    change.

    The files of other processes' shares are not read for that, which would be the whole cache once a process: what
    one of them finds damaged now it makes again, and `Cached.read` waits for it.
    """
    whose_is = {i: n % of for n, batch in enumerate(batches) for i in batch}
    last, since, told = None, time.monotonic(), None
    while True:
        (written, _), there = known(store), {*store.names("*.safetensors")}
        for key in names:
            if key not in verified and key in written and f"{key}.safetensors" in there:
                # Made again with other last bits: only its file says which.
                found = intact(store, [key], written) if len(written[key]) > 1 else {key: min(written[key])}
                verified |= found
        rest = [i for i, key in enumerate(names) if key not in verified]
        if not rest:
            return verified
        sign, now = (len(rest), sum(map(len, written.values()))), time.monotonic()
        if sign != last:
            last, since = sign, now
        awaited = sorted({whose_is[i] for i in rest})
        whose = f"{len(rest)} clips that processes {', '.join(map(str, awaited))} of {of} have in their share"
        if now - since > PATIENCE:
            raise TimeoutError(
                f"cache {store.folder}: nothing came in {PATIENCE / 60:.0f} minutes of {whose}; see in their logs why "
                "they ended, then start all again: what was written down is kept"
            )
        if told is None or now - told > WRITE_DOWN:
            log.info(f"cache: waiting for {whose}")
            told = now
        time.sleep(min(30.0, max(1.0, (now - since) / 10)))  # the longer nothing comes, the less often all are listed


def share() -> tuple[int, int]:
    """Which process this is of how many that fill the cache together: those that torchrun or srun starts at once.

    Lightning's own children start when the process that starts them has filled it: they take no part.
    """
    if "RANK" in os.environ:
        return rank(), int(os.environ.get("WORLD_SIZE", 1))
    if by_slurm() and "SLURM_STEP_NUM_TASKS" in os.environ:  # by srun; a batch script outside of it is one process
        return rank(), int(os.environ["SLURM_STEP_NUM_TASKS"])
    return rank(), 1


def known(store: Store) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Digests (more than one where a clip was made again with other last bits) and caption of every clip that any
    process has written down so far.
    """
    clips, captions = {}, {}
    for name in [*store.names("part-*.json"), "index.json"]:  # in this order: a part goes once it is in the index
        try:
            made = json.loads(store.read(name))
        except FileNotFoundError:
            continue
        for key, value in made["clips"].items():
            clips.setdefault(key, set()).add(value)
        captions |= made["captions"]
    return clips, captions


def merge(store: Store, made_from: dict[str, Any], clips: dict[str, str]) -> None:
    """One index of what all processes wrote down, other runs' clips in the same folder too. clips: digest of each."""
    parts = store.names("part-*.json")
    if not parts:
        return
    found, captions = known(store)
    kept = clips | {key: min(found[key]) for key in sorted(found.keys() - clips.keys())}
    made = {"made_from": made_from, "clips": kept, "captions": {key: captions[key] for key in kept}}
    store.write("index.json", json.dumps(made, indent=1, default=str).encode())
    for name in parts:
        store.remove(name)


def keys(dataset: Dataset) -> list[str]:
    """Clip keys without decoding a frame where the dataset knows them."""
    return dataset.keys if hasattr(dataset, "keys") else [dataset[i]["key"] for i in range(len(dataset))]


def intact(store: Store, keys: list[str], written: dict[str, set[str]], shown: bool = False) -> dict[str, str]:
    """Digest of each clip's file, where it is one that was written down for it. shown: with a bar, if it takes long."""

    def read(key: str) -> str:
        try:
            return digest(store.read(f"{key}.safetensors"))
        except FileNotFoundError:
            return ""

    keys = [key for key in keys if key in written]
    with ThreadPoolExecutor(READERS) as pool:
        bar = tqdm(pool.map(read, keys), desc="check cache", total=len(keys), delay=2, leave=False, disable=not shown)
        return {key: found for key, found in zip(keys, bar) if found in written[key]}


def rank() -> int:
    """Global rank as launchers tell it, before torch.distributed exists, in Lightning's order.

    Where neither torchrun nor SLURM started the processes but Lightning or the user, on each node anew, it is 0 for
    the first of them all and more for others: how many there are on a node is not known yet.
    """
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if by_slurm():
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("LOCAL_RANK", 0)) + int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))


def by_slurm() -> bool:
    """Whether Lightning takes this for one of SLURM's tasks. In an interactive shell it starts processes itself, which
    inherit the shell's SLURM_PROCID of 0.
    """
    tasks = {"SLURM_NTASKS", "SLURM_PROCID"} <= os.environ.keys()
    return tasks and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
