# All targets start from nothing but Python 3.11+, git and make.

PYTHON ?= python3
BIN := .venv/bin
DEMO_BACKEND ?= tensorflow
BACKENDS ?= jax tensorflow torch
# As many files at once as there are cores.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile

.PHONY: demo test nightly lint clean

demo: .venv/demo
	KERAS_BACKEND=$(DEMO_BACKEND) $(BIN)/keras-mixer demo

test: .venv/dev lint
	KERAS_BACKEND=$(firstword $(BACKENDS)) $(PYTEST) -m "backend_free and not nightly"
	for backend in $(BACKENDS); do \
		KERAS_BACKEND=$$backend $(PYTEST) -m "not backend_free and not nightly" \
			|| exit 1; \
	done

# Every checkpoint at full size, ten times the fuzzing, ten times the kills.
nightly: .venv/dev
	KERAS_MIXER_FUZZ_EXAMPLES=2000 KERAS_MIXER_KILLS=50 KERAS_BACKEND=tensorflow \
		$(PYTEST) -m "nightly or not nightly"

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo: .venv/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[tensorflow,demo]'
	touch $@

.venv/dev: .venv/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/demo

clean:
	rm -rf .venv build dist
