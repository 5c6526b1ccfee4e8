"use strict";
// The fact explorer: facts to pick from, one fact's plots and prompts, and an address for what is shown. It starts once
// the page is painted; a fact's record is unpacked when it is picked.
(() => {
  const app = document.getElementById("explorer-app");
  if (!app) return;
  const part = (name) => app.querySelector(`[data-part="${name}"]`);
  const control = (name) => app.querySelector(`[name="${name}"]`);
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const said = (whole) => (whole == null ? "–" : whole === 0 ? "<0.001" : (whole / 1000).toFixed(3));
  const filled = (fact) => fact.prompt.replace("{}", () => fact.subject);

  let index, records, state, record, order = 0;

  async function unpacked(packed) {
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  // The list of facts

  function fits(fact) {
    const words = control("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const text = `${filled(fact)} ${fact.true} ${fact.false} ${fact.id}`.toLowerCase();
    if (!words.every((word) => text.includes(word))) return false;
    const relation = control("relation").value, level = control("success").value;
    if (relation && fact.relation !== relation) return false;
    if (!level) return true;
    const best = fact.best[state.method][state.problem];
    if (level === "none") return best === null;
    const [low, high] = level.split("-").map(Number);
    return best !== null && best >= low && best < high;
  }

  const ORDERS = {
    table: () => 0,
    subject: (a, b) => a.subject.localeCompare(b.subject),
    success: (a, b) => (b.best[state.method][state.problem] ?? -1) - (a.best[state.method][state.problem] ?? -1),
    effect: (a, b) => (b.effect ?? -1) - (a.effect ?? -1),
  };

  function list() {
    const found = index.facts.map((fact, number) => ({...fact, number})).filter(fits).sort(ORDERS[control("order").value]);
    const options = found.map((fact) => {
      const best = fact.best[state.method][state.problem];
      return new Option(`${said(best)}  ${fact.subject} → ${fact.true} (${fact.relation})`, fact.number, false, fact.number === state.fact);
    });
    control("fact").replaceChildren(...options);
    part("count").textContent = `${found.length} of ${index.facts.length} facts`;
  }

  // One fact

  const view = () => ({
    ...state,
    layers: index.layers,
    methods: index.methods,
    problems: index.problems,
    localizers: index.localizers,
    scoreName: index.scores.find(([name]) => name === state.score)[1],
    width: Math.max(280, Math.min(part("view").clientWidth, 900)),
    pick: (layer) => set({layer}),
  });

  // Numbers of a plot as a table, made when it is opened.
  function numbers(name, heads, rows) {
    const details = element("details"), box = element("div", undefined, {class: "box", tabindex: 0, role: "region", "aria-label": name});
    details.append(element("summary", "these numbers as a table"), box);
    details.addEventListener("toggle", () => {
      if (!box.hasChildNodes()) box.append(table(heads, rows()));
    });
    return details;
  }

  function table(heads, rows) {
    const made = element("table"), head = made.createTHead().insertRow(), body = made.createTBody();
    for (const text of heads) head.append(element("th", text, {scope: "col"}));
    for (const cells of rows) {
      const row = body.insertRow();
      cells.forEach((text, i) => row.append(element(i ? "td" : "th", text, i ? {} : {scope: "row"})));
    }
    return made;
  }

  function draw() {
    const fact = index.facts[state.fact], now = view(), layers = d3.range(now.layers), out = [];
    part("title").textContent = `${filled(fact)} → ${fact.true}`;
    const told = [`Fact ${fact.id}, relation ${fact.relation}; false target: ${fact.false}.`];
    for (const map of record.traces) {
      told.push(`p(true) ${said(map.c)}, with the subject noised ${said(map.x)} (${map.n}).`);
    }
    part("about").textContent = told.slice(0, 2).join(" ");
    for (const map of record.traces) {
      out.push(element("h4", `Where it is restored: ${map.n}`), drawing.rampLegend(map, now), drawing.heatmap(record, map, now));
      out.push(numbers(`Tracing effects, ${map.n}`, ["token", ...layers.map(String)], () =>
        drawing.effects(map).map((row, token) => [drawing.spelled(record.tokens[token][0]), ...row.map((value) => value.toFixed(4))])));
    }
    if (!record.traces.length) out.push(element("p", "This fact was not traced."));
    if (record.loc.length) {
      out.push(element("h4", "What cheaper localizers say (share of each one's largest value)"));
      out.push(drawing.localizerLegend(now), drawing.localizers(record, now));
      out.push(numbers("Localizers", ["localizer", ...layers.map(String)], () => record.loc.map(([which, unit, values]) =>
        [now.localizers[which], ...layers.map((layer) => (values[layer] == null ? "–" : (values[layer] * unit).toPrecision(3)))])));
    }
    out.push(element("h4", `Where it can be edited: ${now.scoreName} score (0 to 1)`), drawing.problemLegend(now));
    for (const [method, [, label]] of index.methods.entries()) {
      const own = record.edits.filter((edit) => edit.m === method);
      if (!own.length) continue;
      out.push(element("h5", label), drawing.success(record, method, now));
      out.push(numbers(`${now.scoreName} score, ${label}`, ["problem", ...layers.map(String)], () => own.map((edit) =>
        [now.problems[edit.p][1], ...layers.map((layer) => said(edit.s[now.score]?.[edit.l.indexOf(layer)]))])));
    }
    part("plots").replaceChildren(...out);
    prompts(now);
    texts(now);
    const link = part("link");
    link.href = address();
    link.textContent = `Link to this view of ${fact.subject}`;
  }

  function prompts(now) {
    const edit = record.edits.find((one) => one.m === now.method && one.p === now.problem);
    const i = edit ? edit.l.indexOf(now.layer) : -1, why = edit?.bad[now.layer];
    const name = `${now.methods[now.method][1]}, ${now.problems[now.problem][1]}, layer ${now.layer}`;
    const out = [element("h4", `Prompts before and after the edit: ${name}`)];
    if (i < 0) out.push(element("p", `There is no such edit of this fact${edit ? ` at layer ${now.layer}` : ""}.`));
    else {
      if (why) out.push(element("p", `This edit failed: ${why}.`));
      if (edit.c.includes(now.layer)) out.push(element("p", "This edit collapsed the model: its loss on the model's own text rose too far."));
      const other = edit.bpre.some((value) => value !== null), heads = ["prompt", "kind", `p(${edit.t}) before`, "after"];
      if (other) heads.push(edit.b ? `p(${edit.b}) before` : "p(other) before", "after");
      const rows = record.prompts.flatMap(([kind, text], j) => (edit.pre[j] === null && edit.post[j][i] === null ? [] : [[
        text, kind, said(edit.pre[j]), said(edit.post[j][i]), ...(other ? [said(edit.bpre[j]), said(edit.bpost[j][i])] : []),
      ]]));
      const box = element("div", undefined, {class: "box", tabindex: 0, role: "region", "aria-label": `Prompts, ${name}`});
      box.append(table(heads, rows));
      out.push(box);
    }
    part("prompts").replaceChildren(...out);
  }

  // What the model writes before and after an edit, the chosen method's first.
  function texts(now) {
    const label = now.methods[now.method][1], own = record.texts.filter(([method]) => method === label);
    const out = [], shown = own.length ? own : record.texts;
    if (shown.length) {
      out.push(element("h4", "What the model writes"));
      const list = element("dl");
      for (const [method, layer, prompt, before, after] of shown) {
        list.append(element("dt", `${prompt} …`), element("dd", `before: ${before}`));
        list.append(element("dd", `after ${method}, ${layer < 0 ? "all layers" : `layer ${layer}`}: ${after}`));
      }
      out.push(list);
    }
    part("texts").replaceChildren(...out);
  }

  // What is shown, and its address

  function address() {
    const named = {
      fact: index.facts[state.fact].id, problem: index.problems[state.problem][0], method: index.methods[state.method][0],
      layer: state.layer, score: state.score,
    };
    return `#${new URLSearchParams(named)}`;
  }

  // What an address asks for; null where it is none of the explorer's, or names a fact that is not here.
  function asked() {
    const told = new URLSearchParams(location.hash.slice(1)), id = told.get("fact");
    if (id === null) return null;
    const fact = index.facts.findIndex((one) => one.id === id);
    if (fact < 0) {
      part("missing").textContent = `This page holds no fact ${id}.`;
      return null;
    }
    const found = {fact}, among = (names, name) => names.findIndex(([one]) => one === name);
    const problem = among(index.problems, told.get("problem")), method = among(index.methods, told.get("method"));
    const layer = told.has("layer") ? Number(told.get("layer")) : -1;
    if (problem >= 0) found.problem = problem;
    if (method >= 0) found.method = method;
    if (among(index.scores, told.get("score")) >= 0) found.score = told.get("score");
    if (Number.isInteger(layer) && layer >= 0 && layer < index.layers) found.layer = layer;
    return found;
  }

  async function set(change, {silent = false} = {}) {
    const turn = ++order, before = state.fact;
    Object.assign(state, change);
    if (record === undefined || state.fact !== before) {
      let found;
      try {
        found = await unpacked(records[state.fact]);
      } catch {
        part("missing").textContent = "This browser is too old to unpack a fact: it needs DecompressionStream.";
        return;
      }
      if (turn !== order) return; // another fact was picked meanwhile
      record = found;
      if (change.layer === undefined && state.fact !== before && record.traces.length) state.layer = strongest();
    }
    for (const name of ["method", "problem", "score", "layer"]) control(name).value = state[name];
    part("layer").textContent = state.layer;
    if ("method" in change || "problem" in change) list();
    if (control("fact").value !== String(state.fact)) control("fact").value = String(state.fact);
    draw();
    if (!silent) {
      part("missing").textContent = "";
      try { history.replaceState(null, "", address()); } catch { /* a viewer that gives pages no address */ }
    }
  }

  // The layer that the fact's first map names.
  function strongest() {
    const columns = d3.range(index.layers).map((layer) => Math.max(...record.traces[0].e.map((row) => row[layer] ?? 0)));
    return d3.maxIndex(columns);
  }

  function start() {
    index = JSON.parse(document.getElementById("explorer-index").textContent);
    if (!index.facts.length) return;
    records = JSON.parse(document.getElementById("explorer-records").textContent);
    state = {fact: -1, method: 0, problem: 0, score: index.scores[0][0], layer: 0};
    const fill = (name, pairs) => control(name).replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
    fill("method", index.methods.map(([, label], i) => [i, label]));
    fill("problem", index.problems.map(([, label], i) => [i, label]));
    fill("score", index.scores);
    fill("relation", [["", "all"], ...index.relations.map((name) => [name, name])]);
    control("layer").max = index.layers - 1;
    for (const name of ["search", "relation", "success", "order"]) control(name).addEventListener("input", list);
    control("fact").addEventListener("change", () => set({fact: Number(control("fact").value)}));
    for (const name of ["method", "problem"]) control(name).addEventListener("change", () => set({[name]: Number(control(name).value)}));
    control("score").addEventListener("change", () => set({score: control("score").value}));
    control("layer").addEventListener("input", () => set({layer: Number(control("layer").value)}));
    app.hidden = false;
    const follow = () => {
      const wanted = asked();
      if (!wanted) return false;
      set(wanted, {silent: true});
      app.closest("section").scrollIntoView();
      return true;
    };
    list();
    if (!follow()) set({fact: 0}, {silent: true});
    addEventListener("hashchange", follow);
    drawing.scheme.addEventListener("change", () => record && draw());
    let width = part("view").clientWidth;
    new ResizeObserver(() => {
      if (record && part("view").clientWidth !== width) requestAnimationFrame(draw);
      width = part("view").clientWidth;
    }).observe(part("view"));
  }

  requestAnimationFrame(() => setTimeout(start)); // after the first paint
})();
