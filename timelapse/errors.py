"""What is wrong with a command line, in one line: what was typed, what there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from timelapse.help import CONF

MISTAKES = (HydraException, OmegaConfBaseException)


def one_line(error: Exception) -> str:
    """Hydra's message without its search path and pointers; with what there is to choose from, the likeliest first."""
    if isinstance(error, InstantiationException):
        where = [line.strip().removeprefix("full_key: ") for line in str(error).splitlines()[-1:] if "full_key" in line]
        cause = root_cause(error)
        return " ".join(": ".join([*where, type(cause).__name__, str(cause)]).split())
    said = [line.strip().removeprefix("In 'config': ") for line in str(error).splitlines() if line.strip()]
    first = said[0] if said else type(error).__name__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or options_of(group)
        if options:
            return f"{group}={name}: there is no such {group}; {choice(name, options)}"
    if first.startswith("Ambiguous value"):
        return f"{first}; a comma asks for a sweep (-m) unless it is quoted twice: 'input.prompt=\"a rose, red\"'"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    parent = getattr(cause, "parent_node", None)
    if isinstance(parent, DictConfig) and getattr(cause, "key", None) is not None:
        return f"{first.rstrip('.')}; {choice(str(cause.key), [str(k) for k in parent])}"
    return "; ".join([first, *(line for line in said[1:2] if line.startswith("To append"))])


def root_cause(error: BaseException) -> BaseException:
    """What went wrong within a part that Hydra was building."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def options_of(group: str) -> list[str]:
    """Files of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def choice(typed: str, options: Iterable[str]) -> str:
    """'did you mean x?' where one of the options is near, else all of them."""
    options = list(options)
    near = get_close_matches(typed, options, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(options)}"


def check_added(overrides: Iterable[str], config: Mapping[str, Any]) -> None:
    """`+experimet=x` adds a key that nobody reads, which Hydra allows: ValueError where one like it is known.

    config: as composed, with what was added. `++seed=1` may add or not: what it names is taken as known.
    """
    added = {o: o.lstrip("+").split("=")[0].split("@")[0].split(".") for o in overrides if o.startswith("+")}
    only = Counter(path[0] for path in added.values())  # a top-level key that has no more than this was added itself
    more = lambda key: hasattr(config.get(key), "keys") and len(config[key]) > only[key]
    typed = {path[0] for o, path in added.items() if (len(path) > 1 or not o.startswith("++")) and not more(path[0])}
    known = {*config} - typed | {path.stem for path in CONF.iterdir()}
    for override, (key, *_) in added.items():
        near = get_close_matches(key, known, n=1)
        if key not in known and near:
            meant = override.replace(key, near[0], 1)
            raise ValueError(f"{override}: nothing reads {key!r}; did you mean {meant}?")
