# `make` lists what there is to do.
STUDY  ?= demo
PROFILE ?=
JOBS   ?=
STUDIES ?= tuned published
AT_ONCE ?= 4
PYTHON ?= $(shell command -v python3.11 || command -v python3)

BIN := .venv/bin
JOBS_OPTION := $(if $(JOBS),--jobs $(JOBS))
NORMALISE := $(BIN)/nbstripout --keep-output --keep-count \
  --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version"

export OMP_WAIT_POLICY := PASSIVE
export JUPYTER_PLATFORM_DIRS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help run status reliability test lint lab report notebooks gallery coverage rates replicate keep paper-scale answer check clean
.SILENT:

help:
	echo "make run [STUDY=demo] [JOBS=2]   run a study: params/STUDY.yaml -> data/STUDY, figures/STUDY"
	echo "make run [STUDY=demo] PROFILE=slurm   run it on a cluster, by profiles/slurm/config.yaml (kubernetes beside it)"
	echo "make status [STUDY=demo]         say what is done, running, failed or left, at any time; nothing is written"
	echo "make check STUDY=name            check the files of a study, and say what they hold; nothing is written"
	echo "make lab [ARGS=...]              open the notebooks in JupyterLab"
	echo "make report [STUDY=demo]         one HTML page of a study that has been run -> figures/STUDY/report.html"
	echo "make test [ARGS=...]             run the tests (ARGS go to pytest)"
	echo "make lint                        check style of code and notebooks"
	echo "make notebooks                   execute notebooks/ on the demo study, outputs included"
	echo "make coverage                    measure how often the intervals hold the truth -> data/coverage.csv, figures/gallery"
	echo "make replicate                   run small studies whose floor is known -> data/replicates.csv (most of an hour)"
	echo "make keep STUDY=name             copy a finished study's tables and notebooks to data/results, for git"
	echo "make answer                      what all kept studies say together -> figures/gallery/answer.svg, data/results/answer.md"
	echo "make paper-scale [STUDIES=...]   train the published sizes in one process, on a GPU; fit, draw and keep what came out"
	echo "make rates                       find the best learning rate of several sizes -> data/learning_rates.csv (a quarter of an hour)"
	echo "make reliability                 break runs on purpose, and write what happens -> data/reliability.csv"
	echo "make clean STUDY=name            delete what a study has produced"

run: .venv/installed
	$(BIN)/python -m lib run $(STUDY) $(JOBS_OPTION) $(if $(PROFILE),--profile $(PROFILE))

status: .venv/installed
	$(BIN)/python -m lib status $(STUDY)

check: .venv/installed
	$(BIN)/python -m lib check $(STUDY)

# Two workers; a module's tests stay together, and so do modules that share what takes long to make (tests/conftest.py).
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(ARGS)

reliability: .venv/installed
	RELIABILITY=write $(BIN)/python -m pytest -q -m fault

lint: .venv/installed
	$(BIN)/ruff check --quiet lib notebooks tests $(wildcard benchmarks)
	$(BIN)/ruff format --quiet --check lib notebooks tests $(wildcard benchmarks)
	$(NORMALISE) --verify notebooks/*.ipynb

lab: .venv/installed
	$(BIN)/jupyter lab $(ARGS)

report: .venv/installed
	$(BIN)/python -m lib report $(STUDY)

# Executed without parameters, so that the committed copies show exactly what Run All shows.
notebooks: .venv/installed
	$(BIN)/python -m lib run demo $(JOBS_OPTION)
	set -e; for name in $(notdir $(wildcard notebooks/*.ipynb)); do \
	  $(BIN)/papermill notebooks/$$name data/demo/$$name --cwd notebooks --no-progress-bar --log-level ERROR \
	    2> data/demo/$$name.log || { cat data/demo/$$name.log; exit 1; }; \
	  $(NORMALISE) data/demo/$$name; mv data/demo/$$name notebooks/$$name; done

# The README's pictures, from studies that have been run.
gallery:
	mkdir -p figures/gallery
	cp figures/demo/loss_against_parameters.svg figures/published-runs/published_audit.svg figures/gallery
	cp figures/pbmc/held_out.svg figures/gallery/pbmc.svg
	cp figures/matched/matched.svg figures/budget/budget.svg figures/protocol/protocols.svg figures/gallery
	cp figures/demo/bits.svg figures/gallery

rates: .venv/installed
	$(BIN)/python -m lib rates

replicate: .venv/installed
	$(BIN)/python -m lib replicate $(JOBS_OPTION)

keep: .venv/installed
	$(BIN)/python -m lib keep $(STUDY)
	$(NORMALISE) data/results/$(STUDY)/*.ipynb

# Panels, then all runs in one process, then the notebooks, which find the runs done. Stopped, it goes on from there.
paper-scale: .venv/installed
	$(BIN)/python -m lib pack $(STUDIES)
	$(BIN)/python -m lib sweep $(STUDIES) --at-once $(AT_ONCE)
	set -e; for study in $(STUDIES); do $(BIN)/python -m lib run $$study $(JOBS_OPTION); \
	  $(BIN)/python -m lib keep $$study; $(NORMALISE) data/results/$$study/*.ipynb; done

answer: .venv/installed
	$(BIN)/python -m lib answer

coverage: .venv/installed
	$(BIN)/python -m lib coverage

clean: .venv/installed
	test "$(origin STUDY)" != file || { echo "name the study: make clean STUDY=name" >&2; exit 2; }
	$(BIN)/python -m lib clean -- "$$STUDY"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/it")'
	echo "Installing into .venv (a few minutes, once) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq -c constraints.txt -e '.[dev]'
	touch $@
