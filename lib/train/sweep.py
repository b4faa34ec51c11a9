"""All runs of a study in one process, without notebooks, from panels as files: what a GPU machine is given to do."""

import csv
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed

from lib import io
from lib.data import panel
from lib.train import scale

SPEED = "speed.csv"
_loaded = {}
"""The panel that this process has read last, by its folder."""
_stopped = []
"""Filled in a process that was told to stop, which then trains nothing more."""


def arrays(study, regime):
    """The arrays of a regime's panel, as 01_data or `pack` wrote them."""
    return panel.load(study.folder(regime))


def pack(study):
    """Make what is missing of a study's panels, and write each as a compact file; returns their paths."""
    for regime in study.regimes:
        panel.build(study, regime)
    return [panel.pack(study, regime) for regime in study.regimes]


def plan(study):
    """Every run of a study as (regime, size, seed): regime by regime, and in each the longest first."""
    return [
        (regime, size.name, seed)
        for regime in study.regimes
        for size in sorted(study.sizes, key=lambda size: -size.forward_flops(study.regimes[regime].genes))
        for seed in study.seeds_for(size.name)
    ]


def sweep(study, at_once=1, tell=print):
    """Train what is not finished of a study, and write how fast it went to data/<study>/speed.csv.

    Parameters
    ----------
    at_once : int
        Small runs that share the device, each in a process of its own; a run that fills it has it for itself.
    tell : callable
        Given a sentence when a run is done.

    Returns
    -------
    list of dict
        The records, as of `lib.train.train`.

    Raises
    ------
    InputError
        Also for a run that was interrupted, when all others are done.
    """
    from lib.train import loop, machine

    runs, rows, records = plan(study), [], []
    for regime in study.regimes:
        _panel(study, regime)  # what is wrong with one is said before any run, and a missing one is made but once
    kind = machine.device().type
    shared = [run for run in runs if at_once > 1 and scale.is_small(study, *run[:2], kind)]
    alone = (_one(study, *run) for run in runs if run not in shared)
    for (regime, *_), record in itertools.chain(alone, _together(study, shared, at_once)):
        records.append(record)
        if record["status"] == "ok":
            rows.append({"regime": regime, **scale.speed(record, study.size(record["size"]))})
            _write(study.data / SPEED, rows)
        tell(f"[{len(records)} of {len(runs)}] {regime}, {_said(record, rows)}")
    return loop.finished(records)


def _one(study, regime, size, seed):
    """Train one run; gives it back with its record."""
    from lib.train import loop

    if _stopped:
        raise KeyboardInterrupt
    data, settings = _panel(study, regime), study.training(regime)
    folder = study.run_folder(regime, size, seed)
    try:
        return (regime, size, seed), loop.train(data, study.size(size), seed, settings, folder)
    except KeyboardInterrupt:
        _stopped.append(True)
        raise


def _panel(study, regime):
    """A regime's arrays, kept until another's are asked for."""
    place = study.folder(regime)
    if place not in _loaded:
        _loaded.clear()
        _loaded[place] = arrays(study, regime)
    return _loaded[place]


def _together(study, runs, at_once):
    """Train runs beside each other, each as `_one` does. When this is stopped they are, and save before they end."""
    if not runs:
        return
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(_one, study, *run) for run in runs]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()  # SIGTERM, which training takes as the stop button
            raise


def _said(record, rows):
    """One run in a line."""
    said = f"{record['size']}, seed {record['seed']}: {record['status']}"
    if record["status"] != "ok":
        return f"{said}, {record['reason']}"
    loss = "validation_mse" if record["objective"] == "mse" else "validation_nll"
    speed = f"{record['cells_per_second']:,.0f} cells/s, {rows[-1]['utilisation']:.1%} of {rows[-1]['peak_from']}"
    return f"{said}, {loss} {record[loss]:.5g}, {speed}"


def _write(path, rows):
    with io.atomic(path) as partial, open(partial, "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
