// The labeling page: keys, pairs loaded ahead, and answers that are sent in the background.
// Without this file the page is an ordinary form and works all the same.
//
// #cards holds the pairs that are not answered yet, the first one shown. An answer takes its card
// out at once and goes into `outbox`, which is sent in order, one at a time. What is in it is also
// in sessionStorage, so a reload loses nothing; its answer key makes the server keep it once.
const desk = document.getElementById("desk");
const cards = document.getElementById("cards");
const fetching = document.getElementById("fetching");
const say = desk.dataset;
const GUARD_MS = 250; // after a new pair appears, so that a double press cannot vote on an unread one
const LONG_AWAY_MS = 5 * 60_000; // then pairs may have gone back to the queue; also: a pause was made
const STORE = `outbox-${say.url}-${say.rater}`;

let shown = null; // the card in sight
let inSight = ""; // its assignment, or what stands in its place
let shownAt = 0;
let visibleMs = 0;
let visibleSince = null;
let outbox = JSON.parse(sessionStorage.getItem(STORE) || "[]");
let lastCard = null; // the card of the newest answer, for an undo before it was ever sent
const answered = []; // assignments answered in this page, the newest last
let sending = false;
let nSent = 0;
let retryTimer = null;
let nextLook = null;
let hiddenAt = 0;
let activeAt = performance.now();

// ---- What is in sight ----

const pairs = () => [...cards.querySelectorAll(":scope > .pair")];
const inShown = (selector) => (shown ? shown.querySelector(selector) : null);

function show() {
  const [first, ...ahead] = pairs();
  for (const card of ahead) card.hidden = true;
  const empty = cards.querySelector(":scope > [data-empty]");
  if (empty) empty.hidden = Boolean(first);
  fetching.hidden = Boolean(first || empty);
  if (!fetching.hidden) {
    fetching.textContent = outbox.some((entry) => entry.tries) ? say.sayWaiting : say.sayFetching;
  }
  const sight = first ? first.dataset.pair : empty ? "empty" : "fetching";
  if (sight === inSight && first === (shown || undefined)) return;
  inSight = sight;
  shown = first || null;
  if (first) {
    first.hidden = false;
    shownAt = performance.now();
    visibleMs = 0;
    visibleSince = document.hidden ? null : shownAt;
    const key = first.querySelector("[name=answer_key]");
    if (key && !key.value) key.value = newKey();
    foldPrompt(true);
    press("d", false);
    window.scrollTo(0, 0);
    document.dispatchEvent(new CustomEvent("pairshown", { detail: { card: first } }));
  }
  const heading = first ? first.querySelector("h2") : empty ? empty.querySelector("h2") : fetching;
  heading.focus({ preventScroll: true });
}

function newKey() {
  // Not crypto.randomUUID: a team's plain-HTTP network is no secure context.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");
}

function press(key, on) {
  const button = desk.querySelector(`.desk-bar [data-key="${key}"]`);
  if (button) button.setAttribute("aria-pressed", String(on));
}
const isPressed = (key) =>
  desk.querySelector(`.desk-bar [data-key="${key}"]`)?.getAttribute("aria-pressed") === "true";

function foldPrompt(folded) {
  const prompt = inShown(".desk-prompt");
  if (!prompt) return;
  prompt.classList.toggle("unfolded", !folded);
  press("p", !folded);
  const button = desk.querySelector('.desk-bar [data-key="p"]');
  if (folded) {
    button.disabled = prompt.scrollHeight <= prompt.clientHeight + 2;
    prompt.classList.toggle("cut", !button.disabled);
    // Of a conversation the end is what was asked.
    if (prompt.querySelector(".conversation")) prompt.scrollTop = prompt.scrollHeight;
  } else prompt.scrollTop = 0;
}

async function showDifference(on) {
  const card = shown;
  if (!card || !card.querySelector(".side-text")) return;
  if (on && !card.querySelector(".difference, [data-too-long]")) {
    try {
      const reply = await fetch(card.dataset.difference, { headers: { "HX-Request": "true" } });
      if (!reply.ok) throw new Error(reply.status);
      const columns = fragment(await reply.text());
      const tooLong = columns.querySelector("[data-too-long]");
      if (tooLong) card.querySelector(".desk-sides").before(tooLong);
      columns.querySelectorAll(".difference").forEach((column, i) => {
        card.querySelectorAll(".response")[i].append(column);
      });
    } catch {
      notice("difference", "warn", say.sayNoDifference);
      return;
    }
  }
  const has = Boolean(card.querySelector(".difference"));
  card.classList.toggle("differing", on && has);
  const tooLong = card.querySelector("[data-too-long]");
  if (tooLong) tooLong.hidden = !on;
  if (card === shown) press("d", on && has);
}

