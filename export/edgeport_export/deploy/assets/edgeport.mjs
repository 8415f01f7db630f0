// What the page and the Node program share: an image brought to the network's size exactly as Pillow does it, answers, and golden cases.
// Nothing here depends on a browser or on Node. Images are { data: Uint8Array of rows of pixels, height, width, channels }.
import { detect } from "./detector.mjs";

const BITS = 22; // of a weight's fraction, as in Pillow's Resample.c for 8-bit images

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (x) => {
      const a = -0.5, t = Math.abs(x);
      if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
      return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
    },
  },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/** For each output position: the first input position, and whole-number weights. */
function weights(from, to, filter) {
  const scale = from / to, stretch = Math.max(scale, 1), reach = filter.support * stretch;
  return Array.from({ length: to }, (_, position) => {
    const center = (position + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(from, Math.trunc(center + reach + 0.5));
    const parts = [];
    for (let x = first; x < last; x++) parts.push(filter.weight((x - center + 0.5) / stretch));
    let sum = 0;
    for (const each of parts) sum += each;
    return { first, parts: parts.map((each) => (sum === 0 ? each : each / sum)).map((each) => Math.trunc((each < 0 ? -0.5 : 0.5) + each * 2 ** BITS)) };
  });
}

const clipped = (sum) => Math.min(255, Math.max(0, sum >> BITS));

function alongWidth(image, width, filter) {
  const { data, height, channels } = image, table = weights(image.width, width, filter), made = new Uint8Array(height * width * channels);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const { first, parts } = table[x];
      for (let c = 0; c < channels; c++) {
        let sum = 2 ** (BITS - 1);
        for (let k = 0; k < parts.length; k++) sum += data[(y * image.width + first + k) * channels + c] * parts[k];
        made[(y * width + x) * channels + c] = clipped(sum);
      }
    }
  return { data: made, height, width, channels };
}

function alongHeight(image, height, filter) {
  const { data, width, channels } = image, table = weights(image.height, height, filter), row = width * channels, made = new Uint8Array(height * row);
  for (let y = 0; y < height; y++) {
    const { first, parts } = table[y];
    for (let x = 0; x < row; x++) {
      let sum = 2 ** (BITS - 1);
      for (let k = 0; k < parts.length; k++) sum += data[(first + k) * row + x] * parts[k];
      made[y * row + x] = clipped(sum);
    }
  }
  return { data: made, height, width, channels };
}

function nearest(image, height, width) {
  const places = (from, to) => {
    const step = from / to, found = [];
    for (let at = step * 0.5, k = 0; k < to; k++, at += step) found.push(Math.min(from - 1, Math.trunc(at)));
    return found;
  };
  const rows = places(image.height, height), columns = places(image.width, width), { channels } = image, made = new Uint8Array(height * width * channels);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < channels; c++) made[(y * width + x) * channels + c] = image.data[(rows[y] * image.width + columns[x]) * channels + c];
  return { data: made, height, width, channels };
}

/**
 * Pillow's Image.resize, to the last bit. `heightFirst`: as Pillow 13 and later, which change the height first where it shrinks by more than twice as many
 * pixels as the width (python-pillow/Pillow#9549); versions before always change the width first.
 */
export function resize(image, height, width, interpolation, heightFirst) {
  if (height === image.height && width === image.width) return image;
  if (interpolation === "nearest") return nearest(image, height, width);
  const filter = FILTERS[interpolation];
  const across = (each) => (each.width === width ? each : alongWidth(each, width, filter));
  const down = (each) => (each.height === height ? each : alongHeight(each, height, filter));
  const turned = heightFirst && height < image.height && image.height - height > 2 * (image.width - width);
  return turned ? across(down(image)) : down(across(image));
}

/** Half to even, as Python rounds. */
function round(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2 === 0 ? 0 : 1) : Math.round(x);
}

/** Where the scaled image lies in the network's input; see the runtime's framing.py. */
export function framing(source, pixels, network) {
  if (pixels.resize === "crop") {
    const shorter = round((pixels.resize_shorter_px * Math.min(...network)) / Math.min(pixels.height, pixels.width));
    const longer = Math.trunc((shorter * Math.max(...source)) / Math.min(...source));
    const scaled = source[1] <= source[0] ? [longer, shorter] : [shorter, longer];
    const offset = (side, wanted) => {
      const page = Math.max(side, wanted);
      return Math.floor((page - side) / 2) - round((page - wanted) / 2);
    };
    return { scaled, top: offset(scaled[0], network[0]), left: offset(scaled[1], network[1]) };
  }
  if (pixels.resize === "letterbox") {
    const scale = Math.min(network[1] / source[1], network[0] / source[0]);
    const scaled = source.map((side) => Math.max(1, round(side * scale)));
    return { scaled, top: Math.floor((network[0] - scaled[0]) / 2), left: Math.floor((network[1] - scaled[1]) / 2) };
  }
  return { scaled: pixels.resize === "keep" ? source : network, top: 0, left: 0 };
}

