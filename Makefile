# sudo make run     install what is needed, start Carrel, run nginx, show the page
# sudo make test    the tests
# make help         everything else
SHELL := /bin/sh
PY := .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup setup-dev run stop test check bench vm-test clean-machine proto
help:            ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 20

setup:           ## .venv with the five programs in .venv/bin
	@scripts/setup

setup-dev: setup ## also what tests and checks need
	@scripts/setup --dev

run: setup       ## start Carrel, run nginx, fetch the page
	@scripts/run

stop:            ## stop the daemons that make run started
	@scripts/stop

test: setup-dev  ## all tests, in namespaces of their own
	@scripts/test

check: setup-dev ## lint, types, layering
	@scripts/check

bench: setup-dev ## against the newest Docker, runc and crun, side by side
	@scripts/bench

vm-test: setup-dev ## the tests that need cgroup v2 and systemd, in a guest
	@scripts/vm-test

clean-machine:   ## take everything off this machine again
	@scripts/clean-machine

proto:           ## regenerate carrel/proto/*_pb2.py
	@scripts/gen-proto
