"""Every command of every guide is one that Hydra takes: its files are there and its numbers are read by something."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from timelapse.errors import check_added
from timelapse.run import CONF
from timelapse.study import expand, key_of

ROOT = CONF.parent
GUIDES = [ROOT / "README.md", *sorted(ROOT.glob("*/*/README.md"))]
MAIN, RUN = "+experiment=drepa_vjepa", "python -m timelapse.run"
GROUPS = {str(folder.relative_to(CONF)) for folder in CONF.glob("**/*") if folder.is_dir()}


def commands(text: str) -> Iterator[list[str]]:
    """What is typed in each command of a guide's blocks and of its lines; `...` stands for the main experiment."""
    text = re.sub(r"\\\n\s*", "", text)  # a command over several lines is one
    fences = re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```", text)
    blocks = [block for language, block in fences if language in ("", "bash")] + re.findall(r"(?m)^ {4}\S.*$", text)
    lines = [line.strip() for block in blocks for line in block.splitlines() if RUN in line]
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    begins = (RUN, "... ", "+experiment=", "+study=", "input.")
    spans = [s for s in re.findall(r"`([^`\n]+)`", prose) if s.strip("'").startswith(begins)]
    for line in [*lines, *spans]:
        typed = shlex.split(line.partition(RUN)[2] if RUN in line else line, comments=True)
        words = [o for o in typed if not re.fullmatch(r"\.\.\.|.*=", o)]
        method = any(key_of(o) in ("experiment", "study", "model") for o in words)
        if words:
            yield words if method else [MAIN, *words]


def first(override: str) -> str:
    """The first value of a sweep: seed=0,1,2 -> seed=0, loss=[a],[a,b] -> loss=[a]."""
    key, _, value = override.partition("=")
    value = re.match(r"\[.*?\](?=,|$)|\{.*\}|[^,]*", value)[0]
    return f"{key}={value}"


TYPED = sorted({tuple(c) for guide in GUIDES for c in commands(guide.read_text())})
FOUND = sorted({tuple(first(o) for o in c if o != "-m") for c in TYPED})


@pytest.fixture(scope="module")
def compose_once(tmp_path_factory) -> Iterator:
    """Groups -> config; with the parts that guides tell how to add."""
    added = tmp_path_factory.mktemp("added")
    for guide in ("loss", "model"):
        text = (ROOT / "timelapse" / guide / "README.md").read_text()
        names = re.findall(rf"`conf/{guide}/(\w+\.yaml)`", text)
        (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
        (added / guide).mkdir()
        (added / guide / names[0]).write_text(re.sub(r"(?m)^   ", "", block))

    @cache
    def made(*overrides: str) -> DictConfig:
        return compose("config", [f"hydra.searchpath=[file://{added}]", *overrides], return_hydra_config=True)

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield made


def is_group(override: str) -> bool:
    return key_of(override).partition("@")[0] in GROUPS


def test_the_guides_are_found():
    assert len(GUIDES) > 15 and len(FOUND) > 40
    assert ("+experiment=drepa_vjepa", "scale=paper", "trainer=fsdp", "dataset.root=DIR") in FOUND
    assert any("trainer.num_nodes=8" in c for c in FOUND) and any("logger=wandb" in c for c in FOUND)


def test_only_a_sweep_has_several_values():
    """Hydra asks for -m where a comma is not quoted for it, too."""
    for typed in TYPED:
        for override in OverridesParser.create().parse_overrides([o for o in typed if o != "-m"]):
            assert "-m" in typed or not override.is_sweep_override(), override.input_line


@pytest.mark.parametrize("typed", FOUND, ids=" ".join)
def test_a_command_of_a_guide_is_taken(compose_once, typed):
    for study in (o.partition("=")[2] for o in typed if key_of(o) == "study"):
        plan = OmegaConf.to_container(OmegaConf.load(CONF / "study" / f"{study}.yaml").study)
        assert len(expand(plan, typed)) == len(plan["rows"]) * len(plan["seeds"])  # which compose: tests/test_study.py
        typed = [MAIN, *(o for o in typed if key_of(o) != "study")]
    if {key_of(o) for o in typed} <= {"experiment", "scale"}:  # which all compose: tests/test_conf.py
        assert all((CONF / key_of(o) / f"{o.partition('=')[2]}.yaml").is_file() for o in typed)
        return
    cfg = compose_once(*sorted(o for o in typed if is_group(o)))
    check_added(typed, cfg)
    for override in typed:
        key = override.partition("=")[0]
        if not is_group(override) and not key.startswith("+"):
            parent, _, name = key.rpartition(".")
            node = OmegaConf.select(cfg, parent) if parent else cfg
            assert OmegaConf.is_dict(node) and name in node.keys(), f"nothing reads {key}"
