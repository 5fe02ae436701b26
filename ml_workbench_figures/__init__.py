"""Figures: what a version, a search or an agent achieved, as Plotly figures in plain dictionaries.

Pure functions of cards and columns: nothing here reads a file, and importing it loads no library beyond the standard
one, so worker, service, client and page may all draw. Every figure states its unit, its baseline where there is one,
and the verdict with its reason; one whose data are missing says so in a sentence instead of failing.

    draw("equity", FigureInputs(card=card, rows=rows), theme="dark")     a dictionary that Plotly reads
    figures_for(card)                                                    which figures say something of that version
"""

from ml_workbench_figures import gallery as gallery  # registers them
from ml_workbench_figures.figure import Figure, Subject, Suitability, draw, figures_for
from ml_workbench_figures.inputs import Columns, FigureInputs

__all__ = ["Columns", "Figure", "FigureInputs", "Subject", "Suitability", "draw", "figures_for"]
