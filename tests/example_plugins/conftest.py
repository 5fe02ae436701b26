"""The examples' own tests run where the examples are installed (`test_example_plugins.py`), not here."""

collect_ignore = ["background", "lasso"]
