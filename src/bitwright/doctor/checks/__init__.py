"""One rule per file: ``check(model)`` yields findings, and the module's docstring is the rule's documentation page."""