// Scrolled by the same share, so that both ends meet.
let scrolledBy = null;
document.addEventListener("scroll", (event) => {
  const from = event.target;
  if (!isPressed("l") || !from.matches?.(".desk-sides > .response")) return;
  if (scrolledBy === from) {
    scrolledBy = null;
    return;
  }
  for (const to of from.parentElement.querySelectorAll(".response")) {
    if (to === from) continue;
    const share = from.scrollTop / Math.max(1, from.scrollHeight - from.clientHeight);
    const top = Math.round(share * (to.scrollHeight - to.clientHeight));
    if (Math.abs(to.scrollTop - top) < 1) continue;
    scrolledBy = to; // its own scroll event is not to come back
    to.scrollTop = top;
  }
}, { capture: true, passive: true });

function secondsOnTask() {
  const running = visibleSince === null ? 0 : performance.now() - visibleSince;
  return (visibleMs + running) / 1000;
}

// ---- What the page says ----

function notice(name, kind, text, more) {
  let line = document.querySelector(`#notices [data-notice="${name}"]`);
  if (!line) {
    line = document.createElement("p");
    line.dataset.notice = name;
    document.getElementById("notices").append(line);
  }
  if (line.dataset.text === text) return; // said already: not to be read out again
  line.dataset.text = text;
  line.className = `note ${kind}`;
  line.textContent = text;
  if (more) line.append(" ", more);
  if (name === "unsent") return; // goes by itself, when everything is sent
  const close = document.createElement("button");
  close.type = "button";
  close.className = "dismiss";
  close.dataset.dismiss = "";
  close.setAttribute("aria-label", say.sayDismiss);
  close.textContent = "×";
  line.append(close);
}

function noNotice(name) {
  document.querySelector(`#notices [data-notice="${name}"]`)?.remove();
}

function sayHowMany(kept) {
  const sent = document.getElementById("sent");
  const waits = outbox.length > 0 && outbox[0].tries > 0;
  const text = waits ? say.sayUnsent.replace("#", outbox.length) : outbox.length ? say.saySaving : kept ? say.sayKept : "";
  sent.textContent = text;
  sent.classList.toggle("unsent", waits);
}

let nLost = 0;
function notKept(entry, why) {
  nLost += 1;
  const text = !entry.words ? why : `${say.sayNotKept} ${entry.words}${entry.about ? ` ${say.sayOn} “${entry.about}”` : ""}. ${why}`;
  notice(`lost-${nLost}`, "bad", text);
}

// ---- Sending ----

function store() {
  sessionStorage.setItem(STORE, JSON.stringify(outbox));
}

function put(entry) {
  outbox.push({ tries: 0, ...entry });
  store();
  sayHowMany();
  send();
}

function have() {
  // Without the one that is being sent: if it is refused and still ours, it comes again.
  const waiting = outbox.slice(1).map((entry) => entry.pair);
  return [...pairs().map((card) => card.dataset.pair), ...waiting].join(",");
}

const token = () => document.cookie.match(/(?:^|; )csrftoken=([^;]+)/)?.[1] || "";

async function send() {
  if (sending || !outbox.length) return;
  clearTimeout(retryTimer);
  sending = true;
  nSent += 1;
  const entry = outbox[0];
  const body = new URLSearchParams(entry.body);
  body.set("have", have());
  // Signing in again, in another tab, made the token in this page an old one; the cookie has the new.
  body.delete("csrfmiddlewaretoken");
  let reply = null;
  let text = "";
  try {
    reply = await fetch(entry.url, {
      method: "POST",
      body,
      headers: { "HX-Request": "true", "X-CSRFToken": token() },
      keepalive: entry.body.length < 50_000, // goes out even if the page is left now
      signal: AbortSignal.timeout(20_000),
    });
    text = await reply.text();
  } catch {
    reply = null;
  }
  sending = false;
  const status = reply ? reply.status : 0;
  if (status === 403 || status === 404) {
    entry.tries += 1;
    signedOut();
  } else if (status === 0 || status === 429 || status >= 500) {
    entry.tries += 1;
    const trouble = status && status !== 429 ? `${say.sayTrouble} (${status}). ` : "";
    notice("unsent", "warn", trouble + say.sayOffline, sendNow());
    retryTimer = setTimeout(send, Math.min(30, 2 ** Math.min(entry.tries - 1, 5)) * 1000);
  } else {
    outbox.shift();
    store();
    noNotice("unsent");
    if (status === 200 || status === 409) take(text, entry);
    else {
      notKept(entry, `${say.sayTrouble} (${status}).`);
      if (entry.waits) shown.remove();
      show();
    }
    sayHowMany(status === 200);
    send();
    return;
  }
  store();
  sayHowMany();
  show();
}

