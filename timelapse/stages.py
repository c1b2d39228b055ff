"""The stages of a run: cache, fit, sample, evaluate, report; plan, export, ship. Each works on the run directory."""

from __future__ import annotations

import logging
import shlex
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.distributed.tensor import DTensor

from timelapse.atomic import alone
from timelapse.build import build, build_all, frozen
from timelapse.cache import rank
from timelapse.finished import SAMPLED, mark_finished
from timelapse.input import listed
from timelapse.parts import UNTRAINED, Run
from timelapse.randomness import keyed_seed

log = logging.getLogger("timelapse")
FOR_TRAINING = ("losses.", "judge.")  # what a loss or an adversary owns, of which the trained network needs nothing


def run_stages(cfg: DictConfig) -> float | None:
    """Go through `cfg.stages` in order; returns the evaluation's first number for a sweep that optimises, else None."""
    quiet()
    if isinstance(cfg.stages, str):
        raise ValueError(f"stages={cfg.stages} is no list; type 'stages=[{cfg.stages}]'")
    unknown = [s for s in cfg.stages if s not in STAGES]
    if unknown or not cfg.stages:
        raise ValueError(f"stages={list(cfg.stages)}: unknown {unknown}; choose from {', '.join(STAGES)}")
    run = Run(frozen(cfg), Path(HydraConfig.get().runtime.output_dir))
    run.check()
    run.freeze()
    result = None
    for stage in cfg.stages:
        started = time.perf_counter()
        log.info(f"{stage}: {run.out if stage in ('sample', 'evaluate', 'report') else run.folder}")
        result = STAGES[stage](run)
        log.info(f"{stage}: {time.perf_counter() - started:.0f} s")
    done = [stage for stage in cfg.stages if not (run.own and stage in SAMPLED)]  # own pictures are not the run's
    if rank() == 0 and done:
        mark_finished(run.folder, done, HydraConfig.get().overrides.task)
    return result


def quiet() -> None:
    """Only what a user can act on: Lightning's notes on hardware, tips and its own deprecations go."""
    import lightning  # noqa: F401  (its import sets its loggers' levels)

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for known in (
        "Checkpoint directory .* exists and is not empty",  # that is how a run goes on
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "The '\\w+' does not have many workers",
        "You have overridden `on_before_batch_transfer`",
        "You are resuming from a checkpoint that ended before the epoch ended",  # the stream keeps its own place
    ):
        warnings.filterwarnings("ignore", message=f".*{known}")


def cache(run: Run) -> None:
    """Only fill the cache (on the machine that has the codec's GPU, say)."""
    log.info(f"{len(run.train_clips)} training and {len(run.validation_clips)} validation clips cached")


def fit(run: Run) -> None:
    """Train to cfg.train.steps, going on from the run's last checkpoint if there is one."""
    from timelapse.callback.checkpoint import Checkpoints, Preempted, newest
    from timelapse.callback.memory import PeakMemory
    from timelapse.callback.progress import StepProgress, StepRate
    from timelapse.checkpoint import OneFile
    from timelapse.dataset.module import Clips
    from timelapse.plan import too_large, uncounted
    from timelapse.sampling import meet
    from timelapse.sharding import Fsdp2

    cfg = run.cfg
    torch.manual_seed(keyed_seed(cfg.seed, "fit") % 2**63)
    folder = run.folder / "checkpoints"
    callbacks = [
        Checkpoints(folder, cfg.train.checkpoint_every, cfg.train.validate_every, cfg.train.keep),
        PeakMemory(),
        StepProgress(),
        StepRate("step"),
    ]
    pinned = run.device.type == "cuda"
    data = Clips(run.train_clips, run.validation_clips, cfg.train.batch_size, cfg.seed, cfg.train.workers, pinned)
    sampler = build(cfg.sampler)
    if cfg.train.sample_every and not hasattr(sampler, "pixels"):  # else a baseline that would show nothing of it
        from timelapse.callback.samples import Samples

        callbacks.append(
            Samples(
                run.folder / "training_samples",
                cfg.train.sample_every,
                run.validation_clips,
                cfg.sample.batch_size,
                listed(cfg.sample.frames)[0],
                sampler,
                build_all(cfg.get("metric") or {}),
            )
        )
    trainer = build(
        cfg.trainer,
        callbacks=callbacks,
        logger=run.loggers,
        default_root_dir=str(run.folder),
        use_distributed_sampler=False,  # the stream deals clips to processes itself
        check_val_every_n_epoch=None,
        val_check_interval=cfg.train.validate_every * cfg.train.accumulate,
        num_sanity_val_steps=0,
    )
    if not isinstance(trainer.strategy, Fsdp2):
        trainer.strategy.checkpoint_io = OneFile()
    last = newest(folder)
    if last:
        log.info(f"going on from {last}")
    busy = f"{run.folder} is being trained by another process; wait for it, or stop it"  # a killed sweep's job, say
    try:
        with alone(run.folder / ".training", busy) if rank() == 0 else nullcontext():
            trainer.fit(run.module, data, ckpt_path=last, weights_only=True)
    except Preempted as stopped:
        log.info(f"{stopped}; the same command goes on from there")
        raise SystemExit(143 if rank() == 0 else 0) from None  # a child that fails would have its parent killed
    except torch.OutOfMemoryError as error:
        if run.memory is None or uncounted(cfg):
            raise
        raise ValueError(f"{too_large(cfg, *run.memory)} ({error})") from error
    meet()  # from here on all processes find the same last checkpoint


