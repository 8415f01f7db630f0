// The page: an image from a file, a drop or the camera; its answer; the golden cases. All of it runs here, and nothing is sent anywhere.
import * as ort from "./onnxruntime/ort.wasm.min.mjs";
import { answer, check, fit, refusal, sizes, stored, withoutAlpha } from "./edgeport.mjs";

ort.env.wasm.numThreads = 1; // threads would need headers that a plain static server does not send
ort.env.wasm.wasmPaths = new URL("./onnxruntime/", import.meta.url).href;

const at = (id) => document.getElementById(id);
const bytes = async (name) => {
  const answered = await fetch(new URL(name, import.meta.url));
  if (!answered.ok) throw new Error(`${name} is missing beside the page (${answered.status})`);
  return new Uint8Array(await answered.arrayBuffer());
};
const json = async (name) => JSON.parse(new TextDecoder().decode(await bytes(name)));
const sessions = {};
let about, contract, shown;

/** inputs by name -> outputs by name, at a precision. */
async function run(precision, inputs) {
  sessions[precision] ??= await ort.InferenceSession.create(await bytes(about.models[precision]), { executionProviders: ["wasm"] });
  const session = sessions[precision];
  const feeds = Object.fromEntries(Object.entries(inputs).map(([name, each]) => [name, new ort.Tensor(each.dtype, each.data, each.dims)]));
  const outputs = await session.run(feeds);
  return Object.fromEntries(Object.entries(outputs).map(([name, each]) => [name, { data: each.data, dims: each.dims }]));
}

const asInput = ({ data, height, width, channels }) => ({ [contract.inputs[0].name]: { dtype: "uint8", data, dims: [1, height, width, channels] } });

/** Pixels of anything that a canvas can draw, upright. */
function pixelsOf(source, height, width) {
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.drawImage(source, 0, 0);
  return withoutAlpha(context.getImageData(0, 0, width, height));
}

async function decoded(blob) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" }); // profiles are ignored, as in training
  const image = pixelsOf(bitmap, bitmap.height, bitmap.width);
  bitmap.close();
  return image;
}

function draw(canvas, { data, height, width, channels }) {
  canvas.height = height;
  canvas.width = width;
  const made = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) made.data[4 * i + c] = data[i * channels + (channels === 1 ? 0 : c)];
    made.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(made, 0, 0);
}

/** A color for each class, far apart on the circle of hues. */
function colored({ map, height, width }) {
  const data = new Uint8Array(map.length * 3);
  map.forEach((each, i) => {
    const hue = (each * 137.508) % 360, part = (shift) => Math.round(255 * Math.min(1, Math.max(0, Math.abs((((hue + shift) / 60) % 6) - 3) - 1)));
    data.set(each === 0 ? [0, 0, 0] : [part(0), part(240), part(120)], 3 * i);
  });
  return { data, height, width, channels: 3 };
}

function say(text, bad = false) {
  if (bad) at("result").hidden = true; // an answer to another image
  at("status").textContent = text;
  at("status").className = bad ? "bad" : "soft";
}

async function answerTo(image) {
  shown = image;
  const started = performance.now(), pixels = fit(image, contract.inputs[0].pixels, about.height_first), refused = refusal(contract, pixels);
  if (refused) return say(`Refused: ${refused}.`, true);
  say("Computing…");
  await new Promise((done) => setTimeout(done)); // so that the words are seen
  const precision = at("precision").value, prepared = performance.now() - started, begun = performance.now();
  const outputs = await run(precision, asInput(pixels)), took = performance.now() - begun;
  const found = answer(contract, outputs, image, pixels);
  draw(at("picture"), pixels);
  at("labels").replaceChildren(...rows(found));
  mark(at("picture"), found);
  at("made").hidden = found.kind !== "image" && found.kind !== "classes";
  if (!at("made").hidden) draw(at("output"), found.kind === "classes" ? colored(found) : found.image);
  at("numbers").hidden = !found.outputs?.length;
  if (found.outputs) at("numbers").textContent = found.outputs.map((each) => `${each.name} (${each.dims.join(", ")}): ${each.first.join(" ")} …`).join("\n");
  at("time").textContent = `${took.toFixed(1)} ms for the network, ${prepared.toFixed(1)} ms to bring the image to its size; ${precision}, one thread.`;
  at("result").hidden = false;
  say("Answered.");
}

