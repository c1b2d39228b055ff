"""Small weights that ship with the package: `<name>.safetensors` and `<name>.json` (config, recipe, numbers).

Their names stay when an update changes what they name, so a run notes the digests of those it began on.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timelapse.atomic import as_json, write_json, write_together

if TYPE_CHECKING:  # launchers ask for digests before torch is needed
    from torch import Tensor

FOLDER = Path(__file__).parent
RECORD = "assets.json"  # of a run: name -> digest


def load(name: str) -> tuple[dict[str, Tensor], dict]:
    """State dict (float32) and card of a shipped weight. FileNotFoundError names those that exist."""
    from safetensors.torch import load_file

    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        have = ", ".join(sorted(p.stem for p in FOLDER.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"no shipped weights '{name}'; there are: {have}")
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    return state, json.loads(path.with_suffix(".json").read_text())


def save(name: str, state: dict[str, Tensor], card: dict) -> Path:
    """Write a weight as fp16 beside its card (`config`, `recipe`: the command, `numbers`)."""
    import torch
    from safetensors.torch import save as to_bytes

    half = lambda v: v.detach().to("cpu", torch.float16 if v.is_floating_point() else v.dtype).contiguous()
    path = FOLDER / f"{name}.safetensors"
    weights = to_bytes({k: half(v) for k, v in state.items()})
    write_together({path: weights, path.with_suffix(".json"): as_json(card)})
    return path


def add_numbers(path: Path, numbers: dict[str, float], after: list[str] | None = None) -> None:
    """Put what was measured onto a weight's card; after: the commands that made the weights it was trained on from."""
    card_file = path.with_suffix(".json")
    card = json.loads(card_file.read_text())
    card["numbers"] = card.get("numbers", {}) | numbers
    if after:
        card["after"] = after
    write_json(card_file, card)


def history(name: object) -> list[str]:
    """The commands that made a shipped weight, the first one first; empty for anything else."""
    card_file = FOLDER / f"{name}.json"
    if not isinstance(name, str) or not card_file.is_file():
        return []
    card = json.loads(card_file.read_text())
    return [*card.get("after", []), card["recipe"]]


def digests(named: Any) -> dict[str, str]:
    """Name -> digest of the shipped weights that are named anywhere in a part of a config, or in a list of names."""
    if isinstance(named, (dict, list)):
        parts = named.values() if isinstance(named, dict) else named
        return {name: digest for part in parts for name, digest in digests(part).items()}
    return {
        path.stem: blake2b(path.read_bytes(), digest_size=8).hexdigest()
        for path in FOLDER.glob("*.safetensors")
        if path.stem == named
    }


def note(run_dir: Path, record: dict[str, str]) -> None:
    """Which shipped weights a run began on."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / RECORD, record)


def noted(run_dir: Path) -> dict[str, str]:
    """Empty where the run did not note any, as older ones did not. ValueError where the note is damaged."""
    path = run_dir / RECORD
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it") from error


def changed(run_dir: Path, names: Collection[str] | None = None) -> list[str]:
    """Which of the shipped weights that a run began on, or of these among them, are others or gone now."""
    before = noted(run_dir)
    now = digests(list(before))
    return [name for name in before if (names is None or name in names) and before[name] != now.get(name)]
