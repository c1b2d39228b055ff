"""Processes that Lightning starts beside the first end with it."""

import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import os, sys, time
from pathlib import Path
import lightning as L, torch
from timelapse.callback.checkpoint import Checkpoints
from timelapse.checkpoint import OneFile

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, index):
        if int(os.environ["LOCAL_RANK"]):
            Path("child").write_text(str(os.getpid()))
            time.sleep(600)  # a collective that the first never comes to
        while not (Path("child").exists() and Path("child").read_text()):
            time.sleep(0.05)
        raise ValueError("loss is nan")
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False, plugins=[OneFile()],
                    enable_progress_bar=False, callbacks=[Checkpoints(Path("checkpoints"), 1, 1)])
trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=1))
"""


def test_when_the_first_process_fails_those_it_started_do_not_wait_for_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE")}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "ValueError: loss is nan" in done.stderr, done.stderr[-2000:]
    state = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")
