"""How a notebook begins: its study read, and the colours of its figures fixed."""

from lib import figures
from lib.fit import runs
from lib.io import Progress  # noqa: F401  where notebooks look for it until they are moved
from lib.study import load_study


def settings(study):
    """The study of that name; colours and markers of all its figures are fixed from here on."""
    chosen = load_study(study)
    sizes = [size.name for size in chosen.sizes]
    if chosen.runs:
        sizes = runs.given(chosen).sort_values("parameters")["size"].unique()
    figures.use(chosen.regimes, sizes)
    return chosen
