/** The page's parts, and what joins them: snapshots of the server in, drawing and layers out. */

import { follow, act } from "./api.js";
import { layersOf } from "./layers.js";
import { openViewer } from "./viewer.js";
import { $ } from "./dom.js";

const frame = $("#viewer");
frame.src = "v/x/";
const viewer = await openViewer(frame);
let snapshot, started;
const view = { slab: 0, invert: false, window: null, showSimilarity: true, opacity: 0.6, showMasks: true, showPoints: true };
viewer.onClick = ({ position, shift, inSlice }) => {
  const kind = snapshot.kinds[0];
  act("click/add", { kind: kind.name, position, positive: !shift });
};
follow((s) => {
  snapshot = s;
  if (s.tomogram && !started) { viewer.start(s.run.shape, s.run.voxel_size); started = true; view.window = s.tomogram.window; }
  viewer.setLayers(layersOf(viewer, s, s.kinds[0], view, null, 0));
}, (up) => console.log("link", up));
globalThis.cryosam = { viewer, view };
