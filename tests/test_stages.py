"""Stages on the checkpoints that others leave behind."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline
from omegaconf import OmegaConf
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from small import small_run  # noqa: E402

from timelapse.atomic import alone  # noqa: E402
from timelapse.callback.checkpoint import newest  # noqa: E402
from timelapse.checkpoint import read  # noqa: E402
from timelapse.dataset.write import read_video, write_video  # noqa: E402
from timelapse.parts import Run  # noqa: E402
from timelapse.report import write_report  # noqa: E402
from timelapse.report.run_files import read_run  # noqa: E402
from timelapse.report.run_page import short_weights  # noqa: E402
from timelapse.stages import check_base, evaluate, export, fit, restore, sample  # noqa: E402

QUICK = ["train.steps=2", "train.warmup=0", "train.checkpoint_every=2", "train.validate_every=9"]


@pytest.fixture(scope="module", params=[0.0, 0.9], ids=["no average", "averaged"])
def trained(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    preview = ["train.sample_every=2", "sample.frames=4", "sampler.steps=1", "metric={}"]
    fit(small_run(folder, *QUICK, *preview, f"train.ema_decay={request.param}"))
    return folder


@pytest.mark.parametrize("typed", [[], ["train.ema_decay=0"]], ids=["scale's", "none typed"])
def test_a_checkpoint_is_sampled_with_the_average_it_has_whatever_is_typed(trained, tmp_path, typed):
    run = small_run(tmp_path, "stages=[sample]", f"ckpt={trained}", *typed)
    state = read(newest(trained / "checkpoints"))["state_dict"]
    has = any(key.startswith("ema.") for key in state)
    restore(run)
    assert len([*trained.glob("training_samples/step000002/*.mp4")]) == 2  # sample.frames=4, not typed as a list
    with run.module.averaged():
        for name, p in run.module.trained():
            assert torch.equal(p, state["ema." + name.replace(".", "/") if has else f"backbone.{name}"]), name


def test_a_trained_model_is_used_without_the_encoder_that_it_was_aligned_to(tmp_path):
    def use(name: str, *typed: str):
        missing = ["encoder=dinov3_paper", f"encoder.weights={tmp_path}/none", *typed]  # gated, say
        return small_run(tmp_path / name, *missing, experiment="drepa_vjepa")

    aligned = use("aligned", "stages=[export]").module
    aligned.materialise()
    with torch.no_grad():
        for p in aligned.parameters():
            p += 0.01
    torch.save({"state_dict": aligned.state_dict()}, tmp_path / "a.ckpt")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    picture = [f"input.image={tmp_path}/a.jpg", "sampler.steps=1", f"ckpt={tmp_path}/a.ckpt"]
    run = use("used", "stages=[sample,export]", *picture)
    sample(run)
    assert len([*run.out.glob("samples/*.mkv")]) == 2  # and the given picture
    assert all(torch.equal(p, aligned.state_dict()[name]) for name, p in run.module.state_dict().items())
    export(run)
    assert (run.folder / "export").is_dir()
    for stage in ("cache", "fit"):  # where it is read
        with pytest.raises(ValueError, match="DINOv3: no weights"):
            _ = use(stage, f"stages=[{stage}]").encoder


@pytest.mark.parametrize("one, other", [(0, 0.1), (0.1, 0)], ids=["learned without", "learned with"])
def test_a_vae_is_used_with_and_without_the_adversary_that_it_learned_by(tmp_path, one, other):
    def run(name: str, weight: float, *typed: str) -> Run:
        stage = "steps: 1, frames: 9, batch: 2, crop: 16, rate: [1.0e-3, 1.0e-3], noise: 0.05, perceptual: 0.1"
        stage = f"{{{stage}, adversarial: {weight}}}"
        small = [f"module.stages=[{stage}]", "model.vae.block_out_channels=[8,8,8]", "trainer=cpu"]
        return small_run(tmp_path / name, *small, *typed, experiment="pretrain_vae")

    learned = run("learned", one).module
    torch.save({"state_dict": learned.state_dict()}, tmp_path / "a.ckpt")
    used = run("used", other, "stages=[ship]", f"ckpt={tmp_path}/a.ckpt")
    with torch.no_grad():
        used.module.vae.decoder.conv_out.conv.bias += 1
    restore(used)
    assert all(torch.equal(p, learned.state_dict()[n]) for n, p in used.module.state_dict().items() if n[:4] == "vae.")


def test_a_checkpoint_that_lacks_what_is_trained_is_refused_in_one_line(trained, tmp_path):
    checkpoint = torch.load(newest(trained / "checkpoints"), weights_only=True)
    lost = next(key for key in checkpoint["state_dict"] if key.startswith("backbone."))
    del checkpoint["state_dict"][lost]
    torch.save(checkpoint, tmp_path / "cut.ckpt")
    run = small_run(tmp_path, "stages=[sample]", f"ckpt={tmp_path}/cut.ckpt")
    with pytest.raises(ValueError, match="which this run trains") as error:
        restore(run)
    assert lost in str(error.value) and "\n" not in str(error.value)


def test_a_lora_is_exported_as_a_whole_pipeline_where_that_is_asked_for(tmp_path, monkeypatch, capsys):
    lora = "model.lora={rank: 2, alpha: 2, targets: [to_q]}"
    run = small_run(tmp_path, "stages=[export]", "export.merge=true", lora, "module.ema_decay=0")
    run.check()
    plain = small_run(tmp_path / "plain", "module.ema_decay=0").model.backbone.transformer.state_dict()

    def restored(run: Run, device: torch.device) -> None:
        run.module.materialise()
        for _, p in run.module.trained():
            torch.nn.init.constant_(p, 0.5)

    monkeypatch.setattr("timelapse.stages.trained", restored)
    export(run)
    opened = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path / "export").transformer.state_dict()
    shown = capsys.readouterr().err
    assert opened.keys() == plain.keys() and "export:" in shown and "text_encoder" in shown
    for name, weight in plain.items():  # B A: two ranks of 0.5 times 0.5
        torch.testing.assert_close(opened[name].float(), weight + 0.5 * name.endswith("attn1.to_q.weight"))


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line_that_names_it(trained, tmp_path):
    whole = newest(trained / "checkpoints").read_bytes()
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    for name, content in (("text", b"no checkpoint"), ("empty", b""), ("cut", whole[: len(whole) // 2])):
        (tmp_path / f"{name}.ckpt").write_bytes(content)
    for path in sorted(tmp_path.glob("*.ckpt")):
        with pytest.raises(ValueError, match=f"{path} is no whole checkpoint") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_samples_say_which_weights_made_them(trained, tmp_path, caplog):
    quick = ["stages=[sample]", "sampler.steps=1", "sample.count=1", "train.validation_clips=1", "metric={}"]
    sample(small_run(tmp_path / "other", *quick, f"ckpt={trained}"))
    (tmp_path / "killed" / "checkpoints").mkdir(parents=True)  # before its first one
    (tmp_path / "trained" / "checkpoints").mkdir(parents=True)
    shutil.copy(newest(trained / "checkpoints"), tmp_path / "trained" / "checkpoints")
    sample(small_run(tmp_path / "untrained", *quick))
    for folder, said in (("other", str(newest(trained / "checkpoints"))), ("untrained", "weights before finetuning")):
        [made] = read_run(tmp_path / folder).samples
        assert made.weights == said
        short = f"{trained.parent.name}/{trained.name}/step000002" if folder == "other" else said
        assert f"sampled with <b>{short}</b>" in write_report(tmp_path / folder).read_text()
    assert f"ckpt={tmp_path / 'trained'}" in caplog.text and "killed" not in caplog.text  # what was meant, perhaps
    delta = "model.reverse.delta=runs/x on model.weights"
    assert short_weights(delta, tmp_path) == delta
    assert short_weights(str(newest(trained / "checkpoints")), trained) == "step000002"
    assert short_weights("runs/photo.ckpt", trained) == "runs/photo.ckpt"


def test_beside_its_samples_a_run_shows_what_the_network_made_before_its_training(tmp_path):
    """On the same noise, and measured too: it is what the same command makes without a fit."""
    small_run(tmp_path / "start").model.export(tmp_path / "pipeline")
    typed = [f"model.weights={tmp_path}/pipeline", "metric=[flicker]", "sampler.steps=1", "sample.count=2", *QUICK]
    typed += ["train.learning_rate=1e-2"]
    run = small_run(tmp_path / "run", *typed, "sample.before=true")
    fit(run)
    plain = small_run(tmp_path / "plain", *typed, "stages=[sample,evaluate]", "sample.before=true")
    for each in (run, plain):
        sample(each)
        evaluate(each)
    files = sorted((tmp_path / "plain" / "samples").glob("synthetic*[0-9].mkv"))
    assert len(files) == 2 and not [*(tmp_path / "plain" / "samples").glob("*.before.*")]  # nothing was trained there
    for file in files:
        then, now = (tmp_path / "run" / "samples" / f"{file.stem}{kind}.mkv" for kind in (".before", ""))
        assert torch.equal(read_video(then), read_video(file)) and not torch.equal(read_video(now), read_video(file))
    made, alone = (read_run(tmp_path / name).metrics["flicker"] for name in ("run", "plain"))
    assert made["before"] == alone["value"] != made["value"] and alone["before"] is None
    page = write_report(tmp_path / "run").read_text()
    assert page.count(">before finetuning<") == 3 and "from the same noise" in page  # two clips and a column
    sample(small_run(tmp_path / "run", *typed, "stages=[sample]", "sample.before=false"))
    assert not [*(tmp_path / "run" / "samples").glob("*.before.*")]  # what nobody asks for any more is gone
    sample(small_run(tmp_path / "random", *QUICK, "sampler.steps=1", "stages=[sample]", f"ckpt={tmp_path}/run"))
    assert not [*(tmp_path / "random" / "samples").glob("*.before.*")]  # model.weights=null: there is nothing to show


def hydra_knows(folder: Path, *typed: str) -> None:
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in typed))


def test_a_page_tells_how_its_samples_were_made_and_not_those_before_them(tmp_path, monkeypatch):
    made = lambda run: (run.out / "samples").mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("timelapse.sampling.sample_clips", made)
    monkeypatch.setattr("timelapse.stages.restore", lambda run: None)
    for commit, typed in (("one", []), ("two", ["sample.frames=[0]", "sample.weights=raw"])):
        monkeypatch.setattr("timelapse.parts.commit", lambda commit=commit: commit)
        hydra_knows(tmp_path, "+experiment=finetune_only", *typed)
        run = small_run(tmp_path, "stages=[sample,report]", "cache.enabled=false", *typed)
        if not typed:
            (tmp_path / "checkpoints").mkdir()
            (tmp_path / "checkpoints" / "step000002.ckpt").touch()
        sample(run)
    said = read_run(tmp_path)
    assert said.config["sample"]["frames"] == [0] and said.config["sample"]["weights"] == "raw"
    assert said.command.endswith("+experiment=finetune_only 'sample.frames=[0]' sample.weights=raw")
    page = write_report(tmp_path).read_text()
    assert "At commit two. Its training began at commit one." in page


def test_own_pictures_leave_what_the_run_has_finished_as_it_is(tmp_path, monkeypatch):
    from timelapse import stages
    from timelapse.finished import finished, mark_finished

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    cfg = small_run(tmp_path / "run", "stages=[sample,report]", f"input.image={tmp_path}/a.png", "input.frame=4").cfg
    hydra = SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(tmp_path / "run"), choices={}),
        overrides=SimpleNamespace(task=[f"input.image={tmp_path}/a.png"]),
    )
    monkeypatch.setattr(stages.HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(stages, "STAGES", {"sample": lambda run: None, "report": lambda run: None})
    mark_finished(tmp_path / "run", ["fit", "sample", "evaluate", "report"])
    stages.run_stages(cfg)
    assert finished(tmp_path / "run", ["fit", "sample", "evaluate", "report"])
    assert not finished(tmp_path / "run", ["sample"], hydra.overrides.task)


def test_a_run_does_not_go_on_over_changed_footage(tmp_path, monkeypatch):
    """A clip that it was trained on may be held out now."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    (tmp_path / "footage").mkdir()
    for n in range(3):
        write_video(tmp_path / f"footage/{n}.mp4", torch.rand(12, 3, 32, 32) * 2 - 1)
    typed = ["dataset=clips", f"dataset.root={tmp_path}/footage", "dataset.windows=1", *QUICK]
    fit(small_run(tmp_path / "run", *typed))
    fit(small_run(tmp_path / "run", *typed))  # nothing came: it goes on
    write_video(tmp_path / "footage/3.mp4", torch.rand(12, 3, 32, 32) * 2 - 1)
    with pytest.raises(ValueError, match="was trained on other clips than there are now.*name=finetune_only_2"):
        fit(small_run(tmp_path / "run", *typed))


def test_two_processes_do_not_train_one_run(tmp_path):
    """A job that outlived its sweep, and the same command typed again."""
    with alone(tmp_path / ".training", ""), pytest.raises(ValueError, match="is being trained by another process"):
        fit(small_run(tmp_path, *QUICK))
    fit(small_run(tmp_path, *QUICK))


def test_backward_motion_trained_on_another_network_is_refused(tmp_path):
    """A checkpoint holds its matrices whole, not what training added."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {}}, folder / "checkpoints/step000001.ckpt")
    (folder / "config.yaml").write_text("model: {weights: stabilityai/of-14-frames}")
    typed = ["stages=[sample]", f"ckpt={folder}"]
    with pytest.raises(ValueError, match=f"of-14-frames, .* type model.reverse.delta={folder} in the place of ckpt"):
        restore(small_run(tmp_path / "own", *typed, experiment="svd_backward"))
    check_base(SimpleNamespace(checkpoint=Path("of_here.ckpt"), cfg=OmegaConf.create({"model": {}})))  # a bare name
