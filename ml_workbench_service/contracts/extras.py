"""Extras of an installation: which optional package belongs to which, and the one error for a package that is missing.

A replica that answers predictions installs none of them (docs/decisions/0072). Code imports what it needs where it
needs it, as if it were always there; whoever answers for the work (a route, a job, the table process, a command) turns
the interpreter's ModuleNotFoundError into the platform's error by `missing_extra`, and what can be known before any
work begins is asked by `require`.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec

from common_lib.exceptions import ExtraMissingError

DISTRIBUTION = "ml-workbench-service"
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "data": ("polars", "pyarrow", "talib", "currency_converter", "scipy"),
    "page": ("nicegui", "plotly"),
    "tracking": ("mlflow", "onnx"),
    "training": (
        "torch", "onnxscript", "sklearn", "skl2onnx", "lightgbm", "numba", "gymnasium", "stable_baselines3", "optuna",
    ),
    "ray": ("ray",),
}  # fmt: skip
"""Extra → modules that it alone brings; `training` brings those of `data` and `tracking` too, `all` brings all but
ray's."""


def missing_extra(error: BaseException) -> ExtraMissingError | None:
    """What to say of an error that comes of a package that is not installed; None for every other error.

    Args:
        error: it, or what was raised from it or while it was handled.
    """
    for each in _causes(error):
        if isinstance(each, ExtraMissingError):
            return each
        if isinstance(each, ModuleNotFoundError) and (extra := _extra_of(each.name or "")) is not None:
            return _told(each.name or "", extra)
    return None


def is_installed(extra: str) -> bool:
    """Whether every package of the extra can be imported here; imports none of them."""
    return _first_missing(extra) is None


def require(extra: str) -> None:
    """Raises ExtraMissingError where a package of the extra is not installed."""
    missing = _first_missing(extra)
    if missing is not None:
        raise _told(missing, extra)


@cache
def _first_missing(extra: str) -> str | None:
    return next((module for module in EXTRAS[extra] if find_spec(module) is None), None)


def _extra_of(module: str) -> str | None:
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def _told(module: str, extra: str) -> ExtraMissingError:
    top = module.partition(".")[0]
    return ExtraMissingError(
        f"this installation has no {top}, which comes with the extra `{extra}`: "
        f"pip install {DISTRIBUTION}[{extra}], or ask an installation that has it",
        details={"package": top, "extra": extra},
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: BaseException | None = error
    while waiting is not None and id(waiting) not in seen:
        seen.add(id(waiting))
        yield waiting
        waiting = waiting.__cause__ or waiting.__context__
