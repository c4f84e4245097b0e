"""`Page`: a tab of a headless Chromium, driven over its DevTools protocol; no driver to install."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.waiting import wait_until

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_START_SECONDS = 60
_PAGE_SECONDS = 60
_WIDTH, _HEIGHT = 1280, 900


def browser() -> str | None:
    """Return the path of an installed browser."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab.

    Args:
        socket: Of the tab.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events are passed over."""
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(await asyncio.wait_for(self._socket.recv(), _PAGE_SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        result = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def open(self, url: str, *, until: str) -> None:
        """Go to a URL and wait until a text is on the page."""
        await self.send("Page.navigate", url=url)
        await self.wait_for(until)

    async def text(self) -> str:
        """Return what can be read on the page, values of fields included."""
        return await self.evaluate(
            "document.body ? document.body.innerText + '\\n' + "
            "[...document.querySelectorAll('input, textarea')].map(f => f.value).join('\\n') : ''"
        )

    async def wait_for(self, text: str) -> None:
        """Wait until a text is on the page."""

        async def is_there() -> bool:
            return text in await self.text()

        try:
            await wait_until(is_there, timeout=_PAGE_SECONDS, description=f"{text!r} on the page")
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{(await self.text())[:3000]}") from exc

    async def wait_for_element(self, selector: str) -> None:
        """Wait until the page has an element."""

        async def is_there() -> bool:
            return await self.evaluate(f"!!document.querySelector({json.dumps(selector)})")

        await wait_until(is_there, timeout=_PAGE_SECONDS, description=selector)

    async def click(self, text: str) -> None:
        """Click the last, innermost element whose text is exactly this."""
        found = await self.evaluate(
            "(() => { const all = [...document.querySelectorAll('body *')]"
            ".filter(e => e.innerText && e.innerText.trim() === "
            f"{json.dumps(text)}); const e = all[all.length - 1]; "
            "if (e) { e.scrollIntoView({block: 'center'}); (e.closest('button, a') || e).click(); }"
            " return !!e; })()"
        )
        assert found, f"nothing says {text!r}\n{(await self.text())[:2000]}"

    async def fill(self, selector: str, value: str) -> None:
        """Type a value into a field."""
        assert await self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return "
            "false; e.scrollIntoView({block: 'center'}); e.focus(); e.select && e.select(); "
            "return true; })()"
        ), f"no {selector}"
        await self.send("Input.insertText", text=value)

    async def scroll_to(self, text: str) -> None:
        """Bring the last, innermost element whose text is exactly this to the top."""
        assert await self.evaluate(
            "(() => { const all = [...document.querySelectorAll('body *')]"
            f".filter(e => e.innerText && e.innerText.trim() === {json.dumps(text)}); "
            "const e = all[all.length - 1]; if (e) e.scrollIntoView({block: 'start'}); "
            "return !!e; })()"
        ), f"nothing says {text!r}"

    async def screenshot(self, path: Path) -> None:
        """Save what is seen."""
        shot = await self.send("Page.captureScreenshot", format="png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def page(profile: Path) -> AsyncIterator[Page]:
    """Start a browser with a profile of its own, and end it with the context."""
    path = browser()
    assert path is not None
    process = subprocess.Popen(
        [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}",
         f"--window-size={_WIDTH},{_HEIGHT}", "--force-device-scale-factor=1", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        said = profile / "DevToolsActivePort"
        await wait_until(
            lambda: said.exists() and said.read_text().count("\n") > 0,
            timeout=_START_SECONDS,
            description="the browser's port",
        )
        port = said.read_text().splitlines()[0]
        async with httpx.AsyncClient(trust_env=False) as client:
            tabs = (await client.get(f"http://127.0.0.1:{port}/json/list")).json()
        (url,) = (tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        async with connect(url, max_size=64 * 1024 * 1024, proxy=None) as socket:
            tab = Page(socket)
            await tab.send(
                "Emulation.setDeviceMetricsOverride",
                width=_WIDTH, height=_HEIGHT, deviceScaleFactor=1, mobile=False,
            )  # fmt: skip
            yield tab
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
