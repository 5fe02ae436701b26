"""Conformance suites: what every extension must keep, shipped so that the author of a plug-in runs them with pytest.

Each suite is a base class; a subclass whose name begins with `Test` says what is tested, and pytest collects the rest.
The service imports nothing from here, since pytest is not among its dependencies.
"""

from pkgutil import iter_modules

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))
