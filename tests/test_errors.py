"""A mistake on the command line is answered by one line that says what there is."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from timelapse import run
from timelapse.build import frozen
from timelapse.errors import MISTAKES, check_added, one_line
from timelapse.job import JobFailed
from timelapse.parts import Run
from timelapse.run import CONF


def answer(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(MISTAKES) as caught:
        compose("config", list(overrides))
    return one_line(caught.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("+experiment=drepa_vjpa", "did you mean drepa_vjepa?"),
        ("scale=papr", "did you mean paper?"),
        ("sampler.stepz=3", "did you mean steps?"),
        ("trainer=abacus", "there are auto, cpu, ddp, fsdp, gpu, hsdp"),
        ("loss=[denoise,drpa]", "did you mean drepa?"),
        ("modl=x", "did you mean model?"),
        ("input.prompt=a flower blooming, yellow", "quoted twice: 'input.prompt=\"a rose, red\"'"),
    ],
)
def test_one_line_names_what_was_meant_or_what_there_is(typed, said):
    line = answer(typed)
    assert said in line and "\n" not in line


def test_an_added_key_like_a_known_one_is_a_mistake_and_any_other_is_not():
    with pytest.raises(ValueError, match=r"did you mean \+experiment=drepa_vjepa\?"):
        check_added(["+experimet=drepa_vjepa"], {"model": {}, "loss": {}, "experimet": "drepa_vjepa"})
    with pytest.raises(ValueError, match=r"did you mean \+\+train.steps=5\?"):
        check_added(["++trian.steps=5"], {"train": {"steps": 3}, "trainer": {}, "trian": {"steps": 5}})
    fine = ["+experiment=x", "+loss.drepa.margin=1", "+study=y", "+mine=3", "model=x", "~loss", "++train.steps=5"]
    fine += ["++sample.count=3", "+train.own=1", "++seed=1", "++name=mine"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        check_added(fine, compose("config", ["+mine=3", "+train.own=1", "loss=[drepa]", "encoder=vjepa_tiny"]))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["sampler.steps=0"], "sampler.steps is 0"),
        (["trainer=gpu"], "this machine shows no GPU"),
        (["+sampler.bogus=3"], "unexpected keyword argument 'bogus'"),
        (["sampler.steps=600"], "choose 500 or 1000"),
        (["+sampler.integrate.spacing=leadin"], "expected trailing or leading"),
        (["sampler=dpm", "+sampler.integrate.spacing=leading"], "sampler.integrate.spacing: dpm has no such setting"),
        (["+sampler.integrate.steps=5"], "sampler.integrate.steps: ddim has no such setting"),
        (["+sampler.image_guidance=2"], "told the image in every branch"),
        (["+experiment=svd_backward", "model.reverse=null"], "has no backward one"),
        (["+experiment=svd_backward", "conditioning=any_frame"], "type conditioning=end_frames"),
        (["+experiment=svd_backward", "module.held_out_timesteps=[0]"], "noise levels above 0"),
        (["+experiment=svd_backward", "model.reverse.rotate=upp"], "choose one of all, up, none"),
        (["+experiment=svd_backward", "model.reverse.train=[]"], "model.reverse.train is empty"),
        (["+experiment=svd_backward", "model.reverse.delta=/nope"], "model.reverse.delta=/nope"),
        (["+experiment=svd_backward", "model.dtype=float16"], "type model.dtype=bfloat16"),
    ],
)
def test_what_would_fail_after_minutes_fails_before_the_first_step(typed, said, tmp_path):
    if torch.cuda.is_available() and "trainer=gpu" in typed:
        pytest.skip("this machine has a GPU")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        method = [] if "experiment" in typed[0] else ["+experiment=drepa_vjepa"]
        cfg = compose("config", [*method, *typed])
    with pytest.raises((ValueError, OSError, *MISTAKES)) as caught:
        Run(frozen(cfg), tmp_path).check()
    line = one_line(caught.value)
    assert said in line and "\n" not in line


def test_a_sweep_with_a_failed_job_ends_in_a_line_and_1(monkeypatch, capsys):
    def start():
        raise JobFailed("seed=1: no space left (log: runs/x/job.log)")

    monkeypatch.setattr(run, "start", start)
    monkeypatch.setattr("sys.argv", ["timelapse", "-m", "seed=0,1"])
    monkeypatch.delenv("TIMELAPSE_TRACEBACK", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as end:
        run.main()
    said = capsys.readouterr().err
    assert end.value.code == 1 and said.count("\n") == 1 and "no space left" in said and "runs only what failed" in said
