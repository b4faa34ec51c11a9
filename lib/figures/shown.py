"""What a notebook cell shows and a manuscript takes: a figure, a table, or the sentence that says why there is none."""

import base64 as base
from dataclasses import dataclass
from pathlib import Path

from lib.io import atomic

KINDS = ("pdf", "svg", "png", "txt", "csv", "tex")
"""Endings of all files that `save` may write for one name."""


class Shown:
    """Shows its content in a notebook, and under it its caption.

    Subclasses give `content`, the pair of data and metadata of a notebook output, and `write`.
    """

    caption = ""

    def _ipython_display_(self):
        from IPython.display import Markdown, display

        data, metadata = self.content()
        display(data, metadata=metadata, raw=True)
        if self.caption:
            display(Markdown(f"<small>{self.caption}</small>"), metadata={"caption": True})


@dataclass
class Note(Shown):
    """Stands in place of a figure or table that a study has no runs for, as one line; nothing is written for it."""

    sentence: str

    def content(self):
        return {"text/markdown": self.sentence, "text/plain": self.sentence}, {}

    def write(self, folder, name):
        for kind in KINDS:  # of an earlier run that had it
            (Path(folder) / f"{name}.{kind}").unlink(missing_ok=True)


def save(what, folder, name, *formats):
    """Write a figure or a table for a manuscript, `folder/name.<kind>`; the same content gives the same bytes.

    A figure may be given its formats: `save(figure, folder, name, ("svg", "png"))`.

    Returns
    -------
    What was given, so that a notebook cell that ends in `save` shows it.
    """
    what.write(folder, name, *formats)
    return what


def write_caption(caption, folder, name):
    """The caption as plain text."""
    with atomic(Path(folder) / f"{name}.txt") as partial:
        partial.write_text(caption.replace("**", "") + "\n")


def base64(content):
    return base.b64encode(content).decode()


def counted(number, thing):
    """1 run, 12 runs, 1,200 runs."""
    return f"{number:,} {thing}{'s' * (number != 1)}"
