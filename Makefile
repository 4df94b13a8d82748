# make demo    installs into .venv and explains a recorded failure
# make test    lint, types, import rules, tests (among them the score over recorded failures)
# make bench   score with reliability, start-up, hostile texts, log scan;  SIZE=2000 for the log scan in full (MB)

PYTHON ?= python3
SIZE ?= 200
VENV := .venv
BIN := $(VENV)/bin
CASE := tests/cases/c-057-pytorch13045

.PHONY: demo test bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@echo '$$ linkproof explain $(CASE)/evidence --observations $(CASE)/observations.yaml'
	@echo
	@$(BIN)/linkproof explain --lang en $(CASE)/evidence --observations $(CASE)/observations.yaml || test $$? -eq 1
	@echo
	@echo '中文输出：$(BIN)/linkproof explain $(CASE)/evidence --observations $(CASE)/observations.yaml --lang zh'

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

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
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build

# Debian and Ubuntu ship python3 without ensurepip; then virtualenv does as well.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo 'linkproof needs Python 3.10 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 && test -x $@ || { rm -rf $(VENV); $(PYTHON) -m virtualenv -q $(VENV) 2>/dev/null || virtualenv -q -p $(PYTHON) $(VENV) 2>/dev/null; } || { rm -rf $(VENV); echo 'Python cannot make a virtual environment here. On Debian or Ubuntu: sudo apt-get install python3-venv' >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	@echo 'installing into $(VENV) ...'
	@$(BIN)/pip install -q --disable-pip-version-check -e .
	@$(BIN)/python -m compileall -q src
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/pip
	@echo 'installing into $(VENV) ...'
	@$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0 triton==3.7.1
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python -m compileall -q src
	@touch $@ $(VENV)/.installed
