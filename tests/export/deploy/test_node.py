"""The folder for Node, and the arithmetic that it shares with the page, held to Pillow's and numpy's. That it runs is seen in tests/test_deployments.py."""

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeport_export.deploy.deployment import read_deployment
from edgeport_export.deploy.node import PACKAGES, deploy_node
from edgeport_export.deploy.script_files import ASSETS, HEIGHT_FIRST, SHARED
from edgeport_runtime import Bundle, Contract, DetectionHead, Input, Output, Pixels, Range, images
from edgeport_runtime.interpretation import RunOutputs, detections, named_values

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format2"
NODE = shutil.which("node")
BATCH = Range(low=1, high=8)
needs_node = pytest.mark.skipif(NODE is None, reason="there is no node here (Debian's nodejs, 20 or later)")


def run_node(folder: Path, script: str, given: Any = None) -> Any:
    """What a script that imports `edgeport.mjs` leaves in out.json. `given`: it finds in in.json."""
    assert NODE is not None
    if given is not None:
        (folder / "in.json").write_text(json.dumps(given))
    for name in SHARED:
        shutil.copy(ASSETS / name, folder)
    (folder / "script.mjs").write_text(f'import * as edgeport from "./edgeport.mjs"; import {{ readFileSync, writeFileSync }} from "node:fs";\n{script}')
    subprocess.run([NODE, "script.mjs"], cwd=folder, check=True)
    return json.loads((folder / "out.json").read_text())


def width_first(image: Image.Image, size: tuple[int, int], rule: Image.Resampling) -> Image.Image:
    """Pillow's resizing in two steps: since Pillow 13 it changes the height first where that shrinks more (python-pillow/Pillow#9549)."""
    return image.resize(size, rule) if rule == Image.Resampling.NEAREST else image.resize((size[0], image.height), rule).resize(size, rule)


def test_the_folder_names_exact_versions_and_runs_no_scripts(tmp_path: Path) -> None:
    folder = deploy_node(Bundle(FIXTURES / "classifier"), tmp_path / "d")
    package = json.loads((folder / "package.json").read_text())
    assert package["dependencies"] == PACKAGES and all(each[0].isdigit() for each in PACKAGES.values()) and package["private"] is True
    assert (folder / ".npmrc").read_text().splitlines() == ["ignore-scripts=true", "package-lock=false"]
    assert {"main.mjs", "edgeport.mjs", "about.json", "golden.json"} <= {each.name for each in folder.iterdir()}
    assert read_deployment(folder).altered == () and not list(folder.rglob("package-lock.json"))


