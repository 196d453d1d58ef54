# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_ARGS ?=
BENCH_ARGS ?=

.PHONY: install interpreter demo test style quality bench docs clean

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)

# 1 GB; with it `make test` also runs the CUDA kernels where there is no GPU.
interpreter: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[interpreter]"

demo: $(INSTALLED)
	$(BIN)/vpvae demo $(DEMO_ARGS)

# A file's tests stay in one process, since they share what is costly to make.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Rewrites files; `quality` only looks.
style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

# About half an hour on two cores; BENCH_ARGS="--only search --sizes 1024" takes a part of it.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/speed/run.py $(BENCH_ARGS)

# The site of docs/, in build/docs; warnings are errors.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site is in build/docs; open build/docs/index.html, or for its search: $(BIN)/python -m mkdocs serve"

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache
