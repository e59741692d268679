"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hues = {
    light: ["#0b62b0", "#d9480f", "#2b8a3e", "#9c36b5", "#0c8599", "#c2255c", "#846200", "#5c5f66"],
    dark: ["#4dabf7", "#ff922b", "#69db7c", "#da77f2", "#3bc9db", "#ff8fb1", "#e0c04c", "#adb5bd"],
  };
  const hue = (place) => hues[dark.matches ? "dark" : "light"][place % 8];
  const dash = (place) => [[], [6, 4], [2, 3]][Math.floor(place / 8) % 3];
  const shown = data.labels.map(() => true);
  const plots = new Map();
  let span = 1;

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text ?? "" });
  const whole = [...Array(8).keys()].flatMap((power) => [1, 2, 5].map((it) => it * 10 ** power));
  const flat = (value) => (value === 0 ? [0, 1] : [value - Math.abs(value) / 10, value + Math.abs(value) / 10]);
  const digits = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4)));

  /* The mean of the known values among the last `span` points. */
  function smooth(values) {
    if (span === 1) return values;
    return values.map((value, place) => {
      if (value === null) return null;
      const known = values.slice(Math.max(0, place - span + 1), place + 1).filter((it) => it !== null);
      return known.reduce((sum, it) => sum + it, 0) / known.length;
    });
  }

  function readout(plot, chart, box) {
    box.replaceChildren();
    const place = plot.cursor.idx;
    if (place == null) return;
    box.append(`step ${digits(data.x[place])}`);
    chart.lines.forEach((line, number) => {
      const value = line && shown[number] ? plot.data[plot.places[number]][place] : null;
      if (value == null) return;
      const entry = element("b", digits(value));
      entry.style.color = hue(number);
      entry.title = data.labels[number];
      box.append(entry);
    });
  }

  function switchLine(plot) {
    if (data.switch == null) return;
    const x = plot.valToPos(data.switch, "x", true);
    const { left, top, width, height } = plot.bbox;
    if (x < left || x > left + width) return;
    plot.ctx.save();
    plot.ctx.strokeStyle = style("--quiet");
    plot.ctx.setLineDash([4, 4]);
    plot.ctx.beginPath();
    plot.ctx.moveTo(x, top);
    plot.ctx.lineTo(x, top + height);
    plot.ctx.stroke();
    plot.ctx.restore();
  }

  function draw(figure) {
    const chart = data.sections[figure.dataset.section].charts[figure.dataset.chart];
    const target = figure.querySelector(".plot");
    plots.get(figure)?.destroy();
    const columns = [data.x], series = [{}], bands = [], places = [];
    const points = { show: data.x.length <= 30, size: 5 };
    chart.lines.forEach((line, number) => {
      if (!line) return;
      const stroke = hue(number), show = shown[number];
      if (line.low && span === 1) {
        columns.push(line.high, line.low);
        series.push({ show, stroke: "transparent", points: { show: false }, spanGaps: true });
        series.push({ show, stroke: "transparent", points: { show: false }, spanGaps: true });
        bands.push({ series: [series.length - 2, series.length - 1], fill: `${stroke}2e` });
      }
      places[number] = columns.length;
      columns.push(smooth(line.mean));
      series.push({ show, stroke, width: 1.5, dash: dash(number), points: { ...points, fill: stroke, stroke }, spanGaps: true });
    });
    const axis = { stroke: style("--quiet"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line"), width: 1, size: 4 }, font: "11px system-ui, sans-serif" };
    const values = (_, ticks) => ticks.map((it) => (it === null ? "" : digits(it)));
    const range = (_, low, high) => (low === high ? flat(low) : uPlot.rangeNum(low, high, 0.1, true));
    const box = figure.querySelector(".readout");
    const plot = new uPlot(
      {
        width: target.clientWidth, height: 190, series, bands, legend: { show: false },
        cursor: { y: false, sync: { key: "step" }, points: { size: 6 }, drag: { x: true, y: false } },
        scales: { x: { time: false, ...(data.x.length === 1 ? { range: [data.x[0] - 1, data.x[0] + 1] } : {}) }, y: { range } },
        axes: [{ ...axis, size: 26, values, incrs: whole }, { ...axis, size: 52, values }],
        hooks: { setCursor: [(plot) => readout(plot, chart, box)], drawAxes: [switchLine] },
      },
      columns, target,
    );
    plot.places = places;
    plots.set(figure, plot);
  }

  const figures = [...document.querySelectorAll(".chart")];
  const drawAll = () => plots.forEach((_, figure) => draw(figure));
  /* A figure is drawn when it first has a width: those of closed groups wait. */
  const widths = new ResizeObserver((entries) => entries.forEach(({ target, contentRect: { width } }) => {
    const figure = target.closest(".chart"), plot = plots.get(figure);
    if (!width) return;
    if (plot) plot.setSize({ width, height: 190 });
    else draw(figure);
  }));

  function legend() {
    const box = document.getElementById("legend");
    if (!box) return;
    box.replaceChildren(...data.labels.map((label, number) => {
      const button = element("button"), swatch = element("i");
      swatch.style.background = hue(number);
      button.append(swatch, element("span", label));
      button.title = label;
      button.setAttribute("aria-pressed", shown[number]);
      button.onclick = () => { shown[number] = !shown[number]; legend(); drawAll(); };
      return button;
    }));
  }

  const select = document.getElementById("smooth");
  if (select) select.onchange = () => { span = +select.value; drawAll(); };
  const redraw = () => { legend(); drawAll(); };
  dark.addEventListener("change", redraw);
  legend();
  figures.forEach((figure) => widths.observe(figure.querySelector(".plot")));

  const tip = document.getElementById("tip");
  function explain(token) {
    if (token.dataset.gap) return [element("div", `gap ${token.dataset.gap} nats`)];
    const [entropy, prob, part, top] = data.tips[token.dataset.tip];
    const lines = [element("div", `entropy ${entropy} nats, probability ${prob}, ${part}`)];
    return lines.concat(top.map(([text, share]) => element("div", `${(100 * share).toFixed(1).padStart(5)} %  ${JSON.stringify(text)}`)));
  }
  function point(event) {
    const token = event.target.closest?.("[data-tip], [data-gap]");
    tip.hidden = !token;
    if (!token) return;
    tip.replaceChildren(...explain(token));
    const at = token.getBoundingClientRect(), size = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
    tip.style.top = `${at.bottom + 6 + size.height < innerHeight ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)}px`;
  }
  document.addEventListener("pointerover", point);
  document.addEventListener("click", point);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);
  document.documentElement.dataset.ready = figures.length;
})();
