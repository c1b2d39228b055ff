from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from timelapse import assets


def test_a_card_tells_every_command_that_made_a_weight(tmp_path, monkeypatch):
    """Trained three times, each time from what was there."""
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    assert assets.history("net") == [] == assets.history(None)
    for recipe in ("first", "second", "third"):
        before = assets.history("net")
        path = assets.save("net", {"w": torch.ones(2)}, {"config": {}, "recipe": recipe})
        assets.add_numbers(path, {"steps": 1}, before)
    assert assets.history("net") == ["first", "second", "third"]
    assert json.loads((tmp_path / "net.json").read_text())["recipe"] == "third"


def test_weights_whose_card_cannot_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    assets.save("net", {"w": torch.ones(2)}, {"config": {}, "recipe": "first"})
    write = Path.write_bytes

    def full(path, content):
        if ".json" in path.name:
            raise OSError("no space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        assets.save("net", {"w": torch.zeros(2)}, {"config": {}, "recipe": "second"})
    state, card = assets.load("net")
    assert state["w"].tolist() == [1, 1] and card["recipe"] == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"net.safetensors", "net.json"}


def test_the_main_experiments_small_networks_take_less_than_12_mb():
    """What a first contact downloads with the package: VAE, transformer, text encoder, and both video encoders."""
    stack = ("cogvideox_tiny_vae", "cogvideox_tiny_transformer", "cogvideox_tiny_text", "vjepa_tiny", "videomae_tiny")
    assert sum((assets.FOLDER / f"{name}.safetensors").stat().st_size for name in stack) < 12e6
