// Curves of a run: uPlot drawn from the JSON that stands in the page, again after every poll.
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

function options(name, width) {
  const axis = {
    stroke: colour("--muted"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    font: "12px system-ui",
  };
  const digits = name === "accuracy" ? 3 : 4;
  const written = new Intl.NumberFormat(document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const number = (plot, value) => (value == null ? "–" : written.format(value));
  const words = document.querySelector(".charts").dataset;
  return {
    width,
    height: 220,
    scales: {
      x: { time: false },
      y: name === "accuracy" ? { range: [0, 1] } : {},
    },
    axes: [{ ...axis, space: 60 }, { ...axis, size: 52 }],
    series: [
      { label: words.step },
      { label: words.batch, stroke: colour("--chart-1"), alpha: 0.35, width: 1, spanGaps: true, points: { show: false }, value: number },
      { label: words.train, stroke: colour("--chart-1"), width: 2, spanGaps: true, points: { show: false }, value: number },
      { label: words.test, stroke: colour("--chart-2"), width: 2.5, spanGaps: true, points: { show: true, size: 7, fill: colour("--chart-2") }, value: number },
    ],
    cursor: { drag: { x: true, y: false } },
  };
}

function draw(afresh) {
  const source = document.getElementById("curves");
  if (!source || !window.uPlot) return;
  const curves = JSON.parse(source.textContent);
  for (const place of document.querySelectorAll("[data-curve]")) {
    const data = columns(curves[place.dataset.curve]);
    let plot = drawn.get(place);
    if (plot && afresh) {
      plot.destroy();
      plot = null;
    }
    if (plot) plot.setData(data);
    else drawn.set(place, new uPlot(options(place.dataset.curve, place.clientWidth || 320), data, place));
  }
}

document.addEventListener("DOMContentLoaded", () => draw(false));
document.addEventListener("htmx:afterSettle", () => draw(false));
document.addEventListener("themechange", () => draw(true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
addEventListener("resize", () => {
  for (const [place, plot] of drawn) plot.setSize({ width: place.clientWidth, height: 220 });
});
