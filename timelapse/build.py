"""Config to objects; the only importer of hydra.utils. Classes never see a config."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from timelapse.errors import root_cause

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}  # annotations are text here


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
    check_numbers(part, where)
    try:
        return instantiate(part, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = root_cause(error)
        if isinstance(cause, (ValueError, FileNotFoundError)):  # the user's: say it as the part said it
            raise type(cause)(f"{where}: {cause}") from error
        raise


def check_numbers(part: DictConfig, where: str) -> None:
    """ValueError for text where the constructor asks for a number: it would fail in the middle of some comparison."""
    try:
        wanted = signature(get_object(part["_target_"])).parameters
    except (ImportError, ValueError):  # not there, or without a signature: building says so
        return
    for name, value in part.items():
        if isinstance(value, DictConfig) and "_target_" in value:
            check_numbers(value, f"{where}.{name}")
        kind = wanted[name].annotation if name in wanted else None
        if isinstance(value, str) and kind in KINDS:
            raise ValueError(f"{where}.{name}={value}; type {KINDS[kind]}")


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
