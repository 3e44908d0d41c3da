"use strict";
// The viewer of volumes: nothing of it runs before it is asked for.
for (const box of document.querySelectorAll(".viewer")) {
  const $ = (name) => box.querySelector(`[data-part="${name}"]`);
  const start = $("start");
  start.hidden = false;
  $("unscripted").hidden = true;
  const say = (words) => { $("status").textContent = words; };
  start.addEventListener("click", async () => {
    start.disabled = true;
    say("Opening.");
    try {
      if (!document.createElement("canvas").getContext("webgl2")) throw new Error("it has no WebGL2");
      if (!window.niivue) {
        const script = document.createElement("script");
        script.textContent = document.getElementById("niivue-source").textContent;
        document.head.append(script);
      }
      $("stage").hidden = false;
      await open(JSON.parse(document.getElementById(box.dataset.source).textContent));
      start.hidden = true;
      say("");
      $("canvas").focus({ preventScroll: true });
      box.dataset.state = "open";
    } catch (error) {
      $("stage").hidden = true;
      start.disabled = false;
      say(`The viewer cannot open in this browser: ${error.message}. The slices above show the same map.`);
      box.dataset.state = "failed";
    }
  });

  async function open(data) {
    const { Niivue, NVImage } = window.niivue;
    const nv = new Niivue({
      logLevel: "error", backColor: [0.07, 0.09, 0.11, 1], crosshairColor: [0.35, 0.85, 1, 0.9],
      fontColor: [1, 1, 1, 1], dragAndDropEnabled: false, scrollRequiresFocus: true,
      isNearestInterpolation: true, multiplanarShowRender: 0, isRadiologicalConvention: false,
      isOrientationTextVisible: true, showAllOrientationMarkers: true, multiplanarPadPixels: 8, crosshairWidth: 0.4,
      sagittalNoseLeft: true, loadingText: "",
      dragMode: 3,
    });
    await nv.attachToCanvas($("canvas"));
    const gray = await NVImage.loadFromBase64({ base64: data.background, name: "background.nii.gz", colormap: "gray", cal_min: 0, cal_max: 255 });
    nv.addVolume(gray);
    const lut = (colors) => {  // its first entry is of what is not shown
      const all = [colors[0], ...colors];
      const at = all.map((_, i) => (i ? 1 + Math.round((254 * (i - 1)) / (colors.length - 1)) : 0));
      return { R: all.map((c) => c[0]), G: all.map((c) => c[1]), B: all.map((c) => c[2]), A: all.map((_, i) => (i ? 255 : 0)), I: at };
    };
    const images = new Map();
    let shown = null;
    let map = null;
    const readout = (mm) => {
      ["x", "y", "z"].forEach((axis, i) => { if (document.activeElement !== $(axis)) $(axis).value = mm[i].toFixed(0); });
      const value = shown ? shown.getValue(...shown.mm2vox(mm)) : 0;
      const side = mm[0] < -0.5 ? map.sides[0] : mm[0] > 0.5 ? map.sides[1] : "midline";
      const words = value ? `${value.toFixed(map.digits).replace("-", "\u2212")} ${map.unit}` : "nothing here";
      $("value").textContent = `${side}: ${words}`;
    };
    const where = () => [...nv.frac2mm(nv.scene.crosshairPos)].slice(0, 3);
    const threshold = () => {
      const least = Number($("threshold").value);
      shown.cal_min = least;
      shown.cal_max = map.limit;
      if (map.below) { shown.cal_minNeg = -map.limit; shown.cal_maxNeg = -least; }
      nv.updateGLVolume();
      $("least").textContent = `${least.toFixed(map.digits)} ${map.unit}`;
    };
    const choose = async (index) => {
      map = data.maps[index];
      if (!images.has(index)) {
        nv.addColormap(`above${index}`, lut(map.above));
        if (map.below) nv.addColormap(`below${index}`, lut(map.below));
        const image = await NVImage.loadFromBase64({
          base64: map.image, name: `map${index}.nii.gz`, colormap: `above${index}`,
          colormapNegative: map.below ? `below${index}` : "", opacity: 0.85, cal_min: map.step, cal_max: map.limit,
        });
        image.colormapType = 1;
        images.set(index, image);
      }
      if (shown) nv.removeVolume(shown);
      shown = images.get(index);
      nv.addVolume(shown);
      Object.assign($("threshold"), { min: map.step, max: map.limit, step: map.step, value: map.step });
      threshold();
      $("legend").style.background = `linear-gradient(to right, ${map.gradient.join(", ")})`;
      [$("low").textContent, $("high").textContent] = map.ends;
      $("unit").textContent = map.unit;
      $("sides").textContent = sides();
      readout(where());
    };
    const sides = () => {
      const flipped = $("flip").checked;
      const [left, right] = map.sides;
      return `${flipped ? "Radiological" : "Neurological"} view: ${left} is drawn on the ${flipped ? "right" : "left"}, ${right} on the ${flipped ? "left" : "right"}.`;
    };
    const go = (mm) => {
      nv.scene.crosshairPos = nv.mm2frac(mm);
      nv.drawScene();
      readout(where());
    };
    nv.onLocationChange = (at) => readout([...at.mm].slice(0, 3));
    data.maps.forEach((m, i) => $("map").append(new Option(m.label, i)));
    $("map").closest("label").hidden = data.maps.length < 2;
    $("map").addEventListener("change", (event) => choose(Number(event.target.value)));
    $("threshold").addEventListener("input", threshold);
    $("flip").addEventListener("change", (event) => { nv.setRadiologicalConvention(event.target.checked); $("sides").textContent = sides(); });
    ["x", "y", "z"].forEach((axis, i) => {
      Object.assign($(axis), { min: data.low[i], max: data.high[i], step: 1 });
      $(axis).addEventListener("change", () => {
        const mm = where();
        if ($(axis).value !== "") mm[i] = Math.min(data.high[i], Math.max(data.low[i], Number($(axis).value)));
        go(mm);
      });
    });
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] };
    $("canvas").addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      const mm = where();
      const [axis, sign] = step;
      const size = Math.abs(gray.pixDimsRAS[axis + 1]);
      const turned = axis === 0 && $("flip").checked ? -sign : sign;
      mm[axis] = Math.min(data.high[axis], Math.max(data.low[axis], mm[axis] + turned * size));
      go(mm);
    }, true);
    await choose(0);
    go(data.start);
  }
}
