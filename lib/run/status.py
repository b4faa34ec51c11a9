"""What `make status` shows: one line, a table of the steps of a study, and why some have failed."""

import time

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from lib import io
from lib.run import progress
from lib.run.steps import NAMES, look

COLOURS = {"done": "green", "running": "cyan", "failed": "bold red", "interrupted": "yellow", "out of date": "yellow"}
WIDTH = 100
JOBS = 2
"""Notebooks at the same time, for the time left where no run has said."""


def show(study, console=None):
    """Print how a study stands. Returns 1 if something has failed, else 0."""
    console = console or Console(highlight=False, soft_wrap=True)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    run = progress.last(study)
    steps = look(study, run)
    console.print(headline(study, run, steps), soft_wrap=True)
    console.print(table(steps), soft_wrap=False)
    for step in steps:
        if step.failure:
            console.print(account(step), soft_wrap=True)
    return int(any(step.state == "failed" for step in steps))


def left(study, run, steps):
    """Seconds until the last notebook ends: of the run that goes on, or of one that would be started now."""
    if run and not run.stopped and run.started:
        return run.left()
    batch, pace = progress.Batch(study, run.cores if run else JOBS), run.start_pace() if run else 1.0
    for number, step in enumerate(step for step in steps if step.state != "done"):
        fixed, training = batch.expected(step.rule, **step.place)
        todo = 1 - step.updates[0] / step.updates[1] if step.updates[1] and step.state != "out of date" else 1
        batch.jobs[number] = progress.Job("", step.rule, step.place, [], fixed * pace, training * todo)
    return batch.left()


def headline(study, run, steps):
    """One line: whether it is running, how many notebooks are done, and the time that the others take."""
    count = {state: sum(step.state == state for step in steps) for state in {step.state for step in steps}}
    done = f"{count.pop('done', 0)} of {len(steps)} notebooks done"
    others = "".join(f", {number} {state}" for state, number in sorted(count.items()) if state != "waiting")
    if not count:
        return f"{study.name}: {done}. Figures: {io.shown(study.figures)}/"
    time_left = progress.spoken(left(study, run, steps))
    if run and not run.stopped:
        since = progress.spoken(time.time() - run.start)
        return f"{study.name}: running for {since}, {run.cores} at a time: {done}{others}; about {time_left} left"
    if count.get("running"):  # by Snakemake itself, or by hand
        return f"{study.name}: running: {done}{others}; about {time_left} left"
    return f"{study.name}: not running: {done}{others}; the rest takes about {time_left}: make run STUDY={study.name}"


def table(steps):
    """One row for each notebook."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("notebook", "regime", "size", "state", "seeds", "updates", "time"):
        shown.add_column(name, justify="right" if name in ("seeds", "updates", "time") else "left", no_wrap=True)
    for step in steps:
        seeds, updates = (f"{done:,} of {total:,}" if total else "" for done, total in (step.seeds, step.updates))
        seconds = "" if step.seconds is None else progress.spoken(step.seconds)
        seconds = f"about {seconds} left" if seconds and step.state == "running" else seconds
        place = step.place.get("regime", ""), step.place.get("size", "")
        state = Text(step.state, style=COLOURS.get(step.state, ""))
        shown.add_row(NAMES[step.rule], *place, state, seeds, updates, seconds)
    return shown


def account(step):
    """Where and why a notebook failed: a link to it, the failing cell, its first line and its error."""
    why = step.failure
    said = Text(f"\n{' '.join([NAMES[step.rule], *step.place.values()])} failed")
    said.append(f" in cell [{why.cell}] of " if why.cell else " in " if why.line else ": see ")
    said.append(io.shown(why.place), Style(link=why.place.as_uri()))
    if why.line:
        said.append(f"\n    {why.line}")
    return said.append(f"\n    {why.error}", Style(color="red"))
