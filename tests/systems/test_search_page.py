"""The page of the shop, in a real browser, in front of a service that says what each test wants."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

import systems
from systems.search.data import Feedback, Query, normalise

PAGE = Path(systems.__path__[0]) / "search" / "serving" / "page.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEY = "key-of-the-test"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


def script() -> str:
    (found,) = re.findall(r"<script>(.*?)</script>", PAGE.read_text(), re.DOTALL)
    return str(found)


def policy() -> str:
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def hit(i: int, **said: Any) -> dict[str, Any]:
    return {
        "product_id": f"product-{i}", "score": 2.0 - i / 10, "why": ["grey", "sofa", "couch"], "weight": 1.0 + i,
        "title": f"Norvik grey leather sofa {i}", "brand": "Norvik", "colour": "grey", "category": "furniture",
        "price": 649.0 + i,
    } | said  # fmt: skip


FACETS = [
    {"field": "category", "value": "furniture", "count": 40},
    {"field": "brand", "value": "Norvik", "count": 25},
    {"field": "brand", "value": "Casaro", "count": 15},
    {"field": "colour", "value": "grey", "count": 40},
    {"field": "price", "value": "0-500", "count": 12},
    {"field": "price", "value": "500-1000", "count": 27},
    {"field": "price", "value": "1000-", "count": 1},
]


class Shop(BaseHTTPRequestHandler):
    """The service, as far as the page knows it."""

    answer: ClassVar[dict[str, Any]] = {}  # to a query
    refusals: ClassVar[list[tuple[int, str]]] = []  # of the next queries: status and detail
    queries: ClassVar[list[dict[str, Any]]] = []
    labels: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/search":
            self._say(200, PAGE.read_bytes(), "text/html; charset=utf-8", {"content-security-policy": policy()})
        elif url.path == "/v1/search/suggest":
            typed = parse_qs(url.query, keep_blank_values=True)["text"][0]
            known = ["grey sofa", "grey sofa bed", "running shoes"]
            self._json(200, {"suggestions": [text for text in known if text.startswith(typed)]})
        else:
            self._json(404, {"title": "NotFound", "status": 404, "detail": "path: unknown", "request_id": "r"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, detail = 401, "authorization: must be a key"
        if self.headers["authorization"] == f"Bearer {KEY}":
            if self.path == "/v1/search/labels":
                Shop.labels.append(body)
                return self._json(200, {"accepted": 1})
            Shop.queries.append(body)
            if not Shop.refusals:
                said = {"event_id": body["event_id"], "version": "v7", "degraded": None, "answer": Shop.answer}
                return self._json(200, said)
            status, detail = Shop.refusals.pop(0)
            if not detail:
                return self._say(status, b"<h1>Bad gateway</h1>", "text/html", {})
        return self._json(status, {"title": "No", "status": status, "detail": detail, "request_id": "r-1"})

    def _json(self, status: int, said: Any) -> None:
        self._say(status, json.dumps(said).encode(), "application/json", {})

    def _say(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


# Chromium looks for its pipes at 3 and 4
LAUNCH = """
import os, sys
pipes = [os.dup(int(number)) for number in sys.argv[1:3]]
for place, pipe in enumerate(pipes, 3):
    os.dup2(pipe, place)
    os.set_inheritable(place, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium, spoken to by its own protocol over two pipes."""

    def __init__(self, profile: str) -> None:
        assert CHROMIUM
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}",
                   "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(read), str(write), CHROMIUM, *options],
            pass_fds=(read, write), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read)
        os.close(write)
        self._rest, self._id = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def close(self) -> None:
        self.do("Browser.close")
        self._process.wait(10)
        os.close(self._read)
        os.close(self._write)

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._id += 1
        session = {"sessionId": self._session} if hasattr(self, "_session") else {}
        message = {"id": self._id, "method": method, "params": parameters, **session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                chunk = os.read(self._read, 1 << 16)
                assert chunk, "the browser is gone"
                self._rest += chunk
            one, _, self._rest = self._rest.partition(b"\0")
            said = json.loads(one)
            if said.get("id") == self._id:
                assert "error" not in said, said
                return dict(said["result"])
            self.events.append(said)

    def js(self, expression: str) -> Any:
        """What it is, or resolves to."""
        said = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, f"{expression}: {said['exceptionDetails']}"
        return said["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for it to hold in the page; fails after 30 s."""
        self.js(
            f"new Promise((yes, no) => {{ const end = Date.now() + 30000, look = () => ({condition}) ? yes() : "
            f"Date.now() > end ? no(document.body.innerText) : setTimeout(look, 10); look(); }})"
        )

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            code = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40, "Tab": 9}[key]
            self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def write(self, text: str) -> None:
        self.do("Input.insertText", text=text)

    def text(self, selector: str) -> list[str]:
        return list(self.js(f"[...document.querySelectorAll({selector!r})].map((e) => e.innerText)"))

    def click(self, selector: str) -> None:
        self.js(f"document.querySelector({selector!r}).click()")

    def of(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] == method]


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def _chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: neither chromium nor chromium-browser nor google-chrome is installed")
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        yield browser
        browser.close()


