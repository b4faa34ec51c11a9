"""The one error a user is meant to read."""


class InputError(ValueError):
    """Bad input, said in one sentence: what is wrong, where, and what to do."""

    def _render_traceback_(self):
        """In a notebook the sentence replaces the traceback, which would only bury it."""
        return [f"{type(self).__name__}: {self}"]


class CensusUnavailable(InputError):
    """The Census asked for cannot be opened or read; nothing is put in its place."""
