"""The published architecture, sharded over 1, 8 and 64 processes on the meta device, is what the plan says."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.distributed.tensor import DTensor

from timelapse.build import build, build_all
from timelapse.plan import GIB, count, planned
from timelapse.run import CONF
from timelapse.sharding import mesh_of, shard


def config(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["+experiment=drepa_vjepa", "scale=paper", *overrides])


def held(cfg, rank: int, world: int, replicas: int) -> dict[str, int]:
    """Bytes of one process of `world`, none of which exists: collectives of this group do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        with torch.device("meta"):
            backbone, losses = build(cfg.model).backbone, nn.ModuleDict(build_all(cfg.loss))
        whole = {name: p.numel() for part in (backbone, losses) for name, p in part.named_parameters()}
        shard(backbone, losses, mesh_of("cpu", world, replicas), half=True)
        named = [pair for part in (backbone, losses) for pair in part.named_parameters()]
        assert all(isinstance(p, DTensor) and p.device.type == "meta" for _, p in named)
        assert {name: p.numel() for name, p in named} == whole  # whole shapes stay visible, shards are local
        local = lambda wanted, parts: sum(
            p.to_local().numel() * p.element_size()
            for part in parts
            for _, p in part.named_parameters()
            if p.requires_grad or not wanted
        )
        return {
            "parameters": local(False, (backbone, losses)),
            "trained": local(True, (backbone, losses)),
            "averaged": local(True, (backbone,)),
            "whole": sum(p.numel() * p.element_size() for _, p in named),
            "buffers": sum(x.numel() * x.element_size() for x in backbone.buffers()),
        }
    finally:
        torch.distributed.destroy_process_group()


def agrees(cfg, ranks: list[int], world: int, replicas: int = 1) -> int:
    """The plan's rows against each of `ranks`; bytes of the shards that they hold together."""
    plan = {row: gib * GIB for row, gib in planned(cfg, count(cfg), world).items()}
    together = 0
    for rank in ranks:
        bytes_ = held(cfg, rank, world, replicas)
        assert plan["parameters"] == pytest.approx(bytes_["parameters"], rel=1e-9)
        assert plan["gradients (fp32)"] == pytest.approx(bytes_["trained"], rel=1e-9)
        assert plan["AdamW moments (fp32)"] == pytest.approx(2 * bytes_["trained"], rel=1e-9)
        assert plan["average of weights (fp32)"] == pytest.approx(bytes_["averaged"], rel=1e-9)
        assert plan["buffers"] == bytes_["buffers"]
        together += bytes_["parameters"]
        assert bytes_["parameters"] * (world // replicas) == pytest.approx(bytes_["whole"], rel=1e-9)
    return together


def test_the_shards_of_all_processes_are_the_whole():
    """With two of the 42 blocks."""
    cfg = config("trainer=fsdp", "model.transformer.num_layers=2", "model.align.layer=1", "model.align.early_layer=0")
    assert agrees(cfg, list(range(8)), 8) == held(cfg, 0, 1, 1)["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("trainer, world, replicas", [("fsdp", 1, 1), ("fsdp", 8, 1), ("fsdp", 64, 1), ("hsdp", 64, 8)])
def test_the_published_architecture_on_1_8_and_64_processes(trainer, world, replicas):
    """HSDP: 8 nodes of 8, a shard group each."""
    cfg = config(f"trainer={trainer}", f"trainer.devices={world // replicas}", f"trainer.num_nodes={replicas}")
    assert cfg.trainer.strategy.replicas == replicas
    agrees(cfg, [0, world - 1], world, replicas)
