"""The memory plan adds up, and divides what is sharded and nothing else."""

import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

import timelapse.plan
from timelapse.activations import kept_for_backward
from timelapse.parts import Run
from timelapse.plan import (
    GIB,
    HALF,
    MAIN,
    MOMENTS,
    Counts,
    check_memory,
    count,
    devices_of,
    memory,
    planned,
    print_plan,
    too_large,
    uncounted,
)
from timelapse.run import CONF
from timelapse.types import Condition

COUNTS = Counts(
    parameters=1000, trained=100, blocks=10, tokens=50, frozen={"codec": 7}, owned=20, moments=960, buffers=36,
    largest=90, kept=9000, inputs=1600, ends=300, block=870,
)  # fmt: skip


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    """Counting takes seconds and depends on these groups alone."""
    plain, mine = timelapse.plan.count, globals()

    def remembered(cfg):
        key = "".join(OmegaConf.to_yaml(cfg.get(group) or {}) for group in ("model", "loss", "video", "module"))
        if key not in REMEMBERED:
            REMEMBERED[key] = plain(cfg)
        return REMEMBERED[key]

    monkeypatch.setattr(timelapse.plan, "count", remembered)
    monkeypatch.setitem(mine, "count", remembered)


REMEMBERED: dict = {}
SMALL = ("model.weights=null", "model.transformer.num_layers=2")


def config(*overrides: str, experiment: str = "drepa_vjepa"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"+experiment={experiment}", *overrides])


def test_the_sum_is_the_sum_and_every_term_is_counted_by_hand():
    plan = memory(COUNTS, batch_size=2, shards=1, checkpointing=False, half=False, ema=True)
    by_hand = {
        "parameters": 4000 + 80,  # the loss's own are trained too, but not averaged
        "buffers": 36,
        "gradients (fp32)": 480,
        "AdamW moments (fp32)": 960,
        "average of weights (fp32)": 400,
        "gathered blocks": 0,
        "activations": 2 * 9000,
        "frozen codec": 28,
    }
    assert {k: v * GIB for k, v in plan.items() if k != "sum"} == pytest.approx(by_hand)
    assert plan["sum"] * GIB == pytest.approx(sum(by_hand.values()))
    gathered = lambda **how: memory(COUNTS, 1, **how)["gathered blocks"] * GIB
    assert gathered(gathers=True) == pytest.approx(2 * 2 * 90)
    # Autocast's copies: of what is trained (100), of a frozen block (90) while it runs; of all if none is run again.
    assert gathered(checkpointing=True) == pytest.approx(2 * (100 + 90))
    assert gathered(checkpointing=False) == pytest.approx(2 * 1000)
    assert gathered(checkpointing=True, weight_bytes=2) == pytest.approx(2 * 100)


def test_shards_divide_state_but_not_activations_or_frozen_parts():
    one, eight = (memory(COUNTS, 1, shards=n) for n in (1, 8))
    for row in ("parameters", "gradients (fp32)", "AdamW moments (fp32)", "average of weights (fp32)"):
        assert eight[row] == pytest.approx(one[row] / 8)
    assert eight["activations"] == one["activations"] and eight["frozen codec"] == one["frozen codec"]


def test_offloading_leaves_on_the_device_what_passes_through_it():
    sharded = memory(COUNTS, 1, shards=8, gathers=True)
    rows = ("parameters", "gradients (fp32)", "AdamW moments (fp32)", "average of weights (fp32)")
    state = sum(sharded[row] for row in rows)
    offloaded = memory(COUNTS, 1, shards=8, gathers=True, offload=True)
    assert offloaded["sum"] == pytest.approx(sharded["sum"] - state) and offloaded[MAIN] == pytest.approx(state)
    cfg = config("model.weights=null", "trainer=fsdp", "trainer.strategy.offload=true")
    assert MAIN in planned(cfg, COUNTS, 2) and MAIN not in planned(config("trainer=fsdp"), COUNTS, 2)


def test_checkpointing_keeps_block_inputs_and_one_live_block():
    again = lambda half: memory(COUNTS, 1, checkpointing=True, half=half)["activations"] * GIB
    assert again(False) == pytest.approx(1600 + 300 + 870) and again(True) == pytest.approx(800 + HALF * (300 + 870))


