"""How a page is looked at: as wide as a desk or a phone, light or dark, without script, by keyboard; and what is found wrong with it."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request

WIDTHS: Final = {1280: 900, 390: 844}
#: Each page is looked at in each of these; the short form takes the two that differ most.
LOOKS: Final = (
    ((1280, "light"), (390, "dark"))
    if os.environ.get("IDENTITY_BROWSER") == "short"
    else tuple((width, scheme) for width in WIDTHS for scheme in ("light", "dark"))
)
_RULES: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
_AXE: Final = f"axe.run(document, {{resultTypes: ['violations'], runOnly: {list(_RULES)}}})"
_PICTURES: Final = os.environ.get("IDENTITY_SCREENSHOTS", "")
#: What has the focus, as a person hears of it: its words, or those of its label.
_FOCUSED: Final = """() => {
    const at = document.activeElement;
    if (!at || at === document.body) return null;
    const label = at.labels && at.labels.length ? at.labels[0].innerText : '';
    return {tag: at.tagName, type: at.type || '', words: (at.getAttribute('aria-label') || label || at.innerText || at.value || '').trim()};
}"""
_WIDE: Final = """() => [...document.querySelectorAll('body *')]
    .filter(each => each.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .filter(each => { for (let up = each; up; up = up.parentElement)
        if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(up).overflowX)) return false; return true; })
    .slice(0, 5).map(each => each.outerHTML.slice(0, 200))"""


@functools.cache
def axe() -> str:
    """axe-core, as its package carries it."""
    return files("axe_playwright_python").joinpath("axe.min.js").read_text()


@dataclass
class Eyes:
    """Opens pages, and remembers what the browser complained of."""

    browser: Browser
    complaints: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)
    examining: dict[str, Page] = field(default_factory=dict)

    def open(self, url: str, *, width: int = 1280, scheme: str = "light", zoom: float = 1) -> Page:
        """A page in a browser that runs no script and has no history. `zoom` is what Ctrl and + do: fewer pixels for the same window."""
        size = {"width": round(width / zoom), "height": round(WIDTHS.get(width, 900) / zoom)}
        context = self.browser.new_context(
            viewport=size,
            color_scheme=scheme,
            java_script_enabled=False,
            device_scale_factor=zoom,
            reduced_motion="reduce",
        )
        context.set_default_timeout(10_000)
        self.contexts.append(context)
        home = urlsplit(url).netloc

        def heard(message: ConsoleMessage) -> None:
            # A refusal is what some tests want to see: its status is no fault of the page.
            if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
                self.complaints.append(f"console: {message.text}")

        def asked(request: Request) -> None:
            if urlsplit(request.url).netloc != home:
                self.complaints.append(f"foreign request: {request.url}")

        context.on("console", heard)
        context.on("request", asked)
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.goto(url)
        return page

    def faults(self, page: Page) -> list[str]:
        """Everything that is wrong with a page: for assistive technology, in its width, in the browser's own words."""
        found = self._examined(page)
        wrong = [
            f"axe: {one['id']} ({one['help']}): {node['html'][:200]} {_reasons(node)}"
            for one in found["violations"]
            for node in one["nodes"]
        ]
        return wrong + self.cut_off(page) + self.complaints

    def cut_off(self, page: Page) -> list[str]:
        """What reaches beyond the right edge of the window, and cannot be scrolled to by itself."""
        return [f"too wide: {each}" for each in page.evaluate(_WIDE)]

    def _examined(self, page: Page) -> dict[str, Any]:
        """What axe finds. It is a script and ours run none, so it looks at a copy of the page as it stands, in a context of its own."""
        size = page.viewport_size
        scheme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
        if scheme not in self.examining:
            self.examining[scheme] = self.browser.new_context(color_scheme=scheme).new_page()
        copy, markup = self.examining[scheme], page.content()
        copy.set_viewport_size(size)
        copy.route(page.url, lambda route: route.fulfill(body=markup, content_type="text/html; charset=utf-8"))
        copy.goto(page.url)
        copy.evaluate(axe())
        found: dict[str, Any] = copy.evaluate(_AXE)
        copy.unroute_all()
        return found

    def close(self) -> None:
        """Close what was opened, and forget the complaints: for the next test."""
        for context in self.contexts:
            context.close()
        self.contexts.clear()
        self.complaints.clear()


def _reasons(node: dict[str, Any]) -> str:
    return json.dumps([each["message"] for each in node["any"] + node["all"] + node["none"]])


def tab_to(page: Page, words: str, *, most: int = 80) -> None:
    """Go on by Tab until what has the focus is called so; a page that needs more than `most` steps for it is wrong."""
    seen = []
    for _ in range(most):
        page.keyboard.press("Tab")
        at = page.evaluate(_FOCUSED)
        if at is not None and at["words"].startswith(words):
            return
        seen.append(at and at["words"])
    raise AssertionError(f"no Tab leads to {words!r}: {seen}")


def fill(page: Page, label: str, value: str) -> None:
    """Type into the field of this label, reached by Tab."""
    tab_to(page, label)
    page.keyboard.press("Control+A")
    page.keyboard.type(value)


def press(page: Page, words: str) -> None:
    """Press the button or follow the link of these words, by Tab and Enter, and wait for what comes."""
    tab_to(page, words)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def picture(page: Page, name: str) -> None:
    """Keep how a page looks, where pictures are wanted: what a person sees first, without scrolling."""
    if _PICTURES:
        folder = Path(_PICTURES)
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", animations="disabled")
