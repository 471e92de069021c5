# The two commands of the README, and what developers need besides.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check fast sim bench docs scenarios clean

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing veilgrid into $(VENV) (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/veilgrid run --out out/demo

test: check
	$(BIN)/python -m pytest -q

check: $(READY)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

sim: $(READY)
	$(BIN)/python tests/ledger/ledger_sweep.py

bench: $(READY)
	$(BIN)/veilgrid bench dispatch
	$(BIN)/veilgrid bench mpc
	$(BIN)/veilgrid bench ledger

docs: $(READY)
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_house.py tests/test_examples.py

scenarios: $(READY)
	$(BIN)/python tools/cut_simbench.py

clean:
	rm -rf $(VENV) out
