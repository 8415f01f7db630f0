// node main.mjs check [--precision int8]              re-run the golden cases
// node main.mjs predict IMAGE [--precision int8] [--out FILE]
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import ort from "onnxruntime-node";
import sharp from "sharp";
import { answer, check, fit, refusal } from "./edgeport.mjs";

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
  const { data, info } = await sharp(file).rotate().removeAlpha().toColourspace("srgb").raw().toBuffer({ resolveWithObject: true }); // upright, as the runtime
  const whole = { data: new Uint8Array(data), height: info.height, width: info.width, channels: info.channels };
  return whole.channels === 1 && contract.inputs[0].pixels.mode === "RGB" ? tripled(whole) : whole;
}

function tripled({ data, height, width }) {
  const made = new Uint8Array(data.length * 3);
  for (let i = 0; i < data.length; i++) made.fill(data[i], 3 * i, 3 * i + 3);
  return { data: made, height, width, channels: 3 };
}

async function predicted(file, precision, out) {
  const pixels = fit(await image(file), contract.inputs[0].pixels), refused = refusal(contract, pixels);
  if (refused) throw new Error(`${file}: ${refused}`);
  const run = await opened(precision);
  const input = { dtype: "uint8", data: pixels.data, dims: [1, pixels.height, pixels.width, pixels.channels] };
  const found = answer(contract, await run({ [contract.inputs[0].name]: input }));
  if (found.kind === "labels") for (const each of found.best) console.log(`${each.label} ${each.score.toFixed(4)}`);
  else if (found.kind === "numbers") for (const each of found.outputs) console.log(`${each.name} (${each.dims.join(", ")}): ${each.first.join(" ")} ...`);
  else {
    const made = found.kind === "classes" ? { data: found.map, height: found.height, width: found.width, channels: 1 } : found.image;
    const place = out ?? "answer.png";
    await sharp(made.data, { raw: made }).png().toFile(place);
    console.log(`written: ${place}`);
  }
}

try {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { precision: { type: "string" }, out: { type: "string" } } });
  const [command, file] = positionals;
  if (command === "check") {
    let good = true;
    for (const precision of values.precision ? [values.precision] : Object.keys(about.models)) good = (await checked(precision)) && good;
    process.exitCode = good ? 0 : 1;
  } else if (command === "predict" && file) await predicted(file, values.precision ?? about.precision, values.out);
  else throw new Error("expected `check`, or `predict IMAGE`, with --precision or --out FILE");
} catch (error) {
  console.error(`main.mjs: ${error.message}`);
  process.exitCode = 2;
}
