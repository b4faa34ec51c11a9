"""What a killed run may leave at work on this machine: found by a mark in its environment, and stopped."""

import psutil

MARK = "SCALING_RUN"
"""Environment variable of a run and of all that it starts, kernels in sessions of their own included."""
GRACE_SECONDS = 10
"""Training saves a checkpoint when it is asked to stop, see `lib.train`."""


def mark(study):
    """What a run adds to the environment of the processes that it starts."""
    return {MARK: str(study.data)}


def stop(study):
    """Stop every process that an earlier run of this study has left; returns how many there were.

    To be called by whoever holds the study's lock: no other run of it is then going on.
    """
    myself = psutil.Process()
    family = {myself.pid, *(parent.pid for parent in myself.parents())}
    left = [process for process in psutil.process_iter() if process.pid not in family and _marked(process, study)]
    for process in left:
        _send(process.terminate)
    for process in psutil.wait_procs(left, GRACE_SECONDS)[1]:
        _send(process.kill)
    psutil.wait_procs(left, GRACE_SECONDS)
    return len(left)


def _marked(process, study):
    try:
        return process.environ().get(MARK) == str(study.data)
    except (psutil.Error, OSError):  # somebody else's, or gone by now
        return False


def _send(signal):
    try:
        signal()
    except psutil.NoSuchProcess:
        return
