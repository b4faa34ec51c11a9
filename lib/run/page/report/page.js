// Figures enlarge on a click, Enter or space, arrow keys go to the next one, Escape closes. Code opens all at once.
const large = document.getElementById("large"), shown = large.querySelector("img");
const figures = [...document.querySelectorAll(".zoom img")];
let at = 0;

const show = (number) => {
  at = (number + figures.length) % figures.length;
  shown.src = figures[at].src;
  shown.alt = figures[at].alt;
};
figures.forEach((figure, number) => figure.parentElement.addEventListener("click", () => { show(number); large.showModal(); }));
large.addEventListener("click", () => large.close());
large.addEventListener("close", () => figures[at].parentElement.focus());
large.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) show(at + step);
});

const button = document.getElementById("code");
button.addEventListener("click", () => {
  const open = button.textContent.startsWith("Show");
  document.querySelectorAll("details.code").forEach((code) => { code.open = open; });
  button.textContent = open ? "Hide all code" : "Show all code";
});
