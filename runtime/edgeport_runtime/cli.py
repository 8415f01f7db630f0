"""`edgeport-run`: the runtime's functions from a shell. Exit code 0: good; 1: a check failed; 2: bad input."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import __version__
from .bundle import MANIFEST, Bundle
from .device import DEVICES
from .doctor import diagnose
from .errors import EdgeportError, InputError, first_line
from .evaluation import evaluate
from .image_limits import FORMATS, LIMITS, ImageLimits
from .json_text import printable, strict_json
from .load_options import LATENCIES
from .loading import load
from .many_files import Format, Rows, find_files, fingerprint, predict_files, require_answers
from .model import Model
from .regular_files import read_text
from .result_files import find_places
from .selection import PRECISIONS, not_run_here
from .tasks import find_task
from .timing import example_inputs, measure_calls


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except EdgeportError as error:
        print(f"edgeport-run: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("edgeport-run: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, `head` say, has left
        sys.stderr.close()
        return 141
    except OSError as error:  # whatever is read becomes one of our errors, so it is the output: a file on a full disk, say
        place = f"{error.filename}: this" if error.filename else "the output"
        print(f"edgeport-run: {place} cannot be used ({first_line(error)})", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer would fail once more at the end
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options; each sets `run` to the function that does it and returns the exit code."""
    parser = argparse.ArgumentParser(prog="edgeport-run", description="Run an edgeport bundle. No PyTorch needed.")
    parser.add_argument("--version", action="version", version=f"edgeport-runtime {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, *, model: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print JSON for machines")
        if model:
            _add_model(added)
        return added

    info = command("info", _info, "what the bundle holds and promises", model=False)
    info.add_argument("bundle", help="folder of the bundle")
    command("check", _check, "re-run the golden cases of every variant that can run here; exit code 1 if one fails")
    predict = command("predict", _predict, "predict images, in order; exit code 1 if one of them cannot be read")
    predict.add_argument("images", nargs="+", help="image files, folders of them, or globs")
    predict.add_argument("--out", type=Path, help="a file for rows of labels, boxes or values; a folder for answers that are images, masks, maps or embeddings")
    predict.add_argument("--format", choices=("text", "jsonl", "csv"), help="of the rows; by the name of --out, or text, if left out")
    predict.add_argument("--resume", action="store_true", help="go on in --out: images that were answered are left out, failed ones are tried again")
    predict.add_argument("--tile", type=int, metavar="PIXELS", help="run images at their own size, in overlapping tiles of that side (images, masks)")
    predict.add_argument("--draw", type=Path, metavar="FOLDER", help="write a picture of each answer there: boxes, masks, labels, points over the image")
    mapped = command("map", _map, "answer very many images into Parquet files, here or by workers on Ray; exit code 1 if one of them cannot be read")
    mapped.add_argument("sources", nargs="+", metavar="SOURCE", help="images, folders, globs; lists of paths (.txt); Parquet files (.parquet)")
    mapped.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the Parquet files")
    mapped.add_argument("--ray", metavar="ADDRESS", help="workers on the Ray cluster there; local begins one on this machine; left out: this process")
    mapped.add_argument("--workers", type=int, help="on Ray; each has --threads processors, one if left out; as many as fit if left out")
    mapped.add_argument("--resume", action="store_true", help="go on in --out: images that were answered are left out, failed ones are tried again")
    for each in (predict, mapped):
        each.add_argument("--top", type=int, default=3, help="classes to list for each image")
        each.add_argument("--min-score", type=float, metavar="SCORE", help="detections below it are left out, 0..1; pictures begin at 0.3 without it")
    quality = command("eval", _eval, "accuracy on class folders; PSNR and SSIM, or mean IoU of masks, on folders `input` and `target`; mAP on COCO annotations")
    quality.add_argument("data", help="folder:PATH")
    for each in (predict, mapped, quality):
        _add_image_limits(each)
    bench = command("bench", _bench, "milliseconds per call on this machine")
    bench.add_argument("--size", metavar="HEIGHTxWIDTH", help="pixels; the contract's size if left out")
    bench.add_argument("--seconds", type=float, default=2.0, help="how long calls are timed")
    command("doctor", _doctor, "what this machine can run, and what is wrong with it", model=False)
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", help="folder of the bundle, or a lone .onnx file that edgeport wrote")
    command.add_argument("--device", default="cpu", choices=DEVICES, help="the device to run on, never another one than asked; auto takes CUDA if it can start")
    command.add_argument("--precision", default="auto", choices=PRECISIONS, help="the variant to run; auto takes what the bundle decided")
    command.add_argument("--threads", type=int, help="as many as CPU affinity and cgroup quota allow if left out")
    command.add_argument("--latency", default="normal", choices=LATENCIES, help="lowest: idle threads wait actively, for cores that nothing else uses")
    command.add_argument("--batch", type=int, default=1, help="typical number of images per call; --precision auto and --split-batch depend on it")
    text = "whether each thread runs images of its own, instead of a part of each operator; left out: what was faster for such batches"
    command.add_argument("--split-batch", action=argparse.BooleanOptionalAction, default=None, help=text)
    command.add_argument("--manifest-sha256", metavar="HASH", help="what the bundle's must be, if you got it by another way; `info` prints it")


