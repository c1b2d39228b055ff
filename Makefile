# make help | setup | demo | test | test-all | lint
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
export OMP_NUM_THREADS ?= 2

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  +##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | column -t -s "$$(printf '\t')"

setup: $(STAMP)  ## .venv with everything in it but the extras frechet and adamw8bit

# torch first and from the tested set, so that nothing asks for a newer one after it. For Linux, PyPI has the build with
# CUDA: gigabytes. Without a GPU point pip at PyTorch's CPU index (PIP_EXTRA_INDEX_URL).
$(STAMP): pyproject.toml .constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c .constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c .constraints.txt -e '.[sweep,tensorboard,dashboard,test]'
	touch $(STAMP)

demo: $(STAMP)   ## the main job at tiny scale; prints where the report is
	$(BIN)/python -m timelapse.run +experiment=drepa_vjepa

test: $(STAMP)   ## the tests, under 5 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m 'not slow'

test-all: $(STAMP) ## the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .

.PHONY: help setup demo test test-all lint
