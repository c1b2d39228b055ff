"""Twenty steps of every experiment that trains, in float32 on one thread: a refactor leaves their losses as they are, a
change of mathematics writes them anew and says why. With AVX2 or no vector instructions in the place of AVX-512 they
differed by less than 8e-7 of themselves.

    python tests/test_golden.py [EXPERIMENT...]      writes tests/golden/losses.yaml
"""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent))
from small import small_run  # noqa: E402

from timelapse.callback.history import read_rows  # noqa: E402
from timelapse.run import CONF  # noqa: E402
from timelapse.stages import fit  # noqa: E402

FILE = Path(__file__).parent / "golden" / "losses.yaml"
STEPS = 20
TRAINED = sorted(
    path.stem
    for path in (CONF / "experiment").glob("*.yaml")
    if "fit" in OmegaConf.load(path).get("stages", ["fit"]) and path.stem != "consisti2v_published"  # at one size only
)


def losses(experiment: str, folder: Path) -> list[float]:
    """train/loss of each step: small networks, random weights, one clip a step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        short = [f"train.steps={STEPS}", "train.batch_size=1", "train.warmup=0", "train.learning_rate=1e-3"]
        fit(small_run(folder, *short, "train.validate_every=99", "train.checkpoint_every=99", experiment=experiment))
    finally:
        torch.set_num_threads(threads)
    return [float(row["train/loss"]) for row in read_rows(folder / "metrics.csv") if "train/loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", TRAINED)
def test_losses_are_what_they_were(tmp_path, experiment):
    golden = yaml.safe_load(FILE.read_text())[experiment]
    assert losses(experiment, tmp_path) == pytest.approx(golden, rel=1e-5)


def test_every_experiment_that_trains_has_its_losses():
    golden = yaml.safe_load(FILE.read_text())
    assert sorted(golden) == TRAINED and all(len(row) == STEPS for row in golden.values())


if __name__ == "__main__":
    made = yaml.safe_load(FILE.read_text()) if FILE.exists() else {}
    for name in sys.argv[1:] or TRAINED:
        with tempfile.TemporaryDirectory() as place:
            made[name] = [float(f"{loss:.7g}") for loss in losses(name, Path(place))]
        print(name, made[name][0], made[name][-1], flush=True)
        FILE.write_text(yaml.safe_dump({name: made[name] for name in sorted(made)}, default_flow_style=None, width=118))
