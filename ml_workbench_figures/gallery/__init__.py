"""The gallery: one file a figure. Importing the package registers them all, in the order of docs/figures.md."""

from ml_workbench_figures.gallery import learning_curve as learning_curve  # isort: skip
from ml_workbench_figures.gallery import equity as equity  # isort: skip
from ml_workbench_figures.gallery import drawdown as drawdown  # isort: skip
from ml_workbench_figures.gallery import predictions_and_interval as predictions_and_interval  # isort: skip
from ml_workbench_figures.gallery import calibration as calibration  # isort: skip
from ml_workbench_figures.gallery import coverage_by_hour as coverage_by_hour  # isort: skip
from ml_workbench_figures.gallery import confusion as confusion  # isort: skip
from ml_workbench_figures.gallery import monthly_returns as monthly_returns  # isort: skip
from ml_workbench_figures.gallery import quantile_returns as quantile_returns  # isort: skip
from ml_workbench_figures.gallery import ic_decay as ic_decay  # isort: skip
from ml_workbench_figures.gallery import importance as importance  # isort: skip
from ml_workbench_figures.gallery import column_importance as column_importance  # isort: skip
from ml_workbench_figures.gallery import trials as trials  # isort: skip
from ml_workbench_figures.gallery import parallel_coordinates as parallel_coordinates  # isort: skip
from ml_workbench_figures.gallery import q_table as q_table  # isort: skip
from ml_workbench_figures.gallery import agent_reward as agent_reward  # isort: skip
from ml_workbench_figures.gallery import live_outcomes as live_outcomes  # isort: skip
