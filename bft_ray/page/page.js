// Live figures in the places of the static ones, each drawn when it comes near the window.
(function () {
  "use strict";
  if (!window.DecompressionStream || !window.IntersectionObserver) return; // the static ones stay
  var figures = JSON.parse(document.getElementById("figures").textContent);
  var isNarrow = window.matchMedia("(max-width: 34rem)").matches;
  var config = { responsive: true, displayModeBar: false }; // drag to zoom, double-click to go back
  function draw(place) {
    var figure = figures[place.dataset.figure];
    if (isNarrow) {
      if (figure.data[0].type === "parcoords") return; // its axes need room
      figure.layout.height += 16 * figure.data.filter(function (trace) { return trace.showlegend; }).length;
      figure.layout.font.size = 10.5;
      figure.layout.dragmode = false; // a finger scrolls the page
    }
    place.parentNode.classList.add("is-live");
    Plotly.newPlot(place, figure.data, figure.layout, config).catch(function () {
      place.parentNode.classList.remove("is-live"); // the static one stays
    });
  }
  function watch() {
    var near = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) {
        if (!entry.isIntersecting) return;
        near.unobserve(entry.target);
        draw(entry.target.querySelector(".live"));
      });
    }, { rootMargin: "600px" });
    document.querySelectorAll("figure").forEach(function (figure) { near.observe(figure); });
  }
  var packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), function (c) { return c.charCodeAt(0); });
  new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text().then(function (text) {
    var library = document.createElement("script");
    library.textContent = text;
    document.head.appendChild(library);
    if (window.Plotly) watch();
  });
})();
