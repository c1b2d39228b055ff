from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

FOLDER = Path(__file__).parents[2] / "experiments" / "drepa_speed"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("drepa_speed", FOLDER / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("group", [("naive", "linear", "drepa"), ("videorepa", "trd")])
def test_forms_that_are_compared_are_the_same_loss(benchmark, group):
    x, y = benchmark.inputs(150, 40)
    values = [benchmark.CASES[case](x, y) for case in group]
    gradients = [torch.autograd.grad(value.sum(), x)[0] for value in values]
    for value, gradient in zip(values[1:], gradients[1:]):
        torch.testing.assert_close(value, values[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-8)


def test_peak_counts_bytes_held_at_once(benchmark):
    def run():
        a = torch.empty(1000, 100)  # 400 000 bytes
        b = a.clone()
        del a
        return b.clone()  # again two at once, not three

    assert 800_000 <= benchmark.peak_bytes(run) < 801_000


def test_recorded_run_shows_what_is_claimed(benchmark):
    expected = yaml.safe_load((FOLDER / "expected.yaml").read_text())
    rows = {(r["case"], r["tokens"], r["width"]): r for r in expected["rows"]}
    assert len(rows) == len(benchmark.CASES) * len(benchmark.TOKENS) * len(benchmark.WIDTHS)
    naive, drepa = (rows[case, 17550, 1024] for case in ("naive", "drepa"))
    assert naive["seconds"] / drepa["seconds"] >= expected["claim"]["faster"]
    assert naive["peak_mib"] / drepa["peak_mib"] >= expected["claim"]["smaller"]
    assert benchmark.table(expected["rows"]) in (FOLDER / "README.md").read_text()
    for size in {(r["tokens"], r["width"]) for r in expected["rows"]}:
        assert rows["drepa", *size]["loss"] == pytest.approx(rows["naive", *size]["loss"], rel=1e-5)
