"use strict";
(function () {
  const job = document.querySelector("[data-job]");
  const recent = document.getElementById("recent");
  const latest = document.getElementById("latest");
  const state = document.getElementById("connection");
  if (!recent && (!job || job.dataset.over)) return;
  const ended = ["done", "unwanted", "failed", "cancelled"];

  function number(value, write) {
    return value === null || value === undefined ? "" : write(value);
  }

  function row(event) {
    const tiny = (value) => value.toExponential(1);
    const cells = [(event.time || "").slice(11, 19), event.source, event.kind, event.status,
      number(event.iteration, String), number(event.primal, tiny), number(event.dual, tiny),
      number(event.cost, (value) => value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 })),
      event.text];
    const line = document.createElement("tr");
    line.dataset.kind = event.kind;
    line.dataset.source = event.source;
    cells.forEach((text, place) => {
      const cell = document.createElement(place === 1 ? "th" : "td");
      if (place === 1) cell.scope = "row";
      if (place < 4 || place === 8) cell.className = place === 8 ? "text wrap" : "text";
      cell.textContent = text || "";
      line.append(cell);
    });
    return line;
  }

  function show(event) {
    recent.prepend(row(event));
    while (recent.rows.length > 50) recent.lastElementChild.remove();
    for (const line of Array.from(latest.rows)) {
      if (line.dataset.kind === event.kind && line.dataset.source === event.source) line.remove();
    }
    latest.prepend(row(event));
  }

  function follow(event) {
    if (event.source !== "job " + job.dataset.job) return;
    if (ended.includes(event.status)) {
      location.reload();
      return;
    }
    const told = { status: event.status, iteration: event.iteration, cost: number(event.cost, (value) => value.toFixed(2)) };
    for (const name of Object.keys(told)) {
      const place = document.querySelector("[data-live=" + name + "]");
      if (place && told[name] !== null && told[name] !== "") place.textContent = told[name];
    }
  }

  const after = recent ? recent.dataset.after : 0;
  const source = new EventSource("/api/events?after=" + after);
  source.addEventListener("veilgrid", (message) => {
    const event = JSON.parse(message.data);
    if (recent) show(event); else follow(event);
  });
  if (state) {
    source.addEventListener("open", () => { state.textContent = "connected: events appear as they happen"; });
    source.addEventListener("error", () => { state.textContent = "not connected; trying again"; });
  }
  addEventListener("pagehide", () => source.close());
})();
