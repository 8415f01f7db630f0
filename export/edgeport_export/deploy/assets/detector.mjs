// From a detector's raw outputs to the boxes of one image: the rules of the runtime's detector.py and boxes.py, in float32 as there.
const f = Math.fround;
const sigmoid = (x) => f(1 / f(1 + f(Math.exp(-x))));

/** A contract's outputs of one image as tables, by kind: { rows, columns, at(row, column) }. */
function tables(contract, outputs) {
  const head = contract.detection, turned = head.anchors_axis === 2 ? ["boxes", "scores", "joined"] : [], found = {};
  for (const { name, kind } of contract.outputs) {
    if (kind === "tensor") continue;
    const { data, dims } = outputs[name], wide = dims.length > 2 ? dims[2] : 1;
    found[kind] = turned.includes(kind)
      ? { rows: dims[2], columns: dims[1], at: (row, column) => Number(data[column * dims[2] + row]) }
      : { rows: dims[1], columns: wide, at: (row, column) => Number(data[row * wide + column]) };
  }
  if (!found.joined) return found;
  const extra = head.objectness === "none" ? 0 : 1, part = (from, columns) => ({ rows: found.joined.rows, columns, at: (row, column) => found.joined.at(row, from + column) });
  return { ...found, boxes: part(0, 4), objectness: extra ? part(4, 1) : undefined, scores: part(4 + extra, found.joined.columns - 4 - extra) };
}

/** What a raw score must be above, or it cannot be above the threshold, whatever the objectness. A little less, for rounding. */
function rawThreshold({ score_threshold, objectness, activation }) {
  const share = objectness === "root" ? score_threshold ** 2 : score_threshold;
  if (activation !== "sigmoid") return share * (1 - 1e-5);
  return share <= 0 ? -Infinity : share >= 1 ? Infinity : Math.log(share / (1 - share)) - 1e-4;
}

/** Pairs of an anchor and a column above the threshold, anchor by anchor: { anchor, column, score }. */
function above({ scores, objectness }, head) {
  const least = rawThreshold(head), threshold = f(head.score_threshold), found = [];
  for (let anchor = 0; anchor < scores.rows; anchor++) {
    const raw = Array.from({ length: scores.columns }, (_, column) => scores.at(anchor, column)), row = head.activation === "softmax" ? softmax(raw) : raw;
    const peak = head.best_class ? best(row, head.background) : null;
    for (let column = peak ?? 0; column < (peak === null ? row.length : peak + 1); column++) {
      if (column === head.background || !(peak !== null || row[column] > least)) continue;
      let score = head.activation === "sigmoid" ? sigmoid(row[column]) : row[column];
      if (objectness) {
        const there = objectness.at(anchor, 0);
        score = f(score * (head.activation === "none" ? there : sigmoid(there)));
        if (head.objectness === "root") score = f(Math.sqrt(score));
      }
      if (score > threshold && Number.isFinite(score)) found.push({ anchor, column, score });
    }
  }
  return found;
}

function softmax(row) {
  const most = Math.max(...row), powers = row.map((each) => f(Math.exp(f(each - most)))), sum = powers.reduce((a, b) => f(a + b), 0);
  return powers.map((each) => f(each / sum));
}

/** The first of the highest, or of what is no number, as numpy's argmax has it; the background is none. */
function best(row, background) {
  let found = -1;
  row.forEach((each, column) => {
    if (column !== background && (found < 0 || each > row[found] || (Number.isNaN(each) && !Number.isNaN(row[found])))) found = column;
  });
  return Math.max(found, 0);
}

/** Which pairs go on, group by group, in falling order of score within each. */
function candidates(pairs, levels, head) {
  const order = [...pairs].sort((a, b) => b.score - a.score);
  if (head.candidates_per === "image") return head.candidates === null ? order : order.slice(0, head.candidates);
  const group = head.candidates_per === "level" ? (each) => levels.at(each.anchor, 0) : (each) => each.column, counts = new Map();
  order.sort((a, b) => group(a) - group(b));
  return order.filter((each) => {
    counts.set(group(each), (counts.get(group(each)) ?? 0) + 1);
    return head.candidates === null || counts.get(group(each)) <= head.candidates;
  });
}

/** Left, top, right, bottom in pixels of the network's input. */
function corners({ boxes, points }, anchor, head, [height, width]) {
  const [a, b, c, d] = [0, 1, 2, 3].map((column) => boxes.at(anchor, column));
  let box = [a, b, c, d];
  if (head.box_format === "center") box = [f(a - f(c / 2)), f(b - f(d / 2)), f(a + f(c / 2)), f(b + f(d / 2))];
  else if (head.box_format === "distances") {
    const x = points.at(anchor, 0), y = points.at(anchor, 1);
    box = [f(x - a), f(y - b), f(x + c), f(y + d)];
  }
  const sides = [width, height, width, height];
  if (head.unit === "share") box = box.map((each, side) => f(each * sides[side]));
  return head.clip && box.every(Number.isFinite) ? box.map((each, side) => Math.min(Math.max(each, 0), sides[side])) : box;
}

const area = ([left, top, right, bottom]) => f(f(right - left) * f(bottom - top));

function iou(a, b) {
  const width = Math.max(0, f(Math.min(a[2], b[2]) - Math.max(a[0], b[0]))), height = Math.max(0, f(Math.min(a[3], b[3]) - Math.max(a[1], b[1])));
  const common = f(width * height);
  return f(common / f(f(area(a) + area(b)) - common));
}

/** Of boxes that overlap by more than allowed, the one with the higher score; at equal scores the earlier one. */
function suppressed(found, head) {
  const kept = [];
  for (const each of [...found].sort((a, b) => b.score - a.score)) {
    if (kept.length >= head.most) break;
    const beside = head.iou_threshold !== null && kept.some((other) => (!head.class_aware || other.column === each.column) && iou(other.box, each.box) > head.iou_threshold);
    if (!beside) kept.push(each);
  }
  return kept;
}

/**
 * The boxes of the first image of a run, in falling order of score: [{ index, score, box }], `box` left, top, right, bottom in pixels of the network's input.
 * `network`: its [height, width].
 */
export function detect(contract, outputs, network) {
  const head = contract.detection, raw = tables(contract, outputs);
  const pairs = candidates(above(raw, head), raw.levels, head);
  const found = pairs.map((each) => ({ ...each, box: corners(raw, each.anchor, head, network) })).filter((each) => each.box.every(Number.isFinite));
  return suppressed(found, head).map(({ column, score, box }) => ({ index: column + head.label_offset, score, box }));
}
