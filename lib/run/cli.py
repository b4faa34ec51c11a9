"""The command line: `python -m lib run STUDY --jobs N`, and what `python -m lib --help` lists besides."""

import argparse
import glob
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import filelock
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from lib import io
from lib.io import InputError
from lib.run import cluster, orphans, status, workflow
from lib.run.failure import failure
from lib.run.progress import Batch, spoken
from lib.study import Census, load_study

JOBS = 2
"""Notebooks that run at the same time on one machine, unless --jobs says otherwise."""
GRACE_SECONDS = 20
"""How long notebooks may take to stop when the run is interrupted."""


def main(arguments=None):
    """Command line. Returns the exit code: 0 done, 1 a notebook failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m lib", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("coverage", help="measure how often each interval holds the truth")
    command = commands.add_parser("replicate", help="run whole small studies with a known floor; do intervals hold it?")
    command.add_argument("--replicates", type=int, default=50, help="studies in all; those in the table are not rerun")
    command.add_argument("--jobs", type=int, default=2, help="studies that run at the same time")
    commands.add_parser("rates", help="find the learning rate of every size, and try the rule for it")
    commands.add_parser("answer", help="what all kept studies say together: a figure and a text")
    command = commands.add_parser("check", help="check your own files, and say what they hold; nothing is written")
    command.add_argument("what", nargs="+", help="name of a study, or files and folders of counts")
    command = commands.add_parser("keep", help="copy a finished study's tables and notebooks to data/results, for git")
    command.add_argument("study", help="name of a file in params/, without .yaml")
    command = commands.add_parser("clean", help="delete what a study has produced")
    command.add_argument("study", help="its name; the study file may be gone")
    command = commands.add_parser("pack", help="make a study's panels, each also as a small file for another machine")
    command.add_argument("study", nargs="+", help="names of files in params/, without .yaml")
    command = commands.add_parser("sweep", help="train all runs of studies in one process, for `run` to find done")
    command.add_argument("study", nargs="+", help="names of files in params/, without .yaml")
    command.add_argument("--at-once", type=int, default=1, help="small runs that share the device")
    command = commands.add_parser("report", help="make one HTML page of a study's executed notebooks")
    command.add_argument("study", nargs="?", default="demo", help="name of a file in params/, without .yaml")
    command = commands.add_parser("train", help="train all seeds of one size on several GPUs, for `run` to find done")
    for word in ("study", "regime", "size"):
        command.add_argument(word)
    command.add_argument("--devices", type=int, default=2, help="processes that share every batch, one on each GPU")
    command = commands.add_parser("run", help="run what a study lacks")
    command.add_argument("study", nargs="?", default="demo", help="name of a file in params/, without .yaml")
    command.add_argument("--jobs", type=int, help="notebooks that run at the same time (2, or what the profile says)")
    command.add_argument("--profile", help="name of a folder in profiles/: run on a cluster")
    command = commands.add_parser(
        "status", help="say what of a study is done, running, failed or left; it writes nothing"
    )
    command.add_argument("study", nargs="?", default="demo", help="name of a file in params/, without .yaml")
    chosen = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup is left alone
            signal.signal(number, signal.default_int_handler)
    try:
        work = {
            "coverage": measure_coverage,
            "rates": measure_rates,
            "replicate": lambda: measure_replicates(chosen.replicates, chosen.jobs),
            "answer": tell_answer,
            "keep": lambda: keep(chosen.study),
            "clean": lambda: clean(chosen.study),
            "report": lambda: make_report(chosen.study),
            "check": lambda: check(chosen.what),
            "pack": lambda: pack(chosen.study),
            "sweep": lambda: sweep_all(chosen.study, chosen.at_once),
            "train": lambda: train_together(chosen.study, chosen.regime, chosen.size, chosen.devices),
            "run": lambda: run(chosen.study, chosen.jobs, chosen.profile),
            "status": lambda: status.show(load_study(chosen.study)),
        }
        return work[chosen.command]()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130


def pack(names):
    """Make the panels of studies, each also as a compact file, and say where those lie and how large they are."""
    from lib.train import sweep

    for study in [load_study(name) for name in names]:
        for path in sweep.pack(study):
            print(f"{io.shown(path)}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def sweep_all(names, at_once):
    """Train all runs of studies in one process, one after another but for small ones."""
    from lib.train import sweep

    if at_once < 1:
        raise InputError(f"--at-once is {at_once}; it has to be at least 1.")
    for study in [load_study(name) for name in names]:
        study.data.mkdir(parents=True, exist_ok=True)
        with locked(study):
            sweep.sweep(study, at_once, lambda said, name=study.name: print(name, said, flush=True))
    return 0


def train_together(name, regime, size, devices):
    """Train all seeds of one size with several processes, each on a GPU of its own (without GPUs: on the CPU)."""
    from lib.train import loop, sweep

    study = load_study(name)
    shape, data = study.size(size), sweep.arrays(study, regime)
    fabric = launched(devices)
    for seed in study.seeds_for(size):
        record = loop.train(
            data, shape, seed, study.training(regime), study.run_folder(regime, size, seed), fabric=fabric
        )
        loop.finished([record])
        if fabric is None or fabric.is_global_zero:
            print(f"{size}, seed {seed}: {record['status']}, validation MSE {record['validation_mse']:.5g}")
    return 0


def launched(devices):
    """Lightning Fabric's processes, one on each device, of which this is one; None where there is but one device."""
    if devices == 1:
        return None
    from lightning_fabric import Fabric

    fabric = Fabric(devices=devices, strategy="ddp")
    fabric.launch()
    return fabric


