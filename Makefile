# Each target does all its own set-up, so it works on a fresh machine with Python 3.10 or newer and nothing else.
PYTHON ?= python3
# The exact version keeps the download small where a CPU build of it is at hand. Set TORCH=torch to take the newest.
TORCH ?= torch==2.13.0
DEMO ?= demo
# One process a core, four at most, since each takes about 1.5 GB of memory.
PYTEST = -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: venv demo test quick test-oldest lint clean

venv: .venv/ready

# Adds its pictures to those that DEMO holds.
demo: .venv/ready
	.venv/bin/python . render nano $(HERE)
	.venv/bin/python . render nano_edit $(HERE)
	@echo "The pictures are in $(DEMO)/output/glm-image."

HERE = --output $(DEMO)/output --device cpu

# The whole suite on the newest libraries.
test: .venv/ready
	.venv/bin/python $(PYTEST)

# What to run between two edits: GLM-Image from end to end at tiny size, its files, the nodes, the command line. Left out by
# name are the other model families, engines on the network, the benchmarks, predictions of memory, what draws with the trained
# model, and commands that render in a process of their own, which takes seconds to import the libraries.
QUICK = not (bench or cogview3 or vlm or predict or nano or world or chat or remote or anywhere or disk or verbose)
quick: .venv/ready
	.venv/bin/python $(PYTEST) -m "not slow" -k "$(QUICK)"

# The fast part of the suite on the oldest supported libraries.
test-oldest: .venv-oldest/ready
	.venv-oldest/bin/python $(PYTEST) -m "not slow"

lint: .venv/ready
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check . --isolated --ignore-noqa --select S102,S307,E702  # the rules of `comfy node validate`

.venv/ready: requirements.txt Makefile
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet $(TORCH)
	.venv/bin/python -m pip install --quiet --upgrade -r requirements.txt comfy-kitchen scipy hypothesis sentencepiece protobuf setuptools pytest pytest-xdist ruff
	touch $@

.venv-oldest/ready: requirements.txt Makefile
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --quiet $(TORCH)
	.venv-oldest/bin/python -m pip install --quiet -r requirements.txt transformers==5.1.0 diffusers==0.37.0 scipy hypothesis pytest pytest-xdist
	touch $@

# What was installed. The demo's pictures stay.
clean:
	rm -rf .venv .venv-oldest
