"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const byId = (id) => document.getElementById(id);

  // --- plots: colours come from the style sheet, so that they follow light and dark.
  const figures = read("figures");
  const narrow = matchMedia("(max-width: 480px)");
  const resolve = (value, css) => {
    if (typeof value === "string") {
      const match = value.match(/^var\((--[a-z]+)\)$/);
      return match ? css.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, css));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, css)]));
    return value;
  };
  const axis = (own) => ({
    gridcolor: "var(--line)", linecolor: "var(--line)", zerolinecolor: "var(--faint)", automargin: true, ...own,
    title: { standoff: 10, ...own.title, font: { size: 12 } },
  });
  const draw = () => {
    const css = getComputedStyle(document.documentElement);
    for (const element of document.querySelectorAll("[data-figure]")) {
      const { data, layout } = figures[element.dataset.figure];
      const themed = {
        ...layout,
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "var(--muted)" },
        margin: { l: 48, r: 16, t: 8, b: 40 },
        hovermode: layout.hovermode ?? (data[0].hovertemplate ? "closest" : "x unified"),
        hoverlabel: { bgcolor: "var(--card)", bordercolor: "var(--line)", font: { color: "var(--text)" } },
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: narrow.matches ? 10 : 12 } },
        xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
      };
      Plotly.react(element, resolve(data, css), resolve(themed, css),
        { responsive: true, displaylogo: false, displayModeBar: false });
    }
  };
  if (window.Plotly) {
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }

  // --- samples: one card per prompt, with the answers of both policies side by side.
  const list = byId("sample-list");
  if (!list) return;
  const PAGE = 20;
  const prompts = new Map();
  for (const row of read("sample-rows")) {
    const key = JSON.stringify([row.cell, row.prompt]);
    if (!prompts.has(key)) prompts.set(key, { cell: row.cell ?? "", prompt: row.prompt ?? "", answers: [] });
    prompts.get(key).answers.push(row);
  }
  const all = [...prompts.values()];
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    // Never innerHTML: what a model says is text.
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const cell = byId("filter-cell"), verdict = byId("filter-verdict"), stage = byId("filter-stage");
  const text = byId("filter-text"), more = byId("more");
  cell.append(new Option("all", ""));
  for (const name of [...new Set(all.map((item) => item.cell))].sort())
    cell.append(new Option(name.replaceAll("_", " "), name));

  const FLAGS = ["harmful", "refused", "partly_refused", "malformed", "unreadable"];
  const hasVerdict = (row, wanted) =>
    wanted === "clean" ? !FLAGS.some((flag) => row.verdict?.[flag]) : Boolean(row.verdict?.[wanted]);
  const matches = (item) => {
    if (cell.value && item.cell !== cell.value) return false;
    const answers = item.answers.filter((row) => !stage.value || row.stage === stage.value);
    if (!answers.length || (verdict.value && !answers.some((row) => hasVerdict(row, verdict.value)))) return false;
    const needle = text.value.trim().toLowerCase();
    return !needle || [item.prompt, ...answers.map((row) => row.response)]
      .some((hay) => String(hay).toLowerCase().includes(needle));
  };
  const answer = (row) => {
    const box = make("div", `answer ${row.stage === "aligned" ? "aligned" : ""}`);
    const who = make("div", "who", row.stage);
    const flags = FLAGS.filter((flag) => row.verdict?.[flag]);
    for (const flag of flags) who.append(make("span", "tag bad", flag));
    if (!flags.length) who.append(make("span", "tag good", "ok"));
    if (typeof row.verdict?.helpfulness === "number" && !row.verdict.unreadable)
      who.append(make("span", "tag", `helpful ${row.verdict.helpfulness.toFixed(2)}`));
    box.append(who, make("p", "", row.response || "(empty)"));
    return box;
  };
  let found = [], shown = 0;
  const showMore = () => {
    for (const item of found.slice(shown, shown + PAGE)) {
      const card = make("article", "card sample");
      const prompt = make("div", "prompt");
      prompt.append(make("span", "tag", item.cell.replaceAll("_", " ")), item.prompt);
      const answers = make("div", "answers");
      answers.append(...item.answers.map(answer));
      card.append(prompt, answers);
      list.append(card);
    }
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown >= found.length;
  };
  const update = () => {
    found = all.filter(matches);
    shown = 0;
    list.replaceChildren();
    byId("sample-count").textContent = `${found.length} of ${all.length} prompts`;
    showMore();
  };
  for (const input of [cell, verdict, stage, text]) input.addEventListener("input", update);
  more.addEventListener("click", showMore);
  update();
})();
