"""On-disk state that version 0.1.0 left, with what that version read in it: opened by `test_previous_version.py`."""
