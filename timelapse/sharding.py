"""FSDP2 through Lightning: one strategy for one node, many nodes (HSDP), and two CPU processes in a test."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from timelapse.checkpoint import META, Background, by_name, is_sharded, on_cpu, publish, read, remove, store
from timelapse.module.optimizer import check_groups


class Fsdp2(ModelParallelStrategy):
    """Data-parallel only: Lightning's "auto" sizes would mean tensor-parallel inside a node.

    replicas: number of shard groups. 1 shards over all processes; N nodes usually want N (HSDP): parameters are
    sharded inside a group and gradients averaged across groups.
    offload: parameters, gradients, optimizer and average stay in main memory; the optimizer steps on the CPU, blocks
    come to the device as they run.
    """

    def __init__(self, replicas: int = 1, offload: bool = False, **kwargs):
        if offload and torch.cuda.is_available():  # gradients' norm is summed over processes where they are
            kwargs.setdefault("process_group_backend", "cpu:gloo,cuda:nccl")
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=True, **kwargs)
        self.replicas, self.offload = replicas, offload
        self.mesh: DeviceMesh | None = None
        self.background = Background()

    def setup_environment(self) -> None:
        world = self.num_processes * self.num_nodes
        if world % self.replicas:
            raise ValueError(f"trainer.strategy.replicas={self.replicas} does not divide {world} processes")
        self._data_parallel_size = world
        super().setup_environment()
        self.mesh = mesh_of(self.root_device.type, world, self.replicas)
        # Of their own, on the CPU: checkpoints are agreed on beside the training's collectives.
        self.savers = torch.distributed.new_group(backend="gloo", timeout=timedelta(hours=2))

    @property
    def half(self) -> bool:
        """Whether blocks compute in bfloat16."""
        return "bf16" in str(self.precision_plugin.precision)

    @property
    def home(self) -> torch.device:
        """Where shards live between their uses."""
        return torch.device("cpu") if self.offload else self.root_device

    def model_to_device(self) -> None:
        if not self.offload:
            return super().model_to_device()
        self._move_unsharded(self.root_device)

    def _move_unsharded(self, device: torch.device) -> None:
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)

    # Lightning's two copy to the CPU what is elsewhere and only that; `save_checkpoint` copies everything, once.

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return get_model_state_dict(self.model)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return get_optimizer_state_dict(self.model, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """A folder of shards. Only copying them to the CPU holds up the training."""
        path = Path(self.broadcast(str(filepath)))
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{i}": o for i, o in enumerate(checkpoint.pop("optimizer_states", []))}
        state = on_cpu(state)

        def work(part: Path) -> None:
            self.begin(part)
            dcp.save(state, checkpoint_id=part, process_group=self.savers)  # fails on all processes if on one of them
            if self.global_rank == 0:  # after what others wait for, and last: a folder without it is no checkpoint
                store(checkpoint, part / META)
                publish(part, path)

        self.background.hold(path, work)

    def begin(self, part: Path) -> None:
        """Make room for a checkpoint; OSError on all processes if one cannot, or the others would wait for it."""
        error = None
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            if self.global_rank == 0:
                remove(part)
        except OSError as failed:
            error = failed
        count = torch.tensor(float(error is not None))
        torch.distributed.all_reduce(count, group=self.savers)
        if count:
            raise error or OSError(f"{part.parent}: {int(count)} other processes cannot write there")

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Into the module and its optimizers, from shards or from one file; returns the rest.

        What a checkpoint does not hold (frozen weights) stays as it is.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        if is_sharded(path):
            stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
            held = get_model_state_dict(self.model)
            state = {"state_dict": {k: v for k, v in held.items() if f"state_dict.{k}" in stored}}
            for i, optimizer in enumerate(self.optimizers):
                state[f"optimizer_{i}"] = get_optimizer_state_dict(self.model, optimizer)
                check_groups(stored_groups(path, i), optimizer.param_groups)
            dcp.load(state, checkpoint_id=path)
            rest, whole = torch.load(path / META, map_location="cpu", weights_only=True), False
        else:
            rest, whole = read(path), True
            state = {"state_dict": rest.pop("state_dict")}
            for i, (optimizer, numbered) in enumerate(zip(self.optimizers, rest.pop("optimizer_states", []))):
                check_groups(numbered["param_groups"], optimizer.param_groups)
                names = {p: name for name, p in self.model.named_parameters()}
                listed = [names[p] for group in optimizer.param_groups for p in group["params"]]
                state[f"optimizer_{i}"] = by_name(numbered, listed)
        options = StateDictOptions(full_state_dict=whole, strict=False)
        if self.offload:  # torch fills a model from whole tensors on one device only
            self._move_unsharded(self.home)
        set_model_state_dict(self.model, state["state_dict"], options=options)
        if self.offload:
            self._move_unsharded(self.root_device)
        for i, optimizer in enumerate(self.optimizers):
            set_optimizer_state_dict(self.model, optimizer, state[f"optimizer_{i}"], options=options)
        return rest

    def teardown(self) -> None:
        self.background.wait()
        super().teardown()


def stored_groups(path: Path, i: int) -> list[dict[str, Any]]:
    """Parameter names of each group of a checkpoint's i-th optimizer, which must be known before its state is read."""
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    keys = sorted(key for key in stored if key.startswith(f"optimizer_{i}.param_groups.") and key.endswith(".params"))
    state: dict[str, Any] = dict.fromkeys(keys)
    dcp.load(state, checkpoint_id=path)
    return [{"params": state[key]} for key in keys]


def reshard(module: nn.Module) -> None:
    """Give up gathered parameters, so that `named_parameters` are the shards; no-op without FSDP2.

    The outermost group stays gathered after a forward without backward (validation, sampling).
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def mesh_of(kind: str, world: int, replicas: int = 1) -> DeviceMesh:
    """Processes in shard groups, `replicas` of them. kind: of device."""
    sizes, names = (replicas, world // replicas), ("replicate", "shard")
    if replicas == 1:
        sizes, names = sizes[1:], names[1:]
    return init_device_mesh(kind, sizes, mesh_dim_names=names)


def shard(backbone: nn.Module, losses: nn.Module, mesh: DeviceMesh, half: bool, offload: bool = False) -> None:
    """Shard each transformer block, then the rest of the backbone, then what losses own, all on one mesh.

    A loss's projector left unsharded beside a sharded backbone would break norm clipping and fused AdamW.
    Parameters stay float32; blocks compute in bfloat16 with `half`, and wait in main memory with `offload`.
    """
    options = {"mesh": mesh}
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    for loss in losses.children():
        if any(p.requires_grad for p in loss.parameters()):
            fully_shard(loss, **options)  # its weights stay float32 also where blocks compute in bfloat16
    if half:
        # Inputs stay as they are: rotary tables and noise levels would be rounded, which DDP's autocast does not.
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for block in backbone.blocks():
        fully_shard(block, **options)
    fully_shard(backbone, **options)
