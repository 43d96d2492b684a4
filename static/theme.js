// Runs before the page is drawn. Light or dark: the system's choice until a person presses the
// button; then theirs, kept here.
const chosenTheme = localStorage.getItem("theme");
document.documentElement.classList.add("js");
if (chosenTheme) document.documentElement.dataset.theme = chosenTheme;

document.addEventListener("click", (event) => {
  if (!event.target.closest("[data-theme-toggle]")) return;
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : systemDark;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  document.dispatchEvent(new Event("themechange")); // charts redraw in the new colours
});
