"""Tests run offline, on few threads, and never beside a user's runs."""

import os
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(scope="session")
def footage() -> Path:
    """Folder of real footage, beside the checkout or at TIMELAPSE_FOOTAGE; skips where there is none."""
    folder = Path(os.environ.get("TIMELAPSE_FOOTAGE", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real footage at {folder}; set TIMELAPSE_FOOTAGE")
    return folder
