"""The keyframe studies: every row composes, and differs from the others by what its name says."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from timelapse.run import CONF
from timelapse.study import expand


def rows(study: str) -> dict[str, dict]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plan = OmegaConf.to_container(compose("config", [f"+study={study}"]).study)
        jobs = expand({**plan, "seeds": plan["seeds"][:1]}, [])
        made = {row: OmegaConf.to_container(compose("config", job), resolve=True) for row, _, job in jobs}
    assert len(plan["seeds"]) >= 3
    for finding in plan["findings"]:
        assert {finding["better"], finding["than"]} <= set(made)
    return made


@pytest.mark.parametrize("study", ["keyframe_table", "keyframe_data_size"])
def test_rows_share_clips_and_ends(study):
    for cfg in rows(study).values():
        assert cfg["sample"]["frames"] == [[0, -1]] and cfg["sample"]["count"] == 24
        assert cfg["dataset"]["processes"] == ["car", "walker", "ball", "hourglass", "vine"]


def test_rows_are_the_papers_variants():
    table = rows("keyframe_table")
    reverse = {row: cfg["model"]["reverse"] for row, cfg in table.items()}
    assert reverse["ours"] == {"train": ["to_v", "to_out.0"], "rotate": "all", "delta": None}
    assert reverse["without_rotation"]["train"] == ["to_q", "to_k", "to_v", "to_out.0"]
    assert reverse["without_rotation"]["rotate"] == "none"
    assert reverse["without_finetuning"] == {"train": [], "rotate": "up", "delta": None}
    assert reverse["ours_linear"] == reverse["ours"] and table["ours_linear"]["sampler"]["weights"] == "linear"
    assert "fit" in table["ours"]["stages"] and "fit" not in table["ours_linear"]["stages"]
    assert reverse["time_reversal"] is None and "fit" not in table["time_reversal"]["stages"]
    targets = {row: cfg["sampler"]["_target_"].rsplit(".", 1)[1] for row, cfg in table.items()}
    assert targets == {
        "ours": "DualDirectional",
        "ours_linear": "DualDirectional",
        "without_rotation": "DualDirectional",
        "without_finetuning": "DualDirectional",
        "time_reversal": "TimeReversal",
        "flow": "Flow",
        "crossfade": "Crossfade",
    }
    sizes = {row: cfg["dataset"]["size"] for row, cfg in rows("keyframe_data_size").items()}
    assert (sizes["clips_50"], sizes["clips_100"], sizes["clips_150"]) == (50, 100, 150)
