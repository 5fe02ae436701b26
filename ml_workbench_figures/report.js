"use strict";
(function () {
  var root = document.documentElement;
  var toggle = document.getElementById("toggle");
  var texts = JSON.parse(document.getElementById("figures").textContent);
  var colours = JSON.parse(document.getElementById("colours").textContent);
  var pattern = new RegExp(
    Object.keys(colours).map(function (each) { return each.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"); }).join("|"), "g");
  var media = window.matchMedia("(prefers-color-scheme: dark)");

  function isDark() {
    var chosen = root.dataset.theme;
    return chosen === "dark" || (chosen !== "light" && media.matches);
  }

  function draw() {
    var dark = isDark();
    toggle.textContent = dark ? "Light colours" : "Dark colours";
    toggle.setAttribute("aria-pressed", String(dark));
    document.querySelectorAll(".plot").forEach(function (place) {
      var text = texts[place.dataset.figure];
      var figure = JSON.parse(dark ? text.replace(pattern, function (each) { return colours[each]; }) : text);
      Plotly.react(place, figure.data, figure.layout, { responsive: true, displaylogo: false });
    });
  }

  toggle.hidden = false;
  toggle.addEventListener("click", function () {
    root.dataset.theme = isDark() ? "light" : "dark";
    draw();
  });
  media.addEventListener("change", draw);
  draw();
})();
