# All targets start from nothing but Python 3.11+, git and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_BACKEND ?= tensorflow
BACKENDS ?= torch jax tensorflow
# Images of containers often forbid compiled files. The suite starts Python many times, and
# importing Keras and its backend takes twice as long without these files.
export PYTHONDONTWRITEBYTECODE :=
# As many tests at once as there are cores.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal
# Which tests run with the first backend, and which with the others.
FIRST := not nightly
OTHERS := not nightly and not backend_free

# Installs all of `dev` in a minute. uv does not know pip's settings, and would take
# gigabytes of CUDA packages for torch.
WITH_UV = $(1)/bin/python -m pip install --quiet uv \
		"$$(grep -om1 'torch==[0-9.]*' pyproject.toml)" && \
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python $(2) --editable '.[dev]'

.PHONY: demo test test-app suite nightly test-keras-nightly test-lowest lint docs dist clean

demo: .venv/demo
	KERAS_BACKEND=$(DEMO_BACKEND) $(BIN)/keras-mixer demo

test: .venv/dev lint suite

# The suite alone, in the environment $(VENV). TensorFlow and JAX keep what they compile, up
# to 100 MB for a training step, until the process ends: their tests run in two.
suite:
	marks="$(FIRST)"; \
	for backend in $(BACKENDS); do \
		case $$backend in \
			torch) set -- tests ;; \
			*) set -- tests/training "tests --ignore tests/training" ;; \
		esac; \
		for part; do \
			KERAS_BACKEND=$$backend $(PYTEST) $$part -m "$$marks" || exit 1; \
		done; \
		marks="$(OTHERS)"; \
	done

# Every checkpoint at full size, ten times the fuzzing, ten times the kills, and all of
# XLA's optimizations.
nightly: .venv/dev
	KERAS_MIXER_FUZZ_EXAMPLES=2000 KERAS_MIXER_KILLS=50 XLA_FLAGS= \
		$(MAKE) suite FIRST="nightly or not nightly" OTHERS="nightly or not nightly"

# The demo in the browser. Its Gradio is large and holds Pillow back: an environment of its
# own. The tests in a browser need Chromium, such as Debian's, and are skipped without it.
test-app: .venv-app/dev
	KERAS_BACKEND=$(firstword $(BACKENDS)) .venv-app/bin/python -m pytest \
		tests/app tests/hub/test_space.py

# With the next Keras, as it was built last.
test-keras-nightly: .venv-keras-nightly/dev
	$(MAKE) suite VENV=.venv-keras-nightly

# With the lowest versions that pyproject.toml allows.
test-lowest: .venv-lowest/dev
	$(MAKE) suite VENV=.venv-lowest

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, into `site/`; a warning is an error. The package itself is only read.
docs: .venv-docs/docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	.venv-docs/bin/python docs/check_site.py site

# What is released, checked: the wheel alone, with one backend, in an empty environment.
dist: .venv-dist/dist
	rm -rf dist
	.venv-dist/bin/python -m build --outdir dist .
	.venv-dist/bin/twine check --strict dist/*
	for backend in $(BACKENDS); do \
		rm -rf build/try && $(PYTHON) -m venv build/try && \
		build/try/bin/python -m pip install --quiet "$$(ls dist/*.whl)[$$backend,demo]" && \
		(cd build && export KERAS_BACKEND=$$backend && \
			try/bin/keras-mixer models && try/bin/keras-mixer demo --output try/demo) \
			|| exit 1; \
	done

.venv/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo: .venv/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[tensorflow,demo]'
	touch $@

.venv/dev: .venv/python pyproject.toml
	$(call WITH_UV,.venv) || $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/demo

.venv-docs/docs: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" \
		| .venv-docs/bin/python -m pip install --quiet --requirement /dev/stdin
	touch $@

.venv-dist/dist:
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet build twine
	touch $@

.venv-keras-nightly/dev: pyproject.toml
	$(PYTHON) -m venv .venv-keras-nightly
	$(call WITH_UV,.venv-keras-nightly)
	.venv-keras-nightly/bin/python -m pip uninstall --quiet --yes keras
	.venv-keras-nightly/bin/python -m pip install --quiet --pre keras-nightly
	touch $@

.venv-app/dev: pyproject.toml
	$(PYTHON) -m venv .venv-app
	.venv-app/bin/python -m pip install --quiet --editable '.[jax,app]' \
		pytest playwright pyyaml
	touch $@

.venv-lowest/dev: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	$(call WITH_UV,.venv-lowest,--resolution lowest-direct)
	touch $@

clean:
	rm -rf .venv .venv-dist .venv-docs .venv-keras-nightly .venv-lowest build dist site \
		.pytest_cache
