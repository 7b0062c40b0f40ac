/**
 * The tomogram: Neuroglancer in a frame of the same origin, which this page drives.
 *
 * Neuroglancer counts in x, y, z, and a voxel i reaches from i to i + 1. The rest of the page, and every command, has
 * z, y, x, and a voxel's centre at i. Both are converted here and nowhere else.
 */

const POLL = 25;
/** Pixels that the mouse may move between press and release of a click. More is a drag, which moves the view. */
const STILL = 4;
const ACTION = "cryosam-click";
const TAKE_OUT_AFTER = 4000;

const CORNER = ".neuroglancer-display-dimensions-";
const UNFOLDED = ["widget-scale-factor", "input-wrapper", "widget-default", "widget-fov"].map((part) => CORNER + part);
const DEPTH = ".neuroglancer-depth-range-";
const QUIET_CORNER = `
  ${CORNER}widget { pointer-events: none; }
  ${[...UNFOLDED, `${DEPTH}widget-grid`, `${DEPTH}relative-checkbox-label`]} { display: none !important; }
`;

const later = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export const toViewer = ([z, y, x]) => [x + 0.5, y + 0.5, z + 0.5];

/** Wait for Neuroglancer to start in its frame. */
export async function openViewer(frame) {
  while (!frame.contentWindow?.viewer?.state) await later(POLL);
  return new TomogramViewer(frame, frame.contentWindow.viewer);
}

class TomogramViewer {
  /** Called with {position: [z, y, x] of a voxel, shift, inSlice}. */
  onClick = () => {};
  /** Called with the voxel under the mouse, or null. */
  onMove = () => {};
  /** Called with a key event in the frame; a true answer means that it was ours. */
  onKey = () => false;

  constructor(frame, viewer) {
    this.frame = frame;
    this.viewer = viewer;
    this.shape = null;
    // Its Python client reports every change of the view to the server. Nobody needs it, and with ten thousand points
    // it would be a megabyte for each move of the mouse.
    viewer.state.changed.handlers?.clear();
    // The letters of the axes stay, but don't unfold into a form under the mouse, where clicks belong to the tomogram.
    const style = frame.contentDocument.createElement("style");
    style.textContent = QUIET_CORNER;
    frame.contentDocument.head.append(style);
    viewer.uiConfiguration.showTopBar.value = false;
    viewer.uiConfiguration.showLayerPanel.value = false;
    this.#bindMouse();
    this.#bindKeys();
  }

  #bindMouse() {
    const { viewer } = this;
    const { sliceView, perspectiveView } = viewer.inputEventBindings;
    let pressed = null;
    const where = (event) => [event.clientX, event.clientY];
    this.frame.contentDocument.addEventListener("mousedown", (event) => (pressed = where(event)), true);
    for (const panel of [sliceView, perspectiveView]) {
      panel.set("at:click0", { action: ACTION });
      panel.set("at:shift+click0", { action: ACTION });
      panel.set("at:dblclick0", { action: "cryosam-nothing" });
    }
    // Slices stay along the axes: that is what masks, gallery and commands show.
    sliceView.set("at:shift+mousedown0", { action: "translate-via-mouse-drag", stopPropagation: true });
    viewer.element.addEventListener(`action:${ACTION}`, (event) => {
      event.stopPropagation();
      const mouse = event.detail;
      const moved = pressed && Math.max(...where(mouse).map((v, i) => Math.abs(v - pressed[i])));
      if (moved > STILL || mouse.detail > 1) return; // a drag, or the second half of a double click
      const panel = [...viewer.display.panels].find(({ element }) => element.contains(mouse.target));
      // A browser gives whole pixels. What a person sees under the pointer is the pixel's middle, not its corner.
      panel?.handleMouseMove?.(mouse.clientX + 0.5, mouse.clientY + 0.5);
      const position = viewer.mouseState.updateUnconditionally() ? this.#voxel() : null;
      const inSlice = Boolean(panel?.sliceView);
      if (position) this.onClick({ position, shift: mouse.shiftKey, inSlice, instance: this.instanceUnderMouse() });
    });
    viewer.mouseState.changed.add(() => this.onMove(viewer.mouseState.active ? this.#voxel() : null));
  }

  #bindKeys() {
    // Neuroglancer takes the focus when the mouse is over it. Keys of the review work there too.
    this.frame.contentDocument.addEventListener(
      "keydown",
      (event) => {
        if (!this.onKey(event)) return;
        event.stopPropagation();
        event.preventDefault();
      },
      true,
    );
  }

