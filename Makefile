# make demo    the whole loop on a small made-up world, then the application that shows it
# make run     the application with its workers and a sample project
# make test    every test            make test PYTEST_ARGS="-k agreement"
# make check   format, lint, types, security, licences, migrations, and that the web process is light
# make setup   the set-up alone; the others include it, and it takes no time when nothing changed
#
# Settings: PORT=8000   PYTHON=python3.12
#   TORCH_INDEX=URL     where pip looks for torch besides its own index. On Linux without an NVIDIA
#                       GPU, PyTorch's index of CPU wheels (see its install page) makes the download
#                       a tenth; the plain wheel works too.

PYTHON ?= python3
PORT ?= 8000
PYTEST_ARGS ?=
PYTEST_WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# The exact pin of the `train` extra.
TORCH := $(shell sed -n 's/^ *"\(torch==[0-9.]*\)",*$$/\1/p' pyproject.toml)
TORCH_INDEX ?=

.PHONY: help setup run demo test check clean
.DEFAULT_GOAL := help

help:
	@awk '/^$$/ { exit } { sub(/^# ?/, ""); print }' Makefile

setup: $(STAMP)
	@$(BIN)/python manage.py migrate --verbosity 0

run: setup
	@$(BIN)/python manage.py serve --port $(PORT) --sample

demo: setup
	@$(BIN)/python manage.py demo
	@$(BIN)/python manage.py serve --port $(PORT) --sample

# One thread of torch per process: several processes that each use all cores are slower.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml config labeling judges training
	$(BIN)/python .ci/dependencies.py
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose*.yml
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python -c "import sys, config.wsgi, config.urls; \
		heavy = {'torch', 'numpy', 'scipy', 'pandas', 'pyarrow'} & set(sys.modules); \
		sys.exit(f'The web process imports {heavy}.' if heavy else 0)"

clean:
	rm -rf $(VENV)

# Torch first and alone, by its exact pin, so that no other requirement brings a second copy. Its
# own requirements come with the second step, from pip's own index.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Prefloop needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments yet. On Debian and Ubuntu:"; \
		echo "    sudo apt-get install python3-venv"; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): some minutes the first time."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --retries 2 --no-deps \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[train,dev]"
	@touch $(STAMP)
