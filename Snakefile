"""One study as a graph of notebooks: data -> train (each regime and size) -> fit -> figures, and model beside them.

    snakemake --cores 2 --config study=demo        # `make run` does this, with one progress display
    snakemake -n --config study=demo               # what would run, and why
    snakemake --profile profiles/slurm --config study=demo      # on a cluster: `make run PROFILE=slurm`

Paths are relative to data/<study>, where Snakemake also keeps its own records: delete that folder and the study is new.
A job runs again when its notebook, an upstream result, its part of the study file or a number in lib that a person raises
when results change (`TRAIN_NUMERICS` and its like) has changed. Panels, runs and figures are no outputs, so that Snakemake never removes one; a list of them with
checksums is. The code that writes them knows by itself what it may keep.
"""

import os
import sys

from lib import io
from lib.run import workflow as plan
from lib.study import load_study

study = load_study(config.get("study", "demo"))
study.data.mkdir(parents=True, exist_ok=True)
if workflow.is_main_process:  # a job on a cluster reads this file too, and must not judge what other jobs write
    plan.forget_lost(study)
os.environ.update(plan.ENVIRONMENT)
workdir: study.data
wildcard_constraints: regime="[^/]+", size="[^/]+"


def relative(path):
    return os.path.relpath(path, study.data)


PANELS = expand("{regime}/data.txt", regime=study.regimes)
RUNS = expand("{regime}/runs/{size}/results.txt", regime=study.regimes, size=[size.name for size in study.sizes])
SOURCES = [relative(path) for path in plan.sources(study)]
PYTHON, NOTEBOOKS, FIGURES = sys.executable, relative(io.CODE / "notebooks"), relative(study.figures)


def code(name):
    """A notebook: an input of its rule. Its words are compared in `settings`."""
    return {"notebook": ancient(f"{NOTEBOOKS}/{name}.ipynb")}


def logs(name):
    """The executed notebook, and what papermill said. Logs, because they are to be read above all when a job fails."""
    return {"notebook": f"notebooks/{name}.ipynb", "messages": f"notebooks/{name}.log"}


def papermill(parameters="", results=""):
    return (
        "exec > {log.messages} 2>&1; {PYTHON:q} -m papermill {input.notebook} {log.notebook} --cwd {NOTEBOOKS} "
        f"--kernel python3 --no-progress-bar --log-level ERROR -p study {{study.name}} {parameters}"
        + (f" && cksum {results} > {{output}}" if results else "")
    )


def settings(rule, name):
    """Parameters of a rule: its part of the study file, and the words of its notebook."""
    return {"settings": lambda wildcards: plan.settings(study, rule, **wildcards), "words": plan.words(name)}


def needs(rule):
    """Memory and time that a job of a rule asks a cluster for; on one machine they are no limits."""
    return {
        "mem_mb": lambda wildcards, attempt: plan.megabytes(study, rule, **wildcards, attempt=attempt),
        "runtime": lambda wildcards, attempt: plan.minutes(study, rule, **wildcards, attempt=attempt),
    }


def priority(wildcards):
    """The longest training first, and before it the data that it needs, so that all cores end together."""
    sizes = [wildcards.size] if "size" in wildcards.keys() else [size.name for size in study.sizes]
    return max(plan.flops(study, wildcards.regime, size) for size in sizes)


rule all:  # a lost file is made again, wherever in the graph it belongs
    input: "runs.csv", "laws.json", [] if study.runs else ["figures.txt", "sizes.csv", PANELS, RUNS]

rule figures:
    message: "drawing the figures"
    input: **code("05_figures"), sizes="sizes.csv", runs="runs.csv", laws="laws.json"
    output: "figures.txt"
    log: **logs("05_figures")
    params: **settings("figures", "05_figures")
    resources: **needs("figures")
    shell: papermill(results="{FIGURES}/*.[!h]*")  # but report.html, which is made of the notebooks, not by them

rule data:
    message: "reading the cells of {wildcards.regime}"
    input: **code("01_data"), files=SOURCES
    output: "{regime}/data.txt"
    log: **logs("01_data-{regime}")
    params: **settings("data", "01_data")
    resources: **needs("data")
    priority: priority
    shell: papermill("-p regime {wildcards.regime}", "{wildcards.regime}/panel.h5ad {wildcards.regime}/baselines.json")

rule model:
    message: "counting parameters"
    input: **code("02_model")
    output: "sizes.csv"
    log: **logs("02_model")
    params: **settings("model", "02_model")
    resources: **needs("model")
    shell: papermill()

rule train:
    message: "training {wildcards.size} on {wildcards.regime}"
    input: **code("03_train"), panel="{regime}/data.txt"
    output: "{regime}/runs/{size}/results.txt"
    log: **logs("03_train-{regime}-{size}")
    params:
        **settings("train", "03_train"),
        results=lambda wildcards: [
            f"{wildcards.regime}/runs/{wildcards.size}/seed-{seed}/result.json"
            for seed in study.seeds_for(wildcards.size)
        ],
    resources: gpu=lambda wildcards: plan.gpus(study, **wildcards), **needs("train")
    priority: priority
    threads: lambda wildcards: study.size(wildcards.size).threads(study.regimes[wildcards.regime].genes)  # as lib.train uses them
    shell: papermill("-p regime {wildcards.regime} -p size {wildcards.size}", "{params.results}")

rule fit:
    message: "fitting the law"
    input: **code("04_fit"), panels=PANELS, runs=RUNS, given=SOURCES if study.runs else []
    output: "runs.csv", "laws.json"
    log: **logs("04_fit")
    params: **settings("fit", "04_fit")
    resources: **needs("fit")
    shell: papermill()
