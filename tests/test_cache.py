"""The cache gives what encoding online gives, notices damage, and never answers for other weights."""

import json
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch.utils.data import Dataset
from transformers import T5EncoderModel, VideoMAEConfig, VideoMAEModel

sys.path.insert(0, str(Path(__file__).parent))
from small import small_run  # noqa: E402

from timelapse.build import build as make  # noqa: E402
from timelapse.cache import Store, cached, digest, empty_caption, known, merge, rank, share  # noqa: E402
from timelapse.dataset.module import collate  # noqa: E402
from timelapse.encoder.videomae import VideoMAE  # noqa: E402
from timelapse.fingerprint import code, fingerprint  # noqa: E402
from timelapse.randomness import keyed_each  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"))


def build(run, root, **kwargs):
    return cached(run.dataset("train"), root, {"spec": 1}, run.model, None, torch.device("cpu"), **kwargs)


@pytest.mark.parametrize("rule", ["first_frame", "any_frame"])
def test_cached_clips_are_what_encoding_online_gives(run, tmp_path, rule):
    conditioned = small_run(tmp_path / "other", f"conditioning={rule}").conditioning
    plain, stored = run.dataset("train"), build(run, tmp_path)
    online, offline = collate([plain[i] for i in (0, 3)]), collate([stored[i] for i in (0, 3)])
    mean, std = run.model.codec.moments(online["video"])
    torch.testing.assert_close(offline["mean"], mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(offline["std"], std, atol=1e-5, rtol=0)
    torch.testing.assert_close(offline["tokens"], run.model.text.encode(online["caption"]), atol=1e-5, rtol=0)
    a, b = (conditioned(x, run.model.codec, keyed_each(x["key"], 0)) for x in (online, offline))
    torch.testing.assert_close(a.latent, b.latent, atol=1e-5, rtol=0)
    assert torch.equal(a.known, b.known) and torch.equal(a.seconds_per_frame, b.seconds_per_frame)


def test_without_pixels_no_clip_is_decoded(run, tmp_path):
    stored = build(run, tmp_path, pixels=False)

    class Untouchable:
        def __getitem__(self, i):
            raise AssertionError("decoded")

    item = type(stored).__getitem__(stored, 2)
    stored.dataset = Untouchable()
    again = stored[2]
    assert "video" not in again and torch.equal(item["mean"], again["mean"])
    assert again["caption"] == run.dataset("train")[2]["caption"]


def test_stored_frames_are_the_clips_to_8_bits_and_nothing_is_decoded(run, tmp_path):
    stored, clip = build(run, tmp_path, store_pixels=True), run.dataset("train")[2]["video"]
    stored.dataset = None
    item = stored[2]
    assert (item["video"] - clip).abs().max() <= 0.5 / 127.5 + 1e-6
    stored.pixels = False
    assert "video" not in stored[2]
    assert build(run, tmp_path).folder != stored.folder


def test_a_text_encoder_that_is_trained_is_not_in_the_cache(tmp_path):
    """Its next weights go on with the same clips; a fit then embeds each caption anew."""
    from timelapse.stages import fit

    typed = ["module.train_text=true", "train.steps=2"]
    first, second = (small_run(tmp_path / name, *typed, f"paths.cache={tmp_path}/cache") for name in "ab")
    weight = next(second.model.text.parameters())
    with torch.no_grad():
        weight += 0.1
    assert first.train_clips.folder == second.train_clips.folder and "tokens" not in first.train_clips[0]
    before = weight.detach().clone()
    fit(second)
    assert not torch.equal(weight, before)


def test_a_damaged_file_is_refused_and_then_made_again(run, tmp_path):
    stored = build(run, tmp_path)
    path = stored.folder / f"{stored.keys[1]}.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ValueError, match="damaged or gone; delete it and run again"):
        stored[1]
    untouched = (stored.folder / f"{stored.keys[0]}.safetensors").stat().st_mtime_ns
    assert torch.equal(build(run, tmp_path)[1]["mean"], load(before)["mean"]) and path.read_bytes() == before
    assert (stored.folder / f"{stored.keys[0]}.safetensors").stat().st_mtime_ns == untouched


def test_the_same_from_an_object_store(run, tmp_path):
    local, remote = build(run, tmp_path), build(run, "memory://bucket/cache", pixels=False)
    assert str(remote.folder).startswith("memory://bucket/cache/")
    for i in range(3):
        here, there = local[i], remote[i]
        assert torch.equal(here["mean"], there["mean"]) and here["caption"] == there["caption"]
    store, name = Store(remote.folder), f"{remote.keys[1]}.safetensors"
    data = store.read(name)
    store.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="damaged"):
        remote[1]
    assert torch.equal(build(run, "memory://bucket/cache")[2]["mean"], local[2]["mean"])


