# make quickstart | test | test-slow | check | docs | schema | bench | bench-rewards | bench-learning | bench-peers | bench-memory | bench-imports | bench-gpu; each makes the virtual environment it needs.
PYTHON ?= python3
VENV := .venv
PLUGINS := $(wildcard plugins/*)
BIN := $(VENV)/bin
# nothing in the tests or the quickstart needs the network
export HF_HUB_OFFLINE = 1

.PHONY: quickstart test test-slow check docs schema bench bench-rewards bench-learning bench-peers bench-memory bench-imports bench-gpu clean

# made anew when the pins or a distribution's metadata change
$(VENV)/.made: constraints.txt core/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e "core[dev]" $(addprefix -e ./,$(PLUGINS))
	touch $@

quickstart: $(VENV)/.made
	$(BIN)/rlhf run quickstart

test: $(VENV)/.made
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-slow: $(VENV)/.made
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "slow or not slow"

check: $(VENV)/.made
	$(BIN)/ruff check .
	$(BIN)/mypy core/src $(foreach p,$(PLUGINS),$(p)/src)
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/generate.py --check

# docs/reference from the code, then the site, which opens from the disk: site/index.html
docs: $(VENV)/.made
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

schema: $(VENV)/.made
	$(BIN)/rlhf schema --out registry.schema.json

bench: $(VENV)/.made
	$(BIN)/python benchmarks/speed.py --out speed.json

bench-rewards: $(VENV)/.made
	$(BIN)/python benchmarks/rewards.py

bench-learning: $(VENV)/.made
	$(BIN)/python benchmarks/learning.py

bench-peers: $(VENV)/.made
	$(BIN)/python benchmarks/peers.py

bench-memory: $(VENV)/.made
	$(BIN)/python benchmarks/memory.py

bench-imports: $(VENV)/.made
	$(BIN)/python benchmarks/imports.py

bench-gpu: $(VENV)/.made
	$(BIN)/python benchmarks/gpu.py --out gpu.json

clean:
	rm -rf $(VENV) runs
