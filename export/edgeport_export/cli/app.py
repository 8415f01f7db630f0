"""`edgeport`: train, export, verify, diff, bench, report, deploy, demo. Exit code 0: good; 1: parity failed; 2: bad input; 130: interrupted."""

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeport_export.errors import ParityError
from edgeport_runtime import Bundle, EdgeportError, __version__
from edgeport_runtime.json_text import strict_json

from . import console
from .deploy_command import deploy
from .sizes import read_size
from .tables import show_bundle

app = typer.Typer(
    help="From a trained PyTorch image model to a bundle that runs without PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich cuts what does not fit into 80 columns
)
app.add_typer(deploy, name="deploy")
INTERRUPTED = "interrupted; nothing was left half-written"
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; every error that edgeport knows becomes one sentence on stderr."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)  # by default they end the process on the spot, and what is half-written stays
    try:
        code = int(app(args=argv, prog_name="edgeport", standalone_mode=False) or 0)
        return _fail(INTERRUPTED, code) if code == 130 else code  # typer turns Ctrl-C into this number
    except ParityError as error:
        return _fail(str(error), 1)
    except EdgeportError as error:
        return _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(INTERRUPTED, 130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's usage errors, without importing click: typer may carry its own
            raise
        return _fail(error.format_message(), 2) if error.format_message() else 2


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    print(f"edgeport: {message}", file=sys.stderr)
    return code


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgeport {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="cnn, cnn-separable, resnet18, attention, generator, detector or segmenter.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    data: Annotated[str | None, typer.Option(help="digits, photos, scenes, cifar10 or folder:PATH; the network's own if left out.")] = None,
    epochs: Annotated[int | None, typer.Option(help="As the recipe says if left out.")] = None,
    batch: Annotated[int | None, typer.Option(help="As the recipe says if left out.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="As the recipe says if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random in the training; the recipe's if left out.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels that images are brought to, a square; the network's own if left out.")] = None,
    weights: Annotated[str | None, typer.Option(help="resnet18 only: imagenet, none, or a file.")] = None,
    frozen: Annotated[bool, typer.Option(help="resnet18 only: train the last layer alone.")] = False,
    force: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Train a network and write its checkpoint."""
    from .train_command import TrainingJob, run_training

    given = {"epochs": epochs, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    changes = {key: value for key, value in given.items() if value is not None}
    arguments: dict[str, Any] = ({} if weights is None else {"weights": weights}) | ({"frozen": True} if frozen else {})
    job = TrainingJob(name=name, out=out, data=data, changes=changes, size_px=read_size(size), arguments=arguments, force=force)
    with console.progress_display(f"training {name}") as progress:
        quality = run_training(job, progress)
    console.say(f"{out}: {quality} on {quality.count} held-out images" if quality else f"{out}: written; there are no held-out images to evaluate it on")


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A network that `edgeport train` knows, my.package:factory for any nn.Module, timm:NAME or torchvision:NAME.")],
    out: Annotated[Path, typer.Option(help="The folder to write the bundle to.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights: what `edgeport train` wrote, or for a factory any .safetensors, .pt or .pth.")] = None,
    weights_key: Annotated[
        str | None, typer.Option(help="Factory only: where in the checkpoint the weights are, such as model; averaged ones if left out.")
    ] = None,
    strip_prefix: Annotated[str | None, typer.Option(help="Factory only: what stands before every name in the checkpoint; found if left out.")] = None,
    random_weights: Annotated[bool, typer.Option(help="timm:NAME and torchvision:NAME only: try the export without weights.")] = False,
    calibration: Annotated[
        str | None, typer.Option(help="Images for int8: a folder, or digits, photos, scenes, cifar10; what `edgeport train` learned from if left out.")
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(help="Images with truth that judge: class folders, COCO's, or `input` and `target`; left out: half of --calibration, if so laid out."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, int8, fp16, by commas. Left out: fp32, and int8 if it pays; int8 that is named is kept.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done with which weights and images, and do nothing.")] = False,
    dynamic: Annotated[str | None, typer.Option(help="Axes with ranges: batch=1..64,height=32..1024:32,width (a step after the colon).")] = None,
    contract: Annotated[Path | None, typer.Option(help="Factory only: a contract as JSON, in the form of a manifest's.")] = None,
    task: Annotated[str | None, typer.Option(help="Factory only: classification, detection, segmentation, image-to-image, map, embedding or tensors.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels, of a factory's network or a library's.")] = None,
    gray: Annotated[bool, typer.Option(help="Factory only: the network takes one gray channel.")] = False,
    mean: Annotated[str | None, typer.Option(help="Factory only: per channel, for pixels in 0..1, such as 0.485,0.456,0.406; 0 if left out.")] = None,
    std: Annotated[str | None, typer.Option(help="Factory only: per channel; 1 if left out.")] = None,
    resize: Annotated[str | None, typer.Option(help="Factory only: stretch, crop:SHORTER_PX, letterbox or keep.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="Factory only: nearest, bilinear, bicubic or lanczos.")] = None,
    labels: Annotated[Path | None, typer.Option(help="One label a line, in the order of the logits, for a factory's network or a library's.")] = None,
    output_range: Annotated[
        str | None, typer.Option(help="Factory only: an image's or map's values for black and white, such as -1,1; 0,1 if left out.")
    ] = None,
    detection: Annotated[str | None, typer.Option(help="Factory only: how a detector is read, such as box_format=center,activation=softmax.")] = None,
    transforms: Annotated[str | None, typer.Option(help="Factory only: a torchvision weights object, such as ResNet50_Weights.IMAGENET1K_V2.")] = None,
    max_drop: Annotated[float, typer.Option(help="Points of accuracy, dB, or units of --metric that int8 may lose.")] = 0.5,
    max_changed: Annotated[float, typer.Option(help="Percent of a classifier's clear labels that int8 may change, if images have no truth.")] = 1.0,
    metric: Annotated[str | None, typer.Option(help="my.module:function(outputs, truths) -> number, larger is better; the task's own if left out.")] = None,
    sqnr_floor: Annotated[float, typer.Option(help="dB of signal over error that int8's outputs must keep, if no metric can tell.")] = 30.0,
    target: Annotated[str | None, typer.Option(help="The CPU that int8 is for: x86-vnni, x86 or arm64; this machine's kind if left out.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A bundle, or a JSON file, whose int8 plan is replayed instead of searching for one.")] = None,
    calibration_images: Annotated[int, typer.Option(help="At most that many are used.")] = 128,
    search_seconds: Annotated[float, typer.Option(help="Time for the search for the int8 plan.")] = 120.0,
    recover: Annotated[str, typer.Option(help="How hard int8 tries to give back what rounding costs: quick, thorough or off.")] = "quick",
    pick: Annotated[str | None, typer.Option(help="Which of the plans that the search, or --plan, tried: fastest, balanced or closest to fp32.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Typical number of images per call: speed is measured at that many, and at one.")] = 8,
    force: Annotated[bool, typer.Option(help="Replace the bundle if it exists.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a page about the bundle there, as `edgeport report` does.")] = None,
    as_json: Json = False,
) -> None:
    """Make a bundle from a network: fp32 and int8, compared with PyTorch, with golden cases and evidence."""
    from edgeport_export.options import ExportOptions

    from .export_command import ExportJob, describe_export, run_export
    from .network_arguments import NetworkArguments

    texts = {"mean": mean, "std": std, "resize": resize, "interpolation": interpolation, "transforms": transforms, "output_range": output_range}
    described = NetworkArguments(contract=contract, task=task, size_px=read_size(size), gray=gray, labels=labels, detection=detection, **texts)
    budget = {"max_drop": max_drop, "max_changed": max_changed, "metric": metric, "sqnr_floor_db": sqnr_floor}
    options = ExportOptions(
        **budget,  # type: ignore[arg-type]
        target=target,
        calibration_images=calibration_images,
        search_seconds=search_seconds,
        benchmark_batch=batch,
        recover=recover,
        pick=pick,
    )
    written: dict[str, Any] = {"out": out, "report": report, "force": force}
    job = ExportJob(
        **written,
        name=name,
        checkpoint=checkpoint,
        weights_key=weights_key,
        strip_prefix=strip_prefix,
        random_weights=random_weights,
        calibration=calibration,
        held_out=held_out,
        precision=precision,
        dynamic=dynamic,
        described=described,
        plan=plan,
        options=options,
    )
    if dry_run:
        for line in describe_export(job):
            console.say(line)
        return
    with console.progress_display(f"exporting {name}") as progress:
        bundle = run_export(job, progress)
    show_bundle(bundle, as_json)


@app.command()
def verify(
    first: Annotated[str, typer.Argument(help="A bundle; beside a second model also BUNDLE@int8, an .onnx file, a checkpoint, my.nets:net@weights.pt.")],
    second: Annotated[str | None, typer.Argument(help="Another model to compare it with; left out: the network that the bundle was made from.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="One bundle: the weights that it was made from.")] = None,
    model: Annotated[str | None, typer.Option(help="One bundle: my.package:factory, if it was made from one.")] = None,
    calibration: Annotated[str | None, typer.Option(help="One bundle: the images that the export was given, to make int8 again.")] = None,
    blame: Annotated[bool, typer.Option(help="One bundle: name the first module that differs, and what int8 costs at each product.")] = False,
    stages: Annotated[bool, typer.Option(help="One bundle: tell what each stage contributes, from an image file to the answer.")] = False,
    pipeline: Annotated[str | None, typer.Option(help="One bundle: the training's preprocessing: my.pre:transform, timm:NAME or torchvision weights.")] = None,
    inputs: Annotated[str | None, typer.Option(help="Two models: sweep, golden, a folder of images, .npz files. With --stages: a folder of images.")] = None,
    contract: Annotated[Path | None, typer.Option(help="Two models of which none has a contract: a file with it.")] = None,
    max_drop: Annotated[float, typer.Option(help="Two models: points of accuracy or dB of PSNR that int8 or fp16 may lose.")] = 0.5,
    max_changed: Annotated[float, typer.Option(help="Two models: percent of clear labels that int8 or fp16 may change.")] = 1.0,
    sqnr_floor: Annotated[float, typer.Option(help="Two models: dB of signal over error that int8 or fp16 must keep, if nothing else can tell.")] = 30.0,
    changes: Annotated[Path | None, typer.Option(help="Two models: a folder for every changed label, or the worst patches, as JSON and PNG.")] = None,
    as_json: Json = False,
) -> int:
    """Compare a bundle with PyTorch again, or any two models; exit code 1 if anything disagrees."""
    from .verify_command import VerifyJob, run_verify

    named: dict[str, Any] = {"checkpoint": checkpoint, "model": model, "inputs": inputs, "contract": contract, "changes_to": changes}
    named |= {"calibration": calibration, "blame": blame, "stages": stages, "pipeline": pipeline}
    job = VerifyJob(first=first, second=second, **named, max_drop=max_drop, max_changed=max_changed, sqnr_floor_db=sqnr_floor)
    with console.progress_display("verifying") as progress:
        found = run_verify(job, progress)
    if as_json:
        print(strict_json(found.data))
    else:
        console.say(found.text)
    return 0 if found.passed else 1


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="The folder of one bundle.")],
    second: Annotated[Path, typer.Argument(help="The folder of another one.")],
    as_json: Json = False,
) -> int:
    """List the differences between two bundles: contract, graphs, sizes, golden cases, evidence. Exit code 1 if there are any."""
    from edgeport_export.bundle.diff import diff_bundles

    found = diff_bundles(Bundle(first), Bundle(second))
    if as_json:
        print(strict_json([dataclasses.asdict(each) for each in found]))
    elif found:
        console.table(["what", str(first), str(second)], [[each.what, _short(each.first), _short(each.second)] for each in found])
    else:
        console.say("the bundles do not differ in anything but measurements")
    return 1 if found else 0


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="The folder of the bundle.")],
    against: Annotated[str | None, typer.Option(help="torch: PyTorch eager, channels-last and compiled.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="What PyTorch runs; needed with --against torch.")] = None,
    model: Annotated[str | None, typer.Option(help="my.package:factory, if the bundle was made from one.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="16, or the largest that the contract allows, if left out.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels; the contract's size if left out.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As many as CPU affinity and cgroup quota allow if left out.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often every engine is timed.")] = 7,
    as_json: Json = False,
) -> None:
    """Time the variants, and PyTorch beside them: one process per engine, one awake at a time."""
    from edgeport_export.benchmark.runner import disturbance

    from .bench_command import BenchJob, run_bench, show_measured

    named: dict[str, Any] = {"bundle": bundle, "against": against, "checkpoint": checkpoint, "model": model, "batch": batch}
    with console.progress_display("timing") as progress:
        measured = run_bench(BenchJob(**named, size_px=read_size(size), threads=threads, rounds=rounds), progress)
    if as_json:
        print(strict_json({name: dataclasses.asdict(stats) for name, stats in measured.engines.items()}))
        return
    show_measured(measured)
    if busy := disturbance(measured.engines.values()):
        console.say(busy)


@app.command()
def report(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles; several are laid side by side.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    card: Annotated[Path | None, typer.Option(help="Write a model card in Markdown there, too, as README.md of a published folder.")] = None,
    images: Annotated[bool, typer.Option(help="Whether golden images are on the page; they come from held-out images, and may be private.")] = True,
    held_out: Annotated[str | None, typer.Option(help="The images that judged, as export took them: shows the truth, and those whose label changed.")] = None,
    verification: Annotated[Path | None, typer.Option(help="What `edgeport verify BUNDLE --stages --json` printed: shows it, stage by stage.")] = None,
    force: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
) -> None:
    """Write one self-contained page about bundles: decisions, tables, charts, pictures, the network, and how to repeat it."""
    from .report_command import ReportJob, run_report

    job = ReportJob(folders=bundles, out=out, card=card, images=images, held_out=held_out, verification=verification, force=force)
    for path in run_report(job):
        console.say(f"written: {path}")


@app.command()
def demo(out: Annotated[Path, typer.Option(help="The folder for checkpoints, bundles and images.")] = Path("demo")) -> None:
    """Train all four networks on real data, export, verify, run without torch, and print one table."""
    from .demo import run_demo

    run_demo(out)
