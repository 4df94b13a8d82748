# make demo    installs into .venv and shows the failure and the cure on the CPU: a small Qwen3 whose link between two GPUs breaks
# make test    lint, types, import rules, tests (among them the score over recorded failures; test-oldest is installed meanwhile), then test-oldest
# make test-oldest   the guard's tests with the oldest transformers and accelerate that it is for
# make bench   score with reliability, start-up, hostile texts, log scan;  SIZE=2000 for the log scan in full (MB)

PYTHON ?= python3
SIZE ?= 200
VENV := .venv
BIN := $(VENV)/bin
OLD := .venv-oldest
TORCH := torch==2.13.0 triton==3.7.1

.PHONY: demo test test-oldest bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-model
	@$(BIN)/linkproof demo --lang en
	@echo
	@echo '中文：$(BIN)/linkproof demo --lang zh'

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory $(OLD)/.installed & other=$$!; \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder; code=$$?; wait $$other && exit $$code
	@$(MAKE) --no-print-directory test-oldest

test-oldest: $(OLD)/.installed
	OMP_NUM_THREADS=1 $(OLD)/bin/python -m pytest -n 2 --dist loadfile $(addprefix tests/guard/test_,guard.py decoding.py families.py undo.py fault_table.py) -k 'not test_fault_table or zero or stale or nobody or whatever_all'

bench: $(VENV)/.installed-dev
	@$(BIN)/python -m compileall -q src
	@echo '== recorded failures'
	@$(BIN)/python bench/score.py
	@echo '== start-up'
	@$(BIN)/python bench/startup.py
	@echo
	@echo '== hostile texts'
	@$(BIN)/python bench/hostile.py
	@echo
	@echo '== log scan, $(SIZE) MB'
	@$(BIN)/python bench/log_scan.py --mb $(SIZE)

clean:
	rm -rf $(VENV) $(OLD) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build

# Debian and Ubuntu ship python3 without ensurepip; then virtualenv does as well.
$(BIN)/pip $(OLD)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo 'linkproof needs Python 3.10 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -m venv $(@D:/bin=) >/dev/null 2>&1 && test -x $@ || { rm -rf $(@D:/bin=); $(PYTHON) -m virtualenv -q $(@D:/bin=) 2>/dev/null || virtualenv -q -p $(PYTHON) $(@D:/bin=) 2>/dev/null; } || { rm -rf $(@D:/bin=); echo 'Python cannot make a virtual environment here. On Debian or Ubuntu: sudo apt-get install python3-venv' >&2; exit 1; }

$(VENV)/.installed-model: pyproject.toml | $(BIN)/pip
	@echo 'installing into $(VENV) ...'
	@$(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[model]'
	@$(BIN)/python -m compileall -q src
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	@echo 'installing into $(VENV) ...'
	@$(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -m compileall -q src
	@touch $@ $(VENV)/.installed-model

$(OLD)/.installed: pyproject.toml | $(OLD)/bin/pip
	@echo 'installing into $(OLD) ...'
	@$(OLD)/bin/pip install -q --disable-pip-version-check $(firstword $(TORCH))
	@$(OLD)/bin/pip install -q --disable-pip-version-check transformers==4.51.3 accelerate==1.0.1 pytest pytest-xdist -e .
	@touch $@
