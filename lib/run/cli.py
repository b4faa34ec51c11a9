"""The command line: `python -m lib run STUDY --jobs N`, and what `python -m lib --help` lists besides."""

import argparse
import datetime
import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from lib import io
from lib.io import InputError
from lib.run import workflow
from lib.study import Study, load_study, parse_study


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit code: 0 done, 1 a notebook failed, 2 bad input, 130 interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup is left alone
            signal.signal(number, signal.default_int_handler)
    options = vars(parser().parse_args(arguments))
    try:
        return options.pop("work")(**options) or 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The commands, each with the function that does its work; what it does is its docstring's first sentence."""
    parser = argparse.ArgumentParser(prog="python -m lib", description=__doc__)
    commands, added = parser.add_subparsers(required=True), {}
    for work in (run, status, check, report, keep, clean):
        added[work] = commands.add_parser(work.__name__, help=work.__doc__.split(".\n")[0].split("\n")[0])
        added[work].set_defaults(work=work)
        demo = {"default": "demo", "nargs": "?"} if work in (run, status, report) else {}
        added[work].add_argument("study", help="name of a file in params/, without .yaml", **demo)
    jobs = "notebooks that run at the same time (2, or what the profile says)"
    added[run].add_argument("--jobs", type=int, help=jobs)
    added[run].add_argument("--profile", help="name of a folder in profiles/: run on a cluster")
    return parser


def run(study: str, jobs: int | None = None, profile: str | None = None) -> int:
    """Check a study, run what is missing or out of date, here or on a cluster, and print the fitted laws."""
    study = load_study(study)
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs is {jobs}; it has to be at least 1.")
    options = ["--cores", str(jobs or 2)]
    if profile:
        folder = io.ROOT / "profiles" / profile
        if not (folder / "config.yaml").is_file():
            raise InputError(f"there is no profile {profile!r}: {io.shown(folder)}/config.yaml is missing.")
        executor = io.parse_yaml((folder / "config.yaml").read_text()).get("executor", "local")
        if executor != "local" and not find_spec(f"snakemake_executor_plugin_{executor.replace('-', '_')}"):
            install = f".venv/bin/pip install -c constraints.txt snakemake-executor-plugin-{executor}"
            raise InputError(f"profile {profile} needs a plugin of Snakemake; install it: {install}")
        options = ["--profile", workflow.relative(study, folder), *(["--jobs", str(jobs)] if jobs else [])]
    workflow.sources(study)
    if study.runs:
        from lib.fit import runs

        runs.given(study)  # what is wrong with the table is said before any work
    for folder in (study.data, study.figures):
        io.check_writable(folder)
    if not os.access(Path.home(), os.W_OK):  # Snakemake and Jupyter write there
        raise InputError(f"HOME is {Path.home()}, which cannot be written; name another: HOME=/tmp/home make run.")
    with locked(study) as lock, snakemake(study, options, lock) as child:
        said = follow(study, child)
    if child.returncode:
        if shutil.disk_usage(study.data).free < 2**20:
            print(f"The disk that holds {io.shown(study.data)}/ is full. Make room, and run it again.", file=sys.stderr)
        elif not any(step.failure() for step in workflow.steps(study)):
            print(*said[-20:], "Snakemake failed. The same command goes on from here.", sep="\n", file=sys.stderr)
        return 1
    print(answer(study))
    return 0


def answer(study: Study) -> str:
    """What a finished study found: its laws and what more would buy, as 04_fit shows them, and where the rest is."""
    from lib.figures import tables
    from lib.fit import conditions, runs, summary

    laws = summary.laws_table(io.read_json(study.data / "laws.json"), runs.baselines(study))
    table = tables.laws(laws).printed.set_index("regime").rename_axis(index=None, columns="regime")
    more = conditions.bought(runs.read(study.data / "runs.csv"))
    said = [more.sentence]
    if more.steps is not None:
        steps = tables.bought(more.steps).printed[["twice the", "points per doubling"]].to_numpy()
        added = ", ".join(f"{what} {points}" for what, points in steps)
        said.append(f"Twice as much adds points to it: {added}. {more.verdict}")
    return "\n".join([
        f"{table.to_string()}\nIn brackets 95% intervals; – where the runs determine no number.",
        *said,
        f"Figures: {io.shown(study.figures)}/   executed notebooks: {io.shown(study.data / 'notebooks')}/",
        f"All of it on one page: make report STUDY={study.name}",
    ])  # fmt: skip


