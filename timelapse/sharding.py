"""FSDP2 through Lightning: one strategy for one node, many nodes (HSDP), and two CPU processes in a test."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


class Fsdp2(ModelParallelStrategy):
    """Data-parallel only: Lightning's "auto" sizes would mean tensor-parallel inside a node.

    replicas: number of shard groups. 1 shards over all processes; N nodes usually want N (HSDP): parameters are
    sharded inside a group and gradients averaged across groups.
    """

    def __init__(self, replicas: int = 1, **kwargs):
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)
        self.replicas = replicas
        self.mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        world = self.num_processes * self.num_nodes
        if world % self.replicas:
            raise ValueError(f"trainer.strategy.replicas={self.replicas} does not divide {world} processes")
        self._data_parallel_size = world
        super().setup_environment()
        kind = self.root_device.type
        sizes = (self.replicas, world // self.replicas)
        names = ("replicate", "shard")
        self.mesh = (
            init_device_mesh(kind, sizes, mesh_dim_names=names)
            if self.replicas > 1
            else (init_device_mesh(kind, sizes[1:], mesh_dim_names=names[1:]))
        )


def reshard(module: nn.Module) -> None:
    """Give up gathered parameters, so that `named_parameters` are the shards; no-op without FSDP2.

    The outermost group stays gathered after a forward without backward (validation, sampling).
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def shard(backbone: nn.Module, losses: nn.Module, strategy: Fsdp2) -> None:
    """Shard each transformer block, then the rest of the backbone, then what losses own, all on one mesh.

    A loss's projector left unsharded beside a sharded backbone would break norm clipping and fused AdamW.
    Parameters stay float32; blocks compute in bfloat16 when the trainer's precision says so.
    """
    half = "bf16" in str(strategy.precision_plugin.precision)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if half else None
    options = {"mesh": strategy.mesh, **({"mp_policy": policy} if policy else {})}
    for block in backbone.blocks():
        fully_shard(block, **options)
    fully_shard(backbone, **options)
    for loss in losses.children():
        if any(p.requires_grad for p in loss.parameters()):
            fully_shard(loss, mesh=strategy.mesh)  # float32: alignment losses run outside of autocast