/** One image as the contract's rule brings it to the network's size. `heightFirst`: see `resize`. */
export function fit(image, pixels, heightFirst) {
  const wanted = pixels.mode === "L" ? gray(image) : image;
  if (pixels.resize === "keep") return wanted;
  const network = [pixels.height, pixels.width];
  const { scaled, top, left } = framing([wanted.height, wanted.width], pixels, network);
  const small = resize(wanted, scaled[0], scaled[1], pixels.interpolation, heightFirst);
  if (pixels.resize === "stretch") return small;
  const { channels } = small, made = new Uint8Array(network[0] * network[1] * channels).fill(pixels.resize === "letterbox" ? pixels.fill : 0);
  for (let y = Math.max(0, top); y < Math.min(network[0], top + small.height); y++)
    for (let x = Math.max(0, left); x < Math.min(network[1], left + small.width); x++)
      for (let c = 0; c < channels; c++) made[(y * network[1] + x) * channels + c] = small.data[((y - top) * small.width + x - left) * channels + c];
  return { data: made, height: network[0], width: network[1], channels };
}

/** ITU-R 601, with Pillow's rounding. */
export function gray({ data, height, width, channels }) {
  if (channels === 1) return { data, height, width, channels };
  const made = new Uint8Array(height * width);
  for (let i = 0; i < made.length; i++) made[i] = (data[i * channels] * 19595 + data[i * channels + 1] * 38470 + data[i * channels + 2] * 7471 + 0x8000) >> 16;
  return { data: made, height, width, channels: 1 };
}

/** Canvas pixels without their alpha, which is dropped as in training. */
export function withoutAlpha({ data, height, width }) {
  const made = new Uint8Array(height * width * 3);
  for (let i = 0; i < height * width; i++) made.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
  return { data: made, height, width, channels: 3 };
}

/** Why a contract does not take an image of this size, in a sentence; null if it does. */
export function refusal(contract, { height, width }) {
  for (const [axis, size] of Object.entries({ height, width })) {
    const promised = contract.axes[axis];
    if (promised && (size < promised.low || size > promised.high || (size - promised.low) % promised.step))
      return `this model takes a ${axis} of ${promised.low} to ${promised.high}${promised.step > 1 ? ` in steps of ${promised.step}` : ""}, and this image has ${size}`;
  }
  return null;
}

/** Which sizes the model accepts, in words. */
export function sizes(contract) {
  const { pixels } = contract.inputs[0];
  if (pixels.resize !== "keep") return `any image; it is brought to ${pixels.height}x${pixels.width}`;
  const side = (axis) => (contract.axes[axis] ? `${axis} ${contract.axes[axis].low} to ${contract.axes[axis].high}` : `${axis} ${pixels[axis]}`);
  return `${side("height")}, ${side("width")}; an image keeps its size`;
}

/** The classes with the highest probabilities: [{ label, score }]. */
export function best(logits, labels, count = 5) {
  const most = Math.max(...logits), odds = Array.from(logits, (each) => Math.exp(each - most)), sum = odds.reduce((a, b) => a + b, 0);
  const order = odds.map((_, index) => index).sort((a, b) => odds[b] - odds[a] || a - b);
  return order.slice(0, count).map((index) => ({ label: labels[index] ?? String(index), score: odds[index] / sum }));
}

/**
 * An answer to one image, by the contract's task. `outputs`: arrays and dims by name. `source`: the image as it was decoded, `network`: as the network saw it;
 * boxes and points are told in pixels of both.
 */
export function answer(contract, outputs, source, network) {
  const first = contract.outputs[0], { data, dims } = outputs[first.name];
  if (contract.task === "classification") return { kind: "labels", best: best(data.subarray(0, dims[1]), contract.labels) };
  if (contract.task === "image-to-image") return { kind: "image", image: { data: new Uint8Array(data), height: dims[1], width: dims[2], channels: dims[3] } };
  if (contract.task === "segmentation") return { kind: "classes", ...classes(data, dims) };
  if (contract.task === "map") return { kind: "image", image: shades(data, dims, first.range) };
  if (contract.task === "detection") return { kind: "boxes", boxes: boxes(contract, outputs, source, network) };
  if (contract.outputs.some((each) => each.names?.length)) return { kind: "values", ...named(contract, outputs, source, network) };
  return { kind: "numbers", outputs: contract.outputs.map(({ name }) => numbers(name, outputs[name])) };
}

const numbers = (name, { data, dims }) => ({ name, dims, first: Array.from(data.slice(0, 8), Number) });

/** From x and y in pixels of the network's input, in turns, to pixels of the source. */
function toSource(contract, source, network, places) {
  const { scaled, top, left } = framing([source.height, source.width], contract.inputs[0].pixels, [network.height, network.width]);
  const scales = [scaled[1] / source.width, scaled[0] / source.height], offsets = [left, top];
  return places.map((each, place) => (each - offsets[place % 2]) / scales[place % 2]);
}

