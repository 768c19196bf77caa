# `make train`, `make plot` (pictures of the last run, or of RUN=out/...) and `make test` set up .venv on first use and
# need only Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin

train: .venv/ready
	$(BIN)/python train.py --mode=bcp --p=1 --track-forgetting
	@echo
	$(BIN)/python sample.py $$(dirname $$(ls -t out/*/metrics.jsonl | head -n 1)) --samples=3
	@$(MAKE) --no-print-directory -f $(firstword $(MAKEFILE_LIST)) plot

RUN ?= $(shell f=$$(ls -t out/*/metrics.jsonl out/*/*/metrics.jsonl 2>/dev/null | head -n 1); echo "'$${f%/*}'")
plot: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(shell grep '^matplotlib' requirements-dev.txt)
	$(BIN)/python -m tools.plot $(RUN)

test: .venv/ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

.PHONY: train plot test lint
