from ml_workbench_lasso import Lasso

from ml_workbench_service.testing.families import FamilyConformance


class TestLasso(FamilyConformance):
    family = Lasso
    draws_numbers = False  # its seed makes no difference
