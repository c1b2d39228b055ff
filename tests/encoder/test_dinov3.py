import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from timelapse.encoder.dinov3 import DINOv3, published


def small(registers=3):
    torch.manual_seed(0)
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_register_tokens=registers,
            initializer_range=0.3,
        )  # fmt: skip
    ).eval()


@pytest.mark.parametrize("registers", [0, 3])
def test_class_and_register_tokens_are_cut_off(registers):
    """With attention and position taken out, a token depends on its own patch alone: changing one patch must change
    exactly that patch's token, wherever the prefix ends.
    """
    model = small(registers)
    for layer in model.model.layer:
        layer.attention.o_proj.weight.data.zero_()
    encoder = DINOv3(model, "small")
    video = torch.rand(1, 5, 3, 24, 40) * 2 - 1
    changed = video.clone()
    changed[:, :, :, 8:16, 24:32] += 0.3  # row 1, column 3 of a 3x5 grid
    differs = (encoder(video, (2, 3, 5)) != encoder(changed, (2, 3, 5))).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [1 * 5 + 3]


def test_frames_of_a_latent_frame_are_averaged_and_the_first_frame_dropped():
    encoder = DINOv3(small(), "small", chunk=3)
    video = torch.rand(2, 9, 3, 24, 40) * 2 - 1
    each = encoder(video, (9, 3, 5)).unflatten(1, (8, 15))  # one latent a frame: no averaging
    torch.testing.assert_close(encoder(video, (3, 3, 5)).unflatten(1, (2, 15)), each.unflatten(1, (2, 4)).mean(2))
    video[:, 0] = 0
    torch.testing.assert_close(encoder(video, (9, 3, 5)).unflatten(1, (8, 15)), each)


def test_train_mode_never_reaches_it():
    """In train mode DINOv3 draws random position coordinates; inside a training module it must not."""
    encoder, video = DINOv3(small(), "small"), torch.rand(1, 5, 3, 24, 40)
    before = encoder(video, (2, 3, 5))
    torch.nn.Sequential(encoder).train()
    assert torch.equal(encoder(video, (2, 3, 5)), before)
    model = small().train()
    pixels = torch.rand(1, 3, 24, 40)
    assert not torch.equal(model(pixels).last_hidden_state, model(pixels).last_hidden_state)  # the trap is real


def test_gated_weights_say_how_to_get_them(tmp_path):
    with pytest.raises(ValueError, match="accept the licence"):
        published(str(tmp_path), 768, "DINOv3")
    small().save_pretrained(tmp_path)
    assert published(str(tmp_path), 48, "DINOv3").width == 48
    with pytest.raises(ValueError, match="encoder.width"):
        published(str(tmp_path), 768, "DINOv3")
