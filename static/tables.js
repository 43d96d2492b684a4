// A table wider than the screen scrolls in a box of its own, which the keyboard reaches only while
// it has something to scroll.
function letKeysScroll() {
  for (const box of document.querySelectorAll(".table-scroll:not([role=region])")) {
    const hides = box.scrollWidth > box.clientWidth;
    if (!hides) {
      for (const name of ["tabindex", "role", "aria-labelledby"]) box.removeAttribute(name);
      continue;
    }
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    const title = box.closest("[aria-labelledby]");
    if (title) box.setAttribute("aria-labelledby", title.getAttribute("aria-labelledby"));
  }
}

letKeysScroll();
addEventListener("resize", letKeysScroll);
document.addEventListener("toggle", letKeysScroll, true); // details that were folded away
document.addEventListener("htmx:afterSettle", letKeysScroll);
