# Each target does its own set-up on a fresh machine: a virtual environment in .venv with the tested versions.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo fast test slow bench engines site notebooks lint format scan audit clean

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

# Engines in environments of their own (.engines/NAME, about 10 GB), compared with the package; writes their cards. PyPI's
# torch needs CUDA libraries, which are not installed; where pip would take it, name the index of the CPU builds too:
#   make engines ENGINE_INDEX="--extra-index-url https://download.pytorch.org/whl/cpu"
ENGINES := vllm lmms-eval lighteval ms-swift torchao transformers
ENGINE_INDEX ?=
engine = $(CURDIR)/.engines/$(1)/bin/python

engines: $(INSTALLED) $(ENGINES:%=.engines/%/.installed)
	$(PYTHON) -m benchmarks.engines.transformers_floor $(call engine,transformers)
	$(PYTHON) -m benchmarks.engines.diffusers_card $(PYTHON)
	$(PYTHON) -m benchmarks.engines.vllm_card $(call engine,vllm)
	$(PYTHON) -m benchmarks.engines.harnesses lmms-eval $(call engine,lmms-eval)
	$(PYTHON) -m benchmarks.engines.harnesses lighteval $(call engine,lighteval)
	$(PYTHON) -m benchmarks.engines.ms_swift $(call engine,ms-swift)
	$(PYTHON) -m benchmarks.engines.torchao_weights $(call engine,torchao)

# What was tested, to the version; nothing else is resolved. torchao and the oldest transformers come on top of this
# package's own environment. lighteval would fetch the file of a benchmark that is not asked at its first start.
.engines/%/.installed: benchmarks/engines/requirements/%.txt $(INSTALLED)
	python3 -m venv .engines/$*
	.engines/$*/bin/python -m pip install --quiet --no-deps $(ENGINE_INDEX) -r $<
	case $* in torchao|transformers) $(PYTHON) -c "import site; print(*site.getsitepackages(), sep='\n')" \
		> $$(echo .engines/$*/lib/python3*/site-packages)/base.pth;; esac
	if [ $* = lighteval ]; then \
		touch $$(echo .engines/$*/lib/python3*/site-packages)/lighteval/tasks/tasks/tinyBenchmarks.pkl; fi
	touch $@

site: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

# Runs the notebooks of docs/notebooks and keeps their outputs in them.
notebooks: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) docs/notebooks/execute.py

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
	rm -rf $(VENV) .engines build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