def _add_image_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument("--max-file-mb", type=float, default=LIMITS.max_file_mb, metavar="MB", help="of an image file; a larger one is refused")
    command.add_argument("--max-px", type=int, default=LIMITS.max_px, metavar="PIXELS", help="height times width of an image; a larger one is refused")
    command.add_argument("--max-frames", type=int, metavar="FRAMES", help="frames or pages of an image, whose first one is answered; any number if left out")
    command.add_argument("--formats", default=",".join(FORMATS), metavar="NAMES", help=f"that are read, some of {','.join(FORMATS)}")


def _size(text: str | None) -> tuple[int, int] | None:
    """Read HEIGHTxWIDTH, as `edgeport` does."""
    height, _, width = (text or "").partition("x")
    if text is not None and not all(side.isascii() and side.isdigit() for side in (height, width)):
        raise InputError(f"--size: expected a size as HEIGHTxWIDTH, such as 480x640, got {text!r}")
    return None if text is None else (int(height), int(width))


def _load(arguments: argparse.Namespace) -> Model:
    return load(arguments.bundle, **_load_options(arguments))


def _load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = {name: getattr(arguments, name) for name in ("device", "precision", "batch", "threads", "latency", "split_batch", "manifest_sha256")}
    return {**options, "image_limits": _image_limits(arguments)}


def _image_limits(arguments: argparse.Namespace) -> ImageLimits:
    if not hasattr(arguments, "formats"):
        return LIMITS
    formats = tuple(each.strip().upper() for each in arguments.formats.split(","))
    return ImageLimits(max_file_mb=arguments.max_file_mb, max_px=arguments.max_px, max_frames=arguments.max_frames, formats=formats)


def _info(arguments: argparse.Namespace) -> int:
    bundle = Bundle(arguments.bundle)
    manifest = bundle.manifest
    if arguments.json:
        return _print(json.loads(read_text(bundle.folder / MANIFEST)))  # as it is, with its own format
    contract = manifest.contract
    _print(f"{manifest.name}: {contract.task}, format {manifest.format}")
    for each in contract.inputs:
        _print(f"  input   {each.name}: {each.dtype} ({', '.join(map(str, each.shape))})")
    for output in contract.outputs:
        _print(f"  output  {output.name}: {output.dtype} ({', '.join(map(str, output.shape))})")
    _print("  axes    " + ", ".join(f"{name} {size}" for name, size in contract.axes.items()))
    if contract.labels:
        _print("  labels  " + ", ".join(contract.labels[:10]) + (f" … {len(contract.labels)} in all" if len(contract.labels) > 10 else ""))
    for variant in manifest.variants:
        _print(f"  {variant.precision:7s} {variant.file}: {variant.bytes:,} bytes, opset {variant.opset}, onnxruntime {variant.onnxruntime} or newer")
    auto = manifest.auto
    batches = f", {auto.batch_precision} for batches of {auto.from_batch} and more" if auto.batch_precision is not None else ""
    split = f", batches split among the threads from {auto.split_batch_from} images" if auto.split_batch_from is not None else ""
    _print(f"  auto    {auto.precision}{batches}{split}: {auto.reason}")
    _print(f"  golden  {len(manifest.golden)} cases")
    return _print(f"  sha256  {bundle.sha256} of {MANIFEST}")


def _check(arguments: argparse.Namespace) -> int:
    """Every variant that this device can run, if none is named."""
    reports, left_out = [], {}
    whole = arguments.precision == "auto" and Path(arguments.bundle).is_dir()
    if arguments.device == "auto":
        with _load(arguments) as model:
            arguments.device = model.device
    for variant in Bundle(arguments.bundle, arguments.manifest_sha256).manifest.variants if whole else ():
        reason = not_run_here(variant, arguments.device, platform.machine())
        if reason is not None:
            left_out[variant.precision] = reason
            continue
        arguments.precision = variant.precision
        reports.append(_load(arguments).check())
    reports = reports if whole else [_load(arguments).check()]
    passed = bool(reports) and all(reports)
    if arguments.json:
        _print({"passed": passed, "reports": [{"passed": bool(each), **asdict(each)} for each in reports], "left_out": left_out})
        return 0 if passed else 1
    for each in reports:
        _print(str(each))
    for precision, reason in left_out.items():
        _print(f"{precision}: not checked, because {reason}")
    return 0 if passed else 1