const SHOWN = 0.3; // the score from which on a box is drawn and listed, as in the runtime's pictures

/** What is marked in the picture: { text, shown } with two or four numbers in pixels of the network's input. */
function marks(found) {
  if (found.kind === "boxes") return found.boxes.filter((each) => each.score >= SHOWN).map(({ label, score, shown }) => ({ text: `${label} ${(100 * score).toFixed(0)} %`, shown }));
  return (found.points ?? []).map(({ name, shown }) => ({ text: name, shown }));
}

/** Boxes and points over the picture, which is enlarged by whole pixels until words can be read in it. */
function mark(canvas, found) {
  const all = marks(found), pen = canvas.getContext("2d");
  canvas.classList.toggle("marked", all.length > 0);
  canvas.setAttribute("aria-label", `The image as the network sees it${all.length ? `, with ${all.map((each) => each.text).join("; ")}` : ""}`);
  if (!all.length) return;
  const scale = Math.max(1, Math.ceil(640 / Math.max(canvas.width, canvas.height))), copy = document.createElement("canvas");
  Object.assign(copy, { width: canvas.width, height: canvas.height });
  copy.getContext("2d").drawImage(canvas, 0, 0);
  Object.assign(canvas, { width: scale * copy.width, height: scale * copy.height });
  const words = Math.round(Math.max(canvas.width, canvas.height) / 32);
  Object.assign(pen, { imageSmoothingEnabled: false, font: `${words}px system-ui, sans-serif`, textBaseline: "top" });
  pen.drawImage(copy, 0, 0, canvas.width, canvas.height);
  for (const { text, shown } of all) {
    const [left, top, right, bottom] = shown.map((each) => each * scale);
    for (const [color, width] of [["#000000", words / 4], ["#ffd400", words / 8]]) {
      Object.assign(pen, { strokeStyle: color, lineWidth: width });
      pen.beginPath();
      if (right === undefined) pen.arc(left, top, words / 3, 0, 2 * Math.PI);
      else pen.rect(left, top, right - left, bottom - top);
      pen.stroke();
    }
    const wide = pen.measureText(text).width + words / 2, x = Math.max(0, Math.min(left, canvas.width - wide)), y = Math.max(0, top - 1.3 * words);
    pen.fillStyle = "#000000";
    pen.fillRect(x, y, wide, 1.3 * words);
    pen.fillStyle = "#ffd400";
    pen.fillText(text, x + words / 4, y + 0.15 * words);
  }
}

/** The answer as a list. */
function rows(found) {
  if (found.kind === "labels") return found.best.map(row);
  if (found.kind === "classes") return areas(found);
  if (found.kind === "boxes") {
    const shown = found.boxes.filter((each) => each.score >= SHOWN);
    return shown.length ? shown.map(row) : [plain(`nothing with a score of at least ${100 * SHOWN} %`)];
  }
  const places = (found.points ?? []).map(({ name, at: [x, y] }) => plain(`${name}: ${x.toFixed(1)}, ${y.toFixed(1)} px`));
  return [...(found.values ?? []).map(({ name, value, unit }) => plain(`${name}: ${value.toPrecision(4)} ${unit}`)), ...places];
}

function plain(text) {
  const item = document.createElement("li");
  item.textContent = text;
  return item;
}

function row({ label, score }) {
  const item = document.createElement("li"), bar = document.createElement("progress");
  bar.value = score;
  bar.setAttribute("aria-hidden", "true");
  item.append(`${label}: ${(100 * score).toFixed(1)} % `, bar);
  return item;
}

const areas = ({ areas }) =>
  areas.map((share, index) => ({ label: contract.labels[index] ?? String(index), score: share })).filter((each) => each.score > 0.001).sort((a, b) => b.score - a.score).slice(0, 8).map(row);

