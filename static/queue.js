// A lead's list and comparison: ticks, keys, and filters that stay in the address.
// Without this file the pages are ordinary forms and links, and work all the same.
const GUARD_MS = 250; // after a comparison appears, so that a double press decides no unread one
const shownAt = performance.now();
document.documentElement.classList.add("js");

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-tick-all]")) return;
  const boxes = event.target.closest("form").querySelectorAll('input[name="comparisons"]');
  for (const box of boxes) box.checked = event.target.checked;
});

// htmx keeps no history here (its copies of pages would hold answers), so the address is ours to set.
document.addEventListener("htmx:afterSwap", (event) => {
  if (!event.detail.requestConfig?.elt.matches("[data-in-address]")) return;
  const query = document.querySelector("[data-query]")?.dataset.query;
  window.history.replaceState(null, "", query ? `?${query}` : location.pathname);
});

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const target = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (!target) return;
  event.preventDefault();
  if (target.matches("input")) target.focus();
  else if (performance.now() - shownAt > GUARD_MS) target.click();
});