function sendNow() {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button small";
  button.textContent = say.saySend;
  button.addEventListener("click", send);
  return button;
}

function signedOut() {
  const link = document.createElement("a");
  link.href = say.signIn;
  link.target = "_blank";
  link.textContent = say.saySignIn;
  notice("unsent", "bad", say.saySignedOut, link);
}

function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

// The response to what was sent: what to say, and the cards that the page has not got.
function take(html, entry) {
  const news = fragment(html);
  const state = news.querySelector("[data-state]");
  if (!state) return; // a page of another kind: nothing in it is for us
  const { refused, today, back, graded } = state.dataset;
  const counter = document.querySelector("[data-today]:not([data-state])");
  counter.dataset.today = today ?? Number(counter.dataset.today) + 1;
  counter.textContent = Number(counter.dataset.today).toLocaleString(document.documentElement.lang);
  if (refused && entry) notKept(entry, refused);
  if (graded === "passed") notice("graded", "ok", say.sayGradedPassed);
  const held = state.dataset.held.split(",");
  const waiting = outbox.map((one) => one.pair);
  for (const card of pairs()) {
    if (card !== shown && !held.includes(card.dataset.pair)) card.remove();
  }
  cards.querySelectorAll(":scope > [data-empty]").forEach((section) => section.remove());
  const feedback = news.querySelector("[data-feedback]");
  for (const card of news.querySelectorAll(".pair")) {
    const here = pairs().some((one) => one.dataset.pair === card.dataset.pair);
    if (here || waiting.includes(card.dataset.pair)) continue;
    card.hidden = true;
    if (card.dataset.pair === back) {
      if (shown) shown.hidden = true;
      cards.prepend(card);
    } else cards.append(card);
  }
  const empty = news.querySelector("[data-empty]");
  if (empty) {
    cards.append(empty);
    // Nothing is held any more, perhaps because a lead paused us: what stands here is not ours.
    if (shown && !entry?.waits && !shown.querySelector("[data-feedback]")) shown.remove();
  }
  localTimes(cards);
  clearTimeout(nextLook);
  if (entry?.waits && entry.pair === shown?.dataset.pair) {
    if (feedback) {
      giveFeedback(feedback);
      return;
    }
    shown.remove();
  }
  if (!pairs().length && !outbox.length) nextLook = setTimeout(look, empty ? 60_000 : 1_000);
  show();
}

// In training the pair stays in sight beside its known answer.
function giveFeedback(feedback) {
  shown.querySelector("form").replaceWith(feedback);
  feedback.querySelector("h3").focus({ preventScroll: true });
}

// Ask what we hold and fetch what is missing, without an answer.
async function look() {
  if (sending || outbox.length) return;
  const was = shown?.dataset.pair;
  const before = nSent;
  try {
    const reply = await fetch(`${say.url}?have=${have()}`, { headers: { "HX-Request": "true" } });
    const html = await reply.text();
    if (!reply.ok || nSent !== before) return; // an answer's own response is newer
    const held = fragment(html).querySelector("[data-state]")?.dataset.held.split(",");
    // Somebody else has it now, or will: nothing is lost by not answering it.
    if (held && was && was === shown?.dataset.pair && !held.includes(was) && !shown.querySelector("[data-feedback]")) {
      shown.remove();
      shown = null;
      notice("passed-on", "info", say.sayPassedOn);
    }
    take(html, null);
  } catch {
    // The next answer meets the same trouble, and says so.
  }
}

// ---- Answering ----