def sample(run: Run) -> None:
    """Write samples/<key>.mp4 (to look at), .mkv (exact), .json beside the truth where it is known."""
    from timelapse.inbetween import sample_between
    from timelapse.sampling import process, sample_clips, sample_input

    make = sample_clips
    if run.own:
        make = sample_between if run.cfg.input.frames is not None else sample_input
    else:
        _ = run.validation_clips  # each process encodes its share, also where process 0 samples alone
    rank, world = process()
    if rank >= world:
        return
    if run.network:
        restore(run)
    make(run)
    if rank == 0:
        run.write_config(run.out / "samples")  # of this command; the run's own is of its training


def evaluate(run: Run) -> float | None:
    """metrics.json from samples/*.mkv."""
    from timelapse.evaluation import evaluate_run

    return evaluate_run(run) if rank() == 0 else None


def report(run: Run) -> None:
    """report.html; with a dashboard as logger, samples and final numbers there too."""
    from timelapse.report import write_report

    if rank() != 0:
        return
    log.info(f"report: {write_report(run.out)}")
    for logger in run.loggers:
        if hasattr(logger, "publish"):
            logger.publish(run.out, "" if run.out == run.folder else f"input/{run.out.name}/")


def plan(run: Run) -> None:
    from timelapse.plan import print_plan

    print_plan(run.cfg)


def export(run: Run) -> None:
    """What plain diffusers opens, from the averaged weights: a folder, or LoRA weights unless `export.merge`."""
    if rank() != 0:
        return
    run = Run(run.cfg, run.folder)  # whole in this process, from the checkpoint: what was fitted may be sharded
    trained(run, torch.device("cpu"))
    folder = run.folder / "export"
    merge = {"merge": True} if run.cfg.export.merge else {}  # only models with a LoRA know the word
    with run.module.averaged():
        run.model.export(folder, **merge)
    dtype = run.cfg.model.get("frozen_dtype", "float32")
    mixed = dtype != "float32" and (folder / "model_index.json").exists()
    log.info(f"exported: {folder}" + (f"; open with from_pretrained(..., torch_dtype=torch.{dtype})" if mixed else ""))


def ship(run: Run) -> None:
    """Write the weights of a pretrain recipe to timelapse/assets, with their numbers and how they were made."""
    if rank() != 0:
        return
    run = Run(run.cfg, run.folder)  # whole in this process, as for an export
    trained(run, torch.device("cpu"))
    from timelapse import assets
    from timelapse.callback.history import read_rows

    sources = run.cfg.model.get("weights")
    names = sources.values() if isinstance(sources, DictConfig) else []
    before = {name: assets.history(name) for name in names}
    # A run may ship over the weights that it began on. Its checkpoint holds the same ones: it goes on beside them, also
    # when it is killed here, so the note tells of them afterwards only.
    home = run.checkpoint.absolute().parents[1]
    began = assets.noted(home) if (home / assets.RECORD).exists() else None
    if began is not None:
        assets.note(home, {name: digest for name, digest in began.items() if name not in before})
    local = ("paths.", "stages=", "trainer", "logger")
    typed = [o for o in HydraConfig.get().overrides.task if not o.startswith(local)]
    files = run.module.ship(recipe=shlex.join(["python", "-m", "timelapse.run", *typed]))
    files = files if isinstance(files, list) else [files]
    if began is not None:
        assets.note(home, began | assets.digests([*before]))
    rows = read_rows(home / "metrics.csv")
    held_out = {k: round(float(v), 4) for row in rows for k, v in row.items() if k.startswith("val/")}
    for file in files:
        steps = {"steps": int(rows[-1]["step"]) + 1 if rows else 0}
        assets.add_numbers(file, held_out | steps, before.get(file.stem))
        log.info(f"shipped: {file}")


