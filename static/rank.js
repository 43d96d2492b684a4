// Ranking several responses: by keys, by dragging their letters, or by the lists of places alone.
// The lists (<select>) hold the truth; everything here reads from them and writes to them.
const rankCard = () => {
  const card = document.querySelector("#cards > .pair:not([hidden])");
  return card?.querySelector("[data-rank]") ? card : null;
};
const rankedResponses = (card) => [...card.querySelectorAll("[data-response]")];
const placeList = (response) => response.querySelector("select");
const letterOf = (response) => response.querySelector("[data-chip]").textContent;
const responseOf = (card, pk) => card.querySelector(`[data-response="${pk}"]`);

// [[response, …], …], best first; and those that have no place yet.
function orderOf(card) {
  const byPlace = new Map();
  const open = [];
  for (const response of rankedResponses(card)) {
    const place = Number(placeList(response).value);
    if (!place) open.push(response);
    else byPlace.set(place, [...(byPlace.get(place) || []), response]);
  }
  const groups = [...byPlace.keys()].sort((a, b) => a - b).map((place) => byPlace.get(place));
  return { groups, open };
}

function drawStrip(card) {
  const strip = card.querySelector("[data-strip]");
  const { groups, open } = orderOf(card);
  const focused = document.activeElement?.closest("[data-strip] [data-chip]")?.dataset.chip;
  const piece = (className, name, value) => {
    const element = document.createElement("span");
    element.className = className;
    element.dataset[name] = value;
    return element;
  };
  const chip = (response) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "rank-letter";
    button.dataset.chip = response.dataset.response;
    button.textContent = letterOf(response);
    button.setAttribute("aria-label", strip.dataset.sayGo.replace("#", letterOf(response)));
    return button;
  };
  const parts = [piece("rank-gap", "gap", 0)];
  if (!groups.length) parts[0].textContent = strip.dataset.sayEmpty;
  groups.forEach((group, i) => {
    const place = piece("rank-group", "group", i);
    const number = document.createElement("kbd");
    number.textContent = placeList(group[0]).value;
    place.append(number, ...group.map(chip));
    parts.push(place, piece("rank-gap", "gap", i + 1));
  });
  if (open.length) {
    const tray = piece("rank-tray", "tray", "");
    const words = document.createElement("span");
    words.className = "muted small";
    words.textContent = strip.dataset.sayOpen;
    tray.append(...open.map(chip), words);
    parts.push(tray);
  }
  strip.replaceChildren(...parts);
  strip.classList.toggle("none", !groups.length);
  for (const response of rankedResponses(card)) {
    response.classList.toggle("placed", placeList(response).value !== "");
  }
  if (focused) strip.querySelector(`[data-chip="${focused}"]`)?.focus();
}

function give(card, response, place) {
  placeList(response).value = place ? String(place) : "";
  drawStrip(card);
  const said = `${letterOf(response)}: ${place || card.querySelector("[data-strip]").dataset.sayOpen}`;
  card.querySelector("[data-rank-said]").textContent = said;
}

// Put a response with a group, or into a gap between groups as a place of its own.
function drop(card, response, target) {
  const { groups } = orderOf(card);
  if (target.dataset.tray !== undefined) {
    give(card, response, 0);
    return;
  }
  const into = groups[Number(target.dataset.group)];
  const before = groups[Number(target.dataset.gap)];
  const rest = groups.map((group) => group.filter((one) => one !== response));
  if (target.dataset.group !== undefined) rest[groups.indexOf(into)].push(response);
  else rest.splice(before ? groups.indexOf(before) : groups.length, 0, [response]);
  const order = rest.filter((group) => group.length);
  order.forEach((group, i) => group.forEach((one) => (placeList(one).value = String(i + 1))));
  give(card, response, Number(placeList(response).value));
}

