"""One sweep of jobs of other strategies and numbers of processes, one of which fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small import SMALL  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

STUDY = """
# @package _global_
name: mixed
study:
  seeds: [0]
  common: [trainer.accelerator=cpu, trainer.precision=32-true]
  rows:
    one: [+experiment=finetune_only, trainer=auto]
    ddp_of_two: [+experiment=finetune_only, trainer=ddp, trainer.devices=2, train.warmup=1]
    broken: [+experiment=finetune_only, trainer=fsdp, trainer.devices=2, "loss=[drepa]"]
    fsdp_of_two: [+experiment=finetune_only, trainer=fsdp, trainer.devices=2, train.warmup=2]
    fsdp_of_one: [+experiment=finetune_only, trainer=fsdp, trainer.devices=1, train.warmup=3]
    low_rank: [+experiment=finetune_only, trainer=auto, "model.lora={rank: 2, alpha: 2, targets: [to_q]}"]
  metrics: [subject_consistency]
  findings: []
"""


def sweep(folder: Path) -> str:
    small = [o for o in SMALL if not o.startswith("trainer")]
    command = [sys.executable, "-m", "timelapse.run", "--config-dir", str(folder / "conf"), "+study=mixed", *small]
    command += [f"paths.runs={folder}/runs", f"paths.cache={folder}/cache", "train.steps=2", "sample.count=3"]
    done = subprocess.run(
        [*command, "stages=[fit,sample,evaluate]"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr[-2000:]  # one job failed
    return done.stdout + done.stderr


def test_jobs_of_all_sizes_finish_the_table_says_why_one_did_not_and_only_that_one_runs_again(tmp_path: Path):
    (tmp_path / "conf/study").mkdir(parents=True)
    (tmp_path / "conf/study/mixed.yaml").write_text(STUDY)
    said = sweep(tmp_path)
    assert "6 jobs: 5 ok, 0 skipped, 1 failed" in said and "finetuning needs 'denoise'" in said
    runs = tmp_path / "runs/finetune_only"
    finished = {path.parent: json.loads(path.read_text()) for path in runs.glob("*/finished.json")}
    assert len(finished) == 5
    for run in finished:  # each process made its share of the samples, and one of them measured all
        assert len(list((run / "samples").glob("*.json"))) == 2  # there are two validation clips
        assert json.loads((run / "metrics.json").read_text())["subject_consistency_n"] == 2
    table = next((tmp_path / "runs/mixed").rglob("table.md")).read_text()
    assert "finetuning needs 'denoise'" in table and "fsdp_of_two" in table

    logs = {log: log.stat().st_size for log in runs.glob("*/job.log")}
    assert "6 jobs: 0 ok, 5 skipped, 1 failed" in sweep(tmp_path)
    grown = [log for log, size in logs.items() if log.stat().st_size > size]
    assert len(grown) == 1 and "drepa" in grown[0].parent.name
