"""What the directory of a run is called: the overrides that change its numbers. Needed at every start: no torch."""

from __future__ import annotations

import re
from hashlib import blake2b

from omegaconf import ListConfig

# Overrides that do not change the numbers of a run: it resumes on other hardware, in other stages.
NEUTRAL = {"trainer", "logger", "stages", "ckpt", "input", "paths", "sample", "export", "hydra", "experiment", "study"}
NEUTRAL |= {"sweep", "objective"}
NEUTRAL_KEYS = {"train.workers", "train.checkpoint_every", "train.sample_every", "train.keep"}


def identity(overrides: ListConfig | list[str]) -> str:
    """Folder name of the overrides that change the result: sorted, file-name safe, no '='.

    >>> identity(["+experiment=x", "loss=[denoise,drepa]", "seed=1", "trainer=cpu"])
    'loss-denoise+drepa_seed-1'
    """
    kept, foreign = [], ""
    for override in sorted(str(o).lstrip("+~") for o in overrides):
        key, _, value = override.partition("=")
        if key.split(".")[0].split("/")[0].split("@")[0] in NEUTRAL or key in NEUTRAL_KEYS:
            continue
        foreign += "" if value.isascii() else f"{key}={value}\0"
        kept.append(re.sub(r"[^A-Za-z0-9._+-]", "", f"{key}-{value.replace(',', '+')}"))
    name = "_".join(kept) or "base"
    if foreign:  # a path in another script would go without a trace
        name = f"{name[:100]}-{blake2b(foreign.encode(), digest_size=6).hexdigest()}"
    return name if len(name) <= 120 else f"{name[:100]}-{blake2b(name.encode(), digest_size=6).hexdigest()}"
