from ml_workbench_background import Background

from ml_workbench_service.testing.accelerators import AcceleratorConformance


class TestBackground(AcceleratorConformance):
    accelerator = Background
