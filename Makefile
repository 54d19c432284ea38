# Each target makes .venv when it is missing, and again when pyproject.toml or constraints.txt has changed.

CANDIDATES := python3 python3.13 python3.12 python3.11 python3.10 python
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
DOCS_READY := .venv/.docs-ready
RELEASE_READY := .venv/.release-ready
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test style pages wheel docs release

help:
	@echo "make demo    train an adapter on the shipped model and draw it at four strengths, into demo/"
	@echo "make test    run the tests                (ARGS=\"-k guidance\" is passed on to pytest)"
	@echo "make style   format, lint and type-check  (rewrites what it can, names the rest)"
	@echo "make pages   write again what docs/ shows of the code: settings, rewards, nodes, families, laws, the map"
	@echo "make wheel   build the package            (into dist/)"
	@echo "make docs    build the documentation      (into site/, in seconds)"
	@echo "make release try a release as far as it goes without publishing (docs/releasing.md)"
	@echo
	@echo "The first of them makes .venv: a few minutes, 1.3 GB with PyTorch's CPU build."
	@echo "  PYTHON=python3.12       use that Python (3.10 to 3.13)"
	@echo "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	@echo "                          on Linux without an NVIDIA GPU: skip several GB of CUDA libraries"

demo: $(READY)
	@$(BIN)/diffusion-nft demo --out demo $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest -n auto $(ARGS)

style: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@echo "mypy: half a minute the first time, then seconds"
	@$(BIN)/python tests/helpers/one_tree.py .venv/tree
	@cd .venv/tree && ../bin/mypy --config-file ../../pyproject.toml

pages: $(READY)
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m helpers.pages

wheel: $(READY)
	@echo "Building into dist/ (about a minute)"
	@rm -rf build
	@$(BIN)/python -m build --outdir dist > .venv/build.log 2>&1 || { cat .venv/build.log; exit 1; }
	@rm -rf build
	@ls -l dist

docs: $(DOCS_READY)
	@echo "Building site/ from docs/ and the docstrings (about ten seconds)"
	@$(BIN)/python tests/helpers/one_tree.py .venv/tree
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html"

release: $(RELEASE_READY)
	@cd tests && PYTHONPATH=.. ../$(BIN)/python -m helpers.try_release $(REPOSITORY)

$(DOCS_READY): $(READY)
	@echo "Installing the extra docs into .venv (half a minute, once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

$(RELEASE_READY): $(READY)
	@echo "Installing the extra release into .venv (half a minute, once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[release]"
	@touch $@

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python from 3.10 to 3.13 on the PATH. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON): PyTorch, diffusers and tools (one to five minutes, once)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[train,image-reward,dev]"
	@$(BIN)/python -m nft_pipeline.torchvision_repair
	@touch $@
