"""One rule per file over the header of a GGUF file: ``check(header)`` yields findings; docstrings are documentation."""
