"""Optimizers over trained parameters, sharded or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from timelapse.errors import choice
from timelapse.types import Batch

KINDS = ("adamw", "adamw8bit", "muon")


def check_kind(kind: str, sharded: bool = False) -> None:
    """ValueError where there is no such optimizer, its package is missing, or it cannot work on shards."""
    if kind not in KINDS:
        raise ValueError(f"module.optimizer={kind}: there is no such optimizer; {choice(kind, KINDS)}")
    if kind == "adamw8bit":
        try:
            import torchao.optim  # noqa: F401  (from then on checkpoints that hold its tensors can be read)
        except ImportError:
            raise ValueError(
                "module.optimizer=adamw8bit needs torchao; pip install torchao, in a checkout "
                "pip install -c .constraints.txt -e '.[adamw8bit]'"
            ) from None
    if kind == "muon" and sharded:
        raise ValueError("module.optimizer=muon needs whole matrices; type trainer=ddp or module.optimizer=adamw")


def check_precision(precision: Any, clip: float | None) -> None:
    """ValueError where gradients would be clipped while they are scaled."""
    if clip and str(precision).startswith("16"):
        raise ValueError(
            f"trainer.precision={precision}: clipping would see scaled gradients; type trainer.precision=bf16-mixed, "
            f"or train.clip_norm=null"
        )


def optimizer_of(
    kind: str,
    parts: Iterable[nn.Module],
    rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
) -> torch.optim.Optimizer:
    """The optimizer of those parameters of `parts` that are trained.

    kind: "adamw" (one fused kernel for all parameters); "adamw8bit": torchao's, which keeps both moments in 8 bits with
    a scale for each block of 256 (Dettmers et al. 2022, arXiv:2110.02861), needs the package torchao and a compiler,
    and works on shards of FSDP2; or "muon": `Muon`, which needs whole matrices.
    """
    parts = list(parts)
    parameters = trained(parts)
    check_kind(kind, sharded=any(isinstance(p, DTensor) for p in parameters))
    options: dict[str, Any] = {"lr": rate, "betas": tuple(betas)}
    if kind == "muon":
        optimizer = Muon(parts, weight_decay=weight_decay, **options)
    elif kind == "adamw":
        optimizer = torch.optim.AdamW(grouped(parameters, weight_decay), fused=True, **options)
    else:
        from torchao.optim import AdamW8bit

        optimizer = AdamW8bit(grouped(parameters, weight_decay), **options)
    optimizer.register_load_state_dict_pre_hook(
        lambda optimizer, state: check_groups(state["param_groups"], optimizer.param_groups)
    )
    return optimizer


def trained(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    """ValueError for weights of 16 bits: a step of 5e-5 rounds to none."""
    found = [p for part in parts for p in part.parameters() if p.requires_grad]
    if short := {str(p.dtype).removeprefix("torch.") for p in found if p.element_size() < 4}:
        raise ValueError(
            f"weights of {', '.join(sorted(short))} would be trained, which rounds small steps to none; type "
            f"model.dtype=float32 trainer.precision=bf16-mixed (or train LoRA, whose own weights stay in float32)"
        )
    return found


def grouped(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: norms and biases (fewer than two dimensions) are not pulled to zero."""
    free = [p for p in parameters if weight_decay and p.ndim < 2]
    pulled = [p for p in parameters if not weight_decay or p.ndim >= 2]
    groups = ({"params": pulled, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def check_groups(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """ValueError where a checkpoint groups parameters otherwise: states would go to others than their own."""
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in own]:
        raise ValueError(
            "the checkpoint's optimizer groups parameters otherwise: an older version wrote it (norms and biases decay "
            "no more); go on with that version, or give the run another name"
        )


def matrices_of(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    """What Muon steps: trained matrices and convolutions inside of blocks. T5 has an embedding table in its first."""
    found = []
    for part in parts:
        tables = {module.weight for module in part.modules() if isinstance(module, nn.Embedding)}
        for name, p in part.named_parameters():
            if p.requires_grad and p.ndim >= 2 and ("block" in name or "layer" in name) and p not in tables:
                found.append(p)
    return found


def moments_of(kind: str, parts: Iterable[nn.Module]) -> int:
    """Bytes of what an optimizer keeps of the trained parameters of `parts`, its steps' numbers left out."""
    parts = list(parts)
    sizes = [p.numel() for p in trained(parts)]
    if kind == "adamw8bit":  # codes, a scale for each block, a table of 256 values; small or odd tensors stay whole
        return sum(2 * (n + 4 * n // 256 + 4 * 256) if n >= 4096 and n % 256 == 0 else 8 * n for n in sizes)
    return 8 * sum(sizes) - (4 * sum(p.numel() for p in matrices_of(parts)) if kind == "muon" else 0)


class NormClipping:
    """Of a LightningModule: gradients are clipped by their norm, and training ends where a loss is no number.

    Lightning's own clipping refuses fused optimizers in mixed precision of any kind. Every process sees the same norm,
    so all end together where a loss on one of them was no number.
    """

    clips: list[str] = []  # that this process took for the step in hand
    finite: bool | Tensor = True  # whether this process's losses of that step were numbers; asking waits for the device

    def on_before_batch_transfer(self, batch: Batch, index: int) -> Batch:
        """Capture times are float64, which MPS has not."""
        return {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in batch.items()}

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        if index % self.trainer.accumulate_grad_batches == 0:
            self.clips, self.finite = [], True
        self.clips = [*self.clips, *batch.get("key", [])]

    def on_before_backward(self, loss: Tensor) -> None:
        self.finite = loss.detach().isfinite() & self.finite

    def clipped_together(self, optimizer: Any) -> list[list[nn.Parameter]]:
        """Parameters whose gradients share a norm."""
        return [[p for group in optimizer.param_groups for p in group["params"]]]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        check_precision(self.trainer.precision, gradient_clip_val)
        if str(self.trainer.precision).startswith("16"):  # scaled, maybe infinite: the scaler skips such a step
            if self.trainer.strategy.reduce_boolean_decision(not self.finite, all=False):
                raise ValueError(self._no_number())
            return
        for parameters in self.clipped_together(optimizer):
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
            if not whole.isfinite():
                raise ValueError(self._no_number(f": gradients have norm {whole.item()}"))
            if gradient_clip_val:
                torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def on_validation_end(self) -> None:
        """Held-out losses are means over all processes: each sees the same, and all end together."""
        for name, value in self.trainer.callback_metrics.items():
            if name.startswith("val/") and not value.isfinite():
                go_on = "the same command goes on from the checkpoint before it"
                if not getattr(self.trainer.checkpoint_callback, "held", None):  # the last step's, kept if it is good
                    go_on = f"once the checkpoint of this step is deleted {go_on}"
                raise ValueError(
                    f"held-out {name} is no number at step {self.global_step}: mend the validation clips, {go_on}; or "
                    f"lower the learning rate, which is a new run"
                )

    def _no_number(self, norm: str = "") -> str:
        """Names the clips of the processes whose own loss was none; of all of them where only gradients overflowed."""
        every = [(bool(self.finite), self.clips)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            every = every * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(every, (bool(self.finite), self.clips))
        blamed = [clips for finite, clips in every if not finite] or [clips for _, clips in every]
        last = getattr(self.trainer.checkpoint_callback, "last_model_path", "") or "none yet"
        return (
            f"loss is no number{norm} at step {self.global_step}, clips {', '.join(sum(blamed, []))}; last good "
            f"checkpoint: {last}; lower the learning rate or look at those clips"
        )


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices inside of blocks, AdamW for the rest.

    The momentum of a matrix (of a convolution: output channels by all else) is replaced by the nearest matrix with
    singular values of about one, by a Newton-Schulz iteration, and scaled to the root mean square 0.2 that AdamW's
    steps have (arXiv:2502.16982, eq. 4), so that one learning rate and weight decay serve both. `torch.optim.Muon`
    takes neither convolutions nor other parameters, and iterates in bfloat16, which processors emulate; here it is
    float32, in one batch for all matrices of a shape.
    """

    def __init__(
        self,
        parts: Iterable[nn.Module],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        iterations: int = 5,
    ):
        parts = list(parts)
        matrices = {p: None for p in matrices_of(parts)}  # in their order
        rest = grouped([p for p in trained(parts) if p not in matrices], weight_decay)
        adamw = torch.optim.AdamW([{"params": []}], lr=lr, weight_decay=weight_decay, betas=tuple(betas), fused=True)
        super().__init__(
            [{"params": [*matrices], "matrix": True}, *({**group, "matrix": False} for group in rest)],
            {**adamw.defaults, "momentum": momentum, "iterations": iterations},
        )
        self._adamw = adamw

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch moves the `step` of a group to the device if that group is `fused`; older runs did not say so."""
        groups = [{**self.defaults, **group} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["matrix"]:
                self._step_matrices(group)
        self._adamw.state = self.state  # loading a state replaces both
        self._adamw.param_groups = [group for group in self.param_groups if not group["matrix"]]
        self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                alike[(p.shape[0], p[0].numel())].append(p)
        for (rows, columns), parameters in alike.items():
            updates = []
            for p in parameters:
                held = self.state[p].setdefault("momentum", torch.zeros_like(p))
                held.lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(held, group["momentum"]).reshape(rows, columns))  # Nesterov's look ahead
            scale = 0.2 * max(rows, columns) ** 0.5
            for p, update in zip(parameters, orthogonal(torch.stack(updates), group["iterations"])):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(n,r,c) -> the same with the same singular vectors and singular values of about one: 0.7 to 1.2 those
    that are more than a hundredth of the largest, what is smaller less.

    Quintic Newton-Schulz iteration with Jordan's coefficients, which do not converge to one but get near it fast.
    """
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    wide = x.mT if x.shape[1] > x.shape[2] else x
    for _ in range(iterations):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide.mT if x.shape[1] > x.shape[2] else wide
