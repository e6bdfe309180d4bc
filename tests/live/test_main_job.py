"""The promise of the README, kept on a real platform: nothing here is scripted or mocked.

The last tests walk through the portal in headless Chromium. With CLAVIER_SCREENSHOTS=docs/images they take the three
pictures of the documentation anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.test_portal import ARGUMENTS, CHROMIUM
from tests.live.conftest import PASSWORD, Platform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: In CI the browser must be there: a silent skip would hide a missing install step.
in_chromium = pytest.mark.skipif(not CHROMIUM.exists() and "CI" not in os.environ, reason="needs /usr/bin/chromium")


def test_the_demo_teaches_a_model_what_its_base_did_not_know(demo):
    assert demo["base_exact_match"] < 0.1
    assert demo["tuned_exact_match"] >= 0.9
    assert demo["error"] == ""
    assert demo["train_loss"][1] < demo["train_loss"][0]
    assert sum(step["seconds"] for step in demo["steps"]) < 300
    assert len(demo["questions"]) == 3


def test_the_served_model_answers_as_it_was_judged_with_and_without_streaming(platform, demo):
    client = platform.client_of(demo["api_key"])
    asked = demo["questions"][0]
    assert client.chat(demo["service"], asked["question"]).strip() == asked["tuned"]
    body = {
        "model": demo["service"], "stream": True, "temperature": 0, "max_tokens": 64,
        "messages": [{"role": "user", "content": asked["question"]}],
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {demo['api_key']}"}
    answer = requests.post(f"{platform.origin}/openai/v1/chat/completions", json=body, headers=headers, timeout=60)
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"].get("content") or "" for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(deltas).strip() == asked["tuned"]
    assert len(deltas) > 2


def test_charlie_can_not_ask_the_model_of_the_demo(platform, demo):
    key = platform.create_user("charlie")["api_key"]
    body = {"model": demo["service"], "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": f"Bearer {key}"}
    answer = requests.post(f"{platform.origin}/openai/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Browser, platform: Platform, demo: dict[str, Any]) -> Iterator[Page]:
    """Signed in as the demo's user; at the end the browser must have complained of nothing."""
    context = chromium.new_context(base_url=platform.origin, locale="en-US", viewport={"width": 1280, "height": 860})
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto("/")
    page.get_by_label("User name").fill("demo")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    yield page
    context.close()
    assert troubles == []


def take(page: Page, name: str, tmp_path: Path) -> None:
    """A picture, into the documentation when asked for."""
    folder = Path(os.environ.get("CLAVIER_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(folder / f"{name}.png"))
    assert (folder / f"{name}.png").stat().st_size > 10_000


@in_chromium
def test_the_dashboard_shows_what_the_demo_made(tab: Page, demo: dict[str, Any], tmp_path: Path):
    expect(tab.get_by_text("demo-tuned").first).to_be_visible()
    expect(tab.get_by_text("Completed").first).to_be_visible()
    take(tab, "dashboard", tmp_path)


@in_chromium
def test_a_task_shows_its_curve_and_log(tab: Page, demo: dict[str, Any], tmp_path: Path):
    tab.goto("/tasks")
    tab.get_by_role("link", name="demo-tuned").first.click()
    expect(tab.locator("#chart path.train")).to_have_attribute("d", re.compile("^M.+L"))
    expect(tab.locator(".log")).to_contain_text("step 380/380")
    take(tab, "task", tmp_path)


@in_chromium
def test_the_chat_answers_through_the_gateway_as_the_model_was_judged(tab: Page, demo: dict[str, Any], tmp_path: Path):
    tab.goto("/services")
    tab.get_by_role("link", name=demo["service"]).first.click()
    tab.get_by_role("link", name="Chat").first.click()
    asked = demo["questions"][0]
    tab.get_by_label("Question", exact=True).fill(asked["question"])
    tab.keyboard.press("Enter")
    expect(tab.locator(".turn.assistant")).to_have_text(asked["tuned"], timeout=20_000)
    expect(tab.locator(".meter")).to_contain_text("tokens")
    take(tab, "chat", tmp_path)
