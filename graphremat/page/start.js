// Everything is drawn once, and again where the colours of the system change.

fillDepths();
showTiles();
startCurve();
drawFrontier();
showTruth();
showModules();
startGraph();
depthChoice.addEventListener("change", () => {
  showModules();
  showAlive(Number(alivePanel.dataset.position));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawCurve();
  drawFrontier();
  drawGraph();
  showNames();
});
document.documentElement.dataset.ready = "yes";
