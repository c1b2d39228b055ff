import torch

from timelapse.module.masking import BlockMask, TubeMask, split


def draw(mask, n=20, grid=(4, 8, 8)):
    return [mask.hidden(grid, torch.Generator().manual_seed(i)) for i in range(n)]


def test_every_clip_hides_exactly_the_ratio():
    for mask, hidden in ((BlockMask(0.75, 0.15), 48), (BlockMask(0.6, 0.5), 38), (TubeMask(0.9), 58)):
        assert {int(m.sum()) for m in draw(mask)} == {4 * hidden}
    assert {int((~m).sum()) for m in draw(BlockMask(0.5, 0.5, time=0.5))} == {2 * 32}


def test_hidden_places_are_the_same_at_all_times_shown():
    for m in draw(BlockMask(0.75, 0.15)) + draw(TubeMask(0.9)):
        assert (m == m[:1]).all()
    for m in draw(BlockMask(0.5, 0.5, time=0.5)):
        shown = (~m).flatten(1).any(1).nonzero().flatten().tolist()
        assert len(shown) == 2 and shown[1] == shown[0] + 1  # a window in time
        assert (m[shown[0]] == m[shown[1]]).all()


def test_blocks_hang_together_and_tubes_do_not():
    def neighbours(masks):  # share of hidden cells whose right neighbour is hidden
        m = torch.stack([m[0] for m in masks])
        return (m[:, :, 1:] & m[:, :, :-1]).sum() / m[:, :, :-1].sum()

    assert neighbours(draw(BlockMask(0.5, 0.25), 200)) > 0.7
    assert abs(neighbours(draw(TubeMask(0.5), 200)) - 31 / 63) < 0.03  # chance, without replacement


def test_split_gives_each_token_once_in_order():
    shown, hidden = split(draw(BlockMask(0.75, 0.15), 3))
    assert shown.shape == (3, 64) and hidden.shape == (3, 192)
    for s, h in zip(shown, hidden):
        assert torch.equal(torch.cat([s, h]).sort()[0], torch.arange(256))
        assert torch.equal(s, s.sort()[0])
