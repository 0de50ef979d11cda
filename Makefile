# `make demo` and `make test` need Python 3.11 and nothing else: they set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Files of tests go to as many processes as there are cores; a file stays in one, for what its tests share.
SHARED_OUT := --numprocesses auto --dist loadfile

.PHONY: demo test test-text check gpu format clean

# The package with what it needs to run, which is all that the demo installs; then what its developers need.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quickstudy needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/ready: .venv/installed
	$(PIP) -e '.[dev]'
	touch $@

demo: .venv/installed  ## train on generated characters, evaluate, learn new ones, answer, report: less than 4 minutes
	rm -rf $(RUN)
	$(BIN)/quickstudy train glyphs protonet --iterations 300 --filters 32 --ways 20 --queries 5 --meta-batch 2 \
		--val-every 150 --val-episodes 50 --out $(RUN)
	$(BIN)/quickstudy evaluate $(RUN) --ways 5 --queries 15 --episodes 100
	$(BIN)/python examples/draw_new_glyphs.py $(RUN)/new
	$(BIN)/quickstudy adapt $(RUN) $(RUN)/new/support --out $(RUN)/new/predictor.qs
	$(BIN)/quickstudy predict $(RUN)/new/predictor.qs $(RUN)/new/query
	$(BIN)/quickstudy report $(RUN)

test: .venv/ready  ## the whole test suite
	$(BIN)/python -m pytest $(SHARED_OUT)

test-text: .venv/ready  ## the tests of the extra [text], with language models of the transformers library
	$(PIP) -e '.[text]'
	$(BIN)/python -m pytest tests/learners/test_language_models.py

check: .venv/ready  ## lint, format, import rules, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/python -m pytest $(SHARED_OUT)

gpu: .venv/ready  ## every benchmark of speed and memory on a GPU; OMNIGLOT=folder adds the time to 98 % there
	$(PIP) -e '.[peers]'
	$(BIN)/python -m benchmarks.speed --device cuda --out benchmarks/results/speed-gpu.json
	$(BIN)/python -m benchmarks.planning --device cuda
	$(if $(OMNIGLOT),$(BIN)/python -m benchmarks.to_accuracy --device cuda --data $(OMNIGLOT))

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
