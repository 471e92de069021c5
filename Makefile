# The two commands of the README, and what developers need besides; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# How long `make sim` looks: seeds for each member of the ledger's cast, trials of secure computation.
SEEDS ?= 850
TRIALS ?= 10000
DAYS ?= 300
# Files of tests at a time; 0 runs them one after the other, as a debugger needs.
JOBS ?= 2
COMETBFT ?= v0.38.19

.PHONY: help demo test check fast sim fuzz-sealed misreport outage latency nightly bench docs cometbft scenarios clean

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing veilgrid into $(VENV) (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY)  ## set up, plan a bundled day, write out/demo/report.html
	$(BIN)/veilgrid run --out out/demo

test: check  ## set up, check, run every test, JOBS=2 files at a time
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

check: $(READY)  ## formatting, lint, types, directions of imports
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(READY)  ## tests but those that take more than ten seconds
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow"

sim: $(READY)  ## long simulations with liars; SEEDS=850 of the ledger, TRIALS=10000 of secure computation
	$(BIN)/python tests/ledger/ledger_sweep.py --seeds $(SEEDS)
	$(BIN)/python tests/mpc/mpc_malice.py --trials $(TRIALS)
	$(BIN)/python tests/mpc/mpc_naming.py --trials $(TRIALS)
	$(BIN)/python tests/simulation/committee_sweep.py --seeds $(SEEDS)
	$(BIN)/python tests/simulation/day_sweep.py --seeds $(DAYS)

SEALED_DAYS ?= 200
FIRST ?= 0
fuzz-sealed: $(READY)  ## SEALED_DAYS=200 sealed days from seed FIRST=0 on: any weather, losses, a corrupt party, a lying site
	$(BIN)/python -m tests.roles.sealed.sealed_fuzz --seeds $(SEALED_DAYS) --first $(FIRST) $(if $(MODE),--mode $(MODE))

TIGHT ?= ../shared/scenarios/yingkou-2023-11-09
misreport: $(READY)  ## what a site gains by its best bid: six-bus, the bundled day, TIGHT with impedances times 3
	$(BIN)/python tools/best_response.py six-bus:farm --tight $(TIGHT):49
	$(BIN)/python tools/best_response.py --exact --budget 120 simbench-rural-2016-01-18:14
	$(BIN)/python tools/best_response.py --exact --budget 40 simbench-rural-2016-01-18:21

OUTAGE_DAY ?= ../shared/scenarios/yingkou-2023-11-09
outage: $(READY)  ## kill -9 a validator and a worker of OUTAGE_DAY by processes, in about a minute
	VEILGRID_DAY=$(OUTAGE_DAY) $(BIN)/python -m pytest -q -s tests/e2e/test_up.py -k paper

LATENCY_DAY ?= simbench-rural-2016-01-18
DELAY_BY ?= namespaces
latency: $(READY)  ## LATENCY_DAY sealed with its processes 0.5 and 20 ms apart, in five minutes (root, or DELAY_BY=relays)
	$(BIN)/veilgrid bench sealed --scenario $(LATENCY_DAY) --peers central --delay-ms 0.5,20 --delay-by $(DELAY_BY)

nightly: test  ## every test, drawn anew, then simulations from seeds not tried before
	$(BIN)/python tests/ledger/ledger_sweep.py --seeds $(SEEDS) --first-seed $$(date +%Y%m%d)0000
	$(BIN)/python tests/mpc/mpc_malice.py --trials $(TRIALS) --first-seed $$(date +%Y%m%d)0000

bench: $(READY)  ## timings beside a central solver and MPyC, and of the ledger
	$(BIN)/veilgrid bench dispatch
	$(BIN)/veilgrid bench mpc
	$(BIN)/veilgrid bench ledger

docs: $(READY)  ## documentation, examples and house rules only
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_house.py tests/test_examples.py

cometbft: $(READY)  ## get CometBFT through the Go proxy into .venv, for `bench ledger` and its tests (needs Go)
	GOBIN=$(CURDIR)/$(BIN) CGO_ENABLED=0 go install github.com/cometbft/cometbft/cmd/cometbft@$(COMETBFT)

scenarios: $(READY)  ## cut the bundled SimBench days anew
	$(BIN)/python tools/cut_simbench.py

clean:  ## remove .venv and out
	rm -rf $(VENV) out
