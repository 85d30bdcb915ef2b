# install, demo, check, test, fuzz, bench, clean: `make` says what each does.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv/bin
# Kernel and compat tests, the demo and the benchmark make namespaces and mounts: as another user than root, by sudo.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E)

.PHONY: help install install-test demo check format test proto bench bench-images bench-registry bench-build bench-network clean

help:
	@echo 'make demo              set the machine up, start a daemon, run a container, show every step, clean up'
	@echo 'make demo SHELL_IN=1   the same, and you are put into the container'
	@echo 'make test              everything: format, lint, types, contracts, unit, api, kernel and compat tests'
	@echo 'make check             the part of it that takes less than a minute and needs no privilege'
	@echo 'make format            format the code'
	@echo 'make fuzz FUZZ=60      every reader of strangers'\'' bytes, fuzzed for so many seconds each'
	@echo 'make bench             the same commands against Wherry and against Debian'\''s dockerd, side by side'
	@echo 'make bench-images      pull, push, load and save of a large image, likewise'
	@echo 'make bench-registry    our registry against docker-registry'
	@echo 'make bench-build       building, against dockerd with BuildKit'
	@echo 'make bench-network     throughput, latency, connections and names, against dockerd and a bare wire'
	@echo 'make install           system packages, .venv and the launcher .venv/bin/wherry'
	@echo 'make clean             remove what the above made in this folder'

install:
	@scripts/install

install-test:
	@scripts/install test

demo: install
	@$(ROOT) $(VENV)/python scripts/demo.py $(if $(SHELL_IN),--shell)

check: install
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports --no-logo
	$(VENV)/pytest -q tests/unit

format: install
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .

test: install-test check
	$(ROOT) env WHERRY_TEST_REQUIRE=1 $(VENV)/pytest -q tests/kernel
	$(ROOT) env WHERRY_TEST_REQUIRE=1 $(VENV)/pytest -q tests/compat

# After a change of bk.proto; its output is committed.
proto: install
	$(VENV)/python -m grpc_tools.protoc -Isrc/wherry/buildkit --python_out=src/wherry/buildkit --pyi_out=src/wherry/buildkit bk.proto

FUZZ ?= 60
fuzz: install
	@$(VENV)/python -c 'import atheris' 2>/dev/null || $(VENV)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	cd tests && ../$(VENV)/python -m fuzz $(FUZZ)

bench:
	@scripts/install bench
	$(ROOT) $(VENV)/python bench/run.py $(BENCH)

bench-images:
	@scripts/install bench
	$(ROOT) $(VENV)/python bench/images.py $(BENCH)

bench-registry:
	@scripts/install bench
	$(VENV)/python bench/registry.py $(BENCH)

bench-build:
	@scripts/install bench
	$(ROOT) $(VENV)/python bench/build.py $(BENCH)

bench-network:
	@scripts/install bench
	$(ROOT) $(VENV)/python bench/network.py $(BENCH)

clean:
	$(ROOT) rm -rf .venv .tools .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	$(ROOT) find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
