# What a newcomer, a contributor or a machine runs; `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
EDITABLE ?= --editable
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN := runs/demo
PICTURES := runs/demo-pictures
EXPORTERS ?= onnx openvino executorch litert coreml ncnn

.DEFAULT_GOAL := help
.PHONY: help install demo test test-exports check format evidence clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# The stamp is as old as the environment: a changed pyproject.toml installs again.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(EDITABLE) ".[dev]"
	touch $@

install: $(INSTALLED)  ## the environment in .venv

demo: $(INSTALLED)  ## train on drawn shapes, evaluate, predict, export with its gate: under six minutes
	$(BIN)/metamobile train emo_1m --data shapes --recipe shapes --out $(RUN) --overwrite
	$(BIN)/metamobile eval $(RUN) --data shapes
	$(BIN)/python -c "from metamobile.data.shapes import write_folder; write_folder('$(PICTURES)', train=6, val=6, seed=7)"
	$(BIN)/metamobile predict $(RUN) $(PICTURES)/val
	$(BIN)/metamobile export $(RUN) --to onnx
	$(BIN)/metamobile predict $(RUN)/model.onnx $(PICTURES)/val
	@echo "The report: $(CURDIR)/$(RUN)/report.html"

test: $(INSTALLED)  ## all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow"

test-exports:  ## each exporter in an environment of its own, as they pin other versions
	@for name in $(EXPORTERS); do \
		echo "== $$name"; \
		test -x .venv-exports/$$name/bin/python || $(PYTHON) -m venv .venv-exports/$$name || exit 1; \
		.venv-exports/$$name/bin/python -m pip install --quiet --disable-pip-version-check \
			--editable ".[$$name]" "pytest>=8" || exit 1; \
		OMP_NUM_THREADS=1 .venv-exports/$$name/bin/python -m pytest tests/exports/test_$$name.py || exit 1; \
	done

check: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

evidence: $(INSTALLED)  ## the slow proofs, then the commands that remake results/ (hours)
	$(BIN)/python -m pytest -m slow
	@echo "Each figure in results/ is remade by its recipe's command and kept by benchmarks/collect_run.py:"
	@grep -hE '^# *[Cc]ommand:' recipes/*.yaml || true
	@echo "The others:"
	@grep -hE '^    python benchmarks/(deploy|distillation|layer_scale|two_hundred_steps)' benchmarks/*.py
	@echo "    metamobile study diagonal runs/ablate-components/{dw-conv,attention,both}-seed{0,1,2} --data imagenette2-160/val --out results/diagonal"
	@echo "    metamobile study complexity --out results/complexity"
	@echo "    metamobile study criteria --out results/criteria"
	@echo "    metamobile study heads --out results/heads"

clean:  ## remove what the demo wrote
	rm -rf $(RUN) $(PICTURES)