def test_other_weights_or_other_clips_are_another_cache(run, tmp_path):
    first = build(run, tmp_path).folder
    assert build(run, tmp_path).folder == first
    with torch.no_grad():
        bias = next(p for n, p in run.model.codec.named_parameters() if n.endswith("bias"))
        bias[0] += 1e-3
        changed = fingerprint(run.model.codec)
        other = build(run, tmp_path).folder
        bias[0] -= 1e-3
    assert other != first and changed != fingerprint(run.model.codec)
    with torch.no_grad():
        run.model.codec.vae.decoder.conv_out.conv.bias += 1e-3  # latents do not depend on it
        assert build(run, tmp_path).folder == first
        run.model.codec.vae.decoder.conv_out.conv.bias -= 1e-3
    spec = cached(run.dataset("train"), tmp_path, {"spec": 2}, run.model, None, torch.device("cpu"))
    assert spec.folder not in (first, other)


def test_other_numbers_around_the_same_weights_are_another_cache(run, tmp_path, small_cogvideox):
    """They change latents and features, and no weight tells them."""
    config = VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    network = VideoMAEModel(config)
    sizes = [fingerprint(VideoMAE(network, "a", size=(side, 16))) for side in (16, 24)]
    assert sizes[0] != sizes[1] and sizes[0] == fingerprint(VideoMAE(network, "b", "c"))
    vaes = [{}, {"scaling_factor": 0.5}, {"norm_num_groups": 4}, {"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}]
    codecs = [small_cogvideox(vae=vae).codec for vae in vaes] + [small_cogvideox(vae_tiling=True).codec]
    assert len({fingerprint(codec) for codec in codecs}) == len(codecs)
    plain = codecs[0]
    before = fingerprint(plain)
    plain.moments(torch.zeros(1, 17, 3, 32, 32))
    assert fingerprint(plain.train()) == before == fingerprint(small_cogvideox().codec)
    assert build(small_run(tmp_path / "a", "model.vae_tiling=true"), tmp_path).folder != build(run, tmp_path).folder


def test_features_of_another_token_grid_are_another_cache(tmp_path):
    """Nothing but features lies on that grid; what rule a backbone cuts its tokens by is its own."""
    find = lambda method, size: (
        small_run(
            tmp_path / f"{method}-{size}",
            f"paths.cache={tmp_path}/cache",
            f"model.transformer.patch_size={size}",
            experiment=method,
        ).validation_clips
    )
    fine, coarse = (find("drepa_vjepa", size) for size in (1, 2))
    assert [len(clips[0]["feature"]) for clips in (fine, coarse)] == [4 * 8 * 8, 4 * 4 * 4]  # without latent frame 0
    assert find("drepa_vjepa", 2).folder == coarse.folder
    assert find("finetune_only", 1).folder == find("finetune_only", 2).folder


def test_a_full_cache_loads_no_published_text_encoder(tmp_path, monkeypatch):
    """T5-XXL is 9.5 GB in every process; its files say which one it is, and the empty caption is kept too."""
    started = small_run(tmp_path / "a")
    started.model.export(tmp_path / "pipeline")
    run_of = lambda: small_run(tmp_path / "run", f"model.weights={tmp_path / 'pipeline'}", "model.compile=false")
    first = run_of()
    clips, empty = first.train_clips, first.module.constant("")
    torch.testing.assert_close(empty, first.model.text.encode([""]), atol=1e-5, rtol=0)

    with monkeypatch.context() as patch:
        patch.setattr(T5EncoderModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("the encoder was loaded"))
        again = run_of()
        assert again.train_clips.folder == clips.folder and torch.equal(again.train_clips[1]["mean"], clips[1]["mean"])
        assert torch.equal(again.module.constant(""), empty)
        again.module.materialise()
        batch, known = collate([clips[0]]), torch.zeros(1, again.cfg.video.frames, dtype=torch.bool)
        again.module.sample(batch, known.index_fill(1, torch.tensor([0]), True), make(again.cfg.sampler, steps=1))
        assert "text" not in vars(again.model)  # sampling of what is cached does without it too

    for name in Store(clips.folder).names("empty-*"):  # damaged: made again, never used
        data = bytearray(Store(clips.folder).read(name))
        data[-1] ^= 1
        Store(clips.folder).write(name, bytes(data))
    mended = run_of()
    assert mended.train_clips.folder == clips.folder and torch.equal(mended.module.constant(""), empty)
    assert torch.equal(empty_caption(Store(clips.folder)), empty)

    file = next((tmp_path / "pipeline" / "text_encoder").glob("*.safetensors"))
    state = load_file(file)
    save_file({name: value * 1.01 for name, value in state.items()}, file, metadata={"format": "pt"})
    assert run_of().train_clips.folder != clips.folder


def test_the_code_that_makes_what_is_kept_is_part_of_the_key(run, tmp_path, monkeypatch):
    before = build(run, tmp_path).folder
    assert build(run, tmp_path).folder == before
    monkeypatch.setattr("timelapse.fingerprint.version", lambda name: "99.0")
    code.cache_clear()
    assert build(run, tmp_path).folder != before
    code.cache_clear()


def test_training_says_at_once_that_it_waits_for_a_damaged_clip_and_not_for_an_hour(run, tmp_path, caplog):
    stored = build(run, tmp_path)
    path = stored.folder / f"{stored.keys[1]}.safetensors"
    before, stored.patience = path.read_bytes(), 60.0
    path.write_bytes(b"cut short")
    again = threading.Timer(1.0, path.write_bytes, [before])
    again.start()
    assert torch.equal(stored[1]["mean"], load(before)["mean"])
    assert caplog.text.count("is damaged or gone; waiting up to 60 s") == 1


def test_workers_decode_and_the_cache_is_the_same(run, tmp_path):
    class Here(Photos):
        def __getitem__(self, i: int) -> dict:
            return {**super().__getitem__(i), "caption": f"process {os.getpid()}"}

    spec, device = {"spec": 1}, torch.device("cpu")
    alone = cached(Here(4, 4), tmp_path / "alone", spec, run.model, None, device, captions=False)
    many = cached(Here(4, 4), tmp_path / "many", spec, run.model, None, device, captions=False, workers=1)
    for key in alone.keys:
        assert (alone.folder / f"{key}.safetensors").read_bytes() == (many.folder / f"{key}.safetensors").read_bytes()
    assert {*alone.captions.values()} == {f"process {os.getpid()}"}.difference(many.captions.values())


def fill(run, root: Path, process: int, of: int, dataset: Dataset, moments=lambda process, moments: moments) -> None:
    """In a process of its own: its share of the cache, then every clip read.

    What it encodes is written to `root`/encoded-<process>. moments: what process n encodes with, of what is there.
    """
    os.environ.update(RANK=str(process), WORLD_SIZE=str(of))
    encode = moments(process, run.model.codec.moments)

    def noted(video):
        if video.shape[1] > 1:  # not the first frame, which is encoded by itself too
            with (root / f"encoded-{process}").open("a") as file:
                file.writelines(f"{digest(clip.numpy().tobytes())}\n" for clip in video)
        return encode(video)

    run.model.codec.moments = noted
    filled = cached(dataset, root, {"spec": 1}, run.model, None, torch.device("cpu"), batch_size=2)
    assert [filled[i]["key"] for i in range(len(filled))] == dataset.keys
    os._exit(0)


def together(run, root: Path, processes: int, dataset: Dataset | None = None, **kwargs) -> list[int]:
    """How many clips each of so many processes encoded."""
    root.mkdir(exist_ok=True)
    fork, dataset = multiprocessing.get_context("fork"), dataset or run.dataset("train")
    args = [(run, root, n, processes, dataset) for n in range(processes)]
    ranks = [fork.Process(target=fill, args=each, kwargs=kwargs, daemon=True) for each in args]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    logs = [root / f"encoded-{n}" for n in range(processes)]
    encoded = [log.read_text().split() if log.exists() else [] for log in logs]
    for log in logs:
        log.unlink(missing_ok=True)
    assert len({clip for part in encoded for clip in part}) == sum(map(len, encoded))  # none twice
    return [len(part) for part in encoded]


def test_processes_encode_their_shares_and_the_cache_is_that_of_one(run, tmp_path):
    alone = build(run, tmp_path / "alone", batch_size=2)
    assert together(run, tmp_path / "both", 2) == [4, 2]  # 6 clips, in batches of 2
    both = build(run, tmp_path / "both", batch_size=2)
    names = sorted(path.name for path in alone.folder.iterdir())
    assert names == sorted(path.name for path in both.folder.iterdir()) and len(names) == 6 + 2
    for name in names:
        assert (alone.folder / name).read_bytes() == (both.folder / name).read_bytes()

    (both.folder / f"{both.keys[3]}.safetensors").write_bytes(b"cut short")
    assert together(run, tmp_path / "both", 2) == [0, 2]  # with its neighbour, so that the last bits are the same
    for name in names:
        assert (alone.folder / name).read_bytes() == (both.folder / name).read_bytes()


def test_children_of_a_process_that_has_filled_the_cache_take_no_part(run, tmp_path, monkeypatch):
    filled = build(run, tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(run.model.codec, "moments", None)
    assert build(run, tmp_path).folder == filled.folder


SRUN = {"SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_JOB_NAME": "fit"}
SHELL = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_NAME": "bash"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", **SRUN}, (3, 4)),  # torchrun, whoever started it
        (SRUN, (9, 16)),
        (SHELL, (0, 1)),
        ({**SHELL, "LOCAL_RANK": "2", "NODE_RANK": "0", "WORLD_SIZE": "4"}, (2, 1)),  # a child in such a shell
        ({"SLURM_PROCID": "0", "SLURM_JOB_NAME": "fit", "LOCAL_RANK": "1"}, (1, 1)),  # in a batch script, without srun
        ({"NODE_RANK": "1"}, (1, 1)),  # started by hand on the second node
    ],
)
def test_which_process_this_is(monkeypatch, environment, expected):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", *SRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert share() == expected and rank() == expected[0]


