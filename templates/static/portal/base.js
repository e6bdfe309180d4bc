// On every page: destructive forms ask first, "copy" buttons copy, a sent form is not sent twice.
const dialog = document.getElementById("confirm");

async function confirmed(question) {
  dialog.querySelector("p").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue === "yes";
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  if (form.dataset.confirm && !form.dataset.isConfirmed) {
    event.preventDefault();
    if (await confirmed(form.dataset.confirm)) {
      form.dataset.isConfirmed = "yes";
      form.requestSubmit(event.submitter);
    }
    return;
  }
  if (form.method === "post" && !("upload" in form.dataset)) form.dataset.sent = "yes";
});

// A page that the browser brings back from its memory may send its forms again.
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    delete form.dataset.isConfirmed;
  }
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
  const before = button.textContent;
  button.textContent = button.dataset.done;
  setTimeout(() => { button.textContent = before; }, 1500);
});

// On a small screen the sections are one line that scrolls.
document.querySelector(".side nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

document.addEventListener("change", (event) => {
  if ("autosubmit" in event.target.dataset) event.target.form.requestSubmit();
});