function answer(form, button) {
  const card = form.closest(".pair");
  if (card !== shown || performance.now() - shownAt < GUARD_MS || form.dataset.sent) return;
  const fields = new FormData(form);
  if (button.name) fields.set(button.name, button.value);
  fields.set("seconds", secondsOnTask().toFixed(2));
  const waits = "feedbackFollows" in card.dataset && !button.hasAttribute("formaction");
  const prompt = card.querySelector(".desk-prompt .turn:last-child .prose, .desk-prompt .prose");
  const label = button.querySelector(".visually-hidden") || button;
  const entry = {
    pair: card.dataset.pair,
    url: button.hasAttribute("formaction") ? button.formAction : form.action,
    body: new URLSearchParams(fields).toString(),
    words: button.hasAttribute("formaction") ? say.saySkipped : label.textContent.replace(/\s+/g, " ").trim(),
    about: prompt ? prompt.textContent.trim().slice(0, 60) : "",
    waits,
  };
  answered.push(entry.pair);
  noNotice("graded"); // read by now
  if (waits) {
    form.dataset.sent = "yes";
    form.classList.add("sent");
  } else {
    card.remove();
    lastCard = card;
    show();
  }
  rest();
  put(entry);
}

function undo() {
  const last = outbox.at(-1);
  // What was never sent can simply be taken out again; anything else only the server can undo.
  if (last && lastCard && last.pair === lastCard.dataset.pair && last.tries === 0 && !(sending && outbox.length === 1)) {
    outbox.pop();
    answered.pop();
    store();
    sayHowMany(true);
    lastCard.querySelectorAll("details[open]").forEach((menu) => menu.removeAttribute("open"));
    if (shown) shown.hidden = true;
    cards.prepend(lastCard);
    lastCard = null;
    show();
    return;
  }
  // Named, so that a request sent twice takes back one answer.
  const body = new URLSearchParams({ assignment: answered.pop() || "" }).toString();
  lastCard = null;
  put({ pair: "", url: desk.querySelector("[data-undo]").action, body, words: "", about: "" });
}

// Once in a while: a calm line after long work without a pause.
function rest() {
  const minutes = Number(say.breakMinutes);
  const now = Date.now();
  const worked = JSON.parse(sessionStorage.getItem("worked") || "null");
  const since = worked && now - worked.last < LONG_AWAY_MS ? worked.since : now;
  const due = minutes > 0 && now - since >= minutes * 60_000;
  if (due) notice("break", "info", say.sayBreak.replace("#", Math.round((now - since) / 60_000)));
  sessionStorage.setItem("worked", JSON.stringify({ since, last: now }));
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.matches("[data-undo]")) {
    event.preventDefault();
    undo();
  } else if (form.matches(".desk-vote")) {
    event.preventDefault();
    if (event.submitter) answer(form, event.submitter);
  }
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.dialog) document.getElementById(button.dataset.dialog).showModal();
  if ("dismiss" in button.dataset) {
    if (button.closest("[data-notice=break]")) sessionStorage.removeItem("worked");
    button.parentElement.remove();
    shown?.querySelector("h2").focus({ preventScroll: true });
  }
  if ("goOn" in button.dataset) {
    shown.remove();
    show();
  }
  if (!button.closest(".desk-bar, [data-aspects]")) return;
  openTools("tools" in button.dataset && button.getAttribute("aria-expanded") === "false");
  if (button.dataset.key === "p") foldPrompt(isPressed("p"));
  if (button.dataset.key === "d") showDifference(!isPressed("d"));
  if (button.dataset.key === "l") {
    press("l", !isPressed("l"));
    localStorage.setItem("linkedScroll", isPressed("l") ? "on" : "off");
  }
  if (button.dataset.key === "q") nextQuestion();
});

// On a narrow screen the tools are a menu; on a wide one they stand in the bar.
function openTools(open) {
  const toggle = desk.querySelector("[data-tools]");
  const chosen = document.getElementById("tools").contains(document.activeElement);
  // What was chosen disappears with the menu: the focus stays at its place in the bar.
  if (!open && chosen && toggle.getAttribute("aria-expanded") === "true") toggle.focus();
  toggle.setAttribute("aria-expanded", String(open));
}

document.addEventListener("click", (event) => {
  if (!event.target.closest(".desk-bar")) openTools(false);
});

// ---- Keys ----

// Digits by their place, so that layouts with digits on Shift work; letters by their sign, or by
// their place where the layout has no Latin ones.
function keyOf(event) {
  const digit = event.code.match(/^(Digit|Numpad)([0-9])$/);
  if (digit) return (event.shiftKey && digit[1] === "Digit" ? "shift+" : "") + digit[2];
  if (/^[ -~]$/.test(event.key) || event.key.length > 1) return event.key.toLowerCase();
  return event.code.replace(/^Key/, "").toLowerCase();
}

