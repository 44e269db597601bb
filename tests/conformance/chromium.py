"""A headless Chromium, driven over pipes by the DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_PATIENCE_SECONDS = 60.0
#: No sandbox: in containers, and for root, there is none to be had. The only page opened is our own.
_SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1100,1400",
    "--remote-debugging-pipe",
)


class BrowserError(Exception):
    """The browser did not do what it was told; the text says what it said."""


class Page:
    """One tab of a browser that is started for it.

    Args:
        browser: Path of a Chromium.
    """

    def __init__(self, browser: str) -> None:
        self._browser = browser
        self._stack = ExitStack()
        self._numbers = count(1)
        self._unread = b""
        self._session: str | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            profile = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="apflow-chromium-", ignore_cleanup_errors=True)
            )
            theirs_in, self._out = os.pipe()
            self._in, theirs_out = os.pipe()
            stack.callback(os.close, self._out)
            stack.callback(os.close, self._in)
            process = _start(self._browser, profile, theirs_in, theirs_out)
            stack.callback(self._close, process)
            target = self._command("Target.createTarget", url="about:blank")["targetId"]
            attached = self._command("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self, url: str) -> None:
        """Go to an address.

        Raises:
            BrowserError: There is no page.
        """
        answer = self._command("Page.navigate", url=url)
        if answer.get("errorText"):
            raise BrowserError(f"{url}: {answer['errorText']}")

    def evaluate(self, script: str) -> Any:
        """Return the JSON value of an expression of JavaScript, awaited when it is a promise.

        Raises:
            BrowserError: It has thrown.
        """
        answer = self._command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Evaluate an expression until it is true, and return its value.

        Raises:
            BrowserError: It was not within a minute.
        """
        deadline = monotonic() + _PATIENCE_SECONDS
        while monotonic() < deadline:
            # The page looks again by itself each time it is drawn, so nothing here has to sleep.
            value = self.evaluate(f"new Promise(done => setTimeout(() => done({script}), 20))")
            if value:
                return value
        raise BrowserError(f"{script} did not come true; the page reads: {self.evaluate('document.body.innerText')}")

    def screenshot(self, file: Path) -> None:
        """Save what the window shows, as PNG."""
        file.write_bytes(base64.b64decode(self._command("Page.captureScreenshot", format="png")["data"]))

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        """Have the browser end its own processes, and end it when it does not."""
        try:
            self._session = None
            self._command("Browser.close")
            process.wait(_PATIENCE_SECONDS)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()

    def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                break
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            readable = select.select([self._in], [], [], _PATIENCE_SECONDS)[0]
            piece = os.read(self._in, 1 << 16) if readable else b""
            if not piece:
                raise BrowserError("the browser is silent" if not readable else "the browser has ended")
            self._unread += piece
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


def _start(browser: str, profile: str, theirs_in: int, theirs_out: int) -> subprocess.Popen[bytes]:
    """Start it with its two pipes where it looks for them: it reads descriptor 3 and writes to 4."""
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (theirs_in, theirs_out)]
    program = f"import os, sys; os.dup2({high[0]}, 3); os.dup2({high[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-c", program, browser, *_SWITCHES, f"--user-data-dir={profile}"]
    try:
        return subprocess.Popen(command, pass_fds=high, stdin=quiet, stdout=quiet, stderr=quiet)
    finally:
        for number in (*high, theirs_in, theirs_out):
            os.close(number)
