"""Scaling laws fitted to runs."""

__all__ = ["fit_laws"]


def __getattr__(name):
    """`fit_laws` when it is asked for: figures need the table of runs alone, and scipy takes half a second to load."""
    if name == "fit_laws":
        from lib.fit.summary import fit_laws

        return fit_laws
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
