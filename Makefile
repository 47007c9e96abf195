# Two commands: `make demo` runs the whole path on real LIBERO, `make test` passes the tests. Both set up first.
# Tests run in WORKERS processes with one thread each: simulators and torch would otherwise fight for the cores.
WORKERS ?= 2
ONE_THREAD = OMP_NUM_THREADS=1 LP_NUM_THREADS=1

.PHONY: setup lint test demo clean

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

clean:
	rm -rf .venv outputs dist build
