// The live log: read on by byte offset, follow the end, pause, filter by level, search with highlight.
const TAIL_BYTES = 200 * 1024;
const MOST_LINES = 5000;
const POLL_MS = 1500;

for (const root of document.querySelectorAll("[data-log]")) startLog(root);

function startLog(root) {
  const view = root.querySelector(".log");
  const controls = {
    search: root.querySelector('input[type="search"]'),
    level: root.querySelector("select"),
    pause: root.querySelector("[data-pause]"),
    status: root.querySelector("[data-status]"),
  };
  const state = { offset: -TAIL_BYTES, lines: [], paused: false };
  const redraw = () => { view.replaceChildren(...state.lines.map((line) => drawn(line, controls))); follow(view, state); };
  controls.search.addEventListener("input", redraw);
  controls.level.addEventListener("change", redraw);
  controls.pause.addEventListener("click", () => {
    state.paused = !state.paused;
    controls.pause.setAttribute("aria-pressed", state.paused);
    controls.pause.textContent = state.paused ? controls.pause.dataset.resume : controls.pause.dataset.pause;
    if (!state.paused) redraw();
  });
  poll(root, view, controls, state);
}

async function poll(root, view, controls, state) {
  let more = false;
  try {
    const answer = await fetch(`${root.dataset.log}?offset=${state.offset}&rank=${root.dataset.rank}`);
    if (answer.ok) {
      const before = state.offset;
      state.offset = Number(answer.headers.get("X-Next-Offset"));
      more = state.offset < Number(answer.headers.get("X-Size")) && state.offset !== before;
      append(await answer.text(), view, controls, state);
    }
    controls.status.textContent = answer.ok ? "" : root.dataset.lost;
  } catch {
    controls.status.textContent = root.dataset.lost;
  }
  if (more) poll(root, view, controls, state);
  else if (root.dataset.live === "yes" && root.isConnected) setTimeout(() => poll(root, view, controls, state), POLL_MS);
}

function append(text, view, controls, state) {
  // A progress bar rewrites its line: only what it ended as is shown.
  const fresh = text.split("\n").slice(0, -1).map((line) => line.slice(line.lastIndexOf("\r", line.length - 2) + 1));
  state.lines = state.lines.concat(fresh).slice(-MOST_LINES);
  if (state.paused || !fresh.length) return;
  view.append(...fresh.map((line) => drawn(line, controls)));
  while (view.childElementCount > MOST_LINES) view.firstElementChild.remove();
  follow(view, state);
}

function drawn(line, controls) {
  const row = document.createElement("div");
  const level = levelOf(line);
  const wanted = controls.search.value.toLowerCase();
  row.className = level;
  row.hidden = (controls.level.value && level !== controls.level.value)
    || (wanted && !line.toLowerCase().includes(wanted));
  mark(row, line || " ", wanted);
  return row;
}

function levelOf(line) {
  // llama.cpp marks its lines after the time: "0.00.009.803 W load: ...".
  const mark = /^[\d.]+ ([WE]) /.exec(line);
  if (mark) return mark[1] === "E" ? "ERROR" : "WARN";
  if (/\b(ERROR|CRITICAL|Traceback)\b/.test(line)) return "ERROR";
  return /\bWARN(ING)?\b/.test(line) ? "WARN" : "INFO";
}

function mark(row, line, wanted) {
  let rest = line;
  let at = wanted ? rest.toLowerCase().indexOf(wanted) : -1;
  while (at >= 0) {
    const found = document.createElement("mark");
    found.textContent = rest.slice(at, at + wanted.length);
    row.append(rest.slice(0, at), found);
    rest = rest.slice(at + wanted.length);
    at = rest.toLowerCase().indexOf(wanted);
  }
  row.append(rest);
}

function follow(view, state) {
  if (!state.paused) view.scrollTop = view.scrollHeight;
}
