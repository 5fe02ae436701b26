"""Request files: JSON or YAML, from a path or from stdin (`-`). Dates stay texts; `1e-3` is a number in YAML too."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from common_lib.command_line import UsageMistake

DATE_TAG, FLOAT_TAG = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
_NUMBER = re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?([eE][-+]?\d+)$|[-+]?(\d[\d_]*)?\.\d+([eE][-+]?\d+)?$|[-+]?\d[\d_]*\.$")
"""Floats as YAML 1.2 and JSON have them; YAML 1.1 reads `1e-3` as text."""


def read_text(path: str) -> str:
    """The text of a file, or of stdin."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageMistake(f"{path} is no UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise UsageMistake(f"{path} cannot be read ({error.strerror or error}); check the path") from error


def read_request(path: str) -> dict[str, Any]:
    """A request; `-` reads it from stdin, in either form.

    Raises:
        UsageMistake: it is neither, or no object; says where.
    """
    found = _parsed(read_text(path), path)
    if not isinstance(found, dict):
        raise UsageMistake(f"{path} holds no request; it takes an object with the request's keys")
    return found


def _parsed(text: str, path: str) -> Any:
    if Path(path).suffix.lower() in (".yaml", ".yml"):
        return _yaml(text, path)
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _each_once(pairs, path))
    except json.JSONDecodeError as error:
        if path == "-" and not text.lstrip().startswith(("{", "[")):
            return _yaml(text, path)
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UsageMistake(f"{path} is no JSON ({place}); correct it, or name a YAML file .yaml") from error


def _each_once(pairs: list[tuple[str, Any]], path: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = sorted({name for name, _ in pairs if [each for each, _ in pairs].count(name) > 1})
        raise UsageMistake(f"{path} has {', '.join(twice)} twice; keep one")
    return found


def _each_key_once(node: Any, path: str) -> None:
    """YAML's reader would keep the last of two."""
    for child in node.value if node is not None and isinstance(node.value, list) else ():
        for each in child if isinstance(child, tuple) else (child,):
            _each_key_once(each, path)
    if node is not None and node.id == "mapping":
        _each_once([(str(key.value), None) for key, _ in node.value], path)


def _yaml(text: str, path: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise UsageMistake(f"{path} is YAML, for which PyYAML is needed: pip install pyyaml, or write JSON") from error
    loader = yaml.SafeLoader(text)
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != DATE_TAG]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+0123456789.":
        loader.yaml_implicit_resolvers.setdefault(first, []).append((FLOAT_TAG, _NUMBER))
    try:
        node = loader.get_single_node()
        _each_key_once(node, path)
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', '')})" if mark else ""
        raise UsageMistake(f"{path} is no YAML{place}; correct it") from error
    finally:
        loader.dispose()
