"""What `--help` prints. Hydra's own list copies its whole store once a group, seconds in all."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
CONF = HERE / "conf" if (HERE / "conf").exists() else HERE.parent / "conf"  # a wheel, else a checkout

TEXT = """timelapse - image-to-timelapse video diffusion, one experiment a file.

== Groups (group=option; experiment, study and sweep are added: +experiment=...) ==
{groups}

Try:
  python -m timelapse.run +experiment=drepa_vjepa
  python -m timelapse.run +experiment=drepa_vjepa scale=paper trainer=fsdp dataset.root=DIR
  python -m timelapse.run -m +experiment=drepa_vjepa,finetune_only seed=0,1,2
  python -m timelapse.run +study=drepa_ablation
  python -m timelapse.run +experiment=drepa_vjepa 'stages=[sample]' ckpt=PATH input.image=photo.jpg input.frame=8
Stages: cache fit sample evaluate report plan export ship.
--cfg job prints the composed config, --hydra-help what Hydra understands."""


def help_text(conf: Path) -> str:
    """Groups and their options are the folders of `conf` and the files in them."""
    folders = sorted(path for path in conf.iterdir() if path.is_dir() and path.name != "hydra")
    options = lambda folder: ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    return TEXT.format(groups="\n".join(f"{folder.name}: {options(folder)}" for folder in folders))
