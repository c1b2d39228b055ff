"""Muon: what it does to matrices, what it leaves to AdamW, and that it resumes exactly."""

from __future__ import annotations

import io
import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from timelapse.module.denoising import Denoising
from timelapse.module.image_vae import ImageVae
from timelapse.module.masked_latent import MaskedLatent
from timelapse.module.masked_pixel import MaskedPixel
from timelapse.module.optimizer import Muon, NormClipping, check_kind, matrices_of, moments_of, optimizer_of, orthogonal
from timelapse.module.reconstruction import Reconstruction


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Conv1d(8, 4, 3)])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](self.first(x)).mT).square().mean()


class Wide(nn.Module):
    """A layer that takes 64 numbers, for `train`."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(1)[:, :24].repeat(1, 3)[:, :64]).square().mean()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(step))
        loss = (net(x) - 1).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (4, 16, 16)])
def test_orthogonal_keeps_singular_vectors_and_brings_values_near_one(shape):
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    s = torch.linspace(0.2, 1.0, min(shape[1:]))
    y = orthogonal(u * s @ vh)
    inner = u.mT @ y @ vh.mT  # diagonal, if singular vectors are kept
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 1e-4
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3


def test_parameters_outside_of_blocks_and_vectors_step_as_adamw_does():
    a, b = Net(), Net()
    muon = Muon([a], lr=1e-2)
    adamw = torch.optim.AdamW(b.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0)
    for net, optimizer in ((a, muon), (b, adamw)):
        train(net, optimizer, range(1))
    for name in ("first.weight", "first.bias", "blocks.0.bias", "blocks.1.bias"):
        assert torch.allclose(a.get_parameter(name), b.get_parameter(name), atol=1e-7), name
    assert not torch.allclose(a.blocks[0].weight, b.blocks[0].weight, atol=1e-4)


def test_a_matrix_step_has_the_root_mean_square_of_adamw():
    net = Net()
    before = net.blocks[0].weight.detach().clone()
    train(net, Muon([net], lr=1e-2), range(1))
    step = (net.blocks[0].weight - before) / 1e-2
    values = torch.linalg.svdvals(step) / (0.2 * 8**0.5)
    assert values.max() < 1.3 and step.square().mean().sqrt() < 0.25


def test_resumes_exactly():
    whole = Net()
    losses = train(whole, Muon([whole], lr=1e-2, weight_decay=0.1), range(6))
    part = Net()
    first = Muon([part], lr=1e-2, weight_decay=0.1)
    begun = train(part, first, range(3))
    again, saved = deepcopy(part), deepcopy(first.state_dict())
    second = Muon([again], lr=1e-2, weight_decay=0.1)
    second.load_state_dict(saved)
    assert begun + train(again, second, range(3, 6)) == losses


def test_a_schedule_reaches_both_kinds():
    net = Net()
    optimizer = Muon([net], lr=1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = deepcopy(net.state_dict())
    train(net, optimizer, range(2))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("older", [False, True])
def test_the_step_of_what_adamw_steps_goes_where_its_fused_kernel_reads_it(older):
    """torch moves `step` to the parameters' device by the loaded group's `fused`; older runs saved none."""
    net = Net()
    optimizer = Muon([net], lr=1e-2)
    train(net, optimizer, range(2))
    again, saved = deepcopy(net), deepcopy(optimizer.state_dict())
    for group in saved["param_groups"] if older else []:
        [group.pop(key) for key in group.keys() - {"params", "lr", "betas", "eps", "weight_decay", "matrix"}]
    elsewhere = Muon([Net().to("meta")], lr=1e-2)  # meta stands for a GPU
    elsewhere.load_state_dict(saved)
    assert {x.device.type for values in elsewhere.state.values() for x in values.values()} == {"meta"}
    second = Muon([again], lr=1e-2)
    second.load_state_dict(saved)
    assert train(again, second, range(2, 4)) == train(net, optimizer, range(2, 4))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_pulls_at_matrices_and_at_no_norm_or_bias(kind):
    net = Net()
    net.norm = nn.LayerNorm(8)
    before = deepcopy(net.state_dict())
    optimizer = optimizer_of(kind, [net], 0.1, weight_decay=0.5)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 if p.ndim < 2 else 1 - 0.1 * 0.5))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_checkpoint_whose_parameters_are_grouped_otherwise_is_refused_in_one_line(kind):
    net = Net()
    older, now = optimizer_of(kind, [net], 0.1), optimizer_of(kind, [net], 0.1, weight_decay=0.5)
    with pytest.raises(ValueError, match="older version") as said:
        now.load_state_dict(older.state_dict())
    assert "\n" not in str(said.value)
    now.load_state_dict(deepcopy(now.state_dict()))


def test_parts_without_vectors_or_without_matrices_are_trained_too():
    for part in (nn.Linear(3, 3, bias=False), nn.LayerNorm(3)):
        for kind in ("adamw", "muon"):
            before = deepcopy(part.state_dict())
            optimizer = optimizer_of(kind, [part], 0.1, weight_decay=0.5)
            part(torch.randn(2, 3)).square().sum().backward()
            optimizer.step()
            assert not torch.equal(part.weight, before["weight"])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_are_counted_as_they_are(kind):
    net = Net()
    optimizer = optimizer_of(kind, [net], 0.1, weight_decay=0.5)
    train(net, optimizer, range(1))
    kept = [x for state in optimizer.state.values() for name, x in state.items() if name != "step"]
    assert moments_of(kind, [net]) == sum(x.numel() * x.element_size() for x in kept)


def test_moments_in_8_bits_have_codes_scales_and_a_table():
    """As measured of torchao 0.18: two of 9344 bytes for a matrix of 64 x 128, float32 for its 128 biases."""
    assert moments_of("adamw8bit", [nn.Linear(64, 128)]) == 2 * 9344 + 8 * 128


@pytest.mark.slow  # it compiles its step
def test_adamw_in_8_bits_keeps_what_was_counted_and_resumes_exactly():
    pytest.importorskip("torchao")
    step = lambda net, opt, at: train(Wide(net), opt, range(at, at + 1))
    net = nn.Linear(64, 128)
    optimizer = optimizer_of("adamw8bit", [net], 0.01)
    step(net, optimizer, 0)
    plain = lambda x: [x.codes, x.scale, x.qmap] if hasattr(x, "codes") else [x]
    sizes = lambda x: sum(part.numel() * part.element_size() for part in plain(x))
    kept = [x for state in optimizer.state.values() for name, x in state.items() if name != "step"]
    assert moments_of("adamw8bit", [net]) == sum(map(sizes, kept))
    again = deepcopy(net)
    other = optimizer_of("adamw8bit", [again], 0.01)
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    step(net, optimizer, 1)
    step(again, other, 1)
    assert torch.equal(net.weight, again.weight)


def test_embedding_tables_inside_of_blocks_are_no_matrices():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=16, num_heads=2, num_layers=2)
    with torch.device("meta"):
        text = T5EncoderModel(config)
    named = {p: name for name, p in text.named_parameters()}
    found = {named[p] for p in matrices_of([text])}
    assert "encoder.block.0.layer.0.SelfAttention.q.weight" in found and len(found) == 2 * 6
    assert not [name for name in found if "bias" in name or "embed" in name or "shared" in name]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("mouon", "module.optimizer=mouon.*did you mean muon"),
        ("adamw8bit", "pip install torchao"),
        ("muon", "type trainer=ddp or module.optimizer=adamw"),
    ],
)
def test_what_cannot_work_is_said_with_what_to_type(kind, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)  # as if it were not installed
    with pytest.raises(ValueError, match=said):
        check_kind(kind, sharded=True)
    check_kind("adamw", sharded=True)
    check_kind("muon")


def test_weights_of_16_bits_are_not_trained():
    """A step of 5e-5 on a weight of 0.05 is below half of bfloat16's last bit: nothing would be learned, silently."""
    weight = torch.full((), 0.05, dtype=torch.bfloat16)
    assert weight - 5e-5 == weight
    with pytest.raises(ValueError, match=r"weights of bfloat16 .* model.dtype=float32 trainer.precision=bf16-mixed"):
        optimizer_of("adamw", [Net().bfloat16()], 5e-5)


