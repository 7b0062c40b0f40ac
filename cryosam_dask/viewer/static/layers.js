/** What the viewer shows, from the bottom up: tomogram, similarity, masks, clicks, points. See `setLayers`. */

import { address } from "./api.js";
import { toViewer } from "./viewer.js";

/** Instances with a surface in 3D. Each is two requests, and more than this hides more than it shows. */
const MOST_SURFACES = 1000;

export const VERDICT_COLORS = { accepted: "#4ade80", rejected: "#f87171", added: "#38bdf8", undecided: "#facc15" };
/** Where the search itself has no threshold. */
const USUAL_THRESHOLD = 0.5;
const REJECTED_MASK = "#5b6068";

/** Only the tomogram's box is drawn: those of masks and maps would lie over it. */
const source = (volume, bounds = false) => ({
  url: `precomputed://${address(`data/${encodeURIComponent(volume)}`)}`,
  enableDefaultSubsources: true,
  subsources: { bounds },
});

const TOMOGRAM_SHADER = `#uicontrol invlerp normalized
void main() { emitGrayscale(normalized()); }
`;

// Yellow where a place is just like the example enough, red where it is most like it.
const SIMILARITY_SHADER = `#uicontrol float threshold slider(min=0, max=1, default=0.5)
void main() {
  float like = toNormalized(getDataValue());
  float above = clamp((like - threshold) / max(1.0 - threshold, 0.01), 0.0, 1.0);
  emitRGBA(vec4(1.0, 0.85 * (1.0 - above), 0.1, like < threshold || like == 0.0 ? 0.0 : 0.55 + 0.45 * above));
}
`;

// Rings, so that what they are about stays in sight.
const POINT_SHADER = `void main() {
  setPointMarkerColor(vec4(0.0, 0.0, 0.0, 0.0));
  setPointMarkerSize(prop_size());
  setPointMarkerBorderWidth(2.0);
  setPointMarkerBorderColor(prop_color());
}
`;

/** Densities `low` and `high` as what the tomogram's 8-bit voxels hold; swapped where bright is to be dark. */
function contrast(tomogram, view) {
  const [low, high] = tomogram.range;
  const scaled = view.window.map((density) => (255 * (density - low)) / (high - low));
  return { normalized: { range: view.invert ? scaled.reverse() : scaled } };
}

function image(name, volume, shader, controls, more = {}) {
  return {
    name,
    key: volume,
    spec: {
      type: "image",
      source: source(volume, name === "tomogram"),
      shader,
      shaderControls: controls,
      opacity: 1,
      ...more,
    },
    change: (layer) => {
      layer.shaderControlState.restoreState(controls);
      if (more.opacity !== undefined) layer.opacity.value = more.opacity;
    },
  };
}

function masks(name, volume, visible, segments, color, colors = {}) {
  const spec = {
    type: "segmentation",
    source: source(volume),
    segments,
    segmentDefaultColor: color,
    segmentColors: colors,
    visible,
    selectedAlpha: 0.45,
    notSelectedAlpha: 0.45,
    hideSegmentZero: true,
    objectAlpha: 1,
  };
  // Verdicts change colours in place: nothing that is loaded is loaded again.
  const now = JSON.stringify(colors);
  const change = (layer) => {
    if (layer.cryosamColors === now) return;
    layer.cryosamColors = now;
    const group = layer.displayState.segmentationColorGroupState.value;
    group.segmentStatedColors.clear();
    group.restoreState({ segmentColors: colors });
  };
  return { name, key: `${volume} ${color} ${segments.length}`, spec, change };
}

function points(name, viewer, marks, visible) {
  const annotations = marks.map(({ id, position, color, size }) => ({
    type: "point",
    id: String(id),
    point: toViewer(position),
    props: [color, size],
  }));
  const spec = {
    type: "annotation",
    source: { url: "local://annotations", transform: { outputDimensions: viewer.dimensions() } },
    annotationProperties: [
      { id: "color", type: "rgb", default: "#ffffff" },
      { id: "size", type: "float32", default: 8 },
    ],
    shader: POINT_SHADER,
    annotations,
    visible,
  };
  const now = JSON.stringify(annotations);
  const change = (layer) => {
    if (layer.cryosamShown === now) return;
    layer.localAnnotations?.restoreState(annotations);
    layer.cryosamShown = now;
  };
  return { name, key: "points", spec, change };
}

/** The similarity from which the map is shown: what was chosen, else the search's own, else what is not just noise. */
export const thresholdOf = (kind, view) => view.threshold ?? (kind.similarity.threshold || USUAL_THRESHOLD);

/** Marks of clicks: those on a particle in their kind's colour, "not this" in grey. */
function clickMarks(kind) {
  return kind.clicks.map(({ id, position, positive }) => ({
    id: `click ${id}`,
    position,
    color: positive ? kind.color : "#9ca3af",
    size: 11,
  }));
}

function pickMarks(picks, chosen, pending) {
  const marks = picks.instances.map((instance, i) => ({
    id: instance || `added ${i}`,
    position: picks.positions[i],
    color: VERDICT_COLORS[picks.verdicts[i]],
    size: i === chosen ? 22 : 10,
  }));
  const waits = pending.map(({ key, position }) => ({ id: `waits ${key}`, position, color: "#ffffff", size: 10 }));
  return [...marks, ...waits];
}

/**
 * Layers for what a page shows now.
 *
 * kind : the chosen one or undefined; picks : the chosen kind's, as the server gives them, or null; chosen : index of
 * the pick that is looked at, -1 for none; pending : additions that are not saved yet
 */
export function layersOf({ snapshot, step, view, viewer }, kind, picks, chosen, pending) {
  const { tomogram } = snapshot;
  const encoding = view.compressed ? "-jpeg" : "";
  const volume = `${view.slab ? `slab-${view.slab}` : "tomogram"}${encoding}-v${tomogram.version}`;
  const layers = [image("tomogram", volume, TOMOGRAM_SHADER, contrast(tomogram, view))];
  if (!kind) return layers;
  if (kind.similarity && view.showSimilarity) {
    const name = `similarity-${kind.name}-${kind.similarity.version}`;
    const controls = { threshold: thresholdOf(kind, view) };
    layers.push(image("similarity", name, SIMILARITY_SHADER, controls, { opacity: view.opacity }));
  }
  if (kind.picks?.complete && picks) {
    const labels = picks.instances.filter(Boolean);
    const rejected = picks.instances.filter((instance, i) => instance && picks.verdicts[i] === "rejected");
    const colors = Object.fromEntries(rejected.map((instance) => [instance, REJECTED_MASK]));
    const name = `labels-${kind.name}-${kind.picks.version}`;
    layers.push(masks("masks", name, view.showMasks, labels.slice(0, MOST_SURFACES).map(String), kind.color, colors));
  }
  // masks of clicks are among those of the picks, once there are some
  const clicks = view.showMasks && (step === "click" || !kind.picks?.complete) ? kind.clicks : [];
  for (const click of clicks) {
    if (click.preview) layers.push(masks(`click ${click.id}`, `preview-${click.preview}`, true, ["1"], kind.color));
  }
  if (picks) layers.push(points("picks", viewer, pickMarks(picks, chosen, pending), view.showPoints));
  layers.push(points("clicks", viewer, clickMarks(kind), view.showPoints));
  return layers;
}
