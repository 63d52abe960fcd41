# Builds, installs and tests the extension. `make` builds, as with any Postgres extension; `make help` lists the rest.
#
# PG_CONFIG    the Postgres to build for and install into (15 to 18; found when not given)
# AM           the access method that tests and the demo use (default kalam_shared; heap checks the tests themselves)

.NOTPARALLEL:
.PHONY: all build setup install installcheck pgsuite test lint bench demo demo-stop psql clean help

all: build

build: ## build the extension (default)
	@tests/bin/build

setup: ## install the packages that are missing (Debian and Ubuntu)
	@tests/bin/setup

install: build ## install into the Postgres of PG_CONFIG (DESTDIR is honoured)
	@tests/bin/install

installcheck: ## SQL and isolation tests against the running server; TESTS="name ..." runs some
	@tests/bin/regress $(TESTS)

pgsuite: setup build ## PostgreSQL's own tests on heap and on AM, and how they differ; SUITES="regress isolation"
	@tests/pgsuite/run $(SUITES)

test: setup ## everything: lint, engine, SQL and isolation tests, crash tests, on private servers
	@tests/bin/check

lint: ## formatting, clippy with warnings as errors, shellcheck when installed
	@tests/bin/lint

bench: setup ## heap and kalam_shared in turns, medians and ratios; BENCH="..." are its options
	@tests/bin/bench $(BENCH)

demo: setup build ## a chat history in a private server, timed beside heap; DATA=file.csv.gz loads a real one
	@tests/bin/demo start $(DATA)

psql: ## psql on the demo's server
	@tests/bin/demo psql

demo-stop: ## stop the demo's server (its data stays)
	@tests/bin/demo stop

clean: ## delete what was built and every private server of this clone
	@tests/bin/clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile
