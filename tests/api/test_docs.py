"""`/docs` and `/redoc` work without the internet: everything they load comes from this server."""

import re
from html.parser import HTMLParser

import httpx
import pytest

from tests.api.failures import assert_failure


class References(HTMLParser):
    """Everything that a page would load: `src` and `href`, and the address of the schema in its script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)
        self.found += re.findall(r"""url:\s*['"]([^'"]+)['"]""", page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "spec-url") and value]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_every_asset_of_a_page_comes_from_this_server(api: httpx.Client, page: str) -> None:
    answer = api.get(page)
    assert answer.headers["Content-Type"].startswith("text/html")
    references = References(answer.text).found
    assert "/openapi.json" in references
    assert any(each.endswith(".js") for each in references)
    for each in references:
        assert each.startswith("/")
        assert not each.startswith("//")
        asset = api.get(each)
        assert asset.status_code == 200, each
        assert len(asset.content) > 100


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_names_no_other_server_and_forbids_the_browser_to_ask_one(api: httpx.Client, page: str) -> None:
    answer = api.get(page)
    assert re.findall(r"(?:https?:)?//[a-z0-9]", answer.text) == []
    policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'self'"
    sources = {source for rule in policy.values() for source in rule.split()}
    assert sources <= {"'self'", "'unsafe-inline'", "data:", "blob:"}


def test_only_these_pages_and_their_assets_are_there(api: httpx.Client) -> None:
    for path in ("/docs/oauth2-redirect", "/static/swagger-ui.css"):
        assert_failure(api.get(path), 404, "ROUTE_NOT_FOUND")
    start = api.get("/")  # of a service without the web page
    assert (start.status_code, start.headers["Location"]) == (307, "/docs")
