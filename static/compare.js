// The labeling page: keys, time on task, and an answer that is never lost without a word.
// Without this file the page is an ordinary form and works all the same.
const GUARD_MS = 250; // after a new pair appears, so that a double press cannot vote on an unread one
let shownAt = 0;
let visibleMs = 0;
let visibleSince = null;

function cardAppeared() {
  shownAt = performance.now();
  visibleMs = 0;
  visibleSince = document.hidden ? null : shownAt;
}

function secondsOnTask() {
  const running = visibleSince === null ? 0 : performance.now() - visibleSince;
  return (visibleMs + running) / 1000;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && visibleSince !== null) {
    visibleMs += performance.now() - visibleSince;
    visibleSince = null;
  } else if (!document.hidden) {
    visibleSince = performance.now();
  }
});

document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, textarea, select");
  if (field) {
    if (event.key === "Escape") field.blur();
    if (event.key === "Enter" && field.id === "reason") {
      event.preventDefault(); // Enter must not press the first answer button
      field.blur();
    }
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase();
  const target = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!target || target.disabled) return;
  event.preventDefault();
  if (target.matches("input")) target.focus();
  else target.click();
});

// Both for keys and for the mouse: an answer within the guard is not sent.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-dialog]");
  if (button) document.getElementById(button.dataset.dialog).showModal();
  const answer = event.target.closest(".desk-vote button");
  if (answer && performance.now() - shownAt < GUARD_MS) {
    event.preventDefault();
    event.stopImmediatePropagation();
  }
}, true);

document.addEventListener("htmx:configRequest", (event) => {
  // Signing in again, in another tab, made the token in this page an old one; the cookie has the new.
  const token = document.cookie.match(/(?:^|; )csrftoken=([^;]+)/);
  if (token) event.detail.parameters["csrfmiddlewaretoken"] = token[1];
  if ("seconds" in event.detail.parameters) {
    event.detail.parameters["seconds"] = secondsOnTask().toFixed(2);
  }
});

document.addEventListener("htmx:afterSwap", (event) => {
  if (!document.querySelector("[data-compare]")) return;
  cardAppeared();
  window.scrollTo(0, 0);
  document.getElementById("content").focus({ preventScroll: true });
});

function notKept(why) {
  const notice = document.getElementById("notice");
  const line = document.createElement("p");
  line.className = "note bad";
  line.textContent = why;
  notice.replaceChildren(line);
}

document.addEventListener("htmx:sendError", () =>
  notKept("No connection to the server: your answer was not kept. It stays here; press it again."));
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 403) {
    notKept("You are signed out, or your role has changed: your answer was not kept, and stays here.");
    const link = document.createElement("a");
    link.href = "/accounts/login/";
    link.target = "_blank";
    link.textContent = " Sign in again in a new tab, then press it again.";
    document.querySelector("#notice .note").append(link);
  } else {
    notKept(`The server could not keep your answer (${event.detail.xhr.status}). Press it again.`);
  }
});

document.documentElement.classList.add("js");
cardAppeared();
