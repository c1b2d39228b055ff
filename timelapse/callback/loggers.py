"""What `logger=` chooses: metrics.csv always, and a dashboard beside it."""

from __future__ import annotations

import json
import logging
import netrc
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from timelapse.callback.dashboard import save_dashboard
from timelapse.callback.history import History

log = logging.getLogger("timelapse")


def csv(save_dir: str) -> list[Logger]:
    """`logger=csv`: metrics.csv alone; the report draws its curves from it."""
    return [History(save_dir)]


def wandb(save_dir: str, project: str = "timelapse", entity: str | None = None) -> list[Logger]:
    """`logger=wandb`: the same to W&B, without a key to files that `wandb sync` sends later."""
    return [History(save_dir), Wandb(save_dir, project, entity)]


def tensorboard(save_dir: str) -> list[Logger]:
    """`logger=tensorboard`: `tensorboard --logdir runs`."""
    return [History(save_dir), TensorBoard(save_dir)]


class Wandb(WandbLogger):
    """A run directory is one W&B run, also when it is continued; it never asks for a key.

    WANDB_MODE decides (online, offline, disabled); without it the run is offline unless there is a key in
    WANDB_API_KEY or ~/.netrc.
    """

    def __init__(self, save_dir: str, project: str = "timelapse", entity: str | None = None):
        folder = Path(save_dir)
        offline = not has_key() and "WANDB_MODE" not in os.environ
        identity = folder / "wandb_id"
        config = folder / "config.yaml"
        super().__init__(
            name=f"{folder.parent.name}/{folder.name}",
            group=folder.parent.name,
            save_dir=save_dir,
            project=project,
            entity=entity,
            offline=offline,
            id=identity.read_text() if identity.exists() else secrets.token_hex(4),
            config=OmegaConf.to_container(OmegaConf.load(config)) if config.exists() else None,
        )
        self._keep(identity, project)
        if offline:
            log.info(f"W&B is offline (no key): later, `wandb sync {folder}/wandb/offline-run-*`")

    @rank_zero_only
    def _keep(self, identity: Path, project: str) -> None:
        identity.parent.mkdir(parents=True, exist_ok=True)
        identity.write_text(self._id)
        save_dashboard(identity.parent, project)

    @rank_zero_only
    def publish(self, folder: Path, prefix: str = "") -> None:
        """What is in a folder of the run: samples with captions, metrics into its summary, the report as a file.

        prefix: of their names, for a folder of own pictures: the run's own numbers stay.
        """
        log_samples([self], folder / "samples", key=f"{prefix}samples")
        for name, value in final_numbers(folder).items():
            self.experiment.summary[f"{prefix}metric/{name}"] = value
        for path in (folder / "report.html", Path(self.save_dir) / "dashboard.json"):
            if path.exists():
                self.experiment.save(str(path), base_path=str(self.save_dir), policy="now")


class TensorBoard(TensorBoardLogger):
    """Scalars and samples; events lie in `save_dir`/tensorboard."""

    def __init__(self, save_dir: str):
        super().__init__(save_dir, name="tensorboard", version="")

    @rank_zero_only
    def log_video(self, key: str, videos: list[str], step: int | None = None, caption: Any = None, **_: Any) -> None:
        """Film strips: TensorBoard's own videos are GIFs and need moviepy."""
        from timelapse.report.sheet import contact_sheet_image

        image = contact_sheet_image([Path(v) for v in videos], labels=caption)
        self.experiment.add_image(key, image, step or 0, dataformats="HWC")

    @rank_zero_only
    def publish(self, folder: Path, prefix: str = "") -> None:
        """As `Wandb.publish`, without the page."""
        log_samples([self], folder / "samples", key=f"{prefix}samples")
        for name, value in final_numbers(folder).items():
            self.experiment.add_scalar(f"{prefix}metric/{name}", value)
        self.experiment.flush()


def log_samples(
    loggers: list[Logger], folder: Path, step: int | None = None, most: int = 16, key: str = "samples"
) -> None:
    """The first `most` samples of a samples/ folder, with their captions, to every logger that shows videos."""
    about = sorted(folder.glob("*.json"))[:most]
    found = [(p.with_suffix(".mp4"), json.loads(p.read_text())) for p in about if p.with_suffix(".mp4").exists()]
    if not found:
        return
    captions = [f"{one['caption']} (frame {', '.join(map(str, one['known']))} given)" for _, one in found]
    for logger in loggers:
        if hasattr(logger, "log_video"):
            paths = [str(path) for path, _ in found]
            logger.log_video(key, paths, step=step, caption=captions)


def final_numbers(run_dir: Path) -> dict[str, float]:
    """metrics.json without what is null there, or nothing."""
    path = run_dir / "metrics.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {name: value for name, value in found.items() if value is not None}


def has_key() -> bool:
    """A W&B key in the environment or in .netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
