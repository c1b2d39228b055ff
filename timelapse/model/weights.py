"""Where a part's weights come from: a hub or folder, a shipped file, or a seed; checked against the config."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from timelapse import assets


def is_hub(source: str | None) -> bool:
    """A hub id or a folder, not the name of a shipped weight."""
    return source is not None and ("/" in source or Path(source).is_dir())


def meta() -> bool:
    return torch.get_default_device().type == "meta"


def floating(name: str) -> torch.dtype:
    """float32, bfloat16 or float16, by name."""
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"model.dtype, model.frozen_dtype: {name!r} is none of float32, bfloat16, float16")
    return getattr(torch, name)


def from_hub(model: str, load: Callable, source: str, folder: str, **options: Any) -> Any:
    """`load(source, subfolder=folder)`; what went wrong and what to type, where it does not open."""
    try:
        return load(source, subfolder=folder, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{model}: cannot open '{folder}' of model.weights={source}: {reason} Download it with "
            f"`hf download {source} --local-dir DIR` (accept its licence on the hub first if it is gated) and set "
            f"model.weights=DIR, or set model.weights=null for random weights"
        ) from error


def files_key(source: str | None, folder: str, *others: str) -> str | None:
    """Digest of a pipeline's files in `folder`, which holds a network, and `others`, without loading it.

    None for what is not a pipeline, and while the network is not, or not all, on this machine. A hub's files are told
    by the digests that its cache names them by; those of a folder are read: seconds for T5-XXL, and no memory.
    """
    if not is_hub(source) or (root := snapshot(source, folder)) is None or not complete(root / folder):
        return None
    files = sorted(path for name in (folder, *others) for path in (root / name).rglob("*") if path.is_file())
    whole = blake2b(digest_size=8)
    for path in tqdm(files, desc=f"read {root / folder}", delay=2, leave=False):
        whole.update(path.relative_to(root).as_posix().encode())
        if path.is_symlink() and path.resolve().parent.name == "blobs":
            whole.update(path.resolve().name.encode())
        else:
            about = path.stat()
            whole.update(contents(path, about.st_mtime_ns, about.st_size))
    return whole.hexdigest()


@lru_cache(maxsize=256)
def contents(path: Path, changed: int, size: int) -> bytes:
    """Digest of a file, read once while it stays as it is: the training and the validation cache both ask."""
    with path.open("rb") as file:
        return file_digest(file, "blake2b").digest()


def snapshot(source: str, folder: str) -> Path | None:
    """The local folder of a pipeline; None where nothing of this part of a hub's is on this machine."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(source, f"{folder}/config.json")
    except ValueError:  # a name that no hub has: opening it says so
        return None
    return Path(config).parents[1] if isinstance(config, str) else None


def complete(folder: Path) -> bool:
    """Whether a network's weights are there, each shard that the index names too; shards come after their index."""
    indices = [*folder.glob("*.index.json")]
    if indices:
        named = {name for index in indices for name in json.loads(index.read_text())["weight_map"].values()}
        return all((folder / name).is_file() for name in named)
    return any(path.suffix in (".safetensors", ".bin") and "-of-" not in path.name for path in folder.glob("*.*"))


def shipped(
    model: str,
    part: str,
    source: str,
    module: nn.Module,
    numbers: dict[str, Any],
    options: dict[str, Any] | None = None,
) -> None:
    """Fill a module from `timelapse/assets`. numbers: of its part in the config; options: the model's own."""
    state, card = assets.load(source)
    for name, said in ((part, numbers), ("", options or {})):
        compare(model, name, source, said, card.get("config", {}))
    module.load_state_dict(state)


def compare(model: str, part: str, source: str, numbers: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Numbers of a config that differ from those of the weights are an error; what weights do not tell is not asked."""
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    typed = lambda value: str(value).lower() if isinstance(value, bool) else value
    for key, value in numbers.items():
        if key in theirs and plain(theirs[key]) != plain(value):
            name, have = f"{part}.{key}" if part else key, typed(theirs[key])
            raise ValueError(
                f"{model}: the weights '{source}' have {name}={have}, the config says {typed(value)}; "
                f"set model.{name}={have} or choose other model.weights"
            )


def fill(backbone: nn.Module, start: Callable[[], nn.Module]) -> None:
    """Fill a backbone that was built on meta, sharded or not, and given memory by `to_empty`.

    Process 0 builds the starting weights on its CPU by `start` and sends each process its shard, and buffers that no
    checkpoint holds (a fixed table of positions) whole.
    """
    from torch.distributed import broadcast, get_rank, is_initialized
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state, tables = {}, {}
    if not is_initialized() or get_rank() == 0:
        with torch.device("cpu"):
            whole = start()
            state, tables = whole.state_dict(), dict(whole.named_buffers())
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=is_initialized())
    kept = backbone.state_dict().keys()
    set_model_state_dict(backbone, state, options=options)
    for name, table in backbone.named_buffers():
        if name not in kept:
            if tables:
                table.copy_(tables[name])
            if is_initialized():
                broadcast(table, 0)


@contextmanager
def norm_groups(number: int | None) -> Iterator[None]:
    """Within, group norms are built with so many groups; None: as their makers say. diffusers writes 32 into some of
    its networks, which then cannot be built with fewer channels."""
    plain = nn.GroupNorm.__init__
    if number:
        fewer = lambda self, num_groups, *args, **kwargs: plain(self, number, *args, **kwargs)
        nn.GroupNorm.__init__ = fewer
    try:
        yield
    finally:
        nn.GroupNorm.__init__ = plain


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch's global generators start from `seed`; after, they are as before."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield
