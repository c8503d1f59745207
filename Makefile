# Each target does its own set-up on a fresh machine: a virtual environment in .venv with the tested versions.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo fast test slow bench lint format scan audit clean

demo: $(INSTALLED)
	$(PYTHON) -m unimedvl.commands.demo

# The golden tests keep one account and stay in one process. The others take two of one thread each: small tensors gain
# nothing from a second thread. A file's tests share fixtures.
test: $(INSTALLED)
	$(PYTHON) -m pytest tests/golden
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --ignore tests/golden --numprocesses 2 --dist loadfile

slow: $(INSTALLED)
	$(PYTHON) -m pytest -m slow

# What to run before a commit: under two minutes on two cores, without the golden records.
fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --ignore tests/golden --numprocesses 2 --dist loadfile -m "not slow and not medium"

# Under 25 minutes on two quiet cores. Counts first, which fail where one is worse than the stored one (COUNTS=--update
# stores them instead), then ratios of times, which resume where they were cut, then what is drawn and written of both.
bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.counts $(COUNTS)
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.ratios
	$(PYTHON) -m benchmarks.growth
	$(PYTHON) -m benchmarks.performance

scan: $(INSTALLED)
	PYTHON=$(PYTHON) .ci/secrets

audit: $(INSTALLED)
	$(PYTHON) .ci/audit.py

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(PYTHON) -m mypy

format: $(INSTALLED)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -c constraints.txt torch
	$(PYTHON) -m pip install --quiet -c constraints.txt -e ".[dev,demo]"
	$(PYTHON) -m pip install --quiet --no-deps -c constraints.txt gradio gradio_client hf-gradio
	touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