function focusResponse(response) {
  response.focus({ preventScroll: true });
  response.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// ---- Keys ----

document.addEventListener("keydown", (event) => {
  const card = rankCard();
  if (!card || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || event.isComposing) return;
  if (event.target.closest("input, textarea, select, .menu") || document.querySelector("dialog[open]")) return;
  if (card.querySelector(".menu[open]")) return;
  const responses = rankedResponses(card);
  const here = event.target.closest("[data-response]");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) {
    const at = here ? responses.indexOf(here) + step : step > 0 ? 0 : responses.length - 1;
    focusResponse(responses[(at + responses.length) % responses.length]);
    event.preventDefault();
    return;
  }
  const digit = event.code.match(/^(?:Digit|Numpad)([0-9])$/);
  if (!digit || event.repeat || Number(digit[1]) > responses.length) return;
  // A single key outside of the thing it acts on can be switched off.
  if (!here && localStorage.getItem("singleKeys") === "off") return;
  const response = here || orderOf(card).open[0];
  if (!response) return;
  event.preventDefault();
  const wasOpen = placeList(response).value === "";
  give(card, response, Number(digit[1]));
  const next = orderOf(card).open[0];
  focusResponse(wasOpen && next && digit[1] !== "0" ? next : response);
});

// ---- The lists of places, and letters that are pressed ----

document.addEventListener("change", (event) => {
  const card = event.target.closest(".pair");
  if (card?.querySelector("[data-rank]") && event.target.closest("[data-response]")) drawStrip(card);
});

let dragged = null; // {chip, card, response, startX, startY, ghost, over}
let justDragged = false;

document.addEventListener("click", (event) => {
  const chip = event.target.closest("[data-strip] [data-chip]");
  if (chip && !justDragged) focusResponse(responseOf(chip.closest(".pair"), chip.dataset.chip));
  justDragged = false;
});

// ---- Dragging: with mouse, pen and finger alike ----

document.addEventListener("pointerdown", (event) => {
  const chip = event.target.closest("[data-chip]");
  const card = rankCard();
  justDragged = false;
  if (!chip || !card || event.button !== 0) return;
  const response = responseOf(card, chip.dataset.chip);
  dragged = { chip, card, response, startX: event.clientX, startY: event.clientY, ghost: null, over: null };
  if (chip.tagName !== "BUTTON") event.preventDefault(); // no text is selected
});

document.addEventListener("pointermove", (event) => {
  if (!dragged) return;
  const { clientX: x, clientY: y } = event;
  if (!dragged.ghost) {
    if (Math.hypot(x - dragged.startX, y - dragged.startY) < 5) return;
    dragged.ghost = dragged.chip.cloneNode(true);
    dragged.ghost.className = "rank-letter rank-ghost";
    dragged.ghost.removeAttribute("data-chip");
    dragged.card.append(dragged.ghost);
    dragged.card.classList.add("ranking");
  }
  dragged.ghost.style.left = `${x}px`;
  dragged.ghost.style.top = `${y}px`;
  const over = document.elementFromPoint(x, y)?.closest("[data-gap], [data-group], [data-tray]") || null;
  if (over !== dragged.over) {
    dragged.over?.classList.remove("over");
    over?.classList.add("over");
    dragged.over = over;
  }
});

function endDrag(isDropped) {
  if (!dragged) return;
  const { card, response, ghost, over } = dragged;
  dragged = null;
  if (!ghost) return;
  justDragged = true;
  ghost.remove();
  card.classList.remove("ranking");
  over?.classList.remove("over");
  if (isDropped && over) drop(card, response, over);
}
document.addEventListener("pointerup", () => endDrag(true));
document.addEventListener("pointercancel", () => endDrag(false));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") endDrag(false);
});

// ---- A card comes into sight ----

function prepare(card) {
  const ranks = Boolean(card.querySelector("[data-rank]"));
  for (const key of ["d", "l"]) { // of two responses alone
    const button = document.querySelector(`.desk-bar [data-key="${key}"]`);
    if (button) button.disabled = ranks;
  }
  if (ranks) drawStrip(card);
}
document.addEventListener("pairshown", (event) => prepare(event.detail.card));
if (rankCard()) prepare(rankCard()); // shown before this file was there