@pytest.fixture
def browser(_chromium: Browser, shop: str) -> Iterator[Browser]:
    """At the end, the page must have asked nobody but the shop, and broken neither its policy nor itself."""
    Shop.answer = {"propensity": 1.0, "hits": [hit(i) for i in range(1, 21)], "total": 40, "corrected": None,
                   "facets": FACETS}  # fmt: skip
    Shop.refusals, Shop.queries, Shop.labels = [], [], []
    _chromium.do("Page.navigate", url="about:blank")
    _chromium.events.clear()
    yield _chromium
    asked = {request["request"]["url"] for request in _chromium.of("Network.requestWillBeSent")}
    assert {url for url in asked if not url.startswith((f"{shop}/", "about:"))} == set()
    assert _chromium.of("Runtime.exceptionThrown") == []
    said = [event["entry"]["text"] for event in _chromium.of("Log.entryAdded")]
    assert [text for text in said if "status of" not in text] == []  # a refusal by the service is no flaw of the page


def visit(browser: Browser, shop: str, query: str = "", key: str = KEY) -> None:
    browser.do("Page.navigate", url="about:blank")  # else a change of the fragment would keep the page
    browser.do("Page.navigate", url=f"{shop}/search{query}{f'#key={key}' if key else ''}")
    browser.until("document.readyState === 'complete'")


def search(browser: Browser, shop: str, query: str) -> None:
    visit(browser, shop, query)
    browser.until("document.querySelector('#said').innerText && !document.querySelector('[aria-busy]')")