def measure_rates():
    """Find the best learning rate of several sizes, write the sweep, and say what the rule for it costs."""
    from lib.train import rates

    rates.main()
    return 0


def measure_replicates(replicates, jobs):
    """Run small studies whose floor is known, and say how often the interval of c held it."""
    from lib.fit import replicate

    print(*replicate.said(replicate.main(replicates, jobs)), sep="\n")
    return 0


def measure_coverage():
    """Simulate studies, write how often each interval held the truth, and draw it."""
    from lib import figures
    from lib.fit import coverage

    figures.save(figures.coverage(coverage.main()), io.ROOT / "figures" / "gallery", "coverage", ("svg", "png"))
    return 0


def tell_answer():
    """Draw and write what all kept studies say together, and say where it lies."""
    from lib.fit import answer

    print(*map(io.shown, answer.main()), sep="\n")
    return 0


def keep(name):
    """Copy what a finished study says to data/results, and say where it lies."""
    print(os.path.relpath(workflow.keep(load_study(name)), io.ROOT))
    return 0


def clean(name):
    """Delete what a study has produced, unless it is being run."""
    produced = workflow.produced(name)
    if produced.data.is_dir():
        with locked(produced):
            io.remove(produced.data)
    io.remove(produced.figures)
    return 0


def make_report(name):
    """Make the page of a study's executed notebooks, and say where it lies."""
    from lib.run import report

    print(os.path.relpath(report.write(load_study(name)), io.ROOT))
    return 0


def check(what):
    """Check the files of a study, or files given by their paths, and say what they hold."""
    from lib.data import user_files

    named = (io.ROOT / "params" / f"{what[0]}.yaml").is_file() or not os.path.exists(what[0])
    if len(what) > 1 or not named:
        paths = [glob.escape(os.path.abspath(path)) for path in what]
        pool = user_files.survey(Census(files=paths), labelled=False)
    else:
        study = load_study(what[0])
        if not (study.census and (study.census.h5ad or study.census.files)):
            raise InputError(
                f"study {study.name} reads no files of your own; name them in census.h5ad or census.files."
            )
        pool = user_files.survey(study.census)
    print(pool.report.to_string(index=False), user_files.overview(pool), sep="\n")
    return 0


def run(name, jobs=None, profile=None):
    """Check a study, run what is missing or out of date, here or on a cluster, and say what came out."""
    study = load_study(name)
    profile = profile and cluster.load(profile)
    jobs = (profile.jobs if profile else JOBS) if jobs is None else jobs
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}; it has to be at least 1.")
    workflow.sources(study)
    for folder in (study.data, study.figures):
        io.check_writable(folder)
    options = cluster.options(study, profile, jobs) if profile else ["--cores", str(jobs)]
    with locked(study), cluster.alone(study, profile):
        if orphans.stop(study):
            print(f"Stopped what a killed run of {name} had left at work.")
        with snakemake(study, options) as child:
            batch = Batch(study, jobs, queues=bool(profile))
            said = follow(batch, child)
    if child.returncode:
        for line in ended_badly(batch, child.returncode, said):
            print(line, file=sys.stderr)
        return 1
    report(study, time.time() - batch.start)
    return 0