def test_what_autograd_keeps_is_the_closed_form_and_what_a_real_step_keeps():
    """22 numbers a token and width in a block: inputs of both norms, what they give, that modulated (6); queries and
    keys before and after their norm, values, output (6); projected (1); feed-forward's 4 before and after GELU (8), and
    what it gives (1). With LoRA on attention alone, 13."""
    from timelapse.build import build

    for lora, numbers in [("null", 22), ("{rank: 2, alpha: 2, targets: [to_q, to_k, to_v, to_out.0]}", 13)]:
        cfg = config("model.weights=null", "model.transformer.num_layers=2", f"model.lora={lora}")
        counts, model = count(cfg), build(cfg.model)
        unit = 4 * counts.tokens * model.backbone.width
        # With statistics and tables, which are large in so small a block.
        assert counts.block == pytest.approx(numbers * unit, rel=0.08)
        tables = 2 * 4 * 576 * 32  # cosines and sines
        assert counts.inputs == pytest.approx(counts.blocks * unit + tables, rel=0.01)
        for checkpointing in (False, True):
            model.backbone.gradient_checkpointing = checkpointing
            zt = torch.randn(1, *model.latent_shape(17, 64, 64))
            told = Condition(torch.zeros_like(zt), torch.zeros(1, 17, dtype=torch.bool), torch.randn(1, 40, 64))
            with kept_for_backward(model.backbone) as kept:
                model.backbone(zt, torch.zeros(1, dtype=torch.long), told)
            measured = kept.sizes()
            if checkpointing:
                assert not measured["block"]
                assert measured["inputs"] + measured["ends"] == pytest.approx(counts.inputs + counts.ends, rel=0.01)
            else:  # attention on the CPU gives heads one after the other, so that they are copied once more
                assert measured["kept"] == pytest.approx(counts.kept + counts.blocks * unit, rel=0.01)


def test_tiny_counts_are_those_of_the_built_model():
    from timelapse.build import build

    cfg = config(*SMALL)
    counts, backbone = count(cfg), build(cfg.model).backbone
    assert counts.parameters == sum(p.numel() for p in backbone.parameters()) == counts.trained
    assert counts.tokens == 9 * 8 * 8 + cfg.model.transformer.max_text_seq_length


def test_blocks_that_are_compiled_are_counted_as_they_are_written():
    assert count(config("model.compile=true")) == count(config())


