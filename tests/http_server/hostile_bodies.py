"""Hostile bodies: JSON of a size that is as costly as it can be to read, to check or to complain about."""

import json
from collections.abc import Iterator

SERIES = '"symbol":"EUR/USD","timeframe":"1h",'
COLUMNS = dict.fromkeys(("sma_20", "rsi_14", "macd"), [1.25] * 60)
QUESTION = json.dumps({"symbol": "EUR/USD", "timeframe": "1h", "features": COLUMNS})


def tensor(datatype: str, data: str) -> str:
    """A request of the inference protocol with one."""
    return f'{{"inputs":[{{"name":"macd","datatype":"{datatype}","shape":[1,9],"data":{data}}}]}}'


def filled(unit: str, num_bytes: int, ends: str = "[]") -> str:
    """A list, or an object, of so many of one thing."""
    return ends[0] + ",".join([unit] * max(num_bytes // (len(unit) + 1), 1)) + ends[1]


def wide(num_bytes: int, value: str = "1") -> str:
    """An object of many different keys."""
    each = len(value) + 11
    return "{" + ",".join(f'"{number:07}":{value}' for number in range(max(num_bytes // each, 1))) + "}"


def bodies(num_bytes: int) -> Iterator[tuple[str, bytes]]:
    """By what is wrong with them; each has at most so many bytes."""
    room = num_bytes - 400
    found = {
        "lists in lists": "[" * room,
        "lists in lists, closed": "[" * (room // 2) + "]" * (room // 2),
        "objects in objects": '{"a":' * (room // 5),
        "many keys": wide(room),
        "one key again and again": filled('"a":1', room, "{}"),
        "a known key again and again": filled('"symbol":1', room, "{}"),
        "a long list": filled("1", room),
        "many texts": filled('""', room),
        "a long text": '"' + "x" * room + '"',
        "a long key": '{"' + "x" * room + '":1}',
        "a long number": "1" * room,
        "many long numbers": filled("9" * 4000, room),
        "numbers beyond all": filled("1e999", room),
        "numbers below all": filled("5e-324", room),
        "half characters": filled('"\\ud800"', room),
        "escapes": '"' + "\\u0041" * (room // 6) + '"',
        "many features": f'{{{SERIES}"features":{wide(room, "[1]")}}}',
        "wrong values": f'{{{SERIES}"features":{{"sma_20":{filled(chr(34) * 2, room)}}}}}',
        "too large values": f'{{{SERIES}"features":{{"sma_20":{filled("1e16", room)}}}}}',
        "right values": f'{{{SERIES}"features":{{"sma_20":{filled("1.5", room)}}}}}',
        "objects for values": f'{{{SERIES}"features":{{"sma_20":{wide(room)}}}}}',
        "items that are none": f'{{"items":{filled("{}", room)}}}',
        "a thousand bad items": f'{{"items":[{",".join([wide(room // 1000 - 20)] * 1000)}]}}',
        "items of many values": f'{{"items":{filled(QUESTION, min(room, 900 * len(QUESTION)))}}}',
        "wrong symbols": f'{{"name":"x","symbols":{filled("1", room)}}}',
        "many hyperparameters": f'{{"name":"x","hyperparameters":{wide(room)}}}',
        "a tensor": tensor("FP64", filled("1", room)),
        "a nested tensor": tensor("FP64", filled("[1]", room)),
        "a tensor of texts": tensor("BYTES", filled("[]", room)),
        "many tensors": f'{{"inputs":{filled(json.dumps({"name": "macd"}), room)}}}',
    }  # fmt: skip
    yield from ((name, text.encode()[:num_bytes]) for name, text in found.items())
    yield "no characters", b'"' + b"\xff" * room + b'"'