/** As the runtime's Detections; `shown` are the same boxes in the network's input. A box that lies in a letterbox's padding alone is none. */
function boxes(contract, outputs, source, network) {
  const sides = [source.width, source.height], hasArea = ([left, top, right, bottom]) => right > left && bottom > top;
  return detect(contract, outputs, [network.height, network.width]).map(({ index, score, box: shown }) => {
    const whole = toSource(contract, source, network, shown);
    const box = contract.detection.clip ? whole.map((each, place) => Math.min(Math.max(each, 0), sides[place % 2])) : whole;
    return { label: contract.labels[index] ?? String(index), index, score, box, shown };
  }).filter(({ box, shown }) => hasArea(box) || !hasArea(shown));
}

/** As the runtime's Values: named numbers, named points, and the beginning of what has no names. */
function named(contract, outputs, source, network) {
  const found = { values: [], points: [], outputs: [] };
  for (const { name, names, kind, unit } of contract.outputs) {
    const data = Array.from(outputs[name].data, Number);
    if (!names?.length) found.outputs.push(numbers(name, outputs[name]));
    else if (kind === "landmarks") {
      const shown = unit === "px" ? data : data.map((each, place) => each * [network.width, network.height][place % 2]);
      const places = toSource(contract, source, network, shown);
      names.forEach((each, place) => found.points.push({ name: each, at: places.slice(2 * place, 2 * place + 2), shown: shown.slice(2 * place, 2 * place + 2) }));
    } else names.forEach((each, place) => found.values.push({ name: each, value: data[place], unit: unit ?? "" }));
  }
  return found;
}

/** The best class of each position, and each class's share of the image. */
function classes(data, [, count, height, width]) {
  const map = new Uint8Array(height * width), areas = new Array(count).fill(0);
  for (let i = 0; i < map.length; i++) {
    for (let c = 1; c < count; c++) if (data[c * map.length + i] > data[map[i] * map.length + i]) map[i] = c;
    areas[map[i]] += 1 / map.length;
  }
  return { map, height, width, areas };
}

/** A map of numbers as gray levels over its range. */
function shades(data, dims, [low, high]) {
  const [height, width] = dims.filter((size, place) => place > 0 && size > 1).slice(-2), made = new Uint8Array(height * width);
  for (let i = 0; i < made.length; i++) made[i] = Math.round(Math.min(1, Math.max(0, (data[i] - low) / (high - low))) * 255);
  return { data: made, height, width, channels: 1 };
}

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, int32: Int32Array,
  int64: BigInt64Array, bool: Uint8Array,
};

/** A stored array: little-endian bytes with its dtype and dims. */
export function stored(bytes, { dtype, dims }) {
  const kind = ARRAYS[dtype];
  if (!kind) throw new Error(`arrays of ${dtype} cannot be read here`);
  return { dtype, dims, data: new kind(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)) };
}

/** How far an output is from what is expected, and whether that is allowed. `range`: highest less lowest expected value. */
export function compared(name, got, expected, tolerance) {
  if (got.dims.join() !== expected.dims.join()) return { name, passed: false, fault: `expected the shape ${expected.dims.join("x")}, got ${got.dims.join("x")}` };
  let largest = 0, squares = 0, low = Infinity, high = -Infinity;
  for (let i = 0; i < expected.data.length; i++) {
    const wanted = Number(expected.data[i]), apart = Math.abs(Number(got.data[i]) - wanted);
    largest = Number.isFinite(apart) ? Math.max(largest, apart) : Infinity;
    squares += apart * apart;
    low = Math.min(low, wanted);
    high = Math.max(high, wanted);
  }
  const rms = Math.sqrt(squares / expected.data.length);
  const passed = expected.data.length > 0 && largest <= tolerance.max_abs && (tolerance.rms === null || rms <= tolerance.rms);
  return { name, passed, largest, rms, range: high - low, allowed: tolerance.max_abs };
}

/** Whether two outputs have their highest value at the same place in each row. */
export function sameLabels(got, expected) {
  const wide = expected.dims.at(-1), peak = (data, row) => data.subarray(row * wide, (row + 1) * wide).reduce((best, value, i, all) => (value > all[best] ? i : best), 0);
  for (let row = 0; row < expected.data.length / wide; row++) if (peak(got.data, row) !== peak(expected.data, row)) return false;
  return true;
}

/** Run every golden case of a precision. `run`: inputs by name -> outputs by name; `read`: a file's name -> its bytes. */
export async function check(golden, precision, run, read) {
  const found = [];
  for (const each of golden.cases.filter((each) => each.expected[precision])) {
    const inputs = {};
    for (const input of each.inputs) inputs[input.name] = stored(await read(input.file), input);
    const outputs = await run(inputs);
    for (const output of each.expected[precision]) {
      const expected = stored(await read(output.file), output), result = compared(`${each.name}/${output.name}`, outputs[output.name], expected, output.tolerance);
      found.push(output.kind === "logits" ? { ...result, sameLabels: sameLabels(outputs[output.name], expected) } : result);
    }
  }
  return found;
}
