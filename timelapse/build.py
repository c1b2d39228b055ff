"""Config to objects; the only importer of hydra.utils. Classes never see a config."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from timelapse.errors import root_cause


def build(part: DictConfig, **kwargs: Any) -> Any:
    """The object a part's `_target_` names, built from its numbers and `kwargs`.

    ValueError when there is no `_target_`: Hydra would hand back the dict and say nothing.
    """
    where = part._get_full_key(None) if isinstance(part, DictConfig) else "part"
    if not isinstance(part, DictConfig) or "_target_" not in part:
        keys = ", ".join(map(str, part)) if isinstance(part, DictConfig) else repr(part)
        raise ValueError(
            f"{where}: no _target_ among ({keys}); a number was set for a part that is not switched on? "
            f"choose the part first, e.g. 'loss=[denoise,drepa]'"
        )
    try:
        return instantiate(part, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = root_cause(error)
        if isinstance(cause, (ValueError, FileNotFoundError)):  # the user's: say it as the part said it
            raise type(cause)(f"{where}: {cause}") from error
        raise


def build_all(parts: DictConfig) -> dict[str, Any]:
    """A list group (loss, metric): name -> object, in the order of the config."""
    return {name: build(part) for name, part in parts.items()}


def frozen(cfg: DictConfig) -> DictConfig:
    """A resolved, read-only copy: what is logged is what runs."""
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    OmegaConf.set_readonly(resolved, True)
    return resolved


def build_with(part: DictConfig, source: Any, names: Sequence[str]) -> Any:
    """Build a part and hand it those attributes of `source` that its constructor asks for by name."""
    return build(part, **{name: getattr(source, name) for name in asked(part, names)})


def asked(part: DictConfig, names: Sequence[str]) -> list[str]:
    """Which of `names` the constructor of a part's class asks for: how a part says what it works on, unbuilt."""
    wanted = signature(class_of(part)).parameters
    return [name for name in names if name in wanted]


def class_of(part: DictConfig) -> type:
    return get_class(part["_target_"])
