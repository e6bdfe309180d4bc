"""The portal in headless Chromium: sign-in, dashboard, a task with its curve and log, the chat, the confirmation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright

from tests.portal.conftest import _plain, begin, lines, node, world  # noqa: F401  (fixtures)

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
ANSWER = ["It ", "is ", "0."]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests."""
    with sync_playwright() as playwright, pytest.MonkeyPatch.context() as environment:
        # Playwright runs an event loop in this thread, in which Django would refuse the database.
        environment.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Browser, live_server: Any) -> Iterator[Page]:
    """A fresh browser profile; at the end nothing may have been blocked by the content policy or have failed."""
    context = chromium.new_context(base_url=live_server.url, locale="en-US")
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    yield page
    context.close()
    # A refused form is an answer, not a failure; the browser calls every 400 an error.
    assert [trouble for trouble in troubles if "status of 400" not in trouble] == []


def sign_in(tab: Page, path: str = "/") -> None:
    """As a person does; the sign-in leads on to the page that was asked for."""
    tab.goto(path)
    tab.get_by_label("User name").fill("alice")
    tab.get_by_label("Password").fill("alice-secret-1")
    tab.get_by_role("button", name="Sign in").click()
    expect(tab.get_by_text("Sign out")).to_be_visible()


def test_alice_signs_in_and_sees_the_dashboard(tab, world):  # noqa: F811
    sign_in(tab)
    expect(tab.get_by_role("heading", name="Welcome, alice")).to_be_visible()
    expect(tab.get_by_role("link", name="tune-live")).to_be_visible()
    tab.get_by_role("button", name="简体中文").click()
    expect(tab.get_by_role("heading", name="欢迎, alice")).to_be_visible()


def test_a_task_draws_its_curve_and_follows_its_log(tab, world):  # noqa: F811
    sign_in(tab, f"/tasks/{world.live.pk}")
    expect(tab.locator("#chart path.train")).to_have_attribute("d", re.compile("^M.+L"))
    expect(tab.locator("#chart circle.eval")).to_have_count(1)
    tab.locator("#chart svg").hover()
    expect(tab.locator("#chart output")).to_contain_text("Training loss")
    log = tab.locator(".log")
    expect(log.locator("div")).to_have_count(3)
    from clavier.runs.outputs import run_folder

    with open(run_folder(world.live.run_id) / "log.txt", "a", encoding="utf-8") as stream:
        stream.write("ERROR the disk is full\n")
    expect(log.locator("div.ERROR")).to_have_text("ERROR the disk is full")
    tab.get_by_label("Search the log").fill("DISK")
    expect(log.locator("mark")).to_have_text("disk")
    expect(log.locator("div:visible")).to_have_count(1)


def test_a_destructive_action_asks_first(tab, world):  # noqa: F811
    sign_in(tab, f"/tasks/{world.live.pk}")
    tab.get_by_role("button", name="Stop").click()
    expect(tab.get_by_role("dialog")).to_contain_text("Stop the task tune-live?")
    tab.get_by_role("button", name="Cancel").click()
    expect(tab.locator("#status .badge")).to_have_text("Running")
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_role("button", name="Yes, go on").click()
    expect(tab.locator("#status .badge")).to_have_text("Stopping")


def test_the_task_form_fills_in_a_complexity_and_sums_up(tab, world):  # noqa: F811
    sign_in(tab, "/tasks/new")
    tab.get_by_label("Training data").select_option(str(world.data.pk))
    tab.get_by_role("button", name="Complex", exact=True).click()
    expect(tab.locator('[name="lora_r"]')).to_have_value("64")
    expect(tab.locator("#plan")).to_have_text("That makes about 5 optimizer steps.")
    tab.get_by_label("Passes over the data").fill("many")
    expect(tab.locator("#plan")).to_be_hidden()
    tab.get_by_label("Passes over the data").fill("3")
    tab.get_by_label("Method").select_option("full")
    expect(tab.locator('[name="lora_r"]')).to_be_hidden()
    tab.get_by_label("Task name").fill("from-browser")
    tab.get_by_label("Base model").select_option(str(world.base.pk))
    tab.get_by_role("button", name="Start training").click()
    expect(tab.get_by_role("heading", name="from-browser")).to_be_visible()