@needs_node
@pytest.mark.parametrize("height_first", [False, True], ids=["until Pillow 12", "since Pillow 13"])
def test_images_are_fitted_as_pillow_does_it_to_the_last_bit(height_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not height_first:
        monkeypatch.setattr(images, "_resized", width_first)
    elif not HEIGHT_FIRST:
        pytest.skip("this Pillow is older than 13")
    generator, cases, expected = np.random.default_rng(0), [], []
    for index in range(320):
        height, width, tall, wide = (int(each) for each in generator.integers(1, 90, 4))
        resize, interpolation = ("stretch", "crop", "letterbox", "keep")[index % 4], ("nearest", "bilinear", "bicubic", "lanczos")[index // 4 % 4]
        channels = 1 if index % 5 == 0 else 3
        shorter = int(generator.integers(1, 80)) if resize == "crop" else None
        pixels = Pixels(
            height=tall,
            width=wide,
            mode="L" if channels == 1 else "RGB",
            resize=resize,  # type: ignore[arg-type]
            interpolation=interpolation,  # type: ignore[arg-type]
            resize_shorter_px=shorter,
            mean=(0.5,) * channels,
            std=(0.5,) * channels,
            fill=int(generator.integers(0, 256)),
        )
        source = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cases.append({"pixels": asdict(pixels), "height": height, "width": width, "data": source.ravel().tolist()})
        expected.append(images.prepare(Image.fromarray(source), pixels))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    found = run_node(
        tmp_path,
        """
const made = JSON.parse(readFileSync("cases.json")).map((each) => {
  const { data, height, width, channels } = edgeport.fit({ ...each, data: Uint8Array.from(each.data), channels: 3 }, each.pixels, HEIGHT_FIRST);
  return { data: Array.from(data), shape: [height, width, channels] };
});
writeFileSync("out.json", JSON.stringify(made));
""".replace("HEIGHT_FIRST", json.dumps(height_first)),
    )
    for case, made, wanted in zip(cases, found, expected, strict=True):
        np.testing.assert_array_equal(np.array(made["data"], np.uint8).reshape(made["shape"]), wanted, err_msg=str(case["pixels"]))


@needs_node
def test_answers_are_the_runtimes(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    logits, masks, depth = generator.normal(0, 3, 7).astype(np.float32), generator.normal(0, 1, (3, 4, 5)).astype(np.float32), np.linspace(-1, 9, 6)
    (tmp_path / "in.json").write_text(json.dumps({"logits": logits.tolist(), "masks": masks.ravel().tolist(), "depth": depth.tolist()}))
    found = run_node(
        tmp_path,
        """
const { logits, masks, depth } = JSON.parse(readFileSync("in.json"));
const output = (data, dims) => ({ y: { data: Float32Array.from(data), dims } });
const contract = (task, range) => ({ task, labels: ["a", "b", "c"], outputs: [{ name: "y", range }] });
writeFileSync("out.json", JSON.stringify([
  edgeport.answer(contract("classification"), output(logits, [1, 7])),
  edgeport.answer(contract("segmentation"), output(masks, [1, 3, 4, 5])),
  edgeport.answer(contract("map", [0, 8]), output(depth, [1, 2, 3])),
  edgeport.answer(contract("embedding"), output(logits, [1, 7])),
  [[3, 5], [64, 64], [65, 4]].map(([height, width]) =>
    edgeport.refusal({ axes: { height: { low: 4, high: 64, step: 2 }, width: { low: 4, high: 64, step: 1 } } }, { height, width })),
]));
""",
    )
    odds = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
    order = np.argsort(-odds)[:5]
    assert [each["label"] for each in found[0]["best"]] == [["a", "b", "c", "3", "4", "5", "6"][index] for index in order]
    np.testing.assert_allclose([each["score"] for each in found[0]["best"]], odds[order], rtol=1e-6)
    classes = masks.argmax(axis=0)
    assert list(found[1]["map"].values()) == classes.ravel().tolist()
    np.testing.assert_allclose(found[1]["areas"], np.bincount(classes.ravel(), minlength=3) / classes.size, atol=1e-9)
    assert list(found[2]["image"]["data"].values()) == [0, 32, 96, 159, 223, 255]  # -1, 1, 3, 5, 7, 9 of 0..8
    assert found[3]["outputs"][0]["dims"] == [1, 7]
    refused = found[4]
    assert (
        refused[0] == "this model takes a height of 4 to 64 in steps of 2, and this image has 3"
        and refused[1] is None
        and "and this image has 65" in refused[2]
    )


HEADS: list[dict[str, Any]] = [
    {},
    {"box_format": "center", "unit": "share", "activation": "none", "objectness": "root", "iou_threshold": 0.3, "class_aware": False, "clip": False},
    {
        "box_format": "distances",
        "activation": "softmax",
        "background": 0,
        "label_offset": -1,
        "candidates": 7,
        "candidates_per": "level",
        "score_threshold": 0.2,
    },
    {"objectness": "product", "candidates": 5, "candidates_per": "class", "most": 6, "score_threshold": 0.0},
    {"best_class": True, "activation": "softmax", "background": 2, "iou_threshold": None, "candidates": None, "most": 9},
    {"anchors_axis": 2, "objectness": "product", "candidates": 2, "candidates_per": "class", "iou_threshold": None},
    {"best_class": True, "score_threshold": 1.0},  # nothing is above it
]
RESIZES: list[dict[str, Any]] = [{"resize": "letterbox"}, {"resize": "crop", "resize_shorter_px": 110}, {"resize": "stretch"}]


def detector_case(head: dict[str, Any], resize: dict[str, Any], *, joined: bool, seed: int) -> tuple[Contract, dict[str, Any]]:
    """A contract of three columns of scores, and outputs of 60 anchors, many of which overlap."""
    chance, anchors, more = np.random.default_rng(seed), 60, DetectionHead(**head)
    share = more.unit == "share"
    boxes = chance.uniform(5, 90, (1, anchors, 4)) / (100 if share else 1)
    if more.box_format == "corners":
        boxes[..., 2:] = boxes[..., :2] + chance.uniform(5, 40, (1, anchors, 2))
    scores = chance.uniform(0, 1, (1, anchors, 3)) if more.activation == "none" else chance.normal(-1, 2, (1, anchors, 3))
    tables = {"boxes": boxes, "scores": scores.round(1)}  # equal scores, too
    if more.objectness != "none":
        tables["objectness"] = chance.uniform(0, 1, (1, anchors, 1))
    if joined:
        tables = {"joined": np.concatenate([tables[kind] for kind in ("boxes", "objectness", "scores") if kind in tables], axis=2)}
    outputs = {kind: (np.swapaxes(each, 1, 2) if more.anchors_axis == 2 and kind != "objectness" else each).astype(np.float32) for kind, each in tables.items()}
    if more.box_format == "distances":
        outputs["points"] = chance.uniform(0, 100, (1, anchors, 2)).astype(np.float32)
    if more.candidates_per == "level":
        outputs["levels"] = np.arange(anchors)[None] // 20
    described = tuple(Output(name=f"o {kind}", dtype=str(each.dtype), shape=("batch", *each.shape[1:]), kind=kind) for kind, each in outputs.items())
    pixels = Pixels(height=100, width=90, **resize)
    given = Input(name="image", dtype="uint8", shape=("batch", 100, 90, 3), pixels=pixels)
    labels = ("cat", "dog") if more.label_offset else ("cat", "dog", "eel")
    contract = Contract(task="detection", inputs=(given,), outputs=described, axes={"batch": BATCH}, labels=labels, detection=more)
    return contract, {f"o {kind}": each for kind, each in outputs.items()}


@needs_node
def test_boxes_are_the_runtimes(tmp_path: Path) -> None:
    """Every way to read a head, in source images that are framed in every way."""
    made = [
        (*detector_case(head, resize, joined=joined, seed=seed), (70 + 40 * seed, 130))
        for seed, head in enumerate(HEADS)
        for resize in RESIZES
        for joined in (False, True)
    ]
    found = run_node(
        tmp_path,
        """
const cases = JSON.parse(readFileSync("in.json"));
const outputs = (all) => Object.fromEntries(all.map(({ name, dtype, dims, data }) =>
  [name, { dims, data: dtype === "int64" ? BigInt64Array.from(data, BigInt) : Float32Array.from(data) }]));
writeFileSync("out.json", JSON.stringify(cases.map((each) =>
  edgeport.answer(each.contract, outputs(each.outputs), { height: each.source[0], width: each.source[1] }, { height: 100, width: 90 }))));
""",
        [
            {
                "contract": contract.to_dict(),
                "source": source,
                "outputs": [{"name": name, "dtype": str(each.dtype), "dims": each.shape, "data": each.ravel().tolist()} for name, each in outputs.items()],
            }
            for contract, outputs, source in made
        ],
    )
    counts = []
    for (contract, outputs, source), answer in zip(made, found, strict=True):
        (wanted,) = detections(RunOutputs(outputs=outputs, contract=contract, sources_px=[source], network_px=(100, 90), top=5))
        assert [each["label"] for each in answer["boxes"]] == [each.label for each in wanted]
        np.testing.assert_allclose([each["score"] for each in answer["boxes"]], wanted.scores.tolist(), rtol=1e-6)
        np.testing.assert_allclose([each["box"] for each in answer["boxes"]], wanted.boxes.tolist() or [], atol=2e-4)
        counts.append(len(wanted))
    assert min(counts) == 0 and max(counts) > 20 and len(set(counts)) > 8  # cases that differ


@needs_node
def test_named_numbers_and_points_are_the_runtimes(tmp_path: Path) -> None:
    pixels = Pixels(height=100, width=90, resize="letterbox")
    given = Input(name="image", dtype="uint8", shape=("batch", 100, 90, 3), pixels=pixels)
    described = (
        Output(name="age", dtype="float32", shape=("batch", 2), kind="tensor", names=("age", "height"), unit="m"),
        Output(name="eyes", dtype="float32", shape=("batch", 4), kind="landmarks", names=("left", "right"), unit="share"),
        Output(name="code", dtype="float32", shape=("batch", 20), kind="tensor"),
    )
    contract = Contract(task="tensors", inputs=(given,), outputs=described, axes={"batch": BATCH})
    outputs = {each.name: np.random.default_rng(2).uniform(0, 1, (1, *each.shape[1:])).astype(np.float32) for each in described}  # type: ignore[arg-type]
    answer = run_node(
        tmp_path,
        """
const { contract, outputs } = JSON.parse(readFileSync("in.json"));
const all = Object.fromEntries(Object.entries(outputs).map(([name, { dims, data }]) => [name, { dims, data: Float32Array.from(data) }]));
writeFileSync("out.json", JSON.stringify(edgeport.answer(contract, all, { height: 300, width: 60 }, { height: 100, width: 90 })));
""",
        {"contract": contract.to_dict(), "outputs": {name: {"dims": each.shape, "data": each.ravel().tolist()} for name, each in outputs.items()}},
    )
    (wanted,) = named_values(RunOutputs(outputs=outputs, contract=contract, sources_px=[(300, 60)], network_px=(100, 90), top=5))
    assert {each["name"]: (each["value"], each["unit"]) for each in answer["values"]} == {name: (value, "m") for name, value in wanted.values.items()}
    np.testing.assert_allclose([each["at"] for each in answer["points"]], list(wanted.points.values()), rtol=1e-5)
    assert [each["name"] for each in answer["points"]] == ["left", "right"]
    assert [(each["name"], len(each["first"])) for each in answer["outputs"]] == [("code", 8)]


@needs_node
def test_golden_answers_are_compared_as_the_runtime_compares_them(tmp_path: Path) -> None:
    found = run_node(
        tmp_path,
        """
const array = (data, dims) => ({ data: Float32Array.from(data), dims });
const expected = array([0, 1, 2, 4], [2, 2]), tolerance = { max_abs: 0.5, rms: null };
writeFileSync("out.json", JSON.stringify([
  edgeport.compared("y", array([0, 1, 2.5, 4], [2, 2]), expected, tolerance),
  edgeport.compared("y", array([0, 1, 2.75, 4], [2, 2]), expected, tolerance),
  edgeport.compared("y", array([0, 1, 2.5, 4], [2, 2]), expected, { max_abs: 0.5, rms: 0.2 }),
  edgeport.compared("y", array([0, NaN, 2, 4], [2, 2]), expected, tolerance),
  edgeport.compared("y", array([0, 1, 2, 4], [4]), expected, tolerance),
  edgeport.compared("y", array([], [0]), array([], [0]), tolerance),
  edgeport.sameLabels(array([0, 1, 2, 4], [2, 2]), expected),
  edgeport.sameLabels(array([1, 0, 2, 4], [2, 2]), expected),
]));
""",
    )
    assert [each["passed"] for each in found[:6]] == [True, False, False, False, False, False] and found[6:] == [True, False]
    assert (found[0]["largest"], found[0]["rms"], found[0]["range"]) == (0.5, 0.25, 4) and found[4]["fault"] == "expected the shape 2x2, got 4"
