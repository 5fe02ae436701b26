"""What schemathesis loads beside its settings: work that a case has begun is ended again, so that none piles up."""

from typing import Any

import httpx
import schemathesis
from schemathesis.specs.openapi import checks

checks.AUTH_REJECTION_STATUSES = frozenset({401, 403, 429})
"""After some wrong keys an address waits: a 429 keeps it out as a 401 does, and the check, which sends one each time,
knows two statuses alone."""


@schemathesis.hook
def after_call(context: Any, case: schemathesis.Case, response: Any) -> None:
    """Cancels the job of a 202, stops the agent of a 201."""
    ends = {202: "cancel", 201: "stop"}
    if case.method.upper() != "POST" or response.status_code not in ends:
        return
    for place in response.headers.get("location", []):
        base = response.request.url.partition("/api/")[0]
        headers = {name: value for name, value in response.request.headers.items() if name.lower() == "x-api-key"}
        httpx.post(f"{base}{place}/{ends[response.status_code]}", headers=headers, timeout=60.0)
