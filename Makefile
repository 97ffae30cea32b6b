# `make` alone lists what there is.  ARGS goes to tox: make test ARGS="-e types,lint"
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
ARGS ?= $(TOXARGS)

# "make test" builds every kind of project where this is set, with an image of 3 GB.
export SANDBOXWORKER_TEST_REAL_WORK ?= $(if $(CI),1)

# Ends a recipe's first line: the commands after it speak to the engine that `make engine` names.
with_engine = export DOCKER_HOST="$$(scripts/engine url)"

.PHONY: help setup engine engine-stop images demo test soak vm vm-short bench profile docs clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install the Debian packages and the Python environment (.venv)
	@scripts/setup

engine: ## find or start a container engine; the last line is DOCKER_HOST=…
	@scripts/engine start

engine-stop: ## stop the private engine, if there is one
	@scripts/engine stop

images: setup engine ## make the images that are missing or outdated
	@$(with_engine); .venv/bin/sandboxworker image build

demo: images ## set everything up and build two pull requests, an honest and a hostile one
	@$(with_engine); .venv/bin/python examples/demo.py $(ARGS)

test: images ## set everything up and run the whole test suite
	@scripts/setup tests
	@$(with_engine); \
	if [ -n "$$SANDBOXWORKER_TEST_REAL_WORK" ]; then .venv/bin/sandboxworker image build workbench; fi; \
	.venv/bin/tox run $(ARGS)

bench: images ## measure against Buildbot's own workers (ARGS="--case one,twenty --rounds 7")
	@scripts/setup tests
	@$(with_engine); .venv/bin/python benchmarks/run.py $(ARGS)

profile: images ## where a master under load spends its time
	@scripts/setup tests
	@$(with_engine); .venv/bin/python benchmarks/profile_master.py $(ARGS)

soak: images ## build by the thousand while all goes wrong: make soak ARGS="--builds 2000 --seed 1"
	@scripts/setup tests
	@$(with_engine); PYTHONPATH=tests .venv/bin/python -m soak $(ARGS)

vm: images ## run tests in a virtual machine with Debian's kernel: make vm ARGS="--minutes 60 -- tests/containment"
	@scripts/setup vm
	@$(with_engine); .venv/bin/tox run -e vm -- $(ARGS)

vm-short: images ## the short selection of it, as `make test` runs it
	@scripts/setup vm
	@$(with_engine); .venv/bin/tox run -e vm-short

docs: setup ## make the documents as a site, in .tox/docs/site
	@.venv/bin/tox run -e docs

clean: ## undo all of it, the private engine included
	@scripts/clean
