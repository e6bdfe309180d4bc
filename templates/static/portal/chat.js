// The chat: one question to one, two or three services; each answer streams into its own pane.
const root = document.getElementById("chat");
const form = document.getElementById("ask");
const stopButton = document.getElementById("stop");
const panes = [...document.querySelectorAll(".pane")].map((node) => ({ node, turns: node.querySelector(".turns"), messages: [] }));
let aborter = null;

function csrfToken() {
  return document.cookie.split("; ").find((part) => part.startsWith("csrftoken="))?.slice("csrftoken=".length) ?? "";
}

function say(pane, role, text) {
  const node = document.createElement("div");
  node.className = `turn ${role}`;
  node.textContent = text;
  pane.turns.append(node);
  pane.turns.scrollTop = pane.turns.scrollHeight;
  return node;
}

function body(pane) {
  const system = form.elements.system.value.trim();
  return {
    model: pane.node.dataset.service,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...pane.messages],
    temperature: Number(form.elements.temperature.value),
    max_tokens: Number(form.elements.max_tokens.value),
    stream: true,
    stream_options: { include_usage: true },
  };
}

async function* serverEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function refusal(response) {
  const answer = await response.json().catch(() => ({}));
  return inWords(answer.error, `${response.status} ${response.statusText}`);
}

function inWords(error, otherwise) {
  // llama.cpp names the limit, vLLM only writes it into its message.
  const limit = error?.n_ctx ?? /maximum context length is (\d+)/.exec(error?.message)?.[1];
  return limit ? root.dataset.tooLong.replace("%", limit) : error?.message || otherwise;
}

async function ask(pane, question, signal) {
  say(pane, "user", question);
  pane.messages.push({ role: "user", content: question });
  const started = performance.now();
  const bubble = say(pane, "assistant", "");
  const meter = say(pane, "", "");
  meter.className = "meter";
  const told = { text: "", tokens: 0, first: null, isCut: false };
  try {
    const response = await fetch(root.dataset.url, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": csrfToken() },
      body: JSON.stringify(body(pane)),
      signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    for await (const event of serverEvents(response.body)) listen(event, told, started, bubble, meter, pane);
  } catch (error) {
    if (error.name === "AbortError") meter.textContent += ` · ${root.dataset.stopped}`;
    else fail(bubble, meter, told, error);
  }
  if (told.text) pane.messages.push({ role: "assistant", content: told.text });
  else pane.messages.pop();
}

function listen(event, told, started, bubble, meter, pane) {
  if (event.error) throw new Error(inWords(event.error, root.dataset.failed));
  const piece = event.choices?.[0]?.delta?.content ?? "";
  if (piece) {
    told.first ??= performance.now();
    told.tokens += 1;
    told.text += piece;
    bubble.textContent = told.text;
  }
  told.isCut ||= event.choices?.[0]?.finish_reason === "length";
  // The server's own count, once it is there, is exact: a piece may hold several tokens.
  if (event.usage) told.tokens = event.usage.completion_tokens;
  meter.textContent = measured(told, started);
  pane.turns.scrollTop = pane.turns.scrollHeight;
}

function measured(told, started) {
  const now = performance.now();
  const first = told.first ?? now;
  const rate = told.tokens > 1 && now > first ? ` · ${((1000 * (told.tokens - 1)) / (now - first)).toFixed(1)} tokens/s` : "";
  return `${told.tokens} tokens · ${((now - started) / 1000).toFixed(2)} s${rate}${told.isCut ? ` · ${root.dataset.cut}` : ""}`;
}

function fail(bubble, meter, told, error) {
  if (!told.text) bubble.remove();
  meter.className = "turn failed";
  meter.textContent = error instanceof TypeError ? root.dataset.failed : error.message;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = form.elements.question.value.trim();
  if (!question || aborter) return;
  form.elements.question.value = "";
  aborter = new AbortController();
  stopButton.hidden = false;
  await Promise.all(panes.map((pane) => ask(pane, question, aborter.signal)));
  aborter = null;
  stopButton.hidden = true;
  form.elements.question.focus();
});

form.elements.question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

stopButton.addEventListener("click", () => aborter?.abort());

document.getElementById("clear").addEventListener("click", () => {
  aborter?.abort();
  for (const pane of panes) {
    pane.messages = [];
    pane.turns.replaceChildren();
  }
});

for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    form.elements.question.value = chip.dataset.question;
    form.requestSubmit();
  });
}