@contextmanager
def locked(study: Study) -> Iterator[int]:
    """One run of a study at a time: a lock's file descriptor, which Snakemake inherits; free when all holders end."""
    with open(study.data / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"study {study.name} is already being run; wait for its end, or stop it.") from None
        yield file.fileno()


@contextmanager
def snakemake(study: Study, options: list[str], lock: int) -> Iterator[subprocess.Popen]:
    """Snakemake in a session of its own. When the block ends, nothing of it is left running.

    Profiles and Jupyter kernels that the user's shell names for other projects play no part. Paths are relative:
    Snakemake takes brackets in that of a profile for a pattern.
    """
    snakefile = workflow.relative(study, io.CODE / "Snakefile")
    words = ["-m", "snakemake", *options, "--nolock", "--snakefile", snakefile, "--config", f"study={study.name}"]
    own = {name: value for name, value in os.environ.items() if name not in ("SNAKEMAKE_PROFILE", "JUPYTER_PATH")}
    environment = own | workflow.ENVIRONMENT | {workflow.RUNNER: str(os.getpid())}
    child = subprocess.Popen(
        [sys.executable, *words], cwd=study.data, env=environment, pass_fds=[lock],
        start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield child
        child.wait()
    finally:
        for number, patience in ((signal.SIGINT, 20), (signal.SIGKILL, 5)):  # seconds that notebooks may take to stop
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(child.pid, number)
                child.wait(patience)


def follow(study: Study, child: subprocess.Popen) -> list[str]:
    """Show the lines of Snakemake's log that say what starts, what has failed and how far all is; return all lines."""
    said, steps = [], {str(step.file(".ipynb").relative_to(study.data)): step for step in workflow.steps(study)}
    for line in child.stdout:
        said.append(line.rstrip())
        if found := re.match(r"(?:Job \d+: (.*))|(\d+ of \d+ steps .*)", line):
            print(found[1] or found[2], flush=True)
        elif (found := re.match(r" +log: ([^,]*)", line)) and found[1] in steps:
            step = steps[found[1]]
            why = step.failure() or f"{io.shown(step.file('.log'))}: it was killed, if it does not say why"
            print(f"FAILED {why}", flush=True)
    return said


def status(study: str) -> int:
    """Print the state of each notebook of a study, from the files that are there; 1 if one has failed."""
    study = load_study(study)
    steps = workflow.steps(study)
    states = [step.state for step in steps]
    print(f"{study.name}: {states.count('done')} of {len(steps)} notebooks done")
    for step, state in zip(steps, states, strict=True):
        seen = f"{step.cells_seen:,} of {step.cells:,} cells seen" if step.rule == "train" else ""
        print(f"{workflow.NOTEBOOKS[step.rule]:<11}{step.regime:<20} {step.size:<16} {state:<9} {seen}".rstrip())
    failures = [failure for step in steps if (failure := step.failure())]
    print(*(f"FAILED {failure}" for failure in failures), sep="\n", end="\n" if failures else "")
    return int(bool(failures))


def check(study: str) -> None:
    """Check a study: what its files hold, what would train, and how long it takes here."""
    from lib.data import census, split, user_files
    from lib.fit import runs

    study = load_study(study)
    if study.runs:
        table = runs.given(study)
        used = runs.usable(table, "validation_mse")
        used = used[runs.sees_context(used)]
        by_regime = used.groupby("regime").agg(runs=("seed", "size"), sizes=("parameters", "nunique"))
        print(f"runs that enter a law, of {len(table)}, and sizes by parameters:\n{by_regime.to_string()}")
        again = used.duplicated(["regime", "size", "seed"]).sum()
        print(f"with the regime, size and seed of another row, each counted as a further run: {again}")
        return
    if study.census.sources:
        pool = user_files.survey(study.census, user_files.own_columns(study))
        print(pool.report.to_string(index=False), user_files.overview(pool), sep="\n")
        found, regimes, fewest = split.outlook(study, pool)
        print(f"cells with counts that pass {found['filter']!r}: {found['cells_available']:,}")
        print(f"cells and donors of each split:\n{regimes.to_string(index=False)}")
        if fewest < 4 and study.split.by != "random" and study.fit.errors == "donors":
            advice = "for an interval over donors hold out four or more: raise the shares of split, or change its seed"
            print(f"Fewest donors in a held-out split: {fewest}; {advice}.")
    elif not study.census.simulate:
        print("The labels of all cells of the Census are read, then cells twice: all genes to choose some, then those.")
        for name, regime in study.regimes.items():
            print(f"{name}: {regime.cells:,} cells, about {2 * regime.cells * census.CELL_BYTES / 1e9:.1f} GB")
    os.environ.update(workflow.ENVIRONMENT)  # as its notebooks will have it; read when torch is imported
    from lib.train import machine

    sizes = machine.hours(study)
    print(sizes.to_string(index=False, formatters={"hours": "{:.2f}".format}))
    print(f"all sizes, one after another: {sizes['hours'].sum():.1f} hours here; where not measured, by FLOPs.")


def report(study: str) -> None:
    """Write figures/<study>/report.html: the executed notebooks without code, of many alike the last one."""
    import nbformat
    from nbconvert import HTMLExporter

    study = load_study(study)
    files = {step.rule: step.file(".ipynb") for step in workflow.steps(study) if step.file(".ipynb").is_file()}
    if not files:
        raise InputError(f"study {study.name} has no executed notebooks yet; run it: make run STUDY={study.name}.")
    page = nbformat.v4.new_notebook()
    for path in files.values():
        page.cells += nbformat.read(path, as_version=4).cells
    for number, cell in enumerate(page.cells):  # notebooks have the same ids
        cell["id"] = f"cell-{number}"
    hidden = {"exclude_input": True, "exclude_input_prompt": True, "exclude_output_prompt": True}
    html, _ = HTMLExporter(**hidden, embed_images=True).from_notebook_node(page, {"metadata": {"name": study.name}})
    html = re.sub(r'<a href="0\d_\w+\.ipynb">(.*?)</a>', r"\1", html)  # no notebooks lie beside it
    path = study.figures / "report.html"
    with io.atomic(path) as partial:
        partial.write_text(html, encoding="utf-8")
    print(io.shown(path))


def keep(study: str) -> None:
    """Copy what a finished study says, small enough for git, to data/results/<study>, and when and where it was run.

    Of runs that are kept already, what 04_fit makes of them now.
    """
    import pandas as pd

    from lib.fit.runs import baselines, kept

    study = load_study(study)
    if not (study.data / "laws.json").is_file():
        raise InputError(f"study {study.name} has no laws.json to keep; run it first: make run STUDY={study.name}.")
    folder, laws, table = study.results, study.data / "laws.json", study.data / "runs.csv"
    date, runs = datetime.date.fromtimestamp(laws.stat().st_mtime), pd.read_csv(table)
    trained = sorted(runs["code_version"].dropna().unique())
    ran = [io.code_version(), *trained]
    if lost := [version for version in ran if version == "unknown" or version.endswith("-modified")]:
        again = f"commit it, then make clean STUDY={study.name}, and run it again"
        raise InputError(f"no commit holds the code that ran {study.name} ({lost[0]}); {again}.")
    made = [laws, study.data / "notebooks" / "04_fit.ipynb"]
    if not kept(study):
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
        machine["devices"] = sorted(runs["device"].dropna().unique())
        origin = {"study": study.name, "date": f"{date}", "commit": ", ".join(trained), "machine": machine}
        io.write_json(folder / "origin.json", origin | {"hours": round(float(runs["seconds"].sum()) / 3600, 3)})
        io.write_json(folder / "baselines.json", baselines(study))
        made += [table, study.data / "probe.csv"]
    for path in made:
        if path.is_file():
            text = re.sub(r"\]\((0\d_\w+\.ipynb)\)", r"](../../../notebooks/\1)", path.read_text(encoding="utf-8"))
            with io.atomic(folder / path.name) as partial:
                partial.write_text(text, encoding="utf-8")
    print(io.shown(folder))


def clean(study: str) -> None:
    """Delete what a study has produced, unless it is being run."""
    produced = parse_study({"runs": {"table": "none.csv"}}, study)  # a valid name; nothing else of it is looked at
    if produced.data.is_dir():
        with locked(produced):
            if any(map(workflow.held, (produced.data / "notebooks").rglob("*.lock"))):
                raise InputError(f"a notebook of study {study} is running; wait for its end, or stop it.")
            io.remove(produced.data)
    io.remove(produced.figures)
