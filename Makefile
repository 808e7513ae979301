# Everything a newcomer needs: `make demo` and `make test` set up what they use and are instant the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types setup clean

demo: $(READY)
	$(BIN)/cocomix demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check src tests

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

setup: $(READY)

# torch comes first and exactly pinned: a looser request can pull gigabytes of another build.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "cocomix needs Python 3.11 or newer; install it, or run make PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cocomix needs Python 3.11 or newer and $(PYTHON) is older; run make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -i '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
