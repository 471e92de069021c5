"use strict";
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = Array.from(document.querySelectorAll(".plot"));
  const paints = /color$|^color$/;

  function unpack(entry) {
    const bytes = Uint8Array.from(atob(entry.packed), (sign) => sign.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const [rows, columns] = entry.shape;
    const result = [];
    for (let row = 0; row < rows; row += 1) {
      const line = new Array(columns);
      for (let column = 0; column < columns; column += 1) {
        const code = view.getUint16(2 * (row * columns + column), true);
        line[column] = code === 65535 ? null : entry.low + entry.step * code;
      }
      result.push(line);
    }
    return result;
  }

  function colour(name, style) {
    const [key, share] = name.slice(1).split("/");
    if (key === "clear") return "rgba(0,0,0,0)";
    const code = style.getPropertyValue("--" + key).trim();
    if (!share) return code;
    const parts = [1, 3, 5].map((start) => parseInt(code.slice(start, start + 2), 16));
    return "rgba(" + parts.join(",") + "," + share + ")";
  }

  function resolve(value, style, key) {
    if (typeof value === "string") {
      return paints.test(key) && value[0] === "@" ? colour(value, style) : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, style, key));
    if (value === null || typeof value !== "object") return value;
    if ("packed" in value) return unpack(value);
    const result = {};
    for (const name of Object.keys(value)) result[name] = resolve(value[name], style, name);
    return result;
  }

  function draw(width) {
    const style = getComputedStyle(document.documentElement);
    for (const plot of plots) {
      const figure = figures[plot.dataset.figure];
      const layout = resolve(figure.layout, style, "");
      if (plot.clientWidth < 600) layout.margin = { l: 48, r: 8, t: 12, b: 40 };
      const height = Number(plot.dataset.height) * (width ? 0.72 : 1);
      plot.style.height = height + "px";
      layout.height = height;
      if (width) layout.width = Math.min(width, plot.clientWidth || width);
      // The buttons are named one by one: by default there is one that sends data to a server.
      const config = { responsive: !width, displaylogo: false, plotlyServerURL: "",
        modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
      Plotly.react(plot, resolve(figure.data, style, ""), layout, config);
    }
    if (feeder) feeder();
  }

  function feederOf(plot) {
    const own = figures[plot.dataset.figure].feeder;
    const slider = document.getElementById("interval");
    const states = { plan: own.plan && unpack(own.plan), before: own.before && unpack(own.before) };
    const demand = own.demand && unpack(own.demand);
    const fixed = (value, digits) => (value === null ? "unknown" : value.toFixed(digits));
    const isOutside = (value) => value !== null &&
      ((own.low !== null && value < own.low - 1e-5) || (own.high !== null && value > own.high + 1e-5));

    function least(line, sign) {
      const known = line.filter((value) => value !== null);
      return known.length ? sign * Math.max(...known.map((value) => sign * value)) : null;
    }

    function describe(values, interval, bus) {
      const line = values[bus];
      let text = "<b>bus " + own.names[bus] + "</b>" + (bus === own.root ? " (substation)" : "") +
        "<br>voltage " + fixed(line[interval], 4) + " pu" +
        "<br>in the day " + fixed(least(line, -1), 4) + " to " + fixed(least(line, 1), 4) + " pu";
      if (demand) text += "<br>planned net demand " + fixed(demand[bus][interval], 4) + " MW";
      return text + "<br>impedance to the substation " + own.distance[bus] + " pu";
    }

    return function () {
      const picked = document.querySelector("input[name=which]:checked");
      const which = picked ? picked.value : own.plan ? "plan" : "before";
      const interval = Number(slider.value);
      const values = states[which];
      const now = values.map((line) => line[interval]);
      const outside = now.map((value, bus) => bus !== own.root && isOutside(value));
      const style = getComputedStyle(document.documentElement);
      const ring = colour("@limit", style);
      const edge = colour("@axis", style);
      Plotly.restyle(plot, {
        "marker.color": [now],
        "marker.size": [own.size.map((size) => size * Math.max(0.5, Math.min(1, plot.clientWidth / 800)))],
        "marker.line.width": [outside.map((flag) => (flag ? 3 : 1))],
        "marker.line.color": [outside.map((flag) => (flag ? ring : edge))],
        hovertext: [own.names.map((name, bus) => describe(values, interval, bus))],
      }, [1]);
      document.getElementById("moment").textContent = own.times[interval];
      const count = outside.filter(Boolean).length;
      const limits = own.low === null && own.high === null ? "" :
        count ? "; " + count + (count > 1 ? " buses" : " bus") + " outside the limits"
          : "; all within the limits";
      document.getElementById("feeder-words").textContent =
        (which === "plan" ? "Plan" : "Without coordination") + " at " + own.times[interval] + ": " +
        fixed(least(now, -1), 4) + " to " + fixed(least(now, 1), 4) + " pu" + limits + ".";
    };
  }

  const tree = plots.find((plot) => figures[plot.dataset.figure].feeder);
  const feeder = tree ? feederOf(tree) : null;
  draw(0);
  if (feeder) {
    document.getElementById("interval").addEventListener("input", feeder);
    document.querySelectorAll("input[name=which]").forEach((radio) => {
      radio.addEventListener("change", feeder);
    });
  }
  // A printer is a light page of its own width; it may also look like a change of scheme.
  const printing = document.documentElement.dataset;
  const redraw = () => draw(printing.print ? 680 : 0);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    printing.print = "yes";
    document.querySelectorAll("details").forEach((entry) => { entry.open = true; });
    redraw();
  });
  addEventListener("afterprint", () => {
    delete printing.print;
    redraw();
  });
})();
