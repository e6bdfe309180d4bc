// The form of a new task: shows what fits the recipe and method, fills in a complexity, sums up before the start.
const form = document.getElementById("task-form");
const complexities = JSON.parse(form.dataset.complexities);
const kinds = JSON.parse(form.dataset.kinds);
const methods = JSON.parse(form.dataset.methods);
const summary = document.getElementById("summary");
const plan = document.getElementById("plan");

function valueOf(name) {
  return form.elements[name].value;
}

function fitMethod() {
  const fitting = methods[valueOf("recipe")];
  for (const option of form.elements.method.options) option.disabled = !fitting.includes(option.value);
  if (!fitting.includes(valueOf("method"))) form.elements.method.value = fitting.includes("lora") ? "lora" : "full";
  form.elements.base_model.required = valueOf("recipe") !== "pretrain";
  showField("reward_model", valueOf("recipe") === "rl");
  showField("tokenizer", valueOf("recipe") === "pretrain");
  showField("validation_dataset", valueOf("recipe") !== "rl");
}

function showField(name, isShown) {
  form.elements[name].closest(".field").hidden = !isShown;
  if (!isShown) form.elements[name].value = "";
}

function fitKnobs() {
  const takes = (words, word) => !words || words.split(" ").includes(word);
  for (const control of form.querySelectorAll("[data-recipes]")) {
    const { recipes, methods: ways, beside, values } = control.dataset;
    const fits = takes(recipes, valueOf("recipe")) && takes(ways, valueOf("method"));
    control.closest(".field").hidden = !fits || Boolean(beside && !takes(values, valueOf(beside)));
    for (const option of control.options || []) {
      option.hidden = option.disabled = !takes(option.dataset.takers, valueOf("recipe"));
      if (option.disabled && option.selected) control.selectedIndex = 0;
    }
  }
}

function fitData() {
  const fitting = kinds[valueOf("recipe")];
  for (const select of [form.elements.train_dataset, form.elements.validation_dataset]) {
    for (const option of select.options) {
      const fits = !option.value || fitting.includes(option.dataset.kind);
      option.hidden = option.disabled = !fits;
      if (!fits && option.selected) select.value = "";
    }
    select.closest(".field").querySelector("[data-none]").hidden =
      [...select.options].some((option) => option.value && !option.disabled);
  }
}

function choose(button) {
  for (const [name, value] of Object.entries(complexities[button.value])) form.elements[name].value = value;
  for (const other of form.querySelectorAll("[data-complexity]")) other.setAttribute("aria-pressed", other === button);
  sumUp();
}

function steps() {
  const chosen = form.elements.train_dataset.selectedOptions[0];
  const samples = Number(chosen && chosen.dataset.samples);
  const batch = valueOf("per_device_train_batch_size") * valueOf("gradient_accumulation_steps");
  if (Number(valueOf("max_steps")) > 0) return Number(valueOf("max_steps"));
  // Packed text has another length than its rows: only the trainer knows how many sequences it makes.
  if (!samples || !batch || valueOf("recipe") === "pretrain") return null;
  const count = Math.ceil(Math.ceil(samples / batch) * valueOf("num_train_epochs"));
  return count > 0 ? count : null;
}

function sumUp() {
  summary.replaceChildren();
  for (const control of form.querySelectorAll("[data-summary] input, [data-summary] select")) {
    if (control.closest("[hidden]") || control.type === "hidden" || !control.value) continue;
    const isKnob = "recipes" in control.dataset;
    const isChanged = control.options
      ? ![...control.options].find((option) => option.defaultSelected && option.selected)
      : control.value !== control.defaultValue;
    if (isKnob && control.closest("details") && !isChanged) continue;
    const name = document.createElement("dt");
    const value = document.createElement("dd");
    name.textContent = control.labels[0].firstChild.textContent.trim();
    value.textContent = control.options ? control.selectedOptions[0].textContent : control.value;
    summary.append(name, value);
  }
  const count = steps();
  plan.hidden = count === null;
  if (count !== null) plan.textContent = plan.dataset.text.replace("%", count.toLocaleString("en"));
}

function fit() {
  fitMethod();
  fitKnobs();
  fitData();
  sumUp();
}

form.addEventListener("change", fit);
form.addEventListener("input", sumUp);
for (const button of form.querySelectorAll("[data-complexity]")) {
  button.addEventListener("click", () => choose(button));
}
fit();