@contextmanager
def locked(study):
    """One run of a study at a time."""
    try:
        with filelock.FileLock(study.data / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise InputError(f"study {study.name} is already being run; wait for that run to end, or stop it.") from None


@contextmanager
def snakemake(study, options):
    """Snakemake in a session of its own, as a process whose output is `lib.run.events`. Leaves nothing running."""
    snakefile = io.CODE / "Snakefile"
    options = ["--nolock", "--keep-going", "--rerun-incomplete", "--scheduler", "greedy", *options]
    child = subprocess.Popen(
        [sys.executable, "-m", "lib.run.events", *options, "--snakefile", snakefile, "--config", f"study={study.name}"],
        cwd=study.data, env=os.environ | workflow.ENVIRONMENT | orphans.mark(study), start_new_session=True, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield child
    finally:
        for number, patience in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, 5)):
            try:
                os.killpg(child.pid, number)
                child.wait(patience)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        orphans.stop(study)  # kernels have sessions of their own


def follow(batch, child):
    """Show the run until Snakemake ends: bars in a terminal, a line at the end of each job elsewhere.

    Returns what Snakemake said besides events.
    """
    console, said = Console(highlight=False, soft_wrap=True), []
    listener = threading.Thread(target=listen, args=(batch, child.stdout, console, said), daemon=True)
    listener.start()
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}")
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
            bars = {batch.study.name: display.add_task(batch.study.name, total=1, left="planning")}
            while listener.is_alive():
                show(batch, display, bars)
                batch.write()
                listener.join(0.5)
    except BaseException:
        batch.stopped = True
        raise
    finally:
        batch.write(ended=True)
    child.wait()
    return said


def listen(batch, lines, console, said):
    """Take in the events, and say how jobs ended, except those that end because the run is being stopped."""
    for line in lines:
        event = json.loads(line) if line.startswith('{"event"') else {"event": "message", "text": line.rstrip()}
        if event["event"] == "message":
            said.append(event["text"])
        elif (ended := batch.read(event)) and not batch.stopped:
            tell(batch, ended, console)


def ended_badly(batch, code, said):
    """What is left to say of a run that has not come to its end; its failed notebooks have been named already."""
    failed = [failure(*(batch.study.data / name for name in job.log[:2])) for job in batch.jobs.values() if job.failed]
    if io.full(batch.study.data) or any("No space left" in text for text in [*said, *(why.error for why in failed)]):
        place = io.shown(batch.study.data)
        return [f"The disk that holds {place}/ is full. Make room: the same command goes on from here."]
    if code < 0:
        return ["The scheduler was killed. The same command goes on from here."]
    return [] if failed else ["The run could not be planned:", *said[-20:]]


def show(batch, display, bars):
    """Bring the bars up to date: one for the run, one for each notebook at work."""
    for job in batch.submitted:
        batch.look(job)
    running = {f"  {job.title}": job for job in batch.running}
    for title in bars.keys() - running.keys() - {batch.study.name}:
        display.remove_task(bars.pop(title))
    for title, job in running.items():
        if title not in bars:
            bars[title] = display.add_task(title, total=1, left="")
        display.update(bars[title], completed=batch.job_share(job))
    if batch.started:
        waiting = len(batch.submitted) - len(running)
        left = f"about {spoken(batch.left())} left" + (f", {waiting} in the queue" if waiting else "")
        display.update(bars[batch.study.name], completed=batch.share(), left=left)


def tell(batch, job, console):
    """One line when a job ends: always for a failure, otherwise only where no bars are shown."""
    if job.failed:
        why = failure(*(batch.study.data / name for name in job.log[:2]))
        error, place = cluster.word(batch.study, job) or (why.error, why.place)
        console.print(f"{job.title} failed: {error} (see {io.shown(place)})", markup=False)
    elif not console.is_terminal:
        left = f"{spoken(job.elapsed)}; about {spoken(batch.left())} left"
        console.print(f"[{batch.share():4.0%}] {job.title}: {left}", markup=False)


def report(study, seconds):
    """The answer, and where everything is."""
    from lib import fit
    from lib.fit import runs

    table = runs.collect(study)
    floors = runs.known_floors(runs.baselines(study), runs.headline(table))
    print(*fit.answer(io.read_json(study.data / "laws.json"), floors), *runs.unconverged(table), sep="\n")
    figures, notebooks = (os.path.relpath(path, io.ROOT) for path in (study.figures, study.data / "notebooks"))
    print(f"Figures: {figures}/   executed notebooks: {notebooks}/   time: {spoken(seconds)}")
    print(f"All of it on one page: make report STUDY={study.name}")
