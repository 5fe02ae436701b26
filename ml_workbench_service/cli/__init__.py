"""Commands of the command line that need no running service: `serve`, `doctor`, `data check`, `backup`, `restore`,
`keys`, `audit verify`.

`ml-workbench` (of `ml_workbench_client`) finds `commands.app` by the entry point group `ml_workbench.commands`. Law:
importing that loads typer and `common_lib`; what a command needs is loaded when it runs.
"""
