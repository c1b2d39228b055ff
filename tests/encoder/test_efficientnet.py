import pytest
import torch

from timelapse.encoder.efficientnet import EfficientNetFeatures


@pytest.fixture(scope="module")
def encoder():
    return EfficientNetFeatures(block=4, width=40, name="lite0")


def test_it_is_the_output_of_that_block_averaged_over_the_latent_frame(encoder):
    video = torch.rand(1, 9, 3, 32, 32) * 2 - 1
    each = encoder(video, (9, 4, 4)).unflatten(1, (8, 16))
    torch.testing.assert_close(
        encoder(video, (3, 4, 4)).unflatten(1, (2, 16)), each.unflatten(1, (2, 4)).mean(2), atol=1e-5, rtol=1e-5
    )
    seen = []
    handle = encoder.blocks[4].register_forward_hook(lambda m, i, o: seen.append(o))
    encoder(video[:, :2], (2, 4, 4))
    handle.remove()
    assert seen[0].shape == (1, 40, 4, 4)  # the map is the grid: nothing is resampled
    torch.testing.assert_close(each[:, 0], seen[0].flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_its_weights_are_those_of_imagenet_and_stay(encoder):
    video = torch.rand(1, 5, 3, 32, 32)
    before = encoder(video, (2, 4, 4))
    torch.nn.Sequential(encoder).train()  # batch norm would follow
    assert torch.equal(encoder(video, (2, 4, 4)), before)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert encoder.norm.running_mean.abs().min() > 0  # statistics of ImageNet, not the zeros of a new layer


def test_a_wrong_width_or_block_is_named():
    with pytest.raises(ValueError, match="block 4 has 40 channels; set encoder.width"):
        EfficientNetFeatures(block=4, width=112, name="lite0")
    with pytest.raises(ValueError, match="encoder.block"):
        EfficientNetFeatures(block=16, width=320, name="lite0")
