"""Every config file composes; what a run is called; what starting up costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from timelapse.build import build, build_all, frozen
from timelapse.identity import identity
from timelapse.parts import differs
from timelapse.run import CONF

EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def resolved(*overrides: str) -> dict:
    cfg = composed(*overrides)
    return OmegaConf.to_container(cfg, resolve=True)


def test_there_are_as_many_experiments_as_the_paper_needs():
    paper = {"drepa_vjepa", "drepa_dinov3", "drepa_videomae", "finetune_only", "repa", "trd", "crepa"}
    assert paper <= set(EXPERIMENTS)


@pytest.mark.parametrize("scale", ["tiny", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_at_its_scales(experiment, scale):
    if experiment.startswith("pretrain_") and scale == "paper":
        pytest.skip("pretraining makes the tiny weights; the paper's are published")
    cfg = resolved(f"+experiment={experiment}", f"scale={scale}")
    assert cfg["name"] == experiment and cfg["about"]
    assert cfg["model"]["_target_"].startswith("timelapse.")


def test_the_published_weights_are_run_as_the_public_code_runs_them():
    cfg = resolved("+experiment=consisti2v_published")
    paper = resolved("+experiment=consisti2v_published", "scale=paper")
    assert cfg == paper  # there is no smaller one: 17 frames of 64x64 are the tiny model's
    assert cfg["video"] == {"frames": 16, "height": 256, "width": 256}
    assert (cfg["sampler"]["steps"], cfg["sampler"]["guidance"]) == (50, 7.5)
    assert (cfg["noise"]["alpha"], cfg["conditioning"]["dropout"], cfg["sampler"]["null_frame"]) == (1.0, 0.1, "start")
    assert resolved("+experiment=consisti2v_published", "scale=tiny")["video"] == cfg["video"]


@pytest.mark.parametrize(
    "experiment, made",
    {
        "pretrain_vae": {"vae"},
        "pretrain_picture_vae": {"vae"},
        "pretrain_svd": {"unet", "vision"},
        "pretrain_consisti2v": {"unet", "text"},
        "pretrain_cogvideox": {"transformer", "text"},
    }.items(),
)
def test_a_recipe_loads_nothing_that_it_makes(experiment, made):
    """Else "from scratch" would go on from what ships."""
    weights = resolved(f"+experiment={experiment}")["model"]["weights"]
    assert weights is None or all(weights[part] is None for part in made)


@pytest.mark.parametrize(
    "group", ["conditioning", "dataset", "encoder", "logger", "loss", "metric", "model", "noise", "sampler", "trainer"]
)
def test_every_part_file_names_its_class(group):
    names = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    assert names
    many = group in ("loss", "metric")
    for chosen in [f"[{','.join(names)}]"] if many else names:
        root = "dataset.root=." if (group, chosen) == ("dataset", "clips") else "seed=0"
        node = resolved(f"{group}={chosen}", root)[group]
        for part in node.values() if many else [node]:
            assert part["_target_"].split(".")[0] in ("timelapse", "lightning"), chosen


def test_a_list_of_losses_is_a_sweepable_choice():
    assert list(resolved("loss=[denoise,drepa]")["loss"]) == ["denoise", "drepa"]
    assert list(resolved("+experiment=drepa_vjepa", "loss=[denoise]")["loss"]) == ["denoise"]


def test_identity_keeps_what_changes_the_result_and_nothing_else():
    base = ["+experiment=drepa_vjepa", "seed=1", "loss=[denoise,drepa]"]
    neutral = ["trainer=ddp", "trainer.devices=8", "logger=wandb", "stages=[fit]", "paths.runs=/tmp", "train.workers=4"]
    neutral += ["paths.cache=elsewhere", "train.keep=5", "export.merge=true"]
    assert identity(base) == identity(base + neutral) == identity(base[::-1])
    assert identity(base) != identity([*base, "train.steps=5"])
    assert identity(["seed=0"]) != identity(["seed=1"])
    assert identity(["cache.pixels=false"]) != identity([]) != identity(["cache.enabled=false"])  # halves, 8 bits
    assert "=" not in identity(["dataset.root=/a/b=c"]) and "/" not in identity(["dataset.root=/a/b"])
    long = [f"loss.drepa.weight{i}=0.{i}" for i in range(40)]
    assert len(identity(long)) <= 120 and identity(long) != identity([*long, "seed=2"])
    assert identity([]) == "base"
    one, other = (identity([f"dataset.root=/data/{name}"]) for name in ("видео", "цветы"))
    assert one != other and one.isascii() and identity(["input.image=/data/видео.jpg"]) == "base"


def test_a_number_for_a_part_that_is_off_is_an_error_and_not_silence():
    cfg = composed("+loss.drepa.weight=0.1")
    with pytest.raises(ValueError, match=r"loss\.drepa: no _target_.*loss=\[denoise,drepa\]"):
        build_all(cfg.loss)


def test_a_part_says_what_was_wrong_in_its_own_words():
    with pytest.raises(ValueError, match="sampler.steps is 0"):
        build(composed("sampler.steps=0").sampler)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["dataset=clips", "dataset.root=.", "dataset.val_share=abc"], "dataset.val_share=abc; type a number"),
        (["model.process.time_shift=high"], "model.process.time_shift=high; type a number"),
        (["model.gradient_checkpointing=maybe"], "model.gradient_checkpointing=maybe; type true or false"),
    ],
)
def test_text_for_a_number_is_said_before_anything_is_built(typed, said):
    cfg = composed(*typed)
    with pytest.raises(ValueError, match=said):
        build(cfg[said.split(".")[0]])


def test_frozen_configs_cannot_change():
    with pytest.raises(Exception, match="read-only"):
        frozen(composed()).seed = 3


def test_a_typo_in_a_group_names_the_options():
    with pytest.raises(Exception, match="drepa_vjepa"):
        composed("+experiment=drepa_vjpea")
    with pytest.raises(ConfigCompositionException, match="sede"):
        composed("sede=1")


@pytest.mark.parametrize("arguments", [["--help"], ["+experiment=drepa_vjepa", "--cfg", "job"]])
def test_help_and_cfg_import_neither_torch_nor_lightning(arguments):
    code = (
        "import sys, atexit\n"
        f"sys.argv = ['timelapse', *{arguments!r}]\n"
        "heavy = lambda: [m for m in ('torch', 'lightning', 'diffusers', 'transformers') if m in sys.modules]\n"
        "atexit.register(lambda: print('HEAVY', heavy()))\n"
        "from timelapse.run import main\n"
        "main()\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(CONF).parent)
    assert "HEAVY []" in out.stdout, out.stdout[-300:] + out.stderr[-300:]
    assert "drepa_vjepa" in out.stdout


@pytest.mark.parametrize(
    ("scale", "typed", "offline"), [("tiny", None, True), ("tiny", "0", False), ("paper", None, False)]
)
def test_a_tiny_run_asks_no_hub_unless_the_user_says_so(tmp_path, scale, typed, offline):
    """huggingface_hub reads the variable once, when something imports it; here the stages are the first."""
    code = (
        "import sys, types\n"
        "def run_stages(cfg):\n"
        "    from huggingface_hub.constants import HF_HUB_OFFLINE\n"
        "    print('OFFLINE', HF_HUB_OFFLINE)\n"
        "sys.modules['timelapse.stages'] = types.SimpleNamespace(run_stages=run_stages)\n"
        f"sys.argv = ['timelapse', 'scale={scale}', 'hydra.run.dir={tmp_path}']\n"
        "from timelapse.run import main\n"
        "main()\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    env |= {} if typed is None else {"HF_HUB_OFFLINE": typed}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONF.parent, env=env)
    assert f"OFFLINE {offline}" in out.stdout, out.stdout[-300:] + out.stderr[-300:]


def test_a_run_goes_on_when_a_part_has_learned_a_new_number_but_not_with_another_method():
    part = {"_target_": "a.B", "x": 1}
    assert not differs({"p": part}, {"p": {**part, "new": 0}}) and differs(part, {**part, "x": 2})
    assert differs({"denoise": part}, {"denoise": part, "drepa": part}) and differs(part, {**part, "_target_": "a.C"})


def test_a_number_that_a_class_had_not_then_had_its_default():
    part = {"_target_": "timelapse.dataset.synthetic.Synthetic", "size": 8}
    assert not differs(part, {**part, "colours": 0.0}) and differs(part, {**part, "colours": 0.8})
    part = {"_target_": "timelapse.module.reconstruction.Reconstruction", "warmup": 4}
    assert not differs(part, {**part, "betas": [0.9, 0.99]}) and differs(part, {**part, "betas": [0.9, 0.95]})
    assert not differs({"m": part}, {"m": {**part, "stages": []}})  # it has no default


def test_captions_tell_colours_to_networks_that_learned_them():
    colours = lambda *typed: resolved(*typed)["dataset"]["colours"]
    assert colours("+experiment=drepa_vjepa") == colours("+experiment=pretrain_cogvideox") == 0.8
    assert colours("+experiment=consisti2v") == colours("+experiment=pretrain_consisti2v") == 0.0
    assert colours("+experiment=svd_backward") == 0.0


def test_the_world_is_narrower_for_the_small_cogvideox_alone():
    ranges = lambda name, *typed: resolved(f"+experiment={name}", *typed)["dataset"].get("ranges")
    anyframe = {"drepa_vjepa", "drepa_dinov3", "drepa_videomae", "finetune_only", "repa", "trd", "crepa"}
    for name in EXPERIMENTS:
        narrow = name in anyframe | {"pretrain_cogvideox"}
        assert bool(ranges(name)) == narrow and (not narrow or ranges(name)["flower"]["petals"] == [5]), name
    assert not ranges("drepa_vjepa", "synthetic.ranges=null")
    paper = resolved("+experiment=drepa_vjepa", "scale=paper", "dataset.root=d")
    assert not paper["synthetic"]["ranges"] and paper["train"]["learning_rate"] == 1e-4


def test_a_slurm_job_is_as_large_as_its_trainer():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["hydra/launcher=slurm", "trainer=hsdp", "trainer.devices=8", "trainer.num_nodes=4"]
        launcher = compose("config", overrides, return_hydra_config=True).hydra.launcher
        assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (4, 8, 8)


def test_the_search_recipe_composes():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["+experiment=drepa_vjepa", "+sweep=optuna"], return_hydra_config=True)
    assert len(cfg.objective) == len(cfg.hydra.sweeper.direction) == 2
    assert cfg.hydra.sweeper.max_failure_rate == 1.0  # the sweeper counts batch by batch, and a batch is one trial
    for key in cfg.hydra.sweeper.params:
        assert OmegaConf.select(cfg, key) is not None, key
    assert identity(["+sweep=optuna", "objective=val/denoise", "seed=1"]) == identity(["seed=1"])


@pytest.mark.parametrize("sampler", ["dual_directional", "time_reversal", "image_to_video", "image_to_video_frameinit"])
def test_svds_samplers_read_the_recipes_guidance_and_take_one_scale_for_all_frames(sampler):
    typed = ["+experiment=svd_backward", f"sampler={sampler}"]
    assert build(composed(*typed).sampler).guidance == (1.0, 3.0)  # the recipe's
    assert build(composed(*typed, "sampling.guidance=2").sampler).guidance == (1.0, 2)
    assert build(composed(*typed, "sampler.guidance=2.5").sampler).guidance == (2.5, 2.5)


def test_previews_at_paper_scale_cost_little_of_the_training_between_them():
    """In passes of the network: a training step has one forward and one backward (as two), a sampler's step two."""
    for experiment in ("svd_backward", "consisti2v"):
        cfg = composed(f"+experiment={experiment}", "scale=paper")
        preview = cfg.sample.batch_size * build(cfg.sampler).steps * 2
        assert cfg.sample.batch_size == 1 and preview < 0.05 * 3 * cfg.train.sample_every


@pytest.mark.parametrize("experiment", ["drepa_vjepa", "consisti2v", "svd_backward"])
def test_a_papers_run_is_on_footage_never_on_the_painted_world(experiment):
    cfg = composed(f"+experiment={experiment}", "scale=paper", "dataset.root=DIR")
    assert cfg.dataset._target_ == "timelapse.dataset.clips.Clips" and cfg.dataset.root == "DIR"
    tiny = composed(f"+experiment={experiment}")
    assert tiny.dataset._target_ == "timelapse.dataset.synthetic.Synthetic"


def test_the_shell_completes_experiments():
    typed = {"COMP_LINE": "timelapse +experiment=drepa_v", "PATH": "/usr/bin:/bin"}
    asked = [sys.executable, "-m", "timelapse.run", "-sc", "query=bash"]
    done = subprocess.run(asked, env=typed, capture_output=True, text=True, timeout=60, cwd=CONF.parent)
    assert done.stdout.split() == ["+experiment=drepa_videomae", "+experiment=drepa_vjepa"], done.stderr
