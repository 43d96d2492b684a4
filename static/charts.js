// Curves of runs: uPlot drawn from the JSON that stands in the page, again after every poll.
const drawn = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// {train: [[step, value], …], test: […]} to uPlot's columns, which share one axis of steps. Single
// batches are noisy, so the mean of the last points stands beside them.
function columns(curve) {
  const steps = [...new Set([...curve.train, ...curve.test].map((point) => point[0]))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, i) => [step, i]));
  const column = (points) => {
    const values = new Array(steps.length).fill(null);
    for (const [step, value] of points) values[place.get(step)] = value;
    return values;
  };
  const n = Math.min(50, Math.max(1, Math.round(curve.train.length / 15)));
  const means = curve.train.map(([step], i) => {
    const last = curve.train.slice(Math.max(0, i - n + 1), i + 1);
    return [step, last.reduce((sum, point) => sum + point[1], 0) / last.length];
  });
  return [steps, column(curve.train), column(means), column(curve.test)];
}

function writing(name) {
  const lang = document.documentElement.lang;
  if (name === "accuracy") return new Intl.NumberFormat(lang, { minimumFractionDigits: 3, maximumFractionDigits: 3 });
  if (name === "loss" || name === "margin") return new Intl.NumberFormat(lang, { minimumFractionDigits: 4, maximumFractionDigits: 4 });
  return new Intl.NumberFormat(lang, { maximumSignificantDigits: 3 });
}

function frame(name, width) {
  const axis = {
    stroke: colour("--muted"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    font: "12px system-ui",
  };
  const short = new Intl.NumberFormat(document.documentElement.lang, { maximumSignificantDigits: 3 });
  const tick = (value) => (value && Math.abs(value) < 0.001 ? Number(value.toPrecision(3)).toExponential() : short.format(value));
  return {
    width,
    height: 220,
    scales: {
      x: { time: false },
      y: name === "accuracy" ? { range: [0, 1] } : {},
    },
    axes: [
      { ...axis, space: 60 },
      { ...axis, size: 60, values: (plot, ticks) => ticks.map((value) => (value == null ? "" : tick(value))) },
    ],
    cursor: { drag: { x: true, y: false } },
  };
}

// Learning rate and the like are of training steps alone: their line needs no mean.
function options(name, width, hasTest) {
  const written = writing(name);
  const number = (plot, value) => (value == null ? "–" : written.format(value));
  const words = document.querySelector(".charts").dataset;
  const plain = name === "learning_rate";
  return {
    ...frame(name, width),
    series: [
      { label: words.step },
      { label: words.batch, stroke: colour("--chart-1"), alpha: plain ? 1 : 0.35, width: plain ? 2 : 1, spanGaps: true, points: { show: false }, value: number },
      ...(plain ? [] : [{ label: words.train, stroke: colour("--chart-1"), width: 2, spanGaps: true, points: { show: false }, value: number }]),
      ...(hasTest ? [{ label: words.test, stroke: colour("--chart-2"), width: 2.5, spanGaps: true, points: { show: true, size: 7, fill: colour("--chart-2") }, value: number }] : []),
    ],
  };
}

// Curves of several runs over each other: of each run what was held out, strong, and its training
// batches, faint. The dashes tell apart what the colours do not.
const COLOURS = ["--chart-1", "--chart-2", "--chart-3", "--chart-4"];
const DASHES = [[], [8, 4], [2, 3]];

function overlaid(name, lines, width) {
  const steps = [...new Set(lines.flatMap((line) => [...line.train, ...line.test].map((point) => point[0])))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, i) => [step, i]));
  const written = writing(name);
  const number = (plot, value) => (value == null ? "–" : written.format(value));
  const words = document.querySelector(".charts").dataset;
  const data = [steps];
  const series = [{ label: words.step }];
  lines.forEach((line, i) => {
    const stroke = colour(COLOURS[i % COLOURS.length]);
    const dash = DASHES[Math.floor(i / COLOURS.length) % DASHES.length];
    for (const split of ["train", "test"]) {
      if (!line[split].length) continue;
      const values = new Array(steps.length).fill(null);
      for (const [step, value] of line[split]) values[place.get(step)] = value;
      data.push(values);
      series.push({
        label: split === "test" ? line.name : `${line.name}, ${words.batch}`,
        stroke,
        dash,
        spanGaps: true,
        value: number,
        unnamed: split === "train" && line.test.length > 0,
        ...(split === "test" ? { width: 2.5, points: { show: true, size: 6, fill: stroke } } : { width: 1, alpha: 0.35, points: { show: false } }),
      });
    }
  });
  return [{ ...frame(name, width), series }, data];
}

// What stands in a place is drawn anew when its lines are others, and filled anew when only their
// points are.
function put(place, options, data, afresh) {
  let plot = drawn.get(place);
  if (plot && (afresh || plot.series.length !== data.length)) {
    plot.destroy();
    plot = null;
  }
  if (plot) plot.setData(data);
  else {
    drawn.set(place, new uPlot(options, data, place));
    const names = place.querySelectorAll(".u-series");
    options.series.forEach((line, i) => (names[i].hidden = Boolean(line.unnamed)));
  }
}

function draw(afresh) {
  if (!window.uPlot) return;
  const source = document.getElementById("curves");
  const curves = source ? JSON.parse(source.textContent) : {};
  for (const place of document.querySelectorAll("[data-curve]")) {
    const curve = curves[place.dataset.curve];
    if (!curve) continue;
    const [steps, batches, means, test] = columns(curve);
    const shown = place.dataset.curve === "learning_rate" ? [batches] : [batches, means];
    const hasTest = "test" in place.dataset;
    put(place, options(place.dataset.curve, place.clientWidth || 320, hasTest), [steps, ...shown, ...(hasTest ? [test] : [])], afresh);
  }
  const several = document.getElementById("overlay");
  const runs = several ? JSON.parse(several.textContent) : {};
  for (const place of document.querySelectorAll("[data-overlay]")) {
    if (runs[place.dataset.overlay]) put(place, ...overlaid(place.dataset.overlay, runs[place.dataset.overlay], place.clientWidth || 320), afresh);
  }
}

document.addEventListener("DOMContentLoaded", () => draw(false));
document.addEventListener("htmx:afterSettle", () => draw(false));
document.addEventListener("themechange", () => draw(true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
addEventListener("resize", () => {
  for (const [place, plot] of drawn) plot.setSize({ width: place.clientWidth, height: 220 });
});
