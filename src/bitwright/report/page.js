// The label of the mark under the pointer, or of the one that was tapped; or what a term means.
const tip = document.getElementById("tip");
function show(event) {
  const mark = event.target.closest && event.target.closest("svg [role=graphics-symbol][aria-label], [data-tip]");
  if (!mark || /axis|title|legend/.test(mark.getAttribute("aria-roledescription") || "")) { tip.hidden = true; return; }
  tip.textContent = mark.dataset.tip || mark.getAttribute("aria-label");
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 4)) + "px";
  tip.style.top = Math.max(4, event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 16) + "px";
}
addEventListener("focusin", (event) => {
  const term = event.target.closest && event.target.closest("[data-tip]");
  if (!term) { return; }
  const box = term.getBoundingClientRect();
  show({ target: term, clientX: box.left, clientY: box.bottom - 8 });
});
addEventListener("focusout", () => { tip.hidden = true; });
addEventListener("pointermove", show);
addEventListener("pointerdown", show);
addEventListener("scroll", () => { tip.hidden = true; }, true);
// A folded table would be lost on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
