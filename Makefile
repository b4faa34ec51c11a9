# `make` lists what there is to do.
STUDY   ?= demo
PROFILE ?=
JOBS    ?=
PYTHON  ?= $(shell command -v python3.11 || command -v python3)

BIN := .venv/bin
JOBS_OPTION := $(if $(JOBS),--jobs $(JOBS))
NORMALISE := $(BIN)/nbstripout --keep-output --keep-count \
  --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version"

export OMP_WAIT_POLICY := PASSIVE
export JUPYTER_PLATFORM_DIRS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help run status check lab report test lint notebooks keep clean gallery gpu-panels gpu gpu-rehearsal
.SILENT:

help:
	echo "make run [STUDY=demo] [JOBS=2]   run a study: params/STUDY.yaml -> data/STUDY, figures/STUDY"
	echo "make run [STUDY=demo] PROFILE=slurm   run it on a cluster, by profiles/slurm/config.yaml"
	echo "make status [STUDY=demo]         say what is done, running, failed or not yet done; nothing is written"
	echo "make check STUDY=name            say what a study reads and trains, and how long that takes here; nothing is written"
	echo "make lab [ARGS=...]              open the notebooks in JupyterLab"
	echo "make report [STUDY=demo]         one HTML page of a study that has been run -> figures/STUDY/report.html"
	echo "make test [ARGS=...]             run the tests (ARGS go to pytest)"
	echo "make lint                        check style of code and notebooks"
	echo "make notebooks                   execute notebooks/ on the demo study, outputs included"
	echo "make keep STUDY=name             copy a finished study's tables and fit notebook to data/results, for git"
	echo "make clean STUDY=name            delete what a study has produced"
	echo "make gpu-panels                  make the panels that a GPU machine needs, here, where everything is installed"
	echo "make gpu [ARGS=...]              measure one GPU and train on it for eight minutes; again: go on from there"
	echo "make gpu-rehearsal               the same in small, on the CPU, in two minutes"
	echo "make gallery                     copy the README's pictures from studies that have been run"

run: .venv/installed
	$(BIN)/python -m lib run $(STUDY) $(JOBS_OPTION) $(if $(PROFILE),--profile $(PROFILE))

status check report: .venv/installed
	$(BIN)/python -m lib $@ $(STUDY)

lab: .venv/installed
	$(BIN)/jupyter lab $(ARGS)

# Two workers; a module's tests stay together, and so do modules that share what takes long to make (tests/conftest.py).
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check --quiet lib notebooks tests benchmarks
	$(BIN)/ruff format --quiet --check lib notebooks tests benchmarks
	$(NORMALISE) --verify notebooks/*.ipynb

# Executed without parameters, so that the committed copies show exactly what Run All shows. Then 04_fit on what is kept.
notebooks: .venv/installed
	$(BIN)/python -m lib run demo $(JOBS_OPTION)
	set -e; for name in $(notdir $(wildcard notebooks/*.ipynb)); do \
	  $(BIN)/papermill notebooks/$$name data/demo/$$name --cwd notebooks --no-progress-bar --log-level ERROR \
	    2> data/demo/$$name.log || { cat data/demo/$$name.log; exit 1; }; \
	  $(NORMALISE) data/demo/$$name; mv data/demo/$$name notebooks/$$name; done
	set -e; for study in $(notdir $(wildcard data/results/*)); do test -f params/$$study.yaml || continue; mkdir -p data/$$study/notebooks; \
	  $(BIN)/papermill notebooks/04_fit.ipynb data/$$study/notebooks/04_fit.ipynb --cwd notebooks -p study $$study \
	    --no-progress-bar --log-level ERROR 2> data/$$study/04_fit.log || { cat data/$$study/04_fit.log; exit 1; }; \
	  $(BIN)/python -m lib keep $$study; $(NORMALISE) data/results/$$study/*.ipynb; done

keep: .venv/installed
	$(BIN)/python -m lib keep $(STUDY)
	$(NORMALISE) data/results/$(STUDY)/*.ipynb

clean: .venv/installed
	test "$(origin STUDY)" != file || { echo "name the study: make clean STUDY=name" >&2; exit 2; }
	$(BIN)/python -m lib clean -- "$$STUDY"

gallery:
	mkdir -p figures/gallery
	cp figures/ladder/loss_against_parameters.svg figures/ladder/budget.svg figures/gallery
	cp figures/matched/matched.svg figures/noise/depth.svg figures/gallery
	cp figures/marrow/loss_against_parameters.svg figures/gallery/marrow.svg
	cp figures/dimensions/loss_against_parameters.svg figures/gallery/dimensions.svg
	cp figures/protocol/protocols.svg figures/gallery/protocol.svg
	cp figures/pbmc/matched.svg figures/gallery/pbmc.svg
	cp figures/marrow-noise/depth.svg figures/gallery/marrow-noise.svg
	cp figures/demo/bits.svg figures/published-runs/published_audit.svg figures/gallery

gpu-panels gpu-rehearsal: .venv/installed
	$(BIN)/python benchmarks/gpu.py $(subst gpu-,,$@)

# On a machine that has torch but not this project.
gpu:
	PYTHONPATH=. $(or $(wildcard $(BIN)/python),python3) benchmarks/gpu.py run $(ARGS)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/it")'
	echo "Installing about 2 GB of Python packages into .venv, once; it takes a few minutes. pip says what it does:"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