  #voxel() {
    // its `position` snaps to a point that is near, which is none of what was clicked on
    const [x, y, z] = this.viewer.mouseState.unsnappedPosition;
    const voxel = [z, y, x].map(Math.floor);
    const inside = this.shape && voxel.every((v, i) => v >= 0 && v < this.shape[i]);
    return inside ? voxel : null;
  }

  /** The label under the mouse in the layer of masks, 0 for none. */
  instanceUnderMouse(layerName = "masks") {
    const layer = this.viewer.layerManager.getLayerByName(layerName)?.layer;
    if (!layer) return 0;
    const value = this.viewer.layerSelectedValues.get(layer)?.value;
    return Number(value?.key ?? value ?? 0);
  }

  /** Show a tomogram from its middle, whole. shape : z, y, x voxels; voxelSize : z, y, x in ångström */
  start(shape, voxelSize) {
    this.shape = shape;
    this.voxelSize = voxelSize;
    const smallest = Math.min(...voxelSize);
    const [width, height] = [this.frame.clientWidth / 2, this.frame.clientHeight / 2];
    const extent = shape.map((n, i) => (n * voxelSize[i]) / smallest);
    this.viewer.state.restoreState({
      dimensions: this.dimensions(),
      position: toViewer(shape.map((n) => Math.floor(n / 2))),
      crossSectionScale: 1.04 * Math.max(extent[2] / width, extent[1] / height),
      projectionScale: 1.5 * Math.max(...extent),
      projectionOrientation: [0.35, 0.1, 0.05, 0.93],
      layout: "4panel-alt",
      showAxisLines: true,
      showScaleBar: true,
      showDefaultAnnotations: true,
      showSlices: true,
      // A browser opens six connections to a server. Clicks and decisions must not wait behind slices and surfaces.
      concurrentDownloads: 4,
      hideCrossSectionBackground3D: true,
      crossSectionBackgroundColor: "#0b0d10",
      projectionBackgroundColor: "#0b0d10",
    });
  }

  dimensions() {
    const [z, y, x] = this.voxelSize.map((angstroms) => [angstroms * 1e-10, "m"]);
    return { x, y, z };
  }

  goTo(position) {
    this.viewer.position.value = Float32Array.from(toViewer(position));
  }

  setLayout(layout) {
    this.viewer.state.restoreState({ layout });
  }

  /**
   * Show these layers, from the bottom up. Each is {name, key, spec, change?}: a layer whose key is as before stays,
   * with all that it has loaded, and `change(userLayer, managedLayer)` brings it up to date; else it is replaced.
   */
  setLayers(wanted) {
    const manager = this.viewer.layerManager;
    this.keys ??= new Map();
    for (const layer of [...manager.managedLayers]) {
      if (layer.name.startsWith("old ")) continue;
      const next = wanted.find((w) => w.name === layer.name);
      if (next && this.keys.get(layer.name) === next.key) continue;
      if (next?.spec.type === "image") this.#retire(layer, next.name);
      else manager.removeManagedLayer(layer);
    }
    for (const { name, key, spec } of wanted) {
      if (!manager.getLayerByName(name)) this.#append({ ...spec, name });
      this.keys.set(name, key);
    }
    wanted.forEach(({ name }, index) => {
      const olds = manager.managedLayers.filter((layer) => layer.name.startsWith("old ")).length;
      const from = manager.managedLayers.findIndex((layer) => layer.name === name);
      if (from >= 0 && from !== index + olds) manager.reorderManagedLayer(from, index + olds);
    });
    for (const { name, change, spec } of wanted) {
      const layer = manager.getLayerByName(name);
      if (!layer?.layer) continue;
      layer.setVisible(spec.visible !== false);
      change?.(layer.layer);
    }
  }

  /** Neuroglancer's own way to make layers from a description replaces all; here those that are there stay. */
  #append(spec) {
    const { layerManager, layerSpecification, mouseState } = this.viewer;
    const { active } = mouseState;
    layerManager.clear = () => {};
    mouseState.active = false; // a layer that is not complete can't say what is under the mouse
    try {
      layerSpecification.restoreState([spec]);
    } finally {
      delete layerManager.clear; // the method of its class again
      mouseState.active = active;
    }
  }

  /** An image that another takes the place of stays below it until that has loaded, so nothing goes black between. */
  async #retire(layer, name) {
    const manager = this.viewer.layerManager;
    for (const old of manager.managedLayers.filter((l) => l.name === `old ${name}`)) manager.removeManagedLayer(old);
    layer.name = `old ${name}`;
    manager.reorderManagedLayer(manager.managedLayers.indexOf(layer), 0);
    const end = Date.now() + TAKE_OUT_AFTER;
    do await later(4 * POLL);
    while (Date.now() < end && !manager.getLayerByName(name)?.isReady());
    if (manager.managedLayers.includes(layer)) manager.removeManagedLayer(layer);
  }
}
