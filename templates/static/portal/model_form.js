// The form of a new model: a preset fills it in for the chosen hub.
const form = document.getElementById("model-form");
let preset = null;

function fill() {
  if (!preset) return;
  form.elements.name.value = preset.dataset.name;
  form.elements.location.value = preset.dataset[form.elements.source.value] || "";
}

for (const button of document.querySelectorAll("[data-preset]")) {
  button.addEventListener("click", () => {
    preset = button;
    if (!["huggingface", "modelscope"].includes(form.elements.source.value)) form.elements.source.value = "huggingface";
    for (const other of document.querySelectorAll("[data-preset]")) other.setAttribute("aria-pressed", other === button);
    fill();
    showSource();
    form.elements.name.focus();
  });
}

// Only what the chosen source needs is shown.
function showSource() {
  for (const part of form.querySelectorAll("[data-sources]"))
    part.hidden = !part.dataset.sources.split(" ").includes(form.elements.source.value);
}

form.elements.source.addEventListener("change", () => {
  fill();
  showSource();
});
showSource();
