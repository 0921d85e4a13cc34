"""The example chat in a browser: by keyboard, without scripts, on a phone, and while its candle burns down."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from sessionkit.testing import ManualClock

from ..helpers.chatroom import TIMEOUT, Chatroom, chatroom
from ..helpers.support import WAIT

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser is installed: apt-get install chromium")

AWAY = "This chat ended because you were away for 10 minutes."
DESKTOP = {"width": 1200, "height": 800}
PHONE = {"width": 360, "height": 640}
SMALL = {"width": 320, "height": 480}


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_request(self, *_: object) -> None: ...


def closing_early(application: Any) -> Any:
    """The application with each body read and closed before it is sent.

    Where a browser drops a connection, Werkzeug's server may not close the body, and leave a file open.
    """

    def respond(environ: Any, start_response: Any) -> list[bytes]:
        body = application(environ, start_response)
        try:
            return [b"".join(body)]
        finally:
            getattr(body, "close", lambda: None)()

    return respond


@contextmanager
def serving(room: Chatroom, port: int = 0) -> Iterator[int]:
    """Serve the application in threads of this process, and give the port."""
    server = make_server("127.0.0.1", port, closing_early(room.app), threaded=True, request_handler=Quiet)
    # Then the threads of its requests are joined when it is closed.
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WAIT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests here; each test has a profile of its own in it."""
    with sync_api.sync_playwright() as playwright:
        # In a container, which has a sandbox of its own, there is none for Chromium.
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def clock() -> ManualClock:
    """The time of the server. The browser's own is another matter."""
    return ManualClock()


@pytest.fixture
def address(tmp_path: Path, clock: ManualClock) -> Iterator[str]:
    """Where the application is served."""
    with chatroom(tmp_path, clock) as room, serving(room) as port:
        yield f"http://127.0.0.1:{port}/"


