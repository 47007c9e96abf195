# `make demo` runs the whole path on real LIBERO, `make study` the comparison of docs/study.md (SIZE=smoke: in
# minutes), `make test` passes the tests. All set up first.
# Tests run in WORKERS processes with one thread each: simulators and torch would otherwise fight for the cores.
WORKERS ?= 2
ONE_THREAD = OMP_NUM_THREADS=1 LP_NUM_THREADS=1

.PHONY: setup lint test demo study results clean

setup:
	@bash scripts/setup.sh

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint
	$(ONE_THREAD) .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile

demo: setup
	.venv/bin/smoothvla demo --output_dir=outputs/demo

SIZE ?= full
study: setup
	.venv/bin/smoothvla study --size=$(SIZE)

# README's headline and the tables of docs/results, from docs/results/episodes.jsonl.
results: setup
	.venv/bin/python scripts/headline.py

clean:
	rm -rf .venv outputs dist build