/** The stored photograph, decoded here, beside what Pillow made of it. */
async function decoderDifference() {
  const here = fit(await decoded(new Blob([await bytes("photo.jpg")], { type: "image/jpeg" })), contract.inputs[0].pixels, about.height_first);
  const pillow = stored(await bytes("photo.bin"), about.photo);
  let largest = 0, sum = 0;
  for (let i = 0; i < pillow.data.length; i++) {
    const apart = Math.abs(here.data[i] - pillow.data[i]);
    largest = Math.max(largest, apart);
    sum += apart;
  }
  at("difference").textContent = `On a stored photograph, this browser's pixels differ from Pillow's by at most ${largest} of 255 levels, ${(sum / pillow.data.length).toFixed(3)} on average. Resizing is Pillow's own rule, so that is the decoder alone.`;
  at("difference").dataset.largest = largest;
}

async function checkAll() {
  const body = at("cases").querySelector("tbody"), golden = await json("golden.json");
  body.replaceChildren();
  at("checked").className = "";
  let passed = 0, total = 0;
  for (const precision of Object.keys(about.models)) {
    at("checked").textContent = `Running ${precision}…`;
    for (const each of await check(golden, precision, (inputs) => run(precision, inputs), bytes)) {
      total += 1;
      passed += each.passed;
      const line = document.createElement("tr"), share = each.range ? each.largest / each.range : each.largest;
      Object.assign(line.dataset, { precision, passed: each.passed, share, largest: each.largest, same: each.sameLabels ?? "" });
      for (const text of [each.name, precision, each.fault ?? each.largest.toPrecision(2), each.allowed ?? "", share.toExponential(1), each.passed ? "yes" : "NO"]) line.insertCell().textContent = text;
      body.append(line);
    }
  }
  at("cases").hidden = false;
  at("checked").textContent = `${passed} of ${total} golden outputs agree.`;
  at("checked").className = passed === total && total > 0 ? "good" : "bad";
}

async function checkGuarded() {
  at("check").disabled = true;
  try {
    await checkAll();
  } catch (error) {
    at("checked").textContent = `The golden cases could not be run: ${error.message}`;
    at("checked").className = "bad";
  }
  at("check").disabled = false;
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    say(`That did not work: ${error.message}`, true);
  }
}

const take = (file) => file && guarded(async () => answerTo(await decoded(file)));

let stream = null;

function closeCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  at("video").hidden = at("shoot").hidden = true;
}

/** Opens the camera; a second click closes it. A picture can be taken when the first frame is there: before it, a video has no size. */
async function camera() {
  if (stream) return closeCamera();
  if (!navigator.mediaDevices) throw new Error("a browser gives its camera to pages on https or localhost alone");
  at("camera").disabled = true; // or a second click, before the camera has answered, would open it twice
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    at("video").srcObject = stream;
    at("video").hidden = false;
    await at("video").play();
    at("shoot").hidden = false;
  } catch (error) {
    closeCamera();
    throw error;
  } finally {
    at("camera").disabled = false;
  }
}

async function shoot() {
  const image = pixelsOf(at("video"), at("video").videoHeight, at("video").videoWidth);
  closeCamera();
  await answerTo(image);
}

at("file").addEventListener("change", async (event) => {
  await take(event.target.files[0]);
  event.target.value = ""; // so that the same file can be taken again
});
at("shoot").addEventListener("click", () => guarded(shoot));
at("precision").addEventListener("change", () => shown && guarded(() => answerTo(shown)));
at("camera").addEventListener("click", () => guarded(camera));
at("check").addEventListener("click", checkGuarded);
at("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});

await guarded(async () => {
  about = await json("about.json");
  contract = about.contract;
  document.title = at("name").textContent = about.name;
  at("about").textContent = `${contract.task}; on a machine like its maker's, ${about.precision} is what auto takes.`;
  at("sizes").textContent = `This model takes ${sizes(contract)}`;
  for (const each of Object.keys(about.models)) at("precision").add(new Option(each, each, false, each === about.precision));
  await decoderDifference();
  const { height, width, channels } = await decoded(new Blob([await bytes("photo.jpg")], { type: "image/jpeg" })).then((image) => fit(image, contract.inputs[0].pixels, about.height_first));
  await run(at("precision").value, asInput({ data: new Uint8Array(height * width * channels), height, width, channels })); // loads and warms up
  at("check").disabled = false;
  say("Ready: give it an image.");
});