def test_the_page_is_one_file_with_one_script_and_nothing_that_could_run_what_the_service_says() -> None:
    text = PAGE.read_text()
    assert "\r" not in text  # the digest of the script is that of what browsers see
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|setTimeout\(['\"`]", text
    )
    assert not re.search(r"<[^>]*\son\w+\s*=|javascript:|<img|<iframe|@import|url\(|(src|href)=.https?:", text)


def test_results_show_title_price_brand_colour_and_the_words_that_matched(browser: Browser, shop: str) -> None:
    search(browser, shop, "?q=grey+sofa")
    assert browser.text("#said") == ["40 products for “grey sofa”"]
    titles, prices = browser.text(".hit h3"), browser.text(".hit .price")
    assert titles == [f"Norvik grey leather sofa {i}" for i in range(1, 21)]
    assert (prices[0], prices[-1]) == ("€650", "€669")
    assert browser.text(".hit:first-child .meta") == ["Norvik · grey · furniture"]
    assert browser.text(".hit:first-child mark") == ["grey", "sofa"]
    assert browser.text(".hit:first-child .why") == ["also matches couch"]
    (asked,) = Shop.queries
    query = Query.model_validate_json(json.dumps(asked))
    assert (query.text, query.page, query.page_size, query.device) == ("grey sofa", 1, 20, "desktop")


def test_what_matched_by_no_word_is_said_to_be_close_in_meaning(browser: Browser, shop: str) -> None:
    Shop.answer = Shop.answer | {"hits": [hit(1, why=[])]}
    search(browser, shop, "?q=something+to+sit+on")
    assert browser.text(".hit .why") == ["close in meaning"]


@pytest.mark.parametrize(
    ("rescue", "said"),
    [
        ("spelling", "Nothing was found as it is written, so its spelling was guessed more boldly."),
        ("dense", "No product has these words. These are close in meaning."),
        ("filters: colour, brand", "Nothing was found with all filters, so these were left out: colour, brand."),
    ],
)
def test_a_correction_and_a_rescue_are_said(browser: Browser, shop: str, rescue: str, said: str) -> None:
    Shop.answer = Shop.answer | {"corrected": "grey sofa", "rescue": rescue}
    search(browser, shop, "?q=grei+sofa")
    assert browser.text(".notice") == ["Searched for grey sofa instead of grei sofa.", said]


def test_an_empty_page_that_is_no_answer_says_so_instead_of_that_nothing_was_found(browser: Browser, shop: str) -> None:
    Shop.answer = {"hits": [], "total": 0, "rescue": "search is away"}
    search(browser, shop, "?q=sofa")
    assert browser.text("#said, .notice") == ["No answer to “sofa”", "No answer: search is away."]


def test_a_word_is_marked_where_the_title_has_another_form_of_it(browser: Browser, shop: str) -> None:
    Shop.answer = Shop.answer | {"hits": [hit(1, title="Sofas, lamp and tab", why=["sofa", "lamps", "table"])]}
    search(browser, shop, "?q=sofa+lamps+table")
    assert browser.text("mark") == ["Sofas", "lamp"]
    assert browser.text(".why") == ["also matches table"]


def test_what_the_service_says_is_text_and_never_markup(browser: Browser, shop: str) -> None:
    said = dict.fromkeys(("title", "brand", "colour", "category", "product_id"), HOSTILE)
    Shop.answer = Shop.answer | {
        "hits": [hit(1, **said, why=[HOSTILE])], "corrected": HOSTILE, "rescue": HOSTILE,
        "facets": [{"field": f, "value": HOSTILE, "count": 1} for f in ("category", "brand", "colour", "price")],
    }  # fmt: skip
    search(browser, shop, "?q=%3Cimg+src%3Dx%3E&brand=%3Cb%3Ex%3C/b%3E")
    browser.click(".hit button")
    browser.until("document.querySelector('.more dd:last-child')")
    assert browser.text(".hit h3") == [HOSTILE]
    assert browser.js("document.querySelectorAll('img, script:not(body > script), .hit b, #chosen b').length") == 0
    assert browser.js("document.title") == "<img src=x> · Shop search"
    Shop.refusals.append((422, HOSTILE))
    search(browser, shop, "?q=x")
    assert browser.text(".notice p:first-child") == [HOSTILE]


def test_facets_filter_with_their_counts_and_take_the_filter_away_again(browser: Browser, shop: str) -> None:
    search(browser, shop, "?q=sofa")
    assert browser.text("#filters legend") == ["Category", "Brand", "Colour", "Price"]
    assert [re.split(r"\n+", text) for text in browser.text(".facet")] == [
        ["furniture", "40"], ["Norvik", "25"], ["Casaro", "15"], ["grey", "40"], ["up to €500", "12"],
        ["€500 – €1,000", "27"], ["from €1,000", "1"],
    ]  # fmt: skip
    for i, press in enumerate(("facet-brand-Norvik", "facet-price-500-1000", "facet-brand-Norvik"), 2):
        browser.js(f"document.getElementById('{press}').focus()")
        browser.press("Enter")
        browser.until("!document.querySelector('[aria-busy]')")
        assert len(Shop.queries) == i
        assert browser.js("document.activeElement.id") == press
    filters = [{k: q[k] for k in ("brand", "price_min", "price_max") if k in q} for q in Shop.queries]
    prices = {"price_min": 500, "price_max": 1000}
    assert filters == [{}, {"brand": "Norvik"}, {"brand": "Norvik"} | prices, prices]
    assert browser.js("[...document.querySelectorAll('.facet[aria-pressed=true]')].map((e) => e.id)") == [
        "facet-price-500-1000"
    ]
    assert browser.js("location.search") == "?q=sofa&price_min=500&price_max=1000"


def test_pages_are_turned_and_the_browsers_way_back_leads_back(browser: Browser, shop: str) -> None:
    search(browser, shop, "?q=sofa")
    browser.click("#pages button")
    browser.until("document.querySelector('#pages span').innerText === 'Page 2 of 2'")
    assert browser.js("document.querySelector('#hits').start") == 21
    assert browser.js("document.activeElement.id") == "said"
    browser.js("history.back()")
    browser.until("document.querySelector('#pages span').innerText === 'Page 1 of 2'")
    assert [query["page"] for query in Shop.queries] == [1, 2, 1]
    assert len({query["event_id"] for query in Shop.queries}) == 3


def test_where_nothing_is_found_the_page_says_what_may_help(browser: Browser, shop: str) -> None:
    Shop.answer = Shop.answer | {"hits": [], "total": 0, "facets": []}
    search(browser, shop, "?q=submarine&colour=grey")
    assert browser.text("#said, #status") == ["Nothing found for “submarine”"] * 2
    browser.click(".notice button")
    browser.until("document.querySelector('.notice').innerText.startsWith('Try fewer words')")
    assert "colour" not in Shop.queries[-1]


@pytest.mark.parametrize(("status", "again"), [(422, False), (409, False), (429, True), (503, True)])
def test_an_error_is_said_in_the_services_words_and_a_passing_one_asks_again_under_the_same_id(
    browser: Browser, shop: str, status: int, again: bool
) -> None:
    Shop.refusals.append((status, "text: is not to our taste"))
    search(browser, shop, "?q=sofa")
    assert browser.text("[role=alert] p") == ["text: is not to our taste", "Request r-1"]
    assert browser.text("[role=alert] button") == ["Try again"] * again
    if again:
        browser.click("[role=alert] button")
        browser.until("document.querySelectorAll('.hit').length")
        assert Shop.queries[0] == Shop.queries[1]


def test_opening_a_product_tells_of_one_click_as_the_service_wants_it(browser: Browser, shop: str) -> None:
    search(browser, shop, "?q=%20Grey%20%20SOFA%20&page=2")
    for _ in range(3):
        browser.click(".hit:nth-child(3) button")
    browser.until("document.querySelector('.hit:nth-child(3) .more').innerText.includes('noted')")
    (said,), (query,) = Shop.labels, Shop.queries
    feedback = Feedback.model_validate_json(json.dumps(said))
    assert feedback == Feedback(
        event_id=f"{query['event_id']}.click.product-3", event_timestamp=query["event_timestamp"],
        query_id=query["event_id"], shopper_id=query["shopper_id"], query_text="grey sofa", product_id="product-3",
        category="furniture", rank=23, weight=4.0,
    )  # fmt: skip


def test_suggestions_are_chosen_by_keys_as_screen_readers_expect(browser: Browser, shop: str) -> None:
    visit(browser, shop)
    browser.until("document.activeElement.id === 'text'")
    browser.write("grey")
    browser.until("document.querySelector('#text').ariaExpanded === 'true'")
    assert browser.text("[role=option]") == ["grey sofa", "grey sofa bed"]
    chosen = "document.querySelector('[aria-selected=true]')?.id ?? null"
    seen = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        browser.press(key)
        assert browser.js("document.querySelector('#text').getAttribute('aria-activedescendant')") == browser.js(chosen)
        seen.append(browser.js(chosen))
    assert seen == ["suggestion-0", "suggestion-1", None, "suggestion-1"]
    browser.press("Escape")
    assert browser.js("document.querySelector('#suggestions').hidden")
    assert browser.js("document.querySelector('#text').value") == "grey"
    browser.write(" ")
    browser.until("!document.querySelector('#suggestions').hidden")
    browser.press("ArrowUp")
    browser.press("Enter")
    browser.until("document.querySelectorAll('.hit').length")
    assert [query["text"] for query in Shop.queries] == ["grey sofa bed"]


def test_often_searched_texts_are_offered_before_the_first_search(browser: Browser, shop: str) -> None:
    visit(browser, shop)
    browser.until("document.querySelectorAll('#often button').length === 3")
    browser.click("#often li:nth-child(3) button")
    browser.until("document.querySelectorAll('.hit').length")
    assert [query["text"] for query in Shop.queries] == ["running shoes"]


def test_a_key_leaves_the_address_bar_and_stays_in_the_tab(browser: Browser, shop: str) -> None:
    search(browser, shop, "?q=sofa")
    assert browser.js("location.href") == f"{shop}/search?q=sofa"
    visit(browser, shop, "?q=shoes", key="")
    browser.until("document.querySelectorAll('.hit').length")
    assert browser.js("Object.keys(localStorage)") == ["shopper"]
    assert KEY not in browser.js("document.documentElement.outerHTML")


def test_without_a_key_that_is_valid_one_is_asked_for(browser: Browser, shop: str) -> None:
    visit(browser, shop, "?q=sofa", key="another")
    browser.until("document.activeElement.id === 'key-text'")
    assert browser.text("[role=alert] p:first-child") == ["authorization: must be a key"]
    browser.write(KEY)
    browser.press("Enter")
    browser.until("document.querySelectorAll('.hit').length")
    assert browser.js("document.querySelector('#key').hidden")


def test_the_page_normalises_a_query_as_the_service_does(browser: Browser, shop: str) -> None:
    visit(browser, shop)
    texts = [
        "  Grey\u00a0 SOFA ",
        "STRASSE Straße",
        "ΣΑΣ σας",
        "ﬁne ＣＯＵＣＨ",
        "Café Cafe\u0301",
        "İ I ı",
        "①",
        "\u2003x",
    ]
    assert browser.js(f"{json.dumps(texts)}.map(normalise)") == [normalise(text) for text in texts]


def test_on_a_phone_nothing_is_wider_than_the_screen_and_filters_wait_behind_a_button(
    browser: Browser, shop: str
) -> None:
    Shop.answer = Shop.answer | {"hits": [hit(1, title="sofa" * 70, brand="b" * 100)]}
    browser.do("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True)
    try:
        search(browser, shop, "?q=sofa")
        assert browser.js("document.documentElement.scrollWidth") == 320
        assert Shop.queries[0]["device"] == "phone"
        for shown in (False, True):
            assert browser.js("document.querySelector('#filters').checkVisibility()") == shown
            assert browser.js("document.querySelector('#filters-button').ariaExpanded") == str(shown).lower()
            browser.click("#filters > .solid" if shown else "#filters-button")
    finally:
        browser.do("Emulation.clearDeviceMetricsOverride")


def test_without_a_mouse_the_results_are_one_key_away_and_nothing_is_asked_again(browser: Browser, shop: str) -> None:
    search(browser, shop, "?q=sofa")
    browser.press("Tab")
    assert browser.js("document.activeElement.innerText") == "Skip to the results"
    browser.press("Enter")
    assert browser.js("document.activeElement.id") == "said"
    assert len(Shop.queries) == 1


def test_what_no_service_of_ours_would_say_is_an_error_too(browser: Browser, shop: str) -> None:
    Shop.refusals.append((502, ""))  # of a proxy
    search(browser, shop, "?q=sofa&price_max=cheap")
    assert browser.text("[role=alert] p") == ["The service answered 502, not in JSON."]
    assert browser.text("#chosen button") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser: Browser, shop: str, scheme: str) -> None:
    """A contrast of 4.5 (WCAG 2.2, 1.4.3)."""
    Shop.answer = Shop.answer | {"corrected": "sofa", "rescue": "further"}
    browser.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    search(browser, shop, "?q=sofer&brand=Norvik")
    browser.click(".hit button")
    assert browser.js(CONTRASTS) == []


CONTRASTS = r"""
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const paint = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => c / 255);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *:not(script)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const behind = [], at = getComputedStyle(element);
    for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const ground = paint(behind), ink = paint([...behind, at.color]);
    const seen = ink.map((c, i) => c * at.opacity + ground[i] * (1 - at.opacity));
    const [a, b] = [light(seen), light(ground)].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.push([element.innerText, (a + .05) / (b + .05)]);
  }
  return poor;
})()
"""
