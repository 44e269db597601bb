"""The explorer page in a browser: it lists the tools, calls one, and shows why a call is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from apflow import Task

from . import server
from .chromium import BrowserError, Page
from .needs import chromium
from .suite import Outcome

if TYPE_CHECKING:
    from pathlib import Path

_NAMES = "[...document.querySelectorAll('.tool-name')].map(name => name.innerText)"


def try_out(url: str, shots: Path) -> Outcome:
    """Use the page as a person would, and save two screenshots to `shots`.

    Raises:
        NotHereError: There is no Chromium.
    """
    browser = chromium()
    expected = {value.name for value in vars(server).values() if isinstance(value, Task)}
    problems = []
    passed = 0
    try:
        with Page(browser) as page:
            page.open(f"{url}/explorer")
            listed = set(page.wait_for(f"{_NAMES}.length && {_NAMES}"))
            missing = expected - listed
            problems += [f"the page does not list {name}" for name in sorted(missing)]
            passed += not missing
            tries: tuple[tuple[dict[str, Any], str], ...] = (({"a": 40}, "42"), ({"a": "forty"}, "invalid_input"))
            for inputs, answer in tries:
                _call(page, "add", inputs, answer)
                page.screenshot(shots / f"explorer-{answer}.png")
                passed += 1
    except BrowserError as error:
        problems.append(str(error))
    return Outcome("explorer", passed, 3, tuple(problems))


def _call(page: Page, tool: str, inputs: dict[str, Any], answer: str) -> None:
    """Open a tool, type inputs, click, and wait for an answer with this text."""
    item = f"document.querySelector('[data-tool={tool}]')"
    page.evaluate(f"{item}.classList.contains('expanded') || {item}.querySelector('.tool-header').click()")
    page.wait_for(f"{item}.querySelector('.execute-btn') !== null")
    page.evaluate(f"{item}.querySelector('.input-editor').value = {json.dumps(json.dumps(inputs))}")
    page.evaluate(f"{item}.querySelector('.execute-btn').click()")
    page.wait_for(f"{item}.querySelector('.result-area').innerText.includes({json.dumps(answer)})")