function nextQuestion() {
  const questions = [...(shown?.querySelectorAll(".aspect") || [])];
  const at = questions.findIndex((question) => question.classList.contains("current"));
  questions[at]?.classList.remove("current");
  questions[at + 1]?.classList.add("current");
}

function leaveMenus() {
  shown?.querySelectorAll(".menu[open]").forEach((menu) => menu.removeAttribute("open"));
  shown?.querySelectorAll(".aspect.current").forEach((question) => question.classList.remove("current"));
}

function openMenu(key) {
  const menu = inShown(`.menu[data-menu="${key}"]`);
  if (!menu) return false;
  const open = menu.hasAttribute("open");
  leaveMenus();
  if (!open) {
    menu.setAttribute("open", "");
    (menu.querySelector("textarea") || menu.querySelector("summary")).focus();
  }
  return true;
}

function keyInField(event, field) {
  const done = event.key === "Enter" && (!field.matches("textarea") || event.ctrlKey || event.metaKey);
  if (event.key !== "Escape" && !done) return;
  if (!field.closest(".pair")) return;
  event.preventDefault();
  if (done && "enter" in field.dataset) field.nextElementSibling.click();
  field.closest(".menu")?.classList.toggle("filled", field.value.trim() !== "");
  leaveMenus();
  field.blur();
  shown?.querySelector("h2").focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input:not([type=checkbox], [type=radio]), textarea, select");
  if (field) {
    keyInField(event, field);
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  const key = keyOf(event);
  if (key === "escape") {
    leaveMenus();
    openTools(false);
  }
  if (localStorage.getItem("singleKeys") === "off" && key !== "?") return;
  const menu = inShown(".menu[open]");
  const question = inShown(".aspect.current");
  let target = null;
  if (menu && /^[0-9]$/.test(key)) target = menu.querySelector(`[data-menu-key="${key}"]`);
  else if (question && /^[123]$/.test(key)) {
    question.querySelectorAll("input")[Number(key) - 1].click();
    nextQuestion();
    event.preventDefault();
    return;
  } else if (/^[a-z]$/.test(key) && openMenu(key)) {
    event.preventDefault();
    return;
  } else {
    const selector = `[data-key="${CSS.escape(key)}"]`;
    target = inShown(selector) || desk.querySelector(`.desk-bar ${selector}`);
  }
  // Enter on a focused control is the control's own.
  if (key === "enter" && event.target.closest("button, a, summary")) return;
  if (!target || target.disabled) return;
  event.preventDefault();
  if (target.matches("input:not([type=checkbox])")) target.focus();
  else target.click();
});

// ---- Coming and going ----

// Whoever reads for long keeps what they read: asking for work renews the leases in hand.
for (const type of ["keydown", "pointermove", "wheel", "touchstart"]) {
  document.addEventListener(type, () => { activeAt = performance.now(); }, { passive: true });
}
setInterval(() => {
  if (!document.hidden && performance.now() - activeAt < LONG_AWAY_MS) look();
}, LONG_AWAY_MS);

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    hiddenAt = Date.now();
    if (visibleSince !== null) visibleMs += performance.now() - visibleSince;
    visibleSince = null;
  } else {
    visibleSince = performance.now();
    if (outbox.length) send(); // perhaps signed in again, in another tab
    else if (hiddenAt && Date.now() - hiddenAt > LONG_AWAY_MS) look();
  }
});
window.addEventListener("online", send);
window.addEventListener("beforeunload", (event) => {
  if (outbox.length && outbox[0].tries) event.preventDefault();
});
window.addEventListener("pagehide", () => {
  const ahead = pairs().filter((card) => card !== shown).map((card) => card.dataset.pair);
  if (!ahead.length) return;
  const form = new FormData();
  form.set("csrfmiddlewaretoken", token());
  form.set("page", say.page);
  form.set("assignments", ahead.join(","));
  navigator.sendBeacon(say.release, form);
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload(); // its pairs were given back when it was left
});

const keysOn = document.querySelector("[data-keys-on]");
keysOn.checked = localStorage.getItem("singleKeys") !== "off";
keysOn.addEventListener("change", () => localStorage.setItem("singleKeys", keysOn.checked ? "on" : "off"));

press("l", localStorage.getItem("linkedScroll") === "on");
for (const card of pairs()) {
  if (outbox.some((entry) => entry.pair === card.dataset.pair)) card.remove();
}
show();
if (outbox.length) {
  sayHowMany();
  send();
} else look();
