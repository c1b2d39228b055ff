"""A diffusers pipeline written part by part, with a bar: a network of 5B parameters takes minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn
from tqdm import tqdm


def save_parts(pipeline: DiffusionPipeline, folder: str | Path) -> None:
    """What `pipeline.save_pretrained(folder)` writes."""
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    with tqdm(total=sum(map(size, parts.values())), desc="export", unit="B", unit_scale=True, leave=False) as bar:
        for name, part in parts.items():
            bar.set_postfix_str(name)
            part.save_pretrained(Path(folder) / name)
            bar.update(size(part))
    pipeline.save_config(folder)


def size(part: Any) -> int:
    """Bytes of weights."""
    return sum(p.nbytes for p in part.parameters()) if isinstance(part, nn.Module) else 0