def test_the_chat_streams_an_answer(tab, world):  # noqa: F811
    asked: list[Request] = []

    def answer(route: Route) -> None:
        asked.append(route.request)
        pieces = [{"choices": [{"delta": {"content": piece}}]} for piece in ANSWER]
        events = [*pieces, {"choices": [], "usage": {"completion_tokens": 4}}]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    tab.route("**/openai/v1/chat/completions", answer)
    sign_in(tab, f"/services/{world.service.pk}/chat")
    tab.get_by_role("button", name="How many is 0?").click()
    expect(tab.locator(".turn.assistant")).to_have_text("It is 0.")
    expect(tab.locator(".meter")).to_contain_text("4 tokens")
    tab.get_by_label("Question", exact=True).fill("And 1?")
    tab.keyboard.press("Enter")
    expect(tab.locator(".turn.user")).to_have_count(2)
    expect(tab.locator(".turn.assistant")).to_have_count(2)
    sent = asked[-1].post_data_json
    assert sent["model"] == "faq-bot"
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    cookies = {cookie["name"]: cookie["value"] for cookie in tab.context.cookies()}
    assert asked[-1].headers["x-csrftoken"] == cookies["csrftoken"]


def test_the_chat_says_in_words_that_a_conversation_is_too_long_and_that_an_answer_is_cut(tab, world):  # noqa: F811
    too_long = {"message": "request (3311 tokens) exceeds the available context size", "n_ctx": 256}
    cut = {"choices": [{"delta": {"content": "It"}, "finish_reason": "length"}]}
    answers = [
        {"status": 400, "json": {"error": too_long}},
        {"status": 400, "json": {"error": {"message": "This model's maximum context length is 512 tokens. However"}}},
        {"status": 503, "json": {"error": {"message": "The service 'faq-bot' is STOPPED."}}},
        {"status": 200, "body": f"data: {json.dumps(cut)}\n\n"},
    ]
    # 503 would count as a failure of the page: the answers come from this list, not from the network.
    tab.add_init_script(
        "const answers = "
        + json.dumps(answers)
        + """;
        const real = window.fetch;
        window.fetch = async (url, options) => {
          if (!String(url).includes("/completions")) return real(url, options);
          const { status, json, body } = answers.shift();
          return new Response(body ?? JSON.stringify(json), { status });
        };"""
    )
    sign_in(tab, f"/services/{world.service.pk}/chat")
    failed = tab.locator(".turn.failed")
    for number, words in enumerate(("longer than the 256 tokens", "longer than the 512 tokens", "is STOPPED.")):
        tab.get_by_label("Question", exact=True).fill("And now?")
        tab.keyboard.press("Enter")
        expect(failed.nth(number)).to_contain_text(words)
    tab.get_by_label("Question", exact=True).fill("And now?")
    tab.keyboard.press("Enter")
    expect(tab.locator(".turn.assistant")).to_have_text("It")
    expect(tab.locator(".meter")).to_contain_text("cut off")


def test_a_file_is_uploaded_with_its_findings_beside_it(tab, world, tmp_path):  # noqa: F811
    bad = tmp_path / "broken.jsonl"
    bad.write_text(lines([{"question": "a?", "answer": "b"}]) + "not json\n")
    sign_in(tab, "/datasets/new")
    tab.set_input_files("input[type=file]", str(bad))
    expect(tab.get_by_label("Name")).to_have_value("broken")
    with tab.expect_response("**/datasets/new") as refused:
        tab.get_by_role("button", name="Upload").click()
    assert refused.value.status == 400
    expect(tab.get_by_role("alert")).to_contain_text("line 2")
    good = tmp_path / "good.jsonl"
    good.write_text(lines([{"question": "a?", "answer": "b"}]))
    tab.set_input_files("input[type=file]", str(good))
    tab.get_by_role("button", name="Upload").click()
    expect(tab.get_by_role("heading", name="broken")).to_be_visible()


def test_the_form_of_a_task_shows_what_the_recipe_takes(tab, world):  # noqa: F811
    sign_in(tab, "/tasks/new")
    recipe, method = tab.get_by_label("What to train"), tab.get_by_label("Method")
    shown = {name: tab.locator(f"[name={name}]") for name in ("loss_type", "algorithm", "reward_model", "lora_r")}
    recipe.select_option("preference")
    method.select_option("qlora")
    for name, is_visible in (("loss_type", True), ("algorithm", False), ("reward_model", False), ("lora_r", True)):
        expect(shown[name]).to_be_visible(visible=is_visible)
    expect(tab.locator("[name=quantization_bits]")).to_be_visible()
    recipe.select_option("rl")
    expect(method).to_have_value("lora")
    for name, is_visible in (("loss_type", False), ("algorithm", True), ("reward_model", True), ("lora_r", True)):
        expect(shown[name]).to_be_visible(visible=is_visible)
    expect(tab.locator("[name=validation_dataset]")).to_be_hidden()
    recipe.select_option("pretrain")
    expect(method).to_have_value("full")
    expect(shown["lora_r"]).to_be_hidden()
