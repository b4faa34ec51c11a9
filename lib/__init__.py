"""The library behind the notebooks. It imports nothing by itself, so that each notebook pays only for what it uses."""
