# `make demo` runs the whole path on real LIBERO, `make study` the comparison of docs/study.md (SIZE=smoke: in
# minutes), `make test` passes the tests. All set up first.
# Tests run in WORKERS processes with one thread each: simulators and torch would otherwise fight for the cores.
WORKERS ?= 2
ONE_THREAD = OMP_NUM_THREADS=1 LP_NUM_THREADS=0

.PHONY: setup lint test test-slow test-long demo study results docs clean

setup:
	@bash scripts/setup.sh

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint
	$(ONE_THREAD) .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile

# What takes minutes each, beside what CI runs.
test-slow: setup
	$(ONE_THREAD) .venv/bin/python -m pytest -m slow -n $(WORKERS) --dist loadfile

# Twenty kills and a soak of SOAK_MINUTES (two hours); docs/reliability.md has their last results.
test-long: setup
	$(ONE_THREAD) .venv/bin/python -m pytest -m long --timeout=0 -s

demo: setup
	.venv/bin/smoothvla demo --output_dir=outputs/demo

# The full study lives in docs/results, of which git keeps what another machine needs to go on.
SIZE ?= full
OUTPUT = $(if $(filter full,$(SIZE)),docs/results,outputs/study/$(SIZE))
study: setup
	.venv/bin/smoothvla study --size=$(SIZE) --output_dir=$(OUTPUT)

# README's headline and the tables of docs/results, from docs/results/episodes.jsonl.
results: setup
	.venv/bin/python scripts/headline.py

# The pages of docs/ as a site in site/.
docs: setup
	.venv/bin/python -m uv pip install -q -p .venv/bin/python -c constraints.txt mkdocs
	.venv/bin/mkdocs build --strict

clean:
	rm -rf .venv outputs dist build site
