// Re-runs the golden cases, and answers images: `node main.mjs --help`.
import { readFile, writeFile } from "node:fs/promises";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import ort from "onnxruntime-node";
import sharp from "sharp";
import { answer, check, fit, refusal } from "./edgeport.mjs";

const USAGE = `node main.mjs check [--precision NAME]
node main.mjs predict IMAGE [--precision NAME] [--out FILE.png]`;
const read = (name) => readFile(fileURLToPath(new URL(name, import.meta.url)));
const about = JSON.parse(await read("about.json"));
const { contract } = about;

async function opened(precision) {
  if (!about.models[precision]) throw new Error(`this folder holds no ${precision}: give one of ${Object.keys(about.models).join(", ")} (--precision)`);
  const session = await ort.InferenceSession.create(fileURLToPath(new URL(about.models[precision], import.meta.url)));
  return async (inputs) => {
    const feeds = Object.fromEntries(Object.entries(inputs).map(([name, each]) => [name, new ort.Tensor(each.dtype, each.data, each.dims)]));
    const outputs = await session.run(feeds);
    return Object.fromEntries(Object.entries(outputs).map(([name, each]) => [name, { data: each.data, dims: each.dims }]));
  };
}

async function checked(precision) {
  const found = await check(JSON.parse(await read("golden.json")), precision, await opened(precision), read);
  const failed = found.filter((each) => !each.passed);
  console.log(`${precision}: ${found.length - failed.length} of ${found.length} golden outputs agree`);
  for (const each of failed) console.log(`  FAILED ${each.name}: ${each.fault ?? `largest difference ${each.largest.toPrecision(3)} (${each.allowed} allowed)`}`);
  return found.length > 0 && failed.length === 0;
}

async function image(file) {
  const bytes = await readFile(file).catch((error) => {
    throw new Error(`${file}: the image cannot be read (${error.code === "ENOENT" ? "there is no such file" : error.code === "EISDIR" ? "it is a folder" : error.code})`);
  });
  let data, info;
  try {
    const opened = sharp(bytes, { ignoreIcc: true }); // color profiles are ignored, as in training
    if ((await opened.metadata()).space === "cmyk") throw new Error("it is CMYK; convert it to RGB");
    ({ data, info } = await opened.rotate().removeAlpha().toColourspace("srgb").raw().toBuffer({ resolveWithObject: true })); // upright, as the runtime
  } catch (error) {
    throw new Error(`${file}: the image cannot be read (${error.message.split("\n")[0]})`);
  }
  const whole = { data: new Uint8Array(data), height: info.height, width: info.width, channels: info.channels };
  return whole.channels === 1 && contract.inputs[0].pixels.mode === "RGB" ? tripled(whole) : whole;
}

function tripled({ data, height, width }) {
  const made = new Uint8Array(data.length * 3);
  for (let i = 0; i < data.length; i++) made.fill(data[i], 3 * i, 3 * i + 3);
  return { data: made, height, width, channels: 3 };
}

async function predicted(file, precision, out) {
  const source = await image(file), pixels = fit(source, contract.inputs[0].pixels, about.height_first), refused = refusal(contract, pixels);
  if (refused) throw new Error(`${file}: ${refused}`);
  const run = await opened(precision);
  const input = { dtype: "uint8", data: pixels.data, dims: [1, pixels.height, pixels.width, pixels.channels] };
  const found = answer(contract, await run({ [contract.inputs[0].name]: input }), source, pixels);
  if (found.kind === "labels") for (const each of found.best) console.log(`${each.label} ${each.score.toFixed(4)}`);
  else if (found.kind === "boxes") {
    for (const { label, score, box } of found.boxes) console.log(`${label} ${score.toFixed(4)} at ${box.map((each) => each.toFixed(1)).join(",")}`);
    if (!found.boxes.length) console.log("nothing found");
  } else if (found.kind === "numbers" || found.kind === "values") {
    for (const { name, value, unit } of found.values ?? []) console.log(`${name} ${value} ${unit}`.trim());
    for (const { name, at } of found.points ?? []) console.log(`${name} at ${at.map((each) => each.toFixed(1)).join(",")}`);
    for (const each of found.outputs) console.log(`${each.name} (${each.dims.join(", ")}): ${each.first.join(" ")} ...`);
  } else {
    const made = found.kind === "classes" ? { data: found.map, height: found.height, width: found.width, channels: 1 } : found.image;
    const place = out ?? "answer.png";
    if (!place.toLowerCase().endsWith(".png")) throw new Error(`${place}: answers are written as PNG; give a name that ends with .png (--out)`);
    if (out !== undefined && resolve(out) === resolve(file)) throw new Error(`${out} is the image itself; give another file (--out)`);
    const content = await sharp(made.data, { raw: made }).png().toBuffer();
    await writeFile(place, content).catch((error) => {
      throw new Error(`${place} cannot be written (${error.code}); give another file (--out)`);
    });
    console.log(`written: ${place}`);
  }
}

try {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { precision: { type: "string" }, out: { type: "string" }, help: { type: "boolean" } } });
  const [command, file, ...more] = positionals;
  if (values.help) console.log(USAGE);
  else if (more.length || (command === "check" && file)) throw new Error(`one ${command === "check" ? "command" : "image"} at a time, got ${[file, ...more].join(" ")} as well`);
  else if (command === "check") {
    let good = true;
    for (const precision of values.precision ? [values.precision] : Object.keys(about.models)) good = (await checked(precision)) && good;
    process.exitCode = good ? 0 : 1;
  } else if (command === "predict" && file) await predicted(file, values.precision ?? about.precision, values.out);
  else throw new Error(`expected \`check\`, or \`predict IMAGE\`\n${USAGE}`);
} catch (error) {
  console.error(`main.mjs: ${error.message}`);
  process.exitCode = 2;
}
