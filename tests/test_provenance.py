"""Which shipped weights, commit and commands a run is tied to, and what counts as finished."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent))
from small import small_run, trained  # noqa: E402

from timelapse import assets, parts  # noqa: E402
from timelapse.finished import finished, mark_finished  # noqa: E402
from timelapse.parts import Run  # noqa: E402


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Shipped weights of a name each, as one installation of the package has them."""
    folder = tmp_path / "assets"
    folder.mkdir()
    for name in ("cogvideox_tiny_vae", "cogvideox_tiny_transformer", "vjepa_tiny"):
        (folder / f"{name}.safetensors").write_bytes(name.encode())
    monkeypatch.setattr(assets, "FOLDER", folder)
    return folder


NAMED = "model.weights={vae: cogvideox_tiny_vae, transformer: cogvideox_tiny_transformer, text: null}"


def begun(folder: Path, *typed: str, experiment: str = "drepa_vjepa") -> Run:
    return small_run(folder, NAMED, *typed, experiment=experiment)


@pytest.mark.parametrize("name", ["cogvideox_tiny_vae", "cogvideox_tiny_transformer", "vjepa_tiny"])
def test_a_run_does_not_go_on_on_shipped_weights_that_changed_since_it_began(tmp_path, package, name):
    folder = tmp_path / "run"
    begun(folder)
    trained(folder)
    mark_finished(folder, ["fit", "sample"])
    begun(folder)
    assert finished(folder, ["fit", "sample"])
    (package / f"{name}.safetensors").write_bytes(b"of a later version")
    assert not finished(folder, ["fit", "sample"])
    with pytest.raises(ValueError, match=f"other shipped weights: {name} .* paths.runs=DIR") as error:
        begun(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    begun(folder, "stages=[report]")  # which needs no weights


@pytest.mark.parametrize("typed", ["stages=[sample]", "stages=[export]"])
def test_a_checkpoint_is_not_sampled_beside_other_frozen_weights_than_its_own(tmp_path, package, typed):
    folder = trained(tmp_path / "run")
    (folder / "assets.json").write_text('{"cogvideox_tiny_vae": "older", "vjepa_tiny": "older"}')
    for elsewhere in ([folder, typed], [tmp_path / "other", typed, f"ckpt={folder}"]):
        with pytest.raises(ValueError, match=f"{folder} began on other shipped weights: cogvideox_tiny_vae changed"):
            begun(*elsewhere)
    assert not (tmp_path / "other").exists()
    (folder / "assets.json").write_text('{"vjepa_tiny": "older"}')  # which the training alone reads
    begun(folder, typed)


def test_a_run_begins_on_the_weights_of_now_where_there_is_nothing_to_go_on_from(tmp_path, package):
    folder = tmp_path / "run"
    begun(folder, "stages=[sample]")  # of the weights before finetuning
    mark_finished(folder, ["sample", "evaluate"])
    (package / "cogvideox_tiny_vae.safetensors").write_bytes(b"of a later version")
    assert not finished(folder, ["sample"])
    begun(folder, "stages=[sample]")
    assert not finished(folder, ["sample"]) and not finished(folder, ["evaluate"])  # until they have run again
    mark_finished(folder, ["sample"])
    assert finished(folder, ["sample"])


def test_samples_do_not_hang_on_the_encoder_that_training_alone_reads(tmp_path, package):
    folder = tmp_path / "run"
    begun(folder)
    trained(folder)
    mark_finished(folder, ["fit", "sample"])
    (package / "vjepa_tiny.safetensors").write_bytes(b"of a later version")
    assert finished(folder, ["sample"]) and not finished(folder, ["fit", "sample"])
    begun(folder, "stages=[sample]")


def test_a_damaged_record_is_named_and_stops_no_sweep(tmp_path, package):
    folder = tmp_path / "run"
    begun(folder)
    trained(folder)
    mark_finished(folder, ["fit"])
    (folder / "assets.json").write_text("")
    assert not finished(folder, ["fit"])
    with pytest.raises(ValueError, match=f"{folder}/assets.json is damaged .*; delete it"):
        begun(folder)


def test_a_run_whose_config_says_something_else_now_is_not_finished(tmp_path, package):
    """As after an edit in conf/, under the same command: the old numbers are not passed off as the new ones."""
    folder = tmp_path / "run"
    begun(folder)
    mark_finished(folder, ["fit", "sample"])
    now = lambda *typed: OmegaConf.to_container(begun(tmp_path / f"other{len(str(typed))}", *typed).cfg)
    assert finished(folder, ["fit", "sample"], [], now())
    for typed in ("loss.drepa.weight=0.9", "noise=mixed"):
        assert not finished(folder, ["fit"], [], now(typed)) and not finished(folder, ["sample"], [], now(typed))
    assert finished(folder, ["fit"], [], now("sampler.steps=7", "trainer=ddp", "train.workers=3"))
    assert not finished(folder, ["sample"], [], now("sampler.steps=7"))


def test_samples_of_a_checkpoint_that_was_trained_anew_are_not_finished(tmp_path):
    source = trained(tmp_path / "it's")
    (checkpoint,) = (source / "checkpoints").glob("step*.ckpt")
    typed = ["ckpt='" + str(source).replace("'", "\\'") + "'"]  # as a study hands it to its jobs
    (tmp_path / "run").mkdir()
    mark_finished(tmp_path / "run", ["sample"], typed)
    assert finished(tmp_path / "run", ["sample"], typed)
    os.utime(checkpoint, ns=(1, checkpoint.stat().st_mtime_ns + 10**9))
    assert not finished(tmp_path / "run", ["sample"], typed)


def test_an_export_of_another_kind_is_not_finished(tmp_path):
    mark_finished(tmp_path, ["fit", "export"])
    assert finished(tmp_path, ["fit", "export"]) and not finished(tmp_path, ["export"], ["export.merge=true"])
    mark_finished(tmp_path, ["export"], ["export.merge=true"])
    assert finished(tmp_path, ["export"], ["export.merge=true"]) and not finished(tmp_path, ["export"])
    assert finished(tmp_path, ["fit"])


def test_only_weights_that_a_run_reads_tie_it_down(tmp_path, package):
    folder = tmp_path / "run"
    begun(folder, experiment="finetune_only")  # no loss is aligned to an encoder
    trained(folder)
    (package / "vjepa_tiny.safetensors").write_bytes(b"of a later version")
    begun(folder, experiment="finetune_only")


def test_a_run_from_before_the_record_goes_on(tmp_path, package):
    folder = tmp_path / "run"
    begun(folder)
    trained(folder)
    (folder / "assets.json").unlink()
    mark_finished(folder, ["fit"])
    (package / "vjepa_tiny.safetensors").write_bytes(b"of a later version")
    begun(folder)
    assert finished(folder, ["fit"]) and not (folder / "assets.json").exists()


def test_a_recipe_goes_on_after_it_shipped_over_the_weights_that_it_began_on(tmp_path, package, monkeypatch):
    from types import SimpleNamespace

    from timelapse import stages

    run = begun(tmp_path / "run", "stages=[ship]")
    trained(run.folder)

    def killed(recipe):
        assets.save("cogvideox_tiny_transformer", {"w": torch.zeros(2)}, {"recipe": recipe})
        raise KeyboardInterrupt

    run.__dict__["module"] = SimpleNamespace(
        ship=lambda recipe: [assets.save("cogvideox_tiny_transformer", {"w": torch.ones(2)}, {"recipe": recipe})]
    )
    monkeypatch.setattr(stages, "Run", lambda cfg, folder: run)
    monkeypatch.setattr(stages, "trained", lambda run, device: None)
    monkeypatch.setattr(stages.HydraConfig, "get", lambda: SimpleNamespace(overrides=SimpleNamespace(task=[])))
    mark_finished(run.folder, ["fit"])
    whole, run.module.ship = run.module.ship, killed
    with pytest.raises(KeyboardInterrupt):
        stages.ship(run)
    begun(tmp_path / "run", "stages=[ship]")
    run.module.ship = whole
    with monkeypatch.context() as patch:  # one process of several ships, as one exports
        patch.setenv("RANK", "1")
        stages.ship(run)
        assert assets.load("cogvideox_tiny_transformer")[0]["w"].sum() == 0
    stages.ship(run)
    assert assets.load("cogvideox_tiny_transformer")[0]["w"].sum() == 2
    assert finished(run.folder, ["fit"])
    begun(run.folder, "stages=[sample]")
    (package / "cogvideox_tiny_vae.safetensors").write_bytes(b"of another recipe")
    with pytest.raises(ValueError, match="cogvideox_tiny_vae changed"):
        begun(run.folder, "stages=[sample]")


def test_the_commit_of_somebody_elses_repository_is_not_ours(tmp_path, monkeypatch):
    """As where a virtual environment lies inside the user's own checkout."""
    git = lambda *typed: subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b", *typed])
    site = tmp_path / ".venv" / "site-packages" / "timelapse"
    site.mkdir(parents=True)
    (tmp_path / "theirs").write_text("x")
    for typed in (["init", "-q"], ["add", "theirs"], ["commit", "-q", "-m", "theirs"]):
        git(*typed)
    monkeypatch.setattr(parts, "__file__", str(site / "parts.py"))
    assert parts.commit() == "unknown"


def test_the_commit_at_which_a_training_began_stays(tmp_path, monkeypatch):
    commits = lambda: (tmp_path / "config.yaml").read_text().split("git_commit: ")[1].strip()
    for now, then in (("first", "first"), ("second", "second"), ("third", "second")):
        monkeypatch.setattr("timelapse.parts.commit", lambda now=now: now)
        small_run(tmp_path)
        assert commits() == then
        if now == "second":  # the first made no checkpoint to go on from
            trained(tmp_path)
