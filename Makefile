# Each target makes the virtual environment first; nothing is needed but Python >= 3.10 and make.
#   make test               every notebook, the repository's contract, the wheel   (DIFFPOSE_DATA=folder: the real scans too)
#   make fuzz               the command on spoilt files and odd options, for a minute   (FUZZ="--seconds 3600 --seed 7": for an hour, other ones)
#   make demo               the main job on the phantom, with pictures
#   make bench              speed and accuracy next to other packages, tables into _runs/bench (DIFFPOSE_DATA: the chest CT; an hour and a half)
#   make docs               the site, into _docs/ (by Quarto where it is installed, else by Sphinx)
#   make docs-test          the site, and every page of it in Chromium, at phone and desktop widths
#   make notebooks          every notebook in a fresh kernel, with the installed wheel alone (QUICK=1: a few of them, sooner)
#   make export             notebooks -> diffpose/
#   make refresh NB=...     run notebooks and store their outputs (all of them without NB)
#   make clean              strip the notebooks of counts and metadata
#   make readme             index.ipynb -> README.md
#   make modules            the table of modules in CONTRIBUTING.md
#   make prepare            export, clean, modules, readme: before a commit
# PYTHON=python3.12 chooses the interpreter, VENV=folder the environment, TESTS="tests/test_contract.py -k clean" the tests.
PYTHON ?= python3
VENV ?= .venv
TESTS ?=
NB ?=
QUICK ?=
FUZZ ?=

python := $(VENV)/bin/python
installed := $(VENV)/.diffpose-installed
documented := $(VENV)/.diffpose-documented

.PHONY: help install test fuzz demo bench documented docs docs-test notebooks export refresh clean modules readme prepare
help:
	@sed -n 's/^#   //p' Makefile

install: $(installed)
$(installed): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("diffpose needs Python 3.10 or newer; %s is %d.%d (make PYTHON=python3.12 chooses another)" % (sys.executable, *sys.version_info[:2]) if sys.version_info < (3, 10) else 0)'
	@$(python) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { echo "no virtual environment: install Python's venv module (Debian: apt install python3-venv)"; exit 1; }
	@echo "installing diffpose and what it needs into $(VENV) (once; with torch about 6 GB, some minutes)"
	@$(python) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

test: $(installed)
	@$(python) -m tests $(TESTS)

fuzz: $(installed)
	@$(python) -m tests.fuzz $(FUZZ)

demo: $(installed)
	@$(VENV)/bin/diffpose demo --force

bench: $(installed)
	@$(python) -m pip install --quiet --disable-pip-version-check -e '.[bench,docs]'
	@$(python) benchmarks/render.py --out _runs/bench
	@$(python) benchmarks/register.py --out _runs/bench
	@$(python) benchmarks/train.py --out _runs/bench
	@$(python) benchmarks/metrics.py --out _runs/bench
	@$(python) benchmarks/growth.py --out _runs/bench
	@$(python) benchmarks/window.py --out _runs/bench
	@$(python) benchmarks/gpu.py --out _runs/bench

$(documented): $(installed)
	@$(python) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

documented: $(documented)
docs: $(documented)
	@$(python) -m tools.site

docs-test: docs
	@$(python) -m tests tests/site_in_browser.py tests/report_in_browser.py tests/gui_in_browser.py

notebooks: $(installed)
	@$(python) -m tools.wheel $(if $(QUICK),--quick) $(NB)

export: $(installed)
	@$(python) -m tools.export

refresh: $(installed)
	@$(python) -m tools.refresh $(NB)

clean: $(installed)
	@$(python) -c 'from nbdev.clean import nbdev_clean; [nbdev_clean(path) for path in ("notebooks", "index.ipynb")]'

modules: $(installed)
	@$(python) -m tools.modules

readme: $(installed)
	@$(python) -m tools.readme

prepare: export clean modules readme
