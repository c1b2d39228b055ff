"""A run: its config, its directory, and its parts, each built when first asked for."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from timelapse import assets
from timelapse.atomic import write, write_json
from timelapse.build import asked, build, build_all, build_with, check_numbers, class_of
from timelapse.check import check_draws, check_export, check_losses, check_motion, check_ranges, check_taps
from timelapse.finished import MARKER, SHAPED, differs
from timelapse.input import check_input, check_known, leader, listed
from timelapse.metric.evaluate import check_together
from timelapse.model.weights import is_hub
from timelapse.randomness import keyed_seed

log = logging.getLogger("timelapse")
UNTRAINED = "weights before finetuning"  # what samples say that no training came before


class Run:
    """Config and directory of a run; its parts are built when first asked for."""

    def __init__(self, cfg: DictConfig, folder: Path):
        self.cfg, self.folder = cfg, folder
        self.skipped: list[tuple[str, str]] = []  # files that this process left out, and why
        self.weights = ""  # that the network has now: a checkpoint, or none

    def check(self) -> None:
        """What would only fail after minutes of work fails now: ValueError."""
        wanted = self.cfg.trainer.accelerator
        check_ranges(self.cfg)
        if self.cfg.sample.weights not in ("ema", "raw"):
            raise ValueError(f"sample.weights={self.cfg.sample.weights}; type ema (their average) or raw")
        if "fit" in self.cfg.stages and self.cfg.ckpt is not None:
            raise ValueError(
                f"ckpt={self.cfg.ckpt}: the stage fit starts from model.weights, or goes on from the run's own last "
                f"checkpoint; type 'stages=[sample,evaluate,report]' beside ckpt, or leave ckpt out"
            )
        if self.reads_clips and OmegaConf.is_missing(self.cfg.dataset, "root"):
            raise ValueError(
                "dataset.root is not set: type dataset.root=DIR, a folder of your videos or photographs "
                "(timelapse/dataset/README.md), or dataset=synthetic for the painted world"
            )
        if "sample" in self.cfg.stages:
            check_input(self.cfg)
        if "export" in self.cfg.stages:
            check_export(self.cfg)
        if {"cache", "fit", "sample"} & {*self.cfg.stages}:
            sampler, video = build(self.cfg.sampler), self.cfg.video
            parts = {"sampler": sampler}
            check_numbers(self.cfg.module, "module")
            # The module itself is not built yet: its weights are drawn in the stage that needs it. One that asks for a
            # conditioning runs the model on whole clips, of which it tells some frames; others choose their own sizes.
            denoises = asked(self.cfg.module, ["conditioning"])
            if denoises and not hasattr(sampler, "pixels"):  # else a baseline without a network
                for shape in self.cfg.dataset.get("buckets") or [(video.frames, video.height, video.width)]:
                    self.model.latent_shape(*shape)
                if hasattr(sampler, "check"):
                    sampler.check(self.model.process)
                    if "sample" in self.cfg.stages and self.cfg.input.camera is not None:
                        leader(self.cfg).check(self.model.process)
                parts |= {"model": self.model, "conditioning": self.conditioning}
            if denoises:
                check_known(self.cfg, parts)
                if "model" in parts:
                    check_motion(self.cfg, sampler, self.model)
                    if asked(self.cfg.module, ["losses"]):
                        check_losses(self.cfg.get("loss") or {})
                    check_draws(self.cfg, self.model, self.conditioning)
                    if "fit" in self.cfg.stages:
                        check_taps(self.losses, self.model)
        if "fit" in self.cfg.stages:
            from lightning import LightningModule

            from timelapse.module.optimizer import NormClipping, check_kind, check_precision
            from timelapse.plan import devices_of

            sharded, module = not isinstance(self.cfg.trainer.strategy, str), class_of(self.cfg.module)
            check_kind(self.cfg.module.get("optimizer", "adamw"), sharded)
            if issubclass(module, NormClipping):
                check_precision(self.cfg.trainer.precision, self.cfg.trainer.gradient_clip_val)
            partly, strategy = getattr(module, "partly_used", False), self.cfg.trainer.strategy
            replicated = "trainer=ddp" + " trainer.strategy=ddp_find_unused_parameters_true" * partly
            if sharded and module.configure_model is LightningModule.configure_model:
                raise ValueError(
                    f"trainer.strategy: {module.__name__} holds its network whole on every device, nothing of it can "
                    f"be sharded; type {replicated}"
                )
            there = torch.cuda.device_count() if self.device.type == "cuda" else 1
            several = devices_of(self.cfg.trainer, there) > 1
            if partly and (strategy == "ddp" or strategy == "auto" and several):  # which Lightning takes for DDP
                raise ValueError(
                    f"trainer.strategy={strategy}: a stage of {module.__name__} does not train all that it holds, and "
                    f"plain DDP fails at the second step of one; type {replicated}"
                )
            if sharded and self.cfg.module.get("train_text"):
                raise ValueError(
                    "module.train_text=true: the text encoder is trained whole, not sharded; type trainer=ddp, or "
                    "module.train_text=false"
                )
        if "evaluate" in self.cfg.stages or ("fit" in self.cfg.stages and self.cfg.train.sample_every):
            # Built: a feature network whose weights are missing.
            check_together(build_all(self.cfg.get("metric") or {}))
        if "fit" in self.cfg.stages and wanted in ("gpu", "cuda") and not torch.cuda.is_available():
            if wanted == "cuda" or not torch.backends.mps.is_available():
                raise ValueError(f"trainer.accelerator={wanted}: this machine shows no GPU; type trainer=cpu")
        if "fit" in self.cfg.stages and self.memory is not None:
            from timelapse.plan import check_memory

            check_memory(self.cfg, *self.memory)

    def freeze(self) -> None:
        """Write config.yaml; a directory that holds another method's run, or one that began on other shipped weights,
        is refused rather than mixed."""
        path, old = self.folder / "config.yaml", {}
        if path.exists():
            old = OmegaConf.to_container(OmegaConf.load(path))
            new = OmegaConf.to_container(self.cfg)
            changed = [k for k in SHAPED if differs(old.get(k), new.get(k))]
            if changed and "fit" in self.cfg.stages:
                raise ValueError(
                    f"{self.folder} holds a run with another {', '.join(changed)}; "
                    f"delete it, or give this run its own name: name={self.cfg.name}_2"
                )
        self.begin(self.trained)
        if not path.exists() or "fit" in self.cfg.stages:
            self.write_config(self.folder, began=old.get("git_commit") if self.trained else None)

    @property
    def trained(self) -> bool:
        """Whether its training has left a checkpoint to go on from."""
        from timelapse.callback.checkpoint import newest

        return newest(self.folder / "checkpoints") is not None

    def begin(self, trained: bool) -> None:
        """Note which shipped weights the run begins on, unless it is trained already and goes on from there.

        ValueError where they changed since the checkpoint's run began: frozen parts would not be those of its training.
        """
        if not {"fit", "sample", "export", "ship"} & {*self.cfg.stages}:
            return
        now, last = self.shipped(), self.last_checkpoint()
        home = self.folder if last is None else last.absolute().parents[1]
        changed = assets.changed(home, now) if last is not None else []
        if changed:
            raise ValueError(
                f"{home} began on other shipped weights: {', '.join(changed)} changed since; go on with the version of "
                f"this package that its config.yaml names (git_commit), or train anew elsewhere: paths.runs=DIR"
            )
        if not trained:
            if assets.changed(self.folder):
                (self.folder / MARKER).unlink(missing_ok=True)  # what had ended well is made anew
            assets.note(self.folder, now)

    def shipped(self) -> dict[str, str]:
        """Digests of the shipped weights that these stages read, by name; the encoder's only while it is aligned to."""
        parts = [self.cfg.model]
        if "fit" in self.cfg.stages and asked(self.cfg.module, ["losses"]) and self.aligned:
            parts.append(self.cfg.encoder)
        return assets.digests([OmegaConf.to_container(part) for part in parts])

    def write_config(self, folder: Path, began: str | None = None) -> None:
        """config.yaml and, as overrides.yaml, what was typed: Hydra's own note is of the last command typed here.

        began: the commit at which it was first made, where it goes on; None: now.
        """
        made = {**OmegaConf.to_container(self.cfg), "git_commit": began or commit()}
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(made)))  # other processes read it meanwhile
        typed = self.folder / ".hydra" / "overrides.yaml"
        if typed.exists():
            write(folder / "overrides.yaml", typed.read_text())

    @property
    def own(self) -> bool:
        """Whether the user's own pictures are sampled, not validation clips."""
        return self.cfg.input.frames is not None or self.cfg.input.image is not None

    @cached_property
    def out(self) -> Path:
        """Where samples, numbers and page go: the run itself, or for the user's own pictures a folder in it, one for
        each choice of pictures, of what is asked of them and of the network that is asked; it tells by itself how it
        was made. More of the same (`input.count`) lie in the same one.
        """
        if not self.own:
            return self.folder
        given, sampler = OmegaConf.to_container(self.cfg.input), OmegaConf.to_container(self.cfg.sampler)
        pictures = [Path(picture) for picture in listed(given["frames"] or given["image"])]
        stems = re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(picture.stem for picture in pictures))[:100]
        del given["count"]
        network = [None if self.checkpoint is None else str(self.checkpoint.resolve()), self.cfg.sample.weights]
        which = json.dumps([*(str(picture.resolve()) for picture in pictures), given, sampler, self.cfg.seed, *network])
        out = self.folder / "input" / f"{stems}-{blake2b(which.encode(), digest_size=4).hexdigest()}"
        self.write_config(out)
        if not (out / "notes.json").exists():
            write_json(out / "notes.json", {"skipped": [], "notes": self.stand_ins()})
        return out

    @cached_property
    def device(self) -> torch.device:
        wanted = self.cfg.trainer.accelerator
        if wanted != "cpu" and torch.cuda.is_available():
            from timelapse.plan import listed_devices

            local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
            there = torch.cuda.device_count()  # SLURM may show each task one GPU
            which = listed_devices(self.cfg.trainer.devices) or range(there)
            return torch.device("cuda", which[local % len(which)] % there)
        if wanted in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")

    @cached_property
    def memory(self) -> tuple[float, int] | None:
        """GiB of each GPU and how many train together; None without one."""
        if self.device.type != "cuda":
            return None
        from timelapse.plan import devices_of

        gib = torch.cuda.get_device_properties(self.device).total_memory / 2**30
        return gib, devices_of(self.cfg.trainer, torch.cuda.device_count())

    @cached_property
    def model(self) -> Any:
        torch.manual_seed(keyed_seed(self.cfg.seed, "model") % 2**63)
        return build(self.cfg.model)

    @cached_property
    def losses(self) -> dict[str, Any]:
        torch.manual_seed(keyed_seed(self.cfg.seed, "losses") % 2**63)  # projectors start alike in every variant
        return build_all(self.cfg.loss)

    @property
    def aligned(self) -> bool:
        """Whether a loss reads hidden tokens, to hold them against the encoder's features."""
        return any(loss.taps for loss in self.losses.values())

    @property
    def reads_clips(self) -> bool:
        """Whether a stage reads the dataset: samples of own pictures, an export or a report do without."""
        return bool(({"cache", "fit"} if self.own else {"cache", "fit", "sample"}) & {*self.cfg.stages})

    @cached_property
    def encoder(self) -> Any:
        """Only where features are made: finetuning alone, and using a trained model, load no vision model."""
        made = "fit" in self.cfg.stages or (self.cfg.cache.enabled and self.reads_clips)
        return build(self.cfg.encoder) if made and self.aligned else None

    @cached_property
    def module(self) -> Any:
        """The LightningModule, handed the parts that its constructor names."""
        return build_with(self.cfg.module, self, ("model", "conditioning", "losses", "encoder", "noise_law"))

    @cached_property
    def noise_law(self) -> Any:
        return build(self.cfg.noise)

    @cached_property
    def conditioning(self) -> Any:
        return build(self.cfg.conditioning)

    def dataset(self, split: str) -> Any:
        size = {"size": self.cfg.train.validation_clips} if split == "val" and "size" in self.cfg.dataset else {}
        return build(self.cfg.dataset, split=split, **size)

    @cached_property
    def train_clips(self) -> Any:
        return self.with_cache(self.dataset("train"), "train")

    @cached_property
    def validation_clips(self) -> Any:
        return self.with_cache(self.dataset("val"), "val")

    @cached_property
    def network(self) -> bool:
        """Whether a stage needs one: baselines between pictures (crossfade, flow) sample without."""
        return bool({"cache", "fit"} & {*self.cfg.stages}) or not hasattr(build(self.cfg.sampler), "pixels")

    def with_cache(self, dataset: Any, split: str) -> Any:
        if not asked(self.cfg.module, ["losses"]):
            return dataset
        self.note(split, dataset)
        if not self.cfg.cache.enabled or not self.network:
            return dataset
        from timelapse.cache import Store, cached, empty_caption

        places = ("root", "index", "check") if hasattr(dataset, "fingerprint") else ()  # files speak for themselves
        made_by = {k: v for k, v in OmegaConf.to_container(self.cfg.dataset).items() if k not in places}
        spec = {"dataset": made_by, "split": split}
        pixels = split == "val" or getattr(self.conditioning, "reads_pixels", True)  # samples are held against them
        root = self.cfg.paths.cache  # a folder, or what fsspec opens
        store = self.cfg.cache.pixels and split == "train"
        captions = not getattr(self.module, "train_text", False)
        options = {"pixels": pixels, "store_pixels": store, "captions": captions, "workers": self.cfg.train.workers}
        options["shape"] = (self.cfg.video.frames, self.cfg.video.height, self.cfg.video.width)
        clips = cached(dataset, root, spec, self.model, self.encoder, self.device, **options)
        if captions and (empty := empty_caption(Store(clips.folder))) is not None:
            self.module.constants[""] = empty
        return clips

    def note(self, split: str, dataset: Any) -> None:
        """notes.json for the report: what stands in for what, the footage, and files left out, with the reason."""
        path = self.folder / "notes.json"
        new = {(str(file), reason): None for file, reason in getattr(dataset, "skipped", [])}
        new = [pair for pair in new if pair not in self.skipped]
        for file, reason in new[:10]:
            log.warning(f"skipped {file}: {reason}")
        if len(new) > 10:
            log.warning(f"skipped {len(new) - 10} more; all are in {path}")
        self.skipped += new
        said = json.loads(path.read_text()) if path.exists() else {}
        footage = said.get("footage", {}) | ({split: dataset.summary()} if hasattr(dataset, "summary") else {})
        said |= {"skipped": self.skipped, "notes": self.stand_ins()} | ({"footage": footage} if footage else {})
        if split == "train" and "fit" in self.cfg.stages and hasattr(dataset, "keys"):
            now = blake2b(json.dumps(dataset.keys).encode(), digest_size=8).hexdigest()
            if self.trained and said.get("trained_on", now) != now:  # clips it has seen may be held out now
                raise ValueError(
                    f"{self.folder} was trained on other clips than there are now: files came or went; put them back, "
                    f"or give this run its own name: name={self.cfg.name}_2"
                )
            said["trained_on"] = now
        write_json(path, said)

    def remark(self, said: list[str]) -> None:
        """More notes for the page of own pictures."""
        write_json(self.out / "notes.json", {"skipped": [], "notes": [*self.stand_ins(), *said]})

    @property
    def sources(self) -> dict[str, str | None]:
        """Part of the model -> where its weights come from; "" for all of them."""
        weights = self.cfg.model.get("weights")
        return dict(weights) if isinstance(weights, DictConfig) else {"": weights}

    @property
    def random_parts(self) -> list[str]:
        """Those that start from random weights."""
        return [part for part, source in self.sources.items() if source is None]

    def stand_ins(self) -> list[str]:
        """What stands in for what, a sentence each; of metrics' networks the evaluation says it."""
        notes, model, encoder = [], self.cfg.model, self.cfg.encoder
        if self.network and "weights" in model:
            if self.random_parts:
                which = f" in {', '.join(self.random_parts)}" if any(self.random_parts) else ""
                notes.append(f"{class_of(model).__name__} starts from random weights{which}.")
            elif model.get("stands_for") and not any(map(is_hub, self.sources.values())):
                notes.append(f"{model.name} stands in for {model.stands_for}.")
        if encoder.get("stands_for") and asked(self.cfg.module, ["losses"]) and self.aligned:
            notes.append(f"{encoder.name} stands in for {encoder.stands_for}.")
        return notes

    @cached_property
    def loggers(self) -> list[Any]:
        return build(self.cfg.logger, save_dir=str(self.folder))

    @cached_property
    def checkpoint(self) -> Path | None:
        """The checkpoint to sample, measure or export."""
        return self.last_checkpoint()

    def last_checkpoint(self) -> Path | None:
        """cfg.ckpt (never beside the stage fit), else the run's newest of now: a fit makes more."""
        from timelapse.callback.checkpoint import newest
        from timelapse.checkpoint import is_sharded

        if self.cfg.ckpt is not None:
            path = Path(self.cfg.ckpt)
            path = path if path.is_file() or is_sharded(path) else newest(path / "checkpoints")
            if path is None:
                raise FileNotFoundError(
                    f"ckpt={self.cfg.ckpt}: no such checkpoint; give a .ckpt (file or folder) or a run directory"
                )
            return path
        return newest(self.folder / "checkpoints")


def commit() -> str:
    """Git commit of the code, with '+' when files were changed since; 'unknown' outside of a checkout."""
    if shutil.which("git") is None:
        return "unknown"
    here = Path(__file__).parent
    git = lambda *a: subprocess.run(["git", "-C", str(here), *a], capture_output=True, text=True).stdout.strip()
    if git("rev-parse", "--show-prefix") != f"{here.name}/":  # installed below somebody else's repository
        return "unknown"
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "-uno") else "")
