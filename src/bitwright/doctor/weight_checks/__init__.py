"""One rule per file over the weights themselves: ``check(model, statistics)`` yields findings; docstrings are documentation."""
