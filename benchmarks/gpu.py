"""One command for one GPU: correctness, rates, the laws at the paper's dimensions, a table and a figure of them.

`python benchmarks/gpu.py panels` makes the panels of `tuned` beforehand, where all of the project is installed. `run`
needs them, torch, NumPy, h5py, filelock and safetensors; it begins with what is worth most, writes every piece as soon
as it is done, ends when its time is up, and goes on from there when it is called again, on another machine too.
`table FOLDER` fits and draws the laws afterwards, if the machine that trained could not. `rehearsal` does all of it in
small, on whatever there is.
"""

import argparse
import datetime
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from gpu_rates import correctness, load, name_of, rates, say, settings, write_rows

from lib import io
from lib.data import panel
from lib.model.sizes import Size, recipe
from lib.train import loop, machine

BUDGET, GRACE = 480, 40
"""Seconds of one call, and those at its end in which training saves itself and the table is written."""
RATES_SHARE = 0.2
"""Part of the time after which the laws come first; the rates that are left wait for the time that is left."""
TOGETHER, SMALL = 4, 1e6
"""Runs beside each other on one device, and the parameters up to which a size leaves it idle by itself."""

REHEARSAL = {
    "census": {"simulate": {"cells": 3000, "genes": 200, "transcriptome": 400, "states": 16, "donors": 20}},
    "regimes": {"data-rich": {"genes": 32, "cells": 2000}, "data-limited": {"genes": 64, "cells": 200}},
    "split": {"validation": 0.1, "test": 0.1, "cells": 100},
    "sizes": ["XXS", "TINY", *({"name": f"d{d}", "d": d, "layers": 2, "heads": 2} for d in (8, 24, 32, 48))],
    "seeds": [7, 8], "train": {"cells_seen": 3200, "batch": 32, "evaluations": 3}, "fit": {"resamples": 100},
}  # fmt: skip


def panels(study) -> None:
    """Build, measure and pack the panels of a simulated study, and write what is to be trained on them: plan.json."""
    from lib.train import baselines

    regimes = {}
    for name, regime in study.regimes.items():
        adata = panel.read(panel.build(study, name))
        baselines.record(study, name, adata)
        packed, train = pack(study, name), study.training(name)
        print(f"{io.shown(packed)}: {packed.stat().st_size / 1e6:.1f} MB", flush=True)
        part = {"train": dict(train), "updates": train.updates, "branches": train.branches}
        part["panel"] = panel.arrays(adata).digest
        regimes[name] = part | {"genes": regime.genes, "masked": study.masking.genes(regime.genes)}
    plan = {"study": study.name, "sizes": [asdict(size) for size in study.sizes], "regimes": regimes}
    plan |= {"runs": in_order(study), "resamples": study.fit.resamples}
    io.write_json(study.data / "plan.json", plan)


def pack(study, regime: str) -> Path:
    """Write a regime's panel as panel.npz, small, for a machine that only trains: `load` computes x from the counts."""
    folder = study.folder(regime)
    data, path = panel.load(folder), folder / "panel.npz"
    parts = {"counts": data.counts.astype(np.min_scalar_type(int(data.counts.max()))), "library": data.library}
    parts |= {"donor": data.donor, "library_size": np.array(study.training(regime).library_size)}
    parts |= {f"split-{name}": rows for name, rows in {"train": data.train, **data.held}.items()}
    parts |= {f"masks-{name}": masks for name, masks in data.masks.items()}
    with io.atomic(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **parts)
    return path


def in_order(study) -> list[list]:
    """(regime, size, seed) of all runs: every size in all regimes with one seed, then the others; the largest last."""
    largest = study.sizes[-1].name
    runs = [
        (size.name == largest, number, rank, regime, [name, size.name, seed])
        for regime, name in enumerate(study.regimes)
        for rank, size in enumerate(study.sizes)
        for number, seed in enumerate(study.seeds_for(size.name))
    ]
    return [run for *_, run in sorted(runs)]


def read_plan(study: str) -> dict:
    """What `panels` wrote."""
    path = io.ROOT / "data" / study / "plan.json"
    if not path.is_file():
        raise io.InputError(f"there is no {io.shown(path)}; make it with `make gpu-panels`, or copy data/{study} here.")
    return io.read_json(path) | {"folder": path.parent}


def run_folder(plan: dict, regime: str, size: str, seed: int) -> Path:
    """Where a notebook has it, too."""
    return plan["folder"] / regime / "runs" / size / f"seed-{seed}"


def shape_of(plan: dict, size: str) -> Size:
    """The size of that name."""
    return next(Size(**shape) for shape in plan["sizes"] if shape["name"] == size)


def finished(plan: dict, regime: str, size: str, seed: int) -> dict | None:
    """The record of a run that has ended, on the plan's panel and by its recipe; None where there is none."""
    path = run_folder(plan, regime, size, seed) / "result.json"
    record, part = io.read_json(path) if path.is_file() else {}, plan["regimes"][regime]
    due = {"panel": part["panel"], "recipe": recipe(shape_of(plan, size), settings(part))}
    return record if due.items() <= record.items() else None


def train(plan: dict, regime: str, size: str, seed: int) -> None:
    """Train one run, in a process of its own."""
    data, folder = load(plan["folder"] / regime), run_folder(plan, regime, size, seed)
    if data.digest != plan["regimes"][regime]["panel"]:
        raise io.InputError(f"panel.npz of {regime} is not the one of plan.json; copy both again.")
    loop.train(data, shape_of(plan, size), seed, settings(plan["regimes"][regime]), folder)