def _predict(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    files_out = find_task(model.contract.task).file_suffix is not None
    if files_out and arguments.out is None:
        raise InputError(f"the results of this model ({model.contract.task}) are written to files: name a folder for them with --out")
    if arguments.resume and arguments.out is None:
        raise InputError("--resume goes on in the results of an earlier call: name them with --out")
    require_answers(model.contract, top=arguments.top, min_score=arguments.min_score)
    files = find_files(arguments.images)
    file = None if files_out else arguments.out
    form: Format = arguments.format or ("jsonl" if arguments.json else "text" if file is None else "csv" if file.suffix == ".csv" else "jsonl")
    find_places(model, files, folder=arguments.out if files_out else None, drawn=arguments.draw, resume=arguments.resume)  # before a file is begun
    rows = Rows(form, file, resume=arguments.resume, model=fingerprint(model))
    try:
        options = {"folder": arguments.out if files_out else None, "drawn": arguments.draw, "top": arguments.top, "tile_px": arguments.tile}
        options |= {"min_score": arguments.min_score, "resume": arguments.resume}
        failed = predict_files(model, files, rows, **options, progress=_counter(len(files)))
    finally:
        rows.close()
    if failed and len(files) > 1:
        print(f"edgeport-run: {failed} of {len(files)} images could not be predicted", file=sys.stderr)
    elif file is not None and not failed:
        print(f"edgeport-run: {len(files)} {'image is' if len(files) == 1 else 'images are'} answered in {file}", file=sys.stderr)
    return 0 if not failed else 2 if len(files) == 1 else 1  # one file that cannot be read is bad input


def _counter(total: int) -> Callable[[int], None]:
    """How many images are done, on stderr, if a person looks at it."""

    def show(done: int) -> None:
        if sys.stderr.isatty() and total > 1:
            print(f"\r{done} of {total} images", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _map(arguments: argparse.Namespace) -> int:
    try:
        from .mapping.command import MapRequest, map_images
    except ImportError as error:
        raise InputError(f"map writes Parquet files, and {error.name} is not installed: pip install pyarrow") from error
    given = {"bundle": Path(arguments.bundle), "sources": arguments.sources, "out": arguments.out, "options": _load_options(arguments)}
    given |= {name: getattr(arguments, name) for name in ("top", "min_score", "resume", "ray", "workers")}
    outcome = map_images(MapRequest(**given), lambda done, total: _counter(total)(done))
    if arguments.json:
        _print(asdict(outcome))
    else:
        wrong = f", {outcome.errors} of them with an error, such as: {outcome.first_error}" if outcome.errors else ""
        _print(f"{outcome.images} {'image is' if outcome.images == 1 else 'images are'} answered in {arguments.out}{wrong}")
    return 1 if outcome.errors else 0


def _eval(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    quality = evaluate(model, arguments.data)
    if arguments.json:
        similarity = {name: value for name, value in (("ssim", quality.ssim), ("at_50", quality.at_50)) if value is not None}
        return _print({"precision": model.precision, "metric": quality.metric, "value": quality.value, "count": quality.count, **similarity})
    return _print(f"{model.precision}: {quality} on {quality.count} images")


def _bench(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    if not arguments.seconds > 0:
        raise InputError(f"--seconds must be above 0, got {arguments.seconds:g}")
    inputs = example_inputs(model.contract, batch=arguments.batch, size_px=_size(arguments.size))
    timing = measure_calls(lambda: model.raw(**inputs), seconds=arguments.seconds)
    if arguments.json:
        return _print({"precision": model.precision, "device": model.device, "batch": arguments.batch, **asdict(timing)})
    where = f"{model.precision} on {model.device}, batch {arguments.batch}"
    return _print(f"{where}: {timing.median_ms:.3f} ms a call, {timing.median_ms / arguments.batch:.3f} ms an image (median of {timing.calls})")


def _doctor(arguments: argparse.Namespace) -> int:
    diagnosis = diagnose()
    if arguments.json:
        _print(asdict(diagnosis))
    else:
        for name, fact in diagnosis.facts.items():
            _print(f"{name:20s}{fact}")
        for fault in diagnosis.faults:
            _print(f"FAULT: {fault}")
    return 0 if diagnosis else 1


def _print(value: Any) -> int:
    print(printable(value) if isinstance(value, str) else strict_json(value))
    return 0