class Photos(Dataset):
    """As many single pictures; whoever asks for number `stop` or a later one is killed."""

    def __init__(self, size: int, stop: int):
        self.keys, self.stop = [f"photo-{n:03d}" for n in range(size)], stop

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> dict:
        if i >= self.stop:
            raise KeyboardInterrupt
        video = torch.full((1, 3, 8, 8), i / len(self))
        return {"key": self.keys[i], "caption": f"photo {i}", "video": video, "seconds": torch.zeros(1)}


@pytest.mark.parametrize(("killed", "restarted"), [(1, 1), (2, 1), (1, 2)])
def test_a_fill_killed_part_way_ends_with_all_clips_when_restarted(run, tmp_path, monkeypatch, killed, restarted):
    monkeypatch.setattr("timelapse.cache.WRITE_DOWN", 0)  # after each batch
    stop = 12 * killed
    size = stop + 8
    monkeypatch.setenv("WORLD_SIZE", str(killed))
    for process in range(killed):
        monkeypatch.setenv("RANK", str(process))
        with pytest.raises(KeyboardInterrupt):
            cached(Photos(size, stop), tmp_path, {"spec": 1}, run.model, None, torch.device("cpu"), batch_size=2)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/photo-*")}
    assert len(made) == stop
    together(run, tmp_path, restarted, Photos(size, size))
    assert len([*tmp_path.glob("*/photo-*")]) == size
    assert all(path.stat().st_mtime_ns == written for path, written in made.items())  # none was made again


