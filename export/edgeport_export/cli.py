"""`edgeport`: train, export, verify, bench, demo. Exit code 0: good; 1: parity failed; 2: bad input; 130: interrupted."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeport_runtime import Bundle, EdgeportError, InputError, __version__

from . import console
from .errors import ParityError

app = typer.Typer(
    help="From a trained PyTorch image model to a bundle that runs without PyTorch.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
INTERRUPTED = "interrupted; nothing was left half-written"
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Checkpoint = Annotated[Path, typer.Option(help="The .safetensors file that `edgeport train` wrote.")]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; every error that edgeport knows becomes one sentence on stderr."""
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
        return _fail(error.format_message(), 2)


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
    name: Annotated[str, typer.Argument(help="cnn, cnn-separable, resnet18, attention or generator.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    data: Annotated[str, typer.Option(help="digits, photos, cifar10 or folder:PATH; the network's own if left out.")] = "",
    epochs: Annotated[int, typer.Option(help="0: as the recipe says.")] = 0,
    batch: Annotated[int, typer.Option(help="0: as the recipe says.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="0: as the recipe says.")] = 0.0,
    seed: int = 0,
    size: Annotated[int, typer.Option(help="Side in pixels that images are brought to; 0: the network's own.")] = 0,
    weights: Annotated[str, typer.Option(help="resnet18 only: imagenet, none, or a file.")] = "",
    frozen: Annotated[bool, typer.Option(help="resnet18 only: train the last layer alone.")] = False,
    force: Annotated[bool, typer.Option(help="Replace the file where it exists.")] = False,
) -> None:
    """Train a network and write its checkpoint."""
    from .training_job import TrainingJob, run_training

    given = {"epochs": epochs, "batch": batch, "learning_rate": learning_rate}
    arguments: dict[str, Any] = ({"weights": weights} if weights else {}) | ({"frozen": True} if frozen else {})
    job = TrainingJob(
        name=name, out=out, data=data, changes={**{k: v for k, v in given.items() if v}, "seed": seed}, side_px=size, arguments=arguments, force=force
    )
    with console.watching(f"training {name}") as watch:
        quality = run_training(job, watch)
    console.out.print(f"{out}: {quality} on {quality.count} held-out images" if quality else f"{out}: written; there are no held-out images to judge it on")


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="The network that the checkpoint was trained for.")],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The folder to write the bundle to.")],
    calibration: Annotated[str, typer.Option(help="digits, photos, cifar10 or folder:PATH; what the network was trained on if left out.")] = "",
    precision: Annotated[str, typer.Option(help="fp32, or fp32,int8.")] = "fp32,int8",
    max_drop: Annotated[float, typer.Option(help="Points of accuracy, or dB, that int8 may lose and still be taken by itself.")] = 0.5,
    force: Annotated[bool, typer.Option(help="Replace the bundle where it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Make a bundle from a checkpoint: fp32 and int8, compared with PyTorch, with golden cases and evidence."""
    from .pipeline import ExportOptions, export_bundle
    from .source import load_examples, load_source
    from .write import require_free

    options = ExportOptions(precisions=tuple(part.strip() for part in precision.split(",")), max_drop=max_drop)
    require_free(out, force=force)
    source = load_source(checkpoint, name)
    calibrating, held_out = load_examples(calibration or source.data, source.contract)
    provenance = {"checkpoint_sha256": source.checkpoint_sha256, "calibration": calibration or source.data}
    with console.watching(f"exporting {name}") as watch:
        export_bundle(
            source.network,
            source.contract,
            out,
            name=source.name,
            calibration=calibrating,
            held_out=held_out,
            provenance=provenance,
            options=options,
            force=force,
            watch=watch,
        )
    _show_bundle(Bundle(out), as_json)


def _show_bundle(bundle: Bundle, as_json: bool) -> None:
    evidence, manifest = bundle.evidence(), bundle.manifest
    if as_json:
        print(json.dumps({"bundle": str(bundle.folder), "auto": manifest.auto, **evidence}))
        return
    quality, speed = evidence["quality"], evidence["speed"]
    rows = []
    for variant in manifest.variants:
        value = "" if quality is None else console.metric(quality["metric"], quality["values"][variant.precision])
        changed = "" if quality is None else quality["changed"].get(variant.precision, "")
        integer = f"{variant.plan['integer_share']:.0%}" if variant.plan else ""
        rows.append([variant.precision, f"{variant.bytes:,}", value, changed, f"{speed['ms_per_call'][variant.precision]:.2f}", integer])
    title = f"{bundle.folder}" + (
        "" if quality is None else f"   PyTorch: {console.metric(quality['metric'], quality['values']['torch'])} on {quality['count']} held-out images"
    )
    console.table(["variant", "bytes", "quality", "labels changed", f"ms per batch of {speed['batch']}", "integer multiplications"], rows, title)
    parity = evidence["parity"]["fp32"]
    console.out.print(f"fp32 agrees with PyTorch at {len(parity['cases'])} sizes: largest difference {parity['worst']:.1e} of the output's range")
    console.out.print(f"auto: {manifest.auto['precision']} ({manifest.auto['reason']})")


@app.command()
def verify(bundle: Path, checkpoint: Checkpoint, as_json: Json = False) -> int:
    """Compare an existing bundle with PyTorch again; exit code 1 where anything disagrees."""
    from .source import load_source
    from .verify import verify as run

    Bundle(bundle)  # a wrong path should be said before the checkpoint is loaded
    with console.watching("verifying") as watch:
        verification = run(bundle, load_source(checkpoint), watch)
    if as_json:
        checks = {check.precision: bool(check) for check in verification.checks}
        print(
            json.dumps(
                {"passed": bool(verification), "parity": verification.parity.to_dict(), "golden": checks, "same_checkpoint": verification.same_checkpoint}
            )
        )
    else:
        console.out.print(str(verification))
    return 0 if verification else 1


@app.command()
def bench(
    bundle: Path,
    against: Annotated[str, typer.Option(help="torch: PyTorch eager, channels-last and compiled.")] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="What PyTorch runs; needed with --against torch.")] = None,
    batch: int = 16,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels; the contract's size if left out.")] = "",
    threads: Annotated[int, typer.Option(help="0: what CPU affinity and cgroup quota allow.")] = 0,
    rounds: int = 7,
    as_json: Json = False,
) -> None:
    """Time the variants, and PyTorch beside them: one process per engine, one awake at a time."""
    from .race import Contender, race

    if against not in ("", "torch") or batch < 1 or rounds < 1 or threads < 0:
        raise InputError("expected --against torch (or nothing), --batch and --rounds of at least 1, --threads of at least 0")
    size_px = _size(size)
    opened = Bundle(bundle)
    engines = {f"edgeport {v.precision}": Contender(kind="onnx", path=str(opened.folder / v.file), threads=threads) for v in opened.manifest.variants}
    if against == "torch":
        if checkpoint is None:
            raise InputError("to time PyTorch, name its weights with --checkpoint")
        engines |= {
            f"torch {mode}": Contender(kind="torch", path=str(checkpoint), mode=mode, threads=threads) for mode in ("eager", "channels_last", "compile")
        }
    with console.watching("timing") as watch:
        watch(f"{len(engines)} engines", 0, 1)
        heats = race(engines, batch=batch, size_px=size_px, rounds=rounds)
    if as_json:
        print(json.dumps({name: dataclasses.asdict(heat) for name, heat in heats.items()}))
        return
    best = min(heat.median_ms for heat in heats.values())
    rows = [
        [name, f"{heat.median_ms:.3f}", f"{heat.median_ms / batch:.3f}", f"{heat.median_ms / best:.2f}x"]
        for name, heat in sorted(heats.items(), key=lambda each: each[1].median_ms)
    ]
    console.table(["engine", f"ms per batch of {batch}", "ms per image", "time over the best"], rows, opened.manifest.name)


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise InputError(f"expected a size as HEIGHTxWIDTH in pixels, such as 224x224, got {text!r}")
    return int(sides[0]), int(sides[1])


@app.command()
def demo(out: Annotated[Path, typer.Option(help="The folder for checkpoints, bundles, images and the picture.")] = Path("demo")) -> None:
    """Train all four networks on real data, export, verify, run without torch, and print one table."""
    from .demo import run_demo

    run_demo(out)
