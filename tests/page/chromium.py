"""A headless Chromium, driven through its own protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", "--hide-scrollbars"),
)
PATIENCE_S = 30.0


def executable() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """One page, and everything that it asked for or complained of."""

    def __init__(self, connection: ClientConnection) -> None:
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self._connection = connection
        self._numbers = count(1)
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result, noting the events that come before."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        while (message := json.loads(self._connection.recv(PATIENCE_S))).get("id") != number:
            self._note(message)
        if "error" in message:
            raise AssertionError(message["error"])
        return message["result"]

    def open(
        self, url: str, *, password: str, scheme: str = "light", size: tuple[int, int] = (1180, 940)
    ) -> None:
        credentials = base64.b64encode(f"anybody:{password}".encode()).decode()
        self.send("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {credentials}"})
        self.show("light")
        self.send("Page.navigate", url=url)

    def show(self, scheme: str, size: tuple[int, int] = (1180, 940)) -> None:
        """Take a light or a dark look, in a window of that size."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        width, height = size
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript condition holds."""
        met = self.evaluate(
            "new Promise(done => { let left = 400; const timer = setInterval(() => {"
            f"const met = !!({condition}); if (met || !--left) {{ clearInterval(timer); done(met); }}"
            "}, 50) })"
        )
        assert met, f"{condition}\n{self.evaluate('document.body.innerText')}\n{self.complaints}"

    def screenshot(self) -> bytes:
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])


@contextmanager
def browsing(directory: Path) -> Iterator[Tab]:
    """Run a browser with an empty profile in ``directory``."""
    command = [executable() or "chromium", *FLAGS, f"--user-data-dir={directory / 'profile'}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    output = []
    reader = threading.Thread(target=process.stderr.read)
    try:
        for line in process.stderr:
            output.append(line)
            if found := re.search(r"DevTools listening on (ws://\S+)", line):
                break
        else:
            raise AssertionError("".join(output))
        reader.start()
        with connect(found[1], max_size=None, max_queue=None, ping_interval=None) as connection:
            yield Tab(connection)
            connection.send(json.dumps({"id": 0, "method": "Browser.close"}))
            process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        if reader.ident:
            reader.join()
        process.stderr.close()