STAGES = {f.__name__: f for f in (cache, fit, sample, evaluate, report, plan, export, ship)}


def trained(run: Run, device: torch.device | None = None) -> None:
    """`restore`, refusing weights that were never trained."""
    if run.checkpoint is None and "fit" not in run.cfg.stages:
        raise ValueError(f"{run.folder} has no checkpoint; add ckpt=RUN_DIR, or the stage fit before this one")
    restore(run, device)


def check_base(run: Run) -> None:
    """ValueError where a checkpoint of matrices that stand in a frozen UNet's place is of another UNet. A hub id and a
    folder may be one: only two ids, or two of the weights that ship, are told apart."""
    model = run.cfg.model
    path = Path(run.checkpoint).absolute().parents[1] / "config.yaml"
    if not model.get("reverse") or not path.is_file():
        return
    trained = OmegaConf.load(path).get("model") or {}
    source = lambda weights: weights.get("unet") if hasattr(weights, "get") else weights
    then, now = source(trained.get("weights")), source(model.weights)
    if then != now and not any(Path(str(place)).is_absolute() or Path(str(place)).exists() for place in (then, now)):
        raise ValueError(
            f"{run.checkpoint} was trained on model.weights={then}, and this is {now}: its matrices belong to that "
            f"network. Export it ('stages=[export]' with the command that trained it) and type "
            f"model.reverse.delta={path.parent} in the place of ckpt"
        )
    if model.reverse.get("delta") and model.reverse.delta != (trained.get("reverse") or {}).get("delta"):
        raise ValueError("ckpt= and model.reverse.delta= both name a backward motion; leave one of them out")


def restore(run: Run, device: torch.device | None = None) -> None:
    """Weights of the checkpoint into the module, outside of a trainer (after a fit they are there already).

    device: where to, the run's by default. What was sharded stays where its shards live.
    """
    from timelapse.callback.checkpoint import newest
    from timelapse.checkpoint import read

    module = run.module
    fitted = module.backbone is not None and "fit" in run.cfg.stages
    if run.checkpoint is None:
        delta = (run.cfg.model.get("reverse") or {}).get("delta")
        run.weights = f"model.reverse.delta={delta} on model.weights" if delta else UNTRAINED
        beside = [path.parent for path in sorted(run.folder.parent.glob("*/checkpoints")) if newest(path)]
        hint = f"; trained runs beside it: {', '.join(f'ckpt={path}' for path in beside[:3])}" if beside else ""
        log.warning(f"{run.folder} has no checkpoint and ckpt= is not set: using {run.weights}{hint}")
    else:
        run.weights = str(run.checkpoint)
    if not fitted and run.checkpoint is not None:
        check_base(run)
    state = {} if fitted or run.checkpoint is None else read(run.checkpoint, optimizer=False)["state_dict"]
    averaged = any(key.startswith("ema.") for key in state) if state else None
    if not fitted and hasattr(module, "materialise"):  # others hold their network from the start
        module.materialise(averaged=averaged)  # a checkpoint is sampled with the average it has, or with none
    if state:
        missing, unknown = module.load_state_dict(state, strict=False)
        unknown = [key for key in unknown if not key.startswith(FOR_TRAINING)]
        trained = {name for name, p in module.named_parameters() if p.requires_grad or name.startswith("ema.")}
        missing = [key for key in missing if key in trained and not key.startswith(FOR_TRAINING)]
        if unknown or missing:
            said = f"unknown {unknown[:3]}" if unknown else f"without {missing[:3]}, which this run trains"
            raise ValueError(
                f"{run.checkpoint} does not fit model={run.cfg.model._target_}: {said}; "
                f"use the experiment and scale it was trained with"
            )
    device = device or run.device
    if not any(isinstance(p, DTensor) for p in module.parameters()):
        module.to(device)  # Lightning moves it to the CPU after a fit
    run.model.codec.to(device)