def test_scaled_gradients_may_be_infinite_and_a_loss_may_not():
    """In 16 bits the scaler skips a step that overflowed; a loss that is no number would be skipped for ever."""

    class Module(NormClipping):
        global_step = 3
        trainer = SimpleNamespace(
            precision="16-mixed", accumulate_grad_batches=2, checkpoint_callback=None,
            strategy=SingleDeviceStrategy("cpu"),
        )  # fmt: skip

    module, p = Module(), nn.Parameter(torch.ones(2))
    p.grad = torch.full((2,), float("inf"))
    for index, losses in enumerate([(1.0, 2.0), (float("nan"), 2.0)]):
        for part, loss in enumerate(losses):
            module.on_train_batch_start({"key": [f"clip{index}{part}"]}, part)
            module.on_before_backward(torch.tensor(loss))
        if index:
            with pytest.raises(ValueError, match="loss is no number at step 3, clips clip10, clip11; .* none yet"):
                module.configure_gradient_clipping(torch.optim.SGD([p]))
        else:
            module.configure_gradient_clipping(torch.optim.SGD([p]))


def test_no_module_hands_apples_gpus_a_float64():
    kinds = (Denoising, ImageVae, MaskedLatent, MaskedPixel, Reconstruction)
    batch = {"seconds": torch.zeros(2, 5, dtype=torch.float64), "video": torch.zeros(2, 5), "key": ["a", "b"]}
    for kind in kinds:
        moved = kind.on_before_batch_transfer(None, batch, 0)
        assert moved["seconds"].dtype == torch.float32 and moved["key"] == ["a", "b"]