@contextmanager
def visiting(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """A page of a new visitor, at the start. Fails if anything was complained of in its console."""
    context = browser.new_context(base_url=address, **{"viewport": DESKTOP, "locale": "en-GB"} | options)
    context.set_default_timeout(WAIT * 1000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto("/")
    try:
        yield page
    finally:
        context.close()
    assert complaints == []


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page of a new visitor."""
    with visiting(browser, address) as opened:
        yield opened


def press(page: Any, what: Any) -> None:
    """Press a button or follow a link, and wait for where it leads."""
    with page.expect_navigation():
        what.click()


def begin(page: Any, title: str = "The Lamp at Grimble Point") -> None:
    page.goto("/new")
    press(page, page.get_by_role("button", name=f"Begin “{title}”"))
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(re.escape(title)))


def say(page: Any, message: str) -> None:
    """Type it and press Enter, without going to where one types: that has the focus."""
    sync_api.expect(page.locator("#message")).to_be_focused()
    page.keyboard.type(message)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def newest(page: Any) -> Any:
    return page.locator("#newest")


def focused(page: Any) -> str:
    """What has the focus: its name, or else what it says."""
    return str(page.evaluate("document.activeElement.name || document.activeElement.innerText"))


# ---- By keyboard


def test_a_chat_by_keyboard(page: Any) -> None:
    """From the first page to an answer with Tab and Enter alone; after each message one goes on typing."""
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the chat"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused(page) == "story"
    with page.expect_navigation():
        page.keyboard.press("Enter")
    say(page, "north")
    sync_api.expect(newest(page)).to_contain_text("A warm stove")
    say(page, "take herring")
    sync_api.expect(newest(page)).to_have_text("Taken: the herring.")
    sync_api.expect(page.locator("#message")).to_be_focused()


def test_the_skip_link_can_be_seen_once_it_has_the_focus(page: Any) -> None:
    """It is out of the way before, and shows where the focus is then, as the other controls do."""
    link = page.get_by_text("Skip to the chat")
    assert link.bounding_box()["y"] < 0
    page.keyboard.press("Tab")
    assert link.bounding_box()["y"] >= 0
    for _ in range(3):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"


def test_a_suggestion_is_one_press_away(page: Any) -> None:
    """What may be said is a button, and can be reached by keyboard from where one types."""
    begin(page)
    sync_api.expect(page.locator("#message")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    assert focused(page) == "message"
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator(".you p").text_content() == "You: look"


def test_an_empty_message_is_not_sent(page: Any) -> None:
    """The browser itself asks for one."""
    begin(page)
    sync_api.expect(page.locator("#message")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#message').matches(':invalid')")
    assert page.locator(".you").count() == 0


def test_the_newest_of_a_long_chat_is_in_view(page: Any) -> None:
    """However much was said, the page opens at the last answer, above the input; the rest can be scrolled to."""
    begin(page)
    for _ in range(8):
        say(page, "look")
    for what in (newest(page), page.locator("#message")):
        sync_api.expect(what).to_be_in_viewport(ratio=1)
    opening = page.locator(".story").first
    sync_api.expect(opening).not_to_be_in_viewport()
    page.get_by_role("region", name="The story so far").focus()
    page.keyboard.press("Home")
    sync_api.expect(opening).to_be_in_viewport()


# ---- Several chats, windows and mistakes


def test_switching(page: Any) -> None:
    """Each chat in the list leads to its own story, and goes on where it was left."""
    begin(page, "A Dragon, Overdue")
    say(page, "west")
    begin(page, "The 11:58 to Anywhere")
    say(page, "north")
    press(page, page.get_by_role("link", name="A Dragon, Overdue"))
    sync_api.expect(newest(page)).to_contain_text("A kettle, a tap")
    say(page, "make tea")
    press(page, page.get_by_role("link", name="The 11:58 to Anywhere"))
    sync_api.expect(newest(page)).to_contain_text("LOST PROPERTY")
    assert page.locator("nav [aria-current=page]").inner_text().startswith("The 11:58")


def test_ending_a_chat(page: Any) -> None:
    """It takes two presses, and then the chat can be begun again or forgotten."""
    begin(page)
    assert not page.get_by_role("button", name="End it").is_visible()
    page.get_by_text("End chat").click()
    press(page, page.get_by_role("button", name="End it"))
    sync_api.expect(page.get_by_role("heading", level=2)).to_have_text("This chat was ended.")
    press(page, page.get_by_role("button", name="Begin it again"))
    sync_api.expect(newest(page)).to_contain_text("Wet planks")


def test_going_back_shows_how_the_chat_stands(page: Any) -> None:
    """The page that one goes back to is not the one that was left, but how things are now."""
    begin(page)
    say(page, "north")
    page.goto("/new")
    other = page.context.new_page()
    other.goto("/")
    say(other, "take herring")
    page.go_back()
    sync_api.expect(newest(page)).to_have_text("Taken: the herring.")


def test_two_windows(browser: Any, address: str) -> None:
    """What is written in a window that is out of date is not said unseen; it can be sent once more."""
    context = browser.new_context(base_url=address)
    first, second = context.new_page(), context.new_page()
    begin(first)
    second.goto("/")
    say(first, "north")
    say(second, "take herring")
    sync_api.expect(second.get_by_role("alert")).to_contain_text("This chat went on elsewhere")
    press(second, second.get_by_role("button", name="Say it"))
    sync_api.expect(newest(second)).to_have_text("Taken: the herring.")
    context.close()


# ---- Time


def test_the_countdown_runs(browser: Any, address: str, clock: ManualClock) -> None:
    """The time left is shown to the second; that it is nearly over is announced, once; and the page tells the end."""
    with visiting(browser, address) as page:
        page.clock.install()
        begin(page)
        page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 2)
        warning = page.locator("#warning")

        def left() -> timedelta:
            minutes, seconds = re.fullmatch(r"(\d+):(\d\d) left", page.get_by_role("timer").inner_text()).groups()
            return timedelta(minutes=int(minutes), seconds=int(seconds))

        first = left()
        assert timedelta(minutes=9, seconds=50) < first < TIMEOUT
        page.clock.run_for(60_000)
        assert first - left() == timedelta(minutes=1)
        assert "about 9 minutes left" in page.locator("nav").inner_text()
        assert warning.inner_text() == ""
        page.clock.run_for(480_000)
        assert first - left() == timedelta(minutes=9)
        assert warning.inner_text() == "Less than a minute left. Say anything to go on."
        assert "less than a minute left" in page.locator("nav").inner_text()
        clock.advance(timedelta(minutes=10, seconds=1))
        page.clock.run_for(62_000)
        sync_api.expect(page.get_by_role("heading", level=2)).to_have_text(AWAY)
        sync_api.expect(page.get_by_role("heading", level=2)).to_be_focused()


def test_a_countdown_that_was_wrong(browser: Any, address: str, clock: ManualClock) -> None:
    """If the chat was used in another window meanwhile, the page finds the time that it has now."""
    with visiting(browser, address) as page:
        page.clock.install()
        begin(page)
        clock.advance(timedelta(minutes=5))
        other = page.context.new_page()
        other.goto("/")
        say(other, "north")
        clock.advance(timedelta(minutes=5))
        page.clock.run_for(602_000)
        sync_api.expect(newest(page)).to_contain_text("A warm stove")
        sync_api.expect(page.get_by_role("timer")).to_have_text(re.compile("[45]:.. left"))


def test_the_time_is_the_visitors(browser: Any, address: str) -> None:
    """The script says when the chat ends in the time zone of the browser."""
    with visiting(browser, address, timezone_id="Asia/Kathmandu") as page:
        begin(page)
        sync_api.expect(page.locator("time")).to_have_text("5:55")


def test_a_chat_that_ended(page: Any, clock: ManualClock) -> None:
    """Whoever comes back too late is told why, and can begin again."""
    begin(page)
    clock.advance(TIMEOUT + timedelta(seconds=1))
    page.reload()
    sync_api.expect(page.get_by_role("heading", level=2)).to_have_text(AWAY)
    assert "ended" in page.locator("nav li").inner_text()
    press(page, page.get_by_role("button", name="Forget this chat"))
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("Choose a story")
    assert page.locator("nav").count() == 0


def test_a_restart_loses_nothing(browser: Any, tmp_path: Path, clock: ManualClock) -> None:
    """The server goes and comes back; the page is loaded again, and the story goes on."""
    with chatroom(tmp_path, clock) as room, serving(room) as port:
        context = browser.new_context(base_url=f"http://127.0.0.1:{port}/")
        page = context.new_page()
        begin(page)
        say(page, "north")
        say(page, "take herring")
        before = page.locator("main").inner_text()
    with chatroom(tmp_path, clock) as room, serving(room, port):
        page.reload()
        assert page.locator("main").inner_text() == before
        say(page, "inventory")
        sync_api.expect(newest(page)).to_have_text("You carry a herring.")
        context.close()


# ---- Everywhere


def test_without_scripts(browser: Any, address: str, clock: ManualClock) -> None:
    """All of it works: talking, the time in words, ending, and why a chat ended."""
    with visiting(browser, address, java_script_enabled=False) as page:
        begin(page)
        page.get_by_label("What do you do?").fill("look at the gull")
        page.keyboard.press("Enter")
        sync_api.expect(newest(page)).to_contain_text("disappointed")
        sync_api.expect(page.get_by_role("timer")).to_have_text("about 10 minutes left")
        clock.advance(TIMEOUT + timedelta(seconds=1))
        page.reload()
        sync_api.expect(page.get_by_role("heading", level=2)).to_have_text(AWAY)


@pytest.mark.parametrize("size", [DESKTOP, PHONE, SMALL], ids=["desktop", "phone", "small"])
def test_nothing_is_wider_than_the_screen(size: dict[str, int], browser: Any, address: str, clock: ManualClock) -> None:
    """No page scrolls sideways, whatever was said; on a phone, the list of chats is folded until it is wanted."""
    with visiting(browser, address, viewport=size) as page:

        def check() -> None:
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]

        check()
        begin(page)
        say(page, "x" * 500)
        check()
        listed = page.get_by_role("link", name="New chat")
        assert listed.is_visible() == (size is DESKTOP)
        if size is not DESKTOP:
            page.get_by_text("Your chats (1)").click()
        assert listed.is_visible()
        check()
        clock.advance(601)
        page.reload()
        check()


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parts = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = parts(color).map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (parts(color)[3] === 255) return color;
    }
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!says || element.closest("svg")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    found.push([element.innerText, (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scheme: str, browser: Any, address: str, clock: ManualClock) -> None:
    """In either, every text on every page stands out from what is behind it by 4.5 to 1, as WCAG AA has it."""
    with visiting(browser, address, color_scheme=scheme) as page:
        seen = []
        begin(page)
        say(page, "north")
        seen += page.evaluate(CONTRAST)
        clock.advance(timedelta(minutes=9, seconds=30))
        page.reload()
        seen += page.evaluate(CONTRAST)
        begin(page, "A Dragon, Overdue")
        clock.advance(60)
        page.goto("/new")
        seen += page.evaluate(CONTRAST)
        press(page, page.get_by_role("link", name="The Lamp at Grimble Point"))
        seen += page.evaluate(CONTRAST)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert len(seen) > 50
    assert [text for text, contrast in seen if contrast < 4.5] == []
    assert paper == {"light": "rgb(250, 245, 236)", "dark": "rgb(23, 18, 14)"}[scheme]


def test_the_policy_holds(browser: Any, address: str) -> None:
    """A script that got into a page all the same would not run: the browser has the policy, and keeps to it."""
    context = browser.new_context(base_url=address)
    page = context.new_page()
    begin(page)
    ran = page.evaluate(
        """() => new Promise((done) => {
          document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
        })"""
    )
    assert (ran, page.evaluate("window.ran")) == ("script-src-elem", None)
    context.close()
