"""A study from its file to its page, on a small real Hydra app."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from timelapse.dataset.write import write_video
from timelapse.study import expand, launcher, study_page

ROOT = Path(__file__).parents[1]
APP = """
import json
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from timelapse.finished import mark_finished
from timelapse.launcher import register
register()

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    if "study" in cfg:
        from timelapse.study import run_study
        return run_study(cfg)
    out = Path(HydraConfig.get().runtime.output_dir)
    with open(out / "ran", "a") as f:
        f.write("x")
    if cfg.x == 2 and cfg.seed == 2:
        raise ValueError("x is 2 at seed 2")
    if "fit" not in cfg.stages:
        assert (Path(cfg.ckpt) / "ran").exists()
    values = {"subject_consistency": cfg.z + cfg.x + 0.01 * cfg.seed, "morphing_degree": 0.5 + 0.1 * cfg.seed}
    metrics = {n: {"value": v, "n": 2, "higher_is_better": True} for n, v in values.items()}
    (out / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
    mark_finished(out, cfg.stages, list(HydraConfig.get().overrides.task))
main()
"""
CONFIG = """
defaults: [_self_, {override hydra/launcher: process}]
name: app
x: 1
y: 0
z: 0
seed: 0
ckpt: null
stages: [fit]
hydra:
  run: {dir: "runs/${name}/${x}-${y}-${z}-${seed}"}
  sweep: {dir: runs, subdir: "${name}/${x}-${y}-${z}-${seed}"}
  launcher: {module: app, max_parallel: 2}
"""
STUDY = """
# @package _global_
name: small
about: A small study.
study:
  seeds: [0, 1, 2]
  common: [y=1]
  rows:
    one: [x=1]
    two: [x=2]
    two_otherwise: {sampled_from: two, overrides: [z=3]}
  findings:
    - {claim: two is larger, better: two, than: one}
    - {claim: one is larger, better: one, than: two}
"""


def test_a_study_runs_its_rows_and_ends_in_a_table_and_a_page(tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    for group in ("hydra/launcher", "study"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    launcher = "hydra/launcher/process.yaml"
    (tmp_path / "conf" / launcher).write_text((ROOT / "conf" / launcher).read_text())
    (tmp_path / "conf/config.yaml").write_text(CONFIG)
    (tmp_path / "conf/study/small.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "app", "+study=small"]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for times in (1, 2):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr  # one of nine jobs failed, and one for want of it
        for job in ("1-1-0-0", "1-1-0-1", "1-1-0-2", "2-1-0-0", "2-1-0-1", "2-1-3-0", "2-1-3-1"):
            assert (tmp_path / f"runs/app/{job}/ran").read_text() == "x"  # finished: not run again
        assert len((tmp_path / "runs/app/2-1-0-2/ran").read_text()) == times  # failed: tried again
    out = tmp_path / "runs/small/1-0-0-0"
    table = (out / "table.md").read_text()
    assert "| one | 3 | 1.010 ± 0.0100 | 0.600 ± 0.100 |" in table
    assert "| two | 2 (1 failed) | 2.005 ± 0.0071 | 0.550 ± 0.0707 |" in table
    assert "| two_otherwise | 2 (1 failed) | 5.005 ± 0.0071 |" in table
    assert "**two is larger**: shows" in table and "**one is larger**: does not show" in table
    page = (out / "report.html").read_text()
    assert (
        "x is 2 at seed 2" in page
        and "two, whose training this samples, failed" in page
        and "A small study." in page
        and "python -m timelapse.run +study=small" in page
    )


def test_later_overrides_win_and_seeds_go_round_first():
    study = {"seeds": [3, 4], "common": ["train.steps=10", "y=1"], "rows": {"a": ["+experiment=p", "y=2"], "b": []}}
    jobs = expand(study, ["+study=s", "study.seeds=[3,4]", "scale=paper", "train.steps=5"])
    assert [job[:2] for job in jobs] == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    assert jobs[0][2] == ["train.steps=5", "y=2", "+experiment=p", "scale=paper", "seed=3"]
    with pytest.raises(ValueError, match="study.seeds"):
        expand(study, ["seed=1"])
    with pytest.raises(ValueError, match="rows"):
        expand({"seeds": [0]}, [])


def test_a_row_sampled_from_another_has_its_overrides_and_does_not_train():
    rows = {"a": ["+experiment=p", "y=2"], "b": {"sampled_from": "a", "overrides": ["z=3"]}}
    asked = lambda *typed: expand({"seeds": [0], "rows": rows}, typed)[1][2]
    assert asked() == ["+experiment=p", "y=2", "z=3", "stages=[sample,evaluate,report]", "seed=0"]
    assert "stages=[sample,evaluate]" in asked("stages=[fit,sample,evaluate]")
    assert [job[0] for job in expand({"seeds": [0], "rows": rows}, ["stages=[fit]"])] == ["a"]
    with pytest.raises(ValueError, match="no row that is trained"):
        expand({"seeds": [0], "rows": {"b": {"sampled_from": "c", "overrides": []}}}, [])


def test_typed_stages_train_no_row_that_is_not_trained_by_itself():
    rows = {"a": ["+experiment=p"], "as_it_is": ["+experiment=q"]}
    stages_of = lambda overrides: ["sample"] if "+experiment=q" in overrides else ["fit", "sample"]
    jobs = expand({"seeds": [0], "rows": rows}, ["stages=[fit,sample,evaluate]"], stages_of)
    assert [job[2][1] for job in jobs] == ["stages=[fit,sample,evaluate]", "stages=[sample,evaluate]"]
    assert expand({"seeds": [0], "rows": rows}, [], stages_of)[1][2] == ["+experiment=q", "seed=0"]


def test_two_rows_that_would_be_one_run_are_refused():
    """What a run's directory does not tell apart: the second row would take the place of the first one's samples."""
    rows = {"a": ["+experiment=x", "sample.frames=[0]"], "b": ["+experiment=x", "sample.frames=[8]"]}
    with pytest.raises(ValueError, match="rows.b and study.rows.a would be one run.*name=b"):
        expand({"seeds": [0, 1], "rows": rows}, [])
    resampled = {"a": rows["a"], "b": {"sampled_from": "a", "overrides": ["sample.weights=raw"]}}
    with pytest.raises(ValueError, match="would be one run"):
        expand({"seeds": [0], "rows": resampled}, [])
    for apart in ("name=b", "sampler.steps=9"):
        assert len(expand({"seeds": [0, 1], "rows": {**rows, "b": [*rows["b"], apart]}}, [])) == 4


def test_under_slurm_the_jobs_of_a_study_are_as_large_as_the_trainer_that_was_typed():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    typed = ["+study=drepa_ablation", "hydra/launcher=slurm", "trainer=hsdp"]
    typed += ["trainer.devices=8", "trainer.num_nodes=4"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", typed, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        try:
            jobs = expand(cfg.study, HydraConfig.get().overrides.task)
            params = launcher(jobs[0][2]).params
        finally:
            HydraConfig.instance().cfg = None
    assert (params["nodes"], params["tasks_per_node"], params["gpus_per_node"]) == (4, 8, 8)


def test_baselines_of_a_shipped_study_are_not_trained_where_the_stages_are_typed():
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from timelapse.study import composed_stages

    typed = ["+study=keyframe_table", "stages=[fit,sample,evaluate]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        HydraConfig.instance().set_config(cfg := compose("config", typed, return_hydra_config=True))
        try:
            jobs = expand({**OmegaConf.to_container(cfg.study), "seeds": [0]}, typed, composed_stages)
        finally:
            HydraConfig.instance().cfg = None
    trained = [row for row, _, overrides in jobs if "stages=[fit,sample,evaluate]" in overrides]
    assert trained == ["ours", "without_rotation"] and len(jobs) == 7


def test_every_row_of_the_shipped_studies_composes_and_findings_name_rows():
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from timelapse.identity import identity
    from timelapse.report.study_table import Finding

    files = sorted((ROOT / "conf/study").glob("*.yaml"))
    jobs = 0
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for path in files:
            study = yaml.safe_load(path.read_text())["study"]
            for finding in map(lambda f: Finding(**f), study["findings"]):
                assert {finding.better, finding.than} <= set(study["rows"]), finding.claim
            methods, folders = set(), set()
            for _, _, overrides in expand({**study, "seeds": [0]}, []):
                cfg = compose("config", overrides)
                methods.add(OmegaConf.to_yaml(cfg))
                folders.add((cfg.name, identity(overrides)))
                jobs += 1
            assert len(methods) == len(folders) == len(study["rows"])  # no two rows are the same method, or one run
    assert len(files) >= 1 and jobs >= 10


def test_a_page_of_any_runs_shows_the_clips_they_share(tmp_path: Path):
    ramp = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 16, 16)
    for method, keys in (("a", ("k1", "k2")), ("b", ("k2", "k3"))):
        samples = tmp_path / method / "seed-0/samples"
        samples.mkdir(parents=True)
        (samples.parent / "config.yaml").write_text(f"name: {method}\nseed: 0\n")
        for key in keys:
            write_video(samples / f"{key}.mp4", ramp)
            write_video(samples / f"{key}.truth.mp4", ramp)
            (samples / f"{key}.json").write_text(json.dumps({"caption": "<b>x</b>", "known": [2], "frames": 5}))
    page = study_page([tmp_path / "a/seed-0", tmp_path / "b/seed-0"], tmp_path / "out").read_text()
    assert page.count("<video") == 3 and page.count("<section") == 1  # truth, a, b of k2
    assert "<b>x</b>" not in page and "&lt;b&gt;x" in page
