// Upload forms: files can be dropped, and the progress is shown. Without this script the form is sent as it is.
function bindDrop(form) {
  const zone = form.querySelector(".drop");
  const input = zone.querySelector('input[type="file"]');
  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.add("over"); });
  }
  for (const kind of ["dragleave", "drop"]) {
    zone.addEventListener(kind, () => zone.classList.remove("over"));
  }
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
  input.addEventListener("change", () => proposeName(form, input));
}

function proposeName(form, input) {
  const name = form.elements.name;
  if (name && !name.value && input.files.length) {
    name.value = input.files[0].name.replace(/\.[^.]*$/, "").slice(0, 100);
  }
}

function send(form) {
  const bar = form.querySelector("progress");
  const label = form.querySelector("[data-progress]");
  const request = new XMLHttpRequest();
  const ended = () => { bar.hidden = true; form.querySelector('[type="submit"]').disabled = false; };
  request.open("POST", form.action);
  request.upload.addEventListener("progress", (event) => {
    if (!event.lengthComputable) return;
    const share = event.loaded / event.total;
    bar.value = share;
    label.textContent = share < 1 ? `${Math.round(100 * share)} %` : form.dataset.checking;
  });
  request.addEventListener("load", () => show(request));
  request.addEventListener("error", () => { ended(); label.textContent = form.dataset.failed; });
  bar.hidden = false;
  bar.value = 0;
  form.querySelector('[type="submit"]').disabled = true;
  request.send(new FormData(form));
}

// Accepted: the server has sent us on to another page. Refused: this page again, with what was wrong.
function show(request) {
  if (request.status < 400) {
    window.location.assign(request.responseURL);
    return;
  }
  const answer = new DOMParser().parseFromString(request.responseText, "text/html");
  const main = document.querySelector("main");
  main.replaceWith(document.adoptNode(answer.querySelector("main") || answer.body));
  bindAll();
  window.scrollTo(0, 0);
}

function bindAll() {
  for (const form of document.querySelectorAll("form[data-upload]")) {
    bindDrop(form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send(form);
    });
  }
}

bindAll();
