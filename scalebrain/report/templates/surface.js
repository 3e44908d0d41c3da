"use strict";
// The cortex in three dimensions: a color a vertex, both hemispheres or one.
(async () => {
  const say = (words) => { document.getElementById("shown").textContent = words; };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const paper = () => [...getComputedStyle(document.body).backgroundColor.match(/\d+/g).slice(0, 3).map((c) => c / 255), 1];
  const canvas = document.getElementById("cortex");
  try {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("it has no WebGL2");
    const { Niivue, NVMesh } = window.niivue;
    const nv = new Niivue({
      logLevel: "error", backColor: paper(), show3Dcrosshair: false, isOrientCube: true,
      dragAndDropEnabled: false, scrollRequiresFocus: true, loadingText: "",
    });
    await nv.attachToCanvas(canvas);
    nv.setScale(1.35);
    const halves = {}, words = {};
    for (const half of JSON.parse(document.getElementById("surface-data").textContent)) {
      words[half.side] = half.word;
      halves[half.side] = new NVMesh(
        new Float32Array(bytes(half.points)), new Uint32Array(bytes(half.triangles)), half.side,
        new Uint8Array(bytes(half.colors)), 1, true, nv.gl,
      );
      nv.addMesh(halves[half.side]);
    }
    const views = [  // name, azimuth and elevation in degrees, hemispheres
      [`${words.left}, lateral`, 90, 0, ["left"]], [`${words.left}, medial`, 270, 0, ["left"]],
      [`${words.right}, medial`, 90, 0, ["right"]], [`${words.right}, lateral`, 270, 0, ["right"]],
      ["both, from above", 0, 90, ["left", "right"]], ["both, from below", 180, -90, ["left", "right"]],
      ["both, front", 180, 0, ["left", "right"]], ["both, back", 0, 0, ["left", "right"]],
    ];
    const buttons = views.map(([name, azimuth, elevation, sides]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => {
        for (const [side, mesh] of Object.entries(halves)) mesh.visible = sides.includes(side);
        nv.setRenderAzimuthElevation(azimuth, elevation);
        for (const other of buttons) other.setAttribute("aria-pressed", other === button);
        say(`View: ${name}.`);
      });
      document.querySelector(".views").append(button);
      return button;
    });
    const turns = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] };  // degrees
    const zooms = { "+": 1.15, "=": 1.15, "-": 1 / 1.15 };
    canvas.addEventListener("keydown", (event) => {
      const turn = turns[event.key], zoom = zooms[event.key];
      if (!(turn || zoom) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      if (turn) {
        const azimuth = (nv.scene.renderAzimuth + turn[0] + 720) % 360;
        const elevation = Math.min(90, Math.max(-90, nv.scene.renderElevation + turn[1]));
        nv.setRenderAzimuthElevation(azimuth, elevation);
        for (const button of buttons) button.setAttribute("aria-pressed", false);
        say(`Turned: azimuth ${Math.round(azimuth)}°, elevation ${Math.round(elevation)}°.`);
      } else {
        nv.setScale(Math.min(8, Math.max(0.5, nv.scene.volScaleMultiplier * zoom)));
        say(`Zoom ${Math.round(100 * nv.scene.volScaleMultiplier)}%.`);
      }
    }, true);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { nv.opts.backColor = paper(); nv.drawScene(); });
    buttons[0].click();
    document.body.dataset.state = "open";
  } catch (error) {
    say(`The surface cannot be shown in this browser: ${error.message}. plot_regions draws regions without it.`);
    document.body.dataset.state = "failed";
  }
})();
