# `make` alone lists what there is. Everything works inside this folder: .venv, .venvs, build, .demo.
PYTHON ?= python3
BIN := .venv/bin
CXX_FILES := $(shell find csrc kernels tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' 2>/dev/null)

.PHONY: help setup demo test faults soak fuzz bench kernels gpu-check screenshots dashboards lint format
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | while IFS='	' read -r name words; do printf '  make %-12s %s\n' "$$name" "$$words"; done

setup:  ## make .venv with all that demo, tests and benches need (again: a second)
	@$(PYTHON) tools/setup.py

demo:  ## two vLLM servers share a prompt, on a GPU where PYTHON has vLLM for it; KEEP=1 leaves them running
	@$(PYTHON) tools/run_demo.py $(if $(KEEP),--keep)

test: setup  ## all tests: csrc under sanitizers, python, real vLLM engines
	@$(BIN)/python tools/test.py $(if $(ONLY),--only $(ONLY))

faults: setup  ## kill, stop and garble every process, link and controller; two tables, 20 minutes
	@$(BIN)/python -m tests.faults

soak: setup  ## a million pulls and mapped loads of slots that were torn, flipped, swapped: none accepted wrong
	@$(BIN)/python -m tests.soak $(if $(SEED),--seed $(SEED))

fuzz: setup  ## bytes of any kind at sockets, REST, files and slots for MINUTES=10
	@$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10)

bench: setup  ## the microbenchmarks, and bench-report.json
	@$(BIN)/python -m bench

kernels:  ## compile the GPU kernels: ptxas's lines, then a table of registers, spills, 128-bit accesses
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) tools/nvcc.py

gpu-check:  ## on a GPU: its tests, the copies' rates beside the card's, gpu-report.json; under 8 minutes
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m tools.gpu_check

screenshots: setup  ## pictures of the pages, light and dark, of a simulated cluster; six minutes
	@$(BIN)/python -m tests.browser.screenshots

dashboards: setup  ## Grafana's dashboards, Prometheus's rules, docs/metrics.md's tables, from one list
	@$(BIN)/python -m tools.observability

lint: setup  ## ruff, mypy, clang-format, clang-tidy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	@$(BIN)/python tools/tidy.py

format:  ## let ruff and clang-format rewrite the code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i $(CXX_FILES)