def test_counting_the_published_model_holds_none_of_it():
    """T5-XXL alone would be 18 GiB and minutes of random numbers."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type != "meta":
                largest = max(largest, out.numel())
            return out

    with Watch():
        count(
            config(
                "scale=paper",
                "model.transformer.num_layers=2",
                "model.align={layer: 1, early_layer: 0, width: 3072, hidden: 8}",
            )
        )
    assert largest < 1e6


def test_operations_are_those_of_the_matrices():
    """Twice the weights of every matrix product for each token, attention 4 N N D, and twice that backward."""
    cfg = config(*SMALL)
    counts, numbers = count(cfg), cfg.model.transformer
    tokens, layers = counts.tokens, counts.blocks
    width = numbers.num_attention_heads * numbers.attention_head_dim
    video = tokens - numbers.max_text_seq_length
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width  # 4 for attention's, 8 for the feed-forward's matrices
    ends = 2 * video * width * 4 * (numbers.in_channels + numbers.out_channels)  # patches of 2 x 2
    assert counts.flops == pytest.approx(3 * (layers * block + ends), rel=0.03)  # the rest is once a clip
    again = count(config(*SMALL, "model.gradient_checkpointing=true")).flops
    assert again == pytest.approx(4 / 3 * counts.flops, rel=0.03)  # every block runs forward once more
    lora = "model.lora={rank: 2, alpha: 2, targets: [to_q, to_k, to_v, to_out.0]}"
    assert count(config(*SMALL, lora)).flops < 0.9 * counts.flops  # no gradients of frozen matrices


@pytest.mark.parametrize("experiment", ["svd_backward", "drepa_vjepa"])
def test_checkpointing_changes_operations_and_not_what_blocks_would_keep_without_it(experiment):
    off, on = (
        count(config("model.weights=null", f"model.gradient_checkpointing={flag}", experiment=experiment))
        for flag in ("false", "true")
    )
    assert (on.kept, on.inputs, on.ends, on.block) == (off.kept, off.inputs, off.ends, off.block)
    assert on.flops > 1.1 * off.flops


def test_each_noise_of_a_clip_is_a_pass_of_its_own(caplog):
    one, four = (config(*SMALL, f"module.noises_per_clip={n}") for n in (1, 4))
    rows, more = (planned(cfg, count(cfg), 1) for cfg in (one, four))
    assert more["activations"] == pytest.approx(4 * rows["activations"])
    assert more["parameters"] == rows["parameters"]
    teraflop = []
    for cfg in (one, four):
        caplog.clear()
        with caplog.at_level("INFO"):
            print_plan(cfg)
        teraflop.append(float(re.search(r"([\d.]+) TFLOP", caplog.text)[1]))
    assert teraflop[1] == pytest.approx(4 * teraflop[0], rel=0.02)


def test_the_optimizer_has_its_own_row():
    rows = {}
    for kind in ("adamw", "adamw8bit", "muon"):
        cfg = config("model.weights=null", f"module.optimizer={kind}")
        counts = count(cfg)
        rows[kind] = planned(cfg, counts, 1)[MOMENTS[kind]] * GIB / (counts.trained + counts.owned)
    assert rows["adamw"] == pytest.approx(8)
    assert 2 < rows["adamw8bit"] < 2.3 and 4 < rows["muon"] < 5


@pytest.mark.parametrize("experiment", ["svd_backward", "consisti2v"])
def test_a_unet_is_counted_too(experiment):
    """Its blocks differ."""
    from timelapse.build import build

    cfg = config("model.weights=null", experiment=experiment)
    counts, backbone = count(cfg), build(cfg.model).backbone
    size = lambda module, keep=lambda p: True: sum(p.numel() for p in module.parameters() if keep(p))
    assert counts.parameters == size(backbone) and counts.trained == size(backbone, lambda p: p.requires_grad)
    assert counts.largest == max(size(block) for block in backbone.blocks())
    rows = planned(cfg, counts, 1)
    assert rows["gradients (fp32)"] * GIB == pytest.approx(4 * counts.trained)
    assert counts.flops > 2 * counts.trained and counts.kept > counts.block > 0
    check_memory(cfg, 8.0)
    with pytest.raises(ValueError, match="would be held"):
        check_memory(cfg, 1e-3)


def test_recorded_maps_have_a_row_of_their_own_where_the_model_records_them():
    """Heads x frames^2 numbers at each place of each rotated layer; in float32 also under autocast, as softmax is."""
    from timelapse.build import build
    from timelapse.model.attention import Maps, Use

    row = "recorded attention maps"
    cfg = config("model.weights=null", "train.batch_size=3", experiment="svd_backward")
    counts, backbone = count(cfg), build(cfg.model).backbone
    where = {"down_blocks.0": 64, "mid_block": 16, "up_blocks.1": 64}  # latents of 8x8, halved once
    places = [next(n for at, n in where.items() if layer.startswith(at)) for layer in backbone.rotated]
    one = sum(places) * 2 * 14**2 * 4
    assert counts.maps == one and planned(cfg, counts, 1)[row] * GIB == pytest.approx(3 * one)
    assert memory(counts, 1, half=True, weight_bytes=2)[row] == memory(counts, 1, half=False)[row] * 2
    up = config("model.weights=null", "model.reverse.rotate=up", experiment="svd_backward")
    assert 0 < count(up).maps < one
    off = config("model.weights=null", "model.reverse.rotate=none", experiment="svd_backward")
    assert row not in planned(off, count(off), 1) and row not in memory(COUNTS, 1)

    zt = torch.randn(1, 14, 16, 8, 8)  # and the activations hold none of them
    image, token, maps = torch.randn(1, 16, 8, 8), torch.randn(1, 1, 32), Maps()
    with torch.no_grad(), backbone.attention.use(Use(record=maps, layers=backbone.rotated)):
        backbone.run(zt, torch.ones(1), image, token)
    assert maps.nbytes == one
    weights = Use(replay=maps, layers=backbone.rotated, weights=backbone.weights())
    with backbone.attention.use(weights), kept_for_backward(backbone) as kept:
        backbone.run(zt, torch.ones(1), image, token)
    held = {storage for group in kept.values() for storage in group}
    assert len(maps) == len(backbone.rotated) and not held & {m.untyped_storage()._cdata for m in maps.values()}


@pytest.mark.parametrize("experiment", ["pretrain_vae", "pretrain_svd_vae", "pretrain_vjepa"])
def test_what_is_no_backbone_on_whole_clips_is_not_counted_as_one_and_it_is_said(experiment, caplog):
    cfg = config("model.weights=null", experiment=experiment)
    with caplog.at_level("INFO"):
        check_memory(cfg, 1e-3)  # of the model's backbone, which is never trained, it would refuse this
    assert cfg.module._target_ in caplog.text and "not known beforehand" in caplog.text
    with pytest.raises(ValueError, match="is not in the plan"):
        print_plan(cfg)


def test_a_run_of_a_unet_is_refused_before_it_begins_where_its_devices_are_too_small(tmp_path):
    assert not any(uncounted(config(experiment=name)) for name in ("pretrain_cogvideox", "consisti2v", "svd_backward"))
    run = Run(config("model.weights=null", "trainer=cpu", experiment="svd_backward"), tmp_path)
    assert run.memory is None  # no GPU, no check
    run.check()
    run.memory = (1e-3, 1)  # GiB, devices
    with pytest.raises(ValueError, match="would be held by each of 1 devices"):
        run.check()


def test_what_cannot_be_held_is_said_with_its_numbers_and_what_to_type():
    cfg = config("model.weights=null", "train.batch_size=64")
    need = planned(cfg, count(cfg), 1)["sum"]
    said = too_large(cfg, need / 2)
    assert f"{need:.1f} GiB would be held by each of 1 devices" in said and "activations" in said
    assert "type one of: model.gradient_checkpointing=true" in said
    check_memory(cfg, need / 2)  # activations are an estimate, which alone stops nobody
    with pytest.raises(ValueError, match="a smaller model"):
        check_memory(cfg, 1e-3)


@pytest.mark.parametrize(
    ("devices", "nodes", "expected"),
    [("4", 1, 4), ("-1", 2, 12), ("auto", 1, 6), ("[0,3]", 1, 2), ("'0,1,2'", 2, 6), ("'4'", 1, 4)],
)
def test_devices_are_counted_as_lightning_takes_them(devices, nodes, expected):
    cfg = config("trainer=gpu", f"trainer.devices={devices}", f"trainer.num_nodes={nodes}")
    assert devices_of(cfg.trainer, there=6) == expected
    assert devices_of(cfg.trainer) == (None if devices in ("-1", "auto") else expected)


def test_what_to_type_instead_is_counted_on_the_devices_that_it_names_and_is_not_what_is_there():
    suggested = r"trainer=fsdp trainer.devices=(\d+) \((\d+\.\d) GiB\)"
    cfg = config(*SMALL, "trainer=ddp", "trainer.devices=2", "train.batch_size=400")
    large = planned(cfg, count(cfg), 2)["sum"]
    sharded = config(*SMALL, "trainer=fsdp", "trainer.devices=8", "train.batch_size=400")
    need = planned(sharded, count(sharded), 8)["sum"]
    assert need < large and re.findall(suggested, too_large(cfg, large, 2)) == [("8", f"{need:.1f}")]
    assert not re.findall(suggested, too_large(sharded, need, 8))  # memory ran out all the same


def test_the_text_encoder_stays_only_where_captions_are_not_cached():
    counts = count(config(*SMALL))
    assert "frozen text encoder" not in planned(config(*SMALL), counts, 1)
    assert "frozen text encoder" in planned(config(*SMALL, "cache.enabled=false"), counts, 1)


@pytest.mark.slow
def test_the_published_architecture_is_built_on_meta():
    counts = count(config("scale=paper", "trainer=fsdp"))
    text_to_video, image_channels = 5_570_283_072, 16 * 2 * 2 * 3072  # CogVideoX-5b, and what I2V adds to its input
    assert counts.parameters - counts.trained == text_to_video + image_channels
    assert counts.tokens == 13 * 30 * 45 + 226 and counts.blocks == 42


@pytest.mark.slow
def test_the_published_unets_are_planned():
    counts = count(config("scale=paper", experiment="svd_backward"))
    assert counts.trained == 24_780_800 and counts.parameters - counts.trained == 1_524_623_082
    counts = count(config("scale=paper", experiment="consisti2v"))
    assert counts.parameters == counts.trained > 865_910_724  # more than the image network