def late_and_with_other_bits(process, moments):
    def encode(video):
        time.sleep(0.5)
        mean, std = moments(video)
        return mean + process, std

    return encode


@pytest.mark.parametrize("content", [None, b"cut short"])
def test_no_process_goes_on_before_a_lost_clip_of_anothers_share_is_made_again(run, tmp_path, content):
    photos = Photos(4, 4)
    together(run, tmp_path, 2, photos)
    lost = next(tmp_path.glob("*/photo-003.*"))
    before = load(lost.read_bytes())
    lost.unlink() if content is None else lost.write_bytes(content)
    together(run, tmp_path, 2, photos, moments=late_and_with_other_bits)  # each reads all clips at once
    after = load(lost.read_bytes())
    torch.testing.assert_close(after["mean"], before["mean"] + 1)
    filled = cached(photos, tmp_path, {"spec": 1}, run.model, None, torch.device("cpu"), batch_size=2)
    assert torch.equal(filled[3]["mean"], after["mean"]) and len([*lost.parent.glob("photo-*")]) == 4


def test_waiting_for_a_process_that_died_is_seen_and_ends(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("timelapse.cache.PATIENCE", 0.5, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with caplog.at_level("INFO", "timelapse"), pytest.raises(TimeoutError, match="4 clips.*processes 1, 2 of 3.*start"):
        build(run, tmp_path, batch_size=2)
    assert "waiting for 4 clips that processes 1, 2 of 3 have in their share" in caplog.text


def test_what_another_job_makes_counts_too(run, tmp_path):
    """Process 1 of the first job never comes; a job of one process makes the clips of both."""
    photos = Photos(4, 4)
    first = multiprocessing.get_context("fork").Process(target=fill, args=(run, tmp_path, 0, 2, photos), daemon=True)
    first.start()
    filled = cached(photos, tmp_path, {"spec": 1}, run.model, None, torch.device("cpu"), batch_size=2)
    first.join(60)
    assert first.exitcode == 0 and filled[3]["key"] == "photo-003"


def test_runs_that_share_a_folder_keep_each_others_clips(run, tmp_path):
    found = known(store := Store(build(run, tmp_path).folder))[0]
    store.write("part-0-x.json", json.dumps({"clips": {"k": "1"}, "captions": {"k": ""}}).encode())
    merge(store, {}, {"k": "1"})
    assert known(store)[0] == {**found, "k": {"1"}}
