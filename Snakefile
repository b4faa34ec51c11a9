"""One study as a graph of notebooks: data -> train (each regime and size) -> fit -> figures, and model beside them.

    snakemake --cores 2 --config study=demo        # `make run` does this, and shows less
    snakemake -n --config study=demo               # what would run, and why
    snakemake --profile profiles/slurm --config study=demo      # on a cluster: `make run PROFILE=slurm`

Paths are relative to data/<study>, where Snakemake also keeps its own records: delete that folder and the study is new.
A job runs again when its notebook, an upstream result, its part of the study file or a number in lib/io.py that a person
raises (`TRAIN_NUMERICS` and its like) has changed. The outputs are markers, lists of checksums, so that Snakemake never
removes a result: the code that writes one knows by itself what it may keep.
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
    if plan.RUNNER in os.environ:
        io.stop_after(int(os.environ[plan.RUNNER]), group=True)
os.environ.update(plan.ENVIRONMENT)
workdir: study.data
wildcard_constraints: regime="[^/]+", size="[^/]+"

PYTHON, NOTEBOOKS = sys.executable, plan.relative(study, io.CODE / "notebooks")
SOURCES = [" ".join(map(str, io.mark(path))) for path in plan.sources(study)]  # no inputs: Snakemake refuses a job whose input is dated in the future
PANELS = expand("notebooks/01_data/{regime}.done", regime=study.regimes)
RUNS = expand("notebooks/03_train/{regime}/{size}.done", regime=study.regimes, size=[size.name for size in study.sizes])
EXECUTE = (
    "exec {PYTHON:q} -m lib.run.workflow {input.notebook} {log.notebook} {output} study={study.name} "
    "%s -- {params.results:q} > {log.messages} 2>&1"
)


def code(rule):
    """The notebook is an input of its rule; its text is compared in `settings`, not its time."""
    return {"notebook": ancient(f"{NOTEBOOKS}/{plan.NOTEBOOKS[rule]}.ipynb")}


def logs(name):
    """The executed notebook, and what its process said. Logs, because they are to be read above all when a job fails."""
    return {"notebook": f"notebooks/{name}.ipynb", "messages": f"notebooks/{name}.log"}


def step(rule, *names):
    """Functions that Snakemake calls for a job of a rule: properties of its step."""
    return {name: lambda wildcards, name=name: getattr(plan.Step(study, rule, **wildcards), name) for name in names}


def needs(rule):
    """Memory and time that a job asks a cluster for, doubled when it is tried again; on one machine they are no limits."""
    return {
        "mem_mb": lambda wildcards, attempt: 2 ** (attempt - 1) * plan.Step(study, rule, **wildcards).megabytes,
        "runtime": lambda wildcards, attempt: 2 ** (attempt - 1) * plan.Step(study, rule, **wildcards).minutes,
    }


rule all:  # a notebook whose marker is gone is not made again where only its successors are asked for
    input: "notebooks/04_fit.done", "notebooks/05_figures.done",
           [] if study.runs else ["notebooks/02_model.done", PANELS, RUNS]

rule data:
    message: "01_data {wildcards.regime}"
    input: **code("data")
    output: "notebooks/01_data/{regime}.done"
    log: **logs("01_data/{regime}")
    params: **step("data", "settings", "results"), files=SOURCES
    resources: **needs("data")
    priority: 10 ** 9  # all training waits for it
    shell: EXECUTE % "regime={wildcards.regime}"

rule model:
    message: "02_model"
    input: **code("model")
    output: "notebooks/02_model.done"
    log: **logs("02_model")
    params: **step("model", "settings", "results")
    resources: **needs("model")
    shell: EXECUTE % ""

rule train:
    message: "03_train {wildcards.regime} {wildcards.size}"
    input: **code("train"), panel="notebooks/01_data/{regime}.done"
    output: "notebooks/03_train/{regime}/{size}.done"
    log: **logs("03_train/{regime}/{size}")
    params: **step("train", "settings", "results")
    resources: **needs("train"), gpu=step("train", "gpus")["gpus"]
    priority: lambda wildcards: int(plan.Step(study, "train", **wildcards).flops / 1e9)  # the longest first, so that all cores end together
    threads: lambda wildcards: study.size(wildcards.size).threads(study.regimes[wildcards.regime].genes)  # as lib.train uses them
    shell: EXECUTE % "regime={wildcards.regime} size={wildcards.size}"

rule fit:
    message: "04_fit"
    input: **code("fit"), panels=[] if study.runs else PANELS, runs=[] if study.runs else RUNS
    output: "notebooks/04_fit.done"
    log: **logs("04_fit")
    params: **step("fit", "settings", "results"), given=SOURCES if study.runs else []
    resources: **needs("fit")
    shell: EXECUTE % ""

rule figures:
    message: "05_figures"
    input: **code("figures"), sizes=[] if study.runs else "notebooks/02_model.done", laws="notebooks/04_fit.done"
    output: "notebooks/05_figures.done"
    log: **logs("05_figures")
    params: **step("figures", "settings", "results")
    resources: **needs("figures")
    shell: EXECUTE % ""
