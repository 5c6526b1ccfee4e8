"use strict";
// Draws one fact with Observable Plot: the maps of its traces, and its edit success below them, all on one layer axis.
// Colors can be told apart by the colour-blind; problems differ in symbol too. `globalThis.drawing` is what explorer.js uses.
(() => {
  const LEFT = 112, RIGHT = 14; // margins in pixels, the same in all plots, so that layers stand above each other
  const SYMBOLS = ["circle", "square", "triangle", "diamond", "cross", "star", "wye"];
  const LIGHT = {
    lines: ["#0f6cb0", "#c1501a", "#00795a", "#a3468a", "#7a6200", "#3c7fa6", "#555555"],
    ramp: ["#b35806", "#fdb863", "#f7f7f9", "#6baed6", "#08306b"],
  };
  const DARK = {
    lines: ["#6fb7ee", "#f2935c", "#3fc79b", "#e08cc8", "#e6cf5a", "#9fd3f5", "#b8b8b8"],
    ramp: ["#fdb863", "#8a4a10", "#26282e", "#2f75b5", "#d6ecff"],
  };
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const colors = () => (scheme.matches && !matchMedia("print").matches ? DARK : LIGHT);

  const spelled = (token) => {
    const text = token.replaceAll("\n", "\\n").replaceAll("\t", "\\t");
    return text.trim() || text.replaceAll(" ", "␣") || "(empty)";
  };
  const shortened = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  const layersAxis = (view, label) => ({
    domain: [-0.5, view.layers - 0.5],
    label: label,
    labelAnchor: "center",
    labelArrow: "none",
    ticks: d3.ticks(0, view.layers - 1, Math.min(view.layers - 1, view.width < 500 ? 5 : 12)).filter(Number.isInteger),
    tickFormat: "d",
    grid: false,
  });

  const base = (view, height, label, more) => ({
    width: view.width,
    height: height,
    marginLeft: LEFT,
    marginRight: RIGHT,
    style: {fontSize: "12px", background: "transparent", overflow: "visible"},
    ariaLabel: label,
    ...more,
  });

  // A map's numbers in probability, [token][layer].
  const effects = (map) => map.e.map((row) => row.map((whole) => whole * map.u));

  const largest = (record, map) => {
    let best = {value: -Infinity, token: 0, layer: 0};
    effects(map).forEach((row, token) => row.forEach((value, layer) => {
      if (value > best.value) best = {value, token, layer};
    }));
    return {...best, text: spelled(record.tokens[best.token][0])};
  };

  const ramp = (map) => {
    const values = effects(map).flat(), top = Math.max(...values.map(Math.abs), 1e-9);
    const signed = Math.min(...values) < -0.1 * top, all = colors().ramp;
    const part = signed ? all : all.slice(2);
    return {
      type: "linear",
      domain: signed ? [-top, top] : [0, top],
      interpolate: d3.piecewise(d3.interpolateRgb, part),
      clamp: true,
      label: "tracing effect (probability)",
    };
  };

  function heatmap(record, map, view) {
    const cells = effects(map).flatMap((row, token) => row.map((value, layer) => ({token, layer, value})));
    const label = (token) => shortened(spelled(record.tokens[token][0]), 12) + (record.tokens[token][1] ? " *" : "");
    const most = largest(record, map);
    const plot = Plot.plot(base(view, 44 + 19 * record.tokens.length,
      `Map of tracing effects, ${map.n}: the largest is ${most.value.toFixed(3)}, at token ${most.text}, layer ${most.layer}`, {
        marginTop: 4, marginBottom: 38,
        x: layersAxis(view, "restored layer (counted from 0)"),
        y: {type: "band", domain: d3.range(record.tokens.length), tickFormat: label, label: null, tickSize: 0, padding: 0.03},
        color: ramp(map),
        marks: [
          Plot.barX(cells, {
            x1: (d) => d.layer - 0.5, x2: (d) => d.layer + 0.5, y: "token", fill: "value", inset: 0.25, tip: {fill: "var(--back)"},
            title: (d) => `${spelled(record.tokens[d.token][0])}, layer ${d.layer}: ${d.value.toFixed(4)}`,
          }),
          Plot.ruleX([view.layer], {stroke: "currentColor", strokeDasharray: "3,3"}),
        ],
      }));
    return picked(plot, view);
  }

  const rampLegend = (map, view) =>
    Plot.legend({color: ramp(map), width: Math.min(view.width - 20, 260), marginLeft: 12, marginRight: 16, style: {fontSize: "12px"}});

  // Cheaper localizers by layer, each as a share of its own largest value: their units differ.
  const localizerKey = (view) => ({
    color: {domain: view.localizers, range: colors().lines},
    symbol: {domain: view.localizers, range: SYMBOLS},
  });

  const localizerLegend = (view) =>
    Plot.legend({...localizerKey(view), stroke: "color", fill: "color", style: {fontSize: "12px"}});

  function localizers(record, view) {
    const data = record.loc.flatMap(([which, unit, values]) => values.flatMap((whole, layer) => whole === null ? [] : [{
      layer, localizer: view.localizers[which], share: whole / 1000, value: whole * unit,
    }]));
    const told = record.loc.map(([which, , values]) => `${view.localizers[which]} is largest at layer ${d3.maxIndex(values)}`);
    const low = Math.min(0, ...data.map((d) => d.share));
    const plot = Plot.plot(base(view, 180, `Cheaper localizers by layer: ${told.join("; ")}`, {
      marginTop: 10, marginBottom: 38,
      x: layersAxis(view, "layer (counted from 0)"),
      y: {domain: [low, 1], label: null, ticks: 5, grid: true},
      ...localizerKey(view),
      marks: [
        Plot.ruleX([view.layer], {stroke: "currentColor", strokeDasharray: "3,3"}),
        Plot.ruleY([0], {stroke: "currentColor", strokeOpacity: 0.5}),
        Plot.line(data, {x: "layer", y: "share", stroke: "localizer", z: "localizer", strokeWidth: 1.6}),
        Plot.dot(data, {x: "layer", y: "share", stroke: "localizer", fill: "localizer", symbol: "localizer", r: 2.5}),
        Plot.tip(data, Plot.pointer({
          x: "layer", y: "share", fill: "var(--back)",
          title: (d) => `${d.localizer}, layer ${d.layer}: ${d.value.toPrecision(3)}, ${d.share.toFixed(2)} of its largest`,
        })),
      ],
    }));
    return picked(plot, view);
  }

  // Rows {layer, problem, value, collapsed} of one method and score, for Plot.
  const rows = (record, method, view) => record.edits.filter((edit) => edit.m === method).flatMap((edit) =>
    edit.l.map((layer, i) => ({
      layer,
      problem: view.problems[edit.p][1],
      chosen: edit.p === view.problem,
      value: edit.s[view.score]?.[i] == null ? NaN : edit.s[view.score][i] / 1000,
      collapsed: edit.c.includes(layer),
    })));

  const keyed = (view) => ({
    color: {domain: view.problems.map((name) => name[1]), range: colors().lines},
    symbol: {domain: view.problems.map((name) => name[1]), range: SYMBOLS},
  });

  function success(record, method, view) {
    const data = rows(record, method, view);
    const chosen = data.filter((row) => row.chosen && !Number.isNaN(row.value));
    const best = chosen.length ? chosen.reduce((a, b) => (b.value > a.value ? b : a)) : null;
    const told = best ? `the best ${view.scoreName} score for ${best.problem} is ${best.value.toFixed(3)}, at layer ${best.layer}`
      : "no score for the chosen problem";
    const line = (emphasized) => ({x: "layer", y: "value", stroke: "problem", z: "problem", strokeWidth: emphasized ? 2.6 : 1.2});
    const dots = {x: "layer", y: "value", stroke: "problem", fill: "problem", symbol: "problem"};
    const others = data.filter((row) => !row.chosen), own = data.filter((row) => row.chosen);
    const plot = Plot.plot(base(view, 210, `Edit success of ${view.methods[method][1]} by layer: ${told}`, {
      marginTop: 10, marginBottom: 38,
      x: layersAxis(view, "edited layer (counted from 0)"),
      y: {domain: [0, 1], label: null, ticks: 5, grid: true},
      ...keyed(view),
      marks: [
        Plot.ruleX([view.layer], {stroke: "currentColor", strokeDasharray: "3,3"}),
        Plot.line(others, {...line(false), strokeOpacity: 0.7}),
        Plot.dot(others, {...dots, r: 2, fillOpacity: 0.7, strokeOpacity: 0.7}),
        Plot.line(own, line(true)),
        Plot.dot(own, {...dots, r: 3.5}),
        Plot.dot(data.filter((row) => row.collapsed), {x: "layer", y: "value", symbol: "times", stroke: "currentColor", r: 5}),
        Plot.tip(data, Plot.pointer({
          x: "layer", y: "value", fill: "var(--back)",
          title: (d) => `${d.problem}, layer ${d.layer}: ${d.value.toFixed(3)}${d.collapsed ? "; the model collapsed" : ""}`,
        })),
      ],
    }));
    return picked(plot, view);
  }

  const problemLegend = (view) =>
    Plot.legend({...keyed(view), stroke: "color", fill: "color", style: {fontSize: "12px"}});

  // A click on a plot picks the layer under it; the slider does the same for the keyboard.
  function picked(plot, view) {
    const svg = plot.matches("svg") ? plot : plot.querySelector("svg");
    const scale = plot.scale("x");
    svg.setAttribute("role", "img");
    svg.addEventListener("click", (event) => {
      const at = Math.round(scale.invert((event.clientX - svg.getBoundingClientRect().left) * (view.width / svg.clientWidth)));
      if (at >= 0 && at < view.layers) view.pick(at);
    });
    return plot;
  }

  globalThis.drawing = {heatmap, localizers, localizerLegend, success, rampLegend, problemLegend, effects, spelled, scheme};
})();