def train_all(plan: dict, folder: Path, until: float) -> None:
    """Train what is not finished, in the plan's order, small sizes beside each other and one large one.

    At `until` all save and stop.
    """
    waiting = [run for run in plan["runs"] if not finished(plan, *run)]
    genes, running = {name: part["genes"] for name, part in plan["regimes"].items()}, {}
    program = [sys.executable, __file__, "--study", plan["study"], "train"]

    def small(run):
        return shape_of(plan, run[1]).parameters(genes[run[0]]) < SMALL

    try:
        while (waiting or running) and time.monotonic() < until:
            for process in [process for process in running if process.poll() is not None]:
                regime, size, seed = running.pop(process)
                say(f"{regime}, {size}, seed {seed}: {'failed' if process.returncode else 'finished'}")
                collect(plan, folder)
            beside = [small(run) for run in running.values()]
            room = {True: sum(beside) < TOGETHER, False: all(beside)}
            if run := next((run for run in waiting if room[small(run)]), None):
                waiting.remove(run)
                running[subprocess.Popen([*program, *map(str, run)])] = run
            else:
                time.sleep(0.1)
    finally:
        stop(running)


def stop(running) -> None:
    """Ask processes to save and stop, and kill those that are still at it when half of GRACE is over."""
    for process in running:
        process.terminate()
    latest = time.monotonic() + GRACE / 2
    for process in running:
        try:
            process.wait(max(0, latest - time.monotonic()))
        except subprocess.TimeoutExpired:  # in an evaluation; its last checkpoint counts
            process.kill()
            process.wait()


def collect(plan: dict, folder: Path) -> list[dict]:
    """Write runs.csv: every run that has finished, with the baselines of its regime's validation cells."""
    rows = []
    for regime, size, seed in plan["runs"]:
        if record := finished(plan, regime, size, seed):
            known = io.read_json(plan["folder"] / regime / "baselines.json")["validation"]
            record = {name: value for name, value in record.items() if name != "versions"}
            rows.append({"study": plan["study"], "regime": regime, **record, **known})
    if rows:
        write_rows(folder / "runs.csv", rows)
    return rows


def table(plan: dict, folder: Path) -> None:
    """Write runs.csv and, where all of the project is installed, laws.json, origin.json and loss.svg."""
    if not collect(plan, folder):
        return say("no run has finished, so there is no law yet; the same command goes on")
    try:
        fit(plan, folder)
    except ImportError as error:
        command = f"python benchmarks/gpu.py --study {plan['study']} table {io.shown(folder)}"
        say(f"laws.json and loss.svg were not made ({error}); make them where the project is installed: {command}")


def fit(plan, folder):
    """Write the laws of runs.csv, their origin and their figure."""
    import pandas as pd

    from lib import figures
    from lib.fit.summary import curves, fit_laws

    runs = pd.read_csv(folder / "runs.csv")
    laws = fit_laws(runs, plan["resamples"], seed=0, errors="cells")
    io.write_json(folder / "laws.json", laws)
    origin = {"study": plan["study"], "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"}
    seconds, devices = round(float(runs["seconds"].sum()), 1), sorted(runs["device"].unique())
    origin |= {"commit": io.code_version(), "devices": devices, "seconds": seconds}
    io.write_json(folder / "origin.json", origin)
    known = {regime: io.read_json(plan["folder"] / regime / "baselines.json") for regime in runs["regime"].unique()}
    figures.save(figures.loss_against_parameters(runs, curves(laws), known, laws), folder, "loss")


def run(plan: dict, folder: Path, budget: float, **words) -> None:
    """The four pieces in their order, within `budget` seconds; what was finished before is not done again."""
    started, device = time.monotonic(), machine.device()
    until = started + max(budget - GRACE, budget / 2)
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *event: sys.exit(143))
    try:
        correctness(plan, folder / "correctness.json", device)
        rates(plan, folder / "rates.csv", device, min(until, time.monotonic() + budget * RATES_SHARE), **words)
        train_all(plan, folder, until)
        rates(plan, folder / "rates.csv", device, until, **words)
    finally:
        table(plan, folder)
    say(f"{time.monotonic() - started:.0f} s; results are in {io.shown(folder)}/")


def rehearse(budget: float = 100) -> None:
    """All of it in small, under data/gpu-rehearsal/."""
    from lib.study import parse_study

    study = parse_study(REHEARSAL, "gpu-rehearsal")
    panels(study)
    run(read_plan(study.name), study.data / "gpu-results", budget, seconds=0.2, n=512)


def main(words=None) -> None:
    """`panels`, `run`, `table FOLDER` and `rehearsal`, see above; `train REGIME SIZE SEED` is what `run` starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("panels", "run", "table", "rehearsal", "train"))
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--study", default="tuned", help="a simulated study in params/")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of wall time of `run`")
    given = parser.parse_args(words)
    if given.command == "rehearsal":
        rehearse()
    elif given.command == "panels":
        from lib.study import load_study

        panels(load_study(given.study))
    elif given.command == "table":
        table(read_plan(given.study), Path(given.arguments[0]))
    elif given.command == "train":
        io.stop_after(os.getppid())  # `run`, when it is killed outright, stops no child
        *run_of, seed = given.arguments
        train(read_plan(given.study), *run_of, int(seed))
    else:
        if machine.device().type == "cpu":
            say("torch sees no GPU here: this measures, and trains on, the CPU.")
        device = re.sub(r"[^a-z0-9]+", "-", name_of(machine.device()).lower()).strip("-")
        run(read_plan(given.study), io.ROOT / "data" / "results" / f"gpu-{device}", given.budget)


if __name__ == "__main__":
    try:
        main()
    except io.InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
