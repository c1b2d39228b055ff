"""What a run refuses before it loads, encodes or trains anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).parent))

from timelapse.build import frozen  # noqa: E402
from timelapse.module.denoising import Denoising  # noqa: E402
from timelapse.parts import Run  # noqa: E402
from timelapse.run import CONF  # noqa: E402


class AnotherDenoiser(Denoising):
    """A user's own module."""


def check(folder: Path, *overrides: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["trainer=cpu", "model.weights=null", f"paths.cache={folder}/cache", *overrides])
    Run(frozen(cfg), folder / "run").check()
    assert not any(folder.iterdir())  # nothing was begun


@pytest.mark.parametrize("stage", ["cache", "fit", "sample"])
@pytest.mark.parametrize("module", [Denoising, AnotherDenoiser])
def test_a_size_that_the_model_cannot_take_is_refused_whatever_the_module_is_called(tmp_path, module, stage):
    target = f"module._target_={module.__module__}.{module.__name__}"
    chosen = ["+experiment=svd_backward", f"stages=[{stage}]", target]
    with pytest.raises(ValueError, match="video.height"):
        check(tmp_path, *chosen, "video.height=60")
    check(tmp_path, *chosen)


def test_modules_that_run_the_model_on_no_whole_clip_choose_their_own_sizes(tmp_path):
    for experiment in ("pretrain_svd_vae", "pretrain_videomae"):
        check(tmp_path, f"+experiment={experiment}", "video.frames=6")  # an SVD needs 14
