"""What a study file may name: folders that stay in the study's own, and files in the project."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.[0-9])*"
"""No slash and no `..`: a name stays in its folder. No .csv or .json: it is not that of a file. No dash first: no
command takes it for an option."""
LONGEST = 60
"""Regime and size together name a file."""
TAKEN = {"study": ("gallery", "results"), "regime": ("census", "notebooks")}
"""Folders beside those of studies, and in a study's beside those of its regimes."""


def check(kind, name):
    """The name of a study, regime or size, if a folder may be called that.

    Raises
    ------
    ValueError
        Saying what the name may hold.
    """
    if not isinstance(name, str) or not re.fullmatch(PATTERN, name):
        raise ValueError(
            f"{name!r} cannot name a {kind}, which is a folder; use letters, digits, - and _, a letter or digit first, "
            "and a dot only before a digit"
        )
    if len(name) > LONGEST:
        raise ValueError(f"the name of {kind} {name[:20]}... has {len(name)} characters; use at most {LONGEST}")
    if name.lower() in TAKEN.get(kind, ()):
        raise ValueError(f"{name} cannot name a {kind}: that folder has another use; choose another name")
    return name


def folder(kind):
    """The type of a folder's name, for a model of pydantic."""
    return Annotated[str, BeforeValidator(lambda name: check(kind, name))]


def twice(names):
    """Names given more than once, as text. Some disks do not tell two names apart that differ in case alone."""
    words = [str(name) for name in names]
    lower = [word.lower() for word in words]
    return sorted({word for word, low in zip(words, lower, strict=True) if lower.count(low) > 1})


def inside(path):
    """The path of a file in the project, relative to it; a file elsewhere has to be named by its whole path.

    Raises
    ------
    ValueError
        A relative path leaves the project.
    """
    if not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] == os.pardir:
        raise ValueError(f"{path!r} leads out of the project folder; copy the file into it, or give its whole path")
    return path


InProject = Annotated[str, AfterValidator(inside)]
"""The type of such a path, for a model of pydantic."""
