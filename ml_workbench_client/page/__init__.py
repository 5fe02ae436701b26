"""Web page of ML Workbench: a process of its own that is a client of the service like any other (docs/page.md).

    python -m ml_workbench_client.page        the service starts it so, with PAGE=true

What it shows comes through `AsyncWorkbench` alone, so that whatever the page can do, a script can. It keeps nothing on
disk, and imports no library of frames, learning or plotting: figures are drawn in the browser from dictionaries.
"""
