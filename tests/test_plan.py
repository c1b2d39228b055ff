"""The memory plan adds up, and divides what is sharded and nothing else."""

import pytest
from hydra import compose, initialize_config_dir

from timelapse.plan import GIB, Counts, check_memory, count, memory, planned, too_large
from timelapse.run import CONF

COUNTS = Counts(parameters=1000, trained=100, blocks=10, width=8, tokens=50, frozen={"codec": 7})


def config(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["+experiment=drepa_vjepa", *overrides])


def test_the_sum_is_the_sum_and_every_term_is_counted_by_hand():
    plan = memory(COUNTS, batch_size=2, shards=1, checkpointing=False, half=False, ema=True)
    by_hand = {
        "parameters": 4000,
        "gradients (fp32)": 400,
        "AdamW moments (fp32)": 800,
        "average of weights (fp32)": 400,
        "gathered blocks": 0,
        "activations": 2 * 10 * 34 * 50 * 8 * 2,  # batch, blocks, bytes at 16 bit, tokens, width, twice at 32 bit
        "frozen codec": 28,
    }
    assert {k: v * GIB for k, v in plan.items() if k != "sum"} == pytest.approx(by_hand)
    assert plan["sum"] * GIB == pytest.approx(sum(by_hand.values()))


def test_shards_divide_state_but_not_activations_or_frozen_parts():
    one, eight = (memory(COUNTS, 1, shards=n) for n in (1, 8))
    for row in ("parameters", "gradients (fp32)", "AdamW moments (fp32)", "average of weights (fp32)"):
        assert eight[row] == pytest.approx(one[row] / 8)
    assert eight["activations"] == one["activations"] and eight["frozen codec"] == one["frozen codec"]


def test_checkpointing_keeps_block_inputs_and_one_live_block():
    kept, all_ = (memory(COUNTS, 1, checkpointing=c)["activations"] * GIB for c in (True, False))
    assert all_ == pytest.approx(10 * 34 * 50 * 8) and kept == pytest.approx(10 * 2 * 50 * 8 + 34 * 50 * 8)


def test_tiny_counts_are_those_of_the_built_model():
    from timelapse.build import build

    cfg = config("model.weights=null")
    counts, backbone = count(cfg), build(cfg.model).backbone
    assert counts.parameters == sum(p.numel() for p in backbone.parameters()) == counts.trained
    assert counts.tokens == 5 * 8 * 8 + cfg.model.transformer.max_text_seq_length and counts.width == backbone.width


def test_operations_are_those_of_the_matrices():
    """Twice the weights of every matrix product for each token, attention 4 N N D, and twice that backward."""
    cfg = config("model.weights=null")
    counts, numbers = count(cfg), cfg.model.transformer
    tokens, width, layers = counts.tokens, counts.width, counts.blocks
    video = tokens - numbers.max_text_seq_length
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width  # 4 for attention's, 8 for the feed-forward's matrices
    ends = 2 * video * width * 4 * (numbers.in_channels + numbers.out_channels)  # patches of 2 x 2
    assert counts.flops == pytest.approx(3 * (layers * block + ends), rel=0.03)  # the rest is once a clip
    again = count(config("model.weights=null", "model.gradient_checkpointing=true")).flops
    assert again == pytest.approx(4 / 3 * counts.flops, rel=0.03)  # every block runs forward once more
    lora = "model.lora={rank: 2, alpha: 2, targets: [to_q, to_k, to_v, to_out.0]}"
    assert count(config("model.weights=null", lora)).flops < 0.9 * counts.flops  # no gradients of frozen matrices


def test_what_cannot_be_held_is_said_with_its_numbers_and_what_to_type():
    cfg = config("model.weights=null", "train.batch_size=64")
    need = planned(cfg, count(cfg), 1)["sum"]
    said = too_large(cfg, need / 2)
    assert f"{need:.1f} GiB would be held by each of 1 devices" in said and "activations" in said
    assert "type one of: model.gradient_checkpointing=true" in said
    check_memory(cfg, need / 2)  # activations are an estimate, which alone stops nobody
    with pytest.raises(ValueError, match="a smaller model"):
        check_memory(cfg, 1e-3)


def test_the_text_encoder_stays_only_where_captions_are_not_cached():
    counts = count(config("model.weights=null"))
    assert "frozen text encoder" not in planned(config("model.weights=null"), counts, 1)
    assert "frozen text encoder" in planned(config("model.weights=null", "cache.enabled=false"), counts, 1)


@pytest.mark.slow
def test_the_published_architecture_is_built_on_meta():
    counts = count(config("scale=paper", "trainer=fsdp"))
    text_to_video, image_channels = 5_570_283_072, 16 * 2 * 2 * 3072  # CogVideoX-5b, and what I2V adds to its input
    assert counts.parameters - counts.trained == text_to_video + image_channels
    assert counts.tokens == 13 * 30 * 45 + 226 and counts.blocks == 42
