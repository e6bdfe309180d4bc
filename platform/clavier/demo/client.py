"""A client of the native API, as any program would write one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

FINAL = ("COMPLETED", "FAILED", "STOPPED")


class StepFailed(Exception):
    """A step of the demo did not work; the message says which answer came."""


class Client:
    """Calls with one API key. ``origin``: ``http://127.0.0.1:8000``."""

    def __init__(self, origin: str, api_key: str) -> None:
        self.origin = origin
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment has no business on loopback
        self._session.headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """GET a JSON object. Raises StepFailed."""
        return self._json("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """POST a JSON object. Raises StepFailed."""
        return self._json("POST", path, json=body or {})

    def upload_dataset(self, name: str, file: Path) -> dict[str, Any]:
        """A data set with one file; the answer is the data set with its first version."""
        with open(file, "rb") as stream:
            return self._json("POST", "/api/v1/datasets", data={"name": name}, files={"file": (file.name, stream)})

    def chat(self, model: str, question: str, *, max_tokens: int = 64) -> str:
        """The greedy answer of a service."""
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        answer = self.post("/openai/v1/chat/completions", body)
        return str(answer["choices"][0]["message"]["content"])

    def wait_for_run(self, path: str, report: Callable[[dict[str, Any]], None], *, limit_s: float) -> dict[str, Any]:
        """Poll the status of a run-backed object until it has ended well. Raises StepFailed."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            status = self.get(f"{path}/status")
            report(status)
            if status["state"] == "COMPLETED":
                return status
            if status["state"] in FINAL:
                tail = self.get(f"{path}/log", offset=-2000).get("text", "")
                raise StepFailed(f"{path} is {status['state']}: {status['message']}\n{tail}")
            time.sleep(0.5)
        raise StepFailed(f"{path} has not ended within {limit_s:g} s: {status}")

    def wait_until_served(self, path: str, *, limit_s: float) -> dict[str, Any]:
        """Poll a service until every replica answers. Raises StepFailed."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            service = self.get(path)
            if service["state"] == "READY":
                return service
            if service["state"] == "FAILED":
                raise StepFailed(f"{path} failed: {self.get(f'{path}/replicas')}")
            time.sleep(0.3)
        raise StepFailed(f"{path} is not ready within {limit_s:g} s: {self.get(f'{path}/replicas')}")

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._session.request(method, self.origin + path, timeout=120, **arguments)
        except requests.RequestException as error:
            raise StepFailed(f"{method} {path}: {error}") from error
        if not response.ok:
            raise StepFailed(f"{method} {path}: {response.status_code} {response.text[:1000]}")
        value: dict[str, Any] = response.json() if response.content else {}
        return value
