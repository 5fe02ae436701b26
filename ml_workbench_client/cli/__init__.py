"""Command line `ml-workbench`: the service in a terminal and in scripts. The tour: docs/command_line.md.

One file a group of commands. What works with a running service is here and knows the client alone; what works without
one (`serve`, `doctor`, `data check`, `backup`, `restore`) is brought by the service's package through the entry point
group `ml_workbench.commands` (`plugins.py`). Law: whoever asks for help loads typer and `common_lib`, nothing else.
"""
