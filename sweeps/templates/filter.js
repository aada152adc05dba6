"use strict";
// Shows the answers of one condition, question and range of a score. Text is only ever set as text.
const answers = [...document.querySelectorAll("details[data-condition]")];
const shown = document.querySelector("#shown");
const choices = [...document.querySelectorAll("select[data-of]")];
const limit = document.querySelector("#below");
function choose() {
  const below = limit.value === "" ? Infinity : Number(limit.value);
  let count = 0;
  for (const answer of answers) {
    const fits = choices.every((c) => c.value === "" || answer.dataset[c.dataset.of] === c.value);
    const score = answer.dataset.aligned === "" ? NaN : Number(answer.dataset.aligned);
    answer.hidden = !(fits && (below === Infinity || score < below));
    count += !answer.hidden;
  }
  shown.textContent = `${count} of ${answers.length} shown`;
}
for (const choice of choices) {
  for (const value of new Set(answers.map((answer) => answer.dataset[choice.dataset.of]))) {
    const option = document.createElement("option");
    option.value = option.textContent = value;
    choice.append(option);
  }
  choice.addEventListener("change", choose);
}
limit.addEventListener("input", choose);
document.querySelector("#filter").hidden = false;
choose();
