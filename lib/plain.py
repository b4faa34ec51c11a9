"""YAML that is plain data: it can neither make objects, nor run, nor fill the memory."""

import math
import os
from pathlib import Path

import yaml

from lib.io import InputError

LARGEST = 100_000
"""Values in a file. The studies shipped have less than two hundred."""


def read(path):
    """The content of a YAML file of plain data.

    Raises
    ------
    InputError
        It is no YAML, asks for more than data (a tag such as !!python), nests without end, or repeats itself by
        anchors until a small file is a large content.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if _nodes(yaml.compose(text, yaml.SafeLoader), {}) > LARGEST:
            raise ValueError(f"its anchors repeat it to more than {LARGEST:,} values")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: no text, no date, too long a number
        place = os.path.join(Path(path).parent.name, Path(path).name)
        raise InputError(f"{place} is not valid YAML: {' '.join(str(error).split())}.") from None


def _nodes(node, known):
    """Values in a tree of YAML nodes, one that is repeated by its anchor counted each time."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted: a node inside itself has no end
        inner = getattr(node, "value", ())
        parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
        known[id(node)] = 1 + sum(_nodes(part, known) for part in parts if isinstance(part, yaml.Node))
    return known[id(node)]
