"""`python -m ml_workbench_client`: the command line, as the script `ml-workbench` is."""

from ml_workbench_client.cli.root import main

if __name__ == "__main__":
    main()
