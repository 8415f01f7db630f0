"""`edgeport deploy TARGET`: folders for other engines, one command for each target, and `check` for a folder that was made or changed by hand."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from edgeport_export.errors import ParityError
from edgeport_runtime import Bundle

from . import console
from .sizes import read_size

deploy = typer.Typer(
    help="Make a folder for another engine of a bundle: fixed sizes, a Triton repository, MLServer, a web page, Node.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
BundleFolder = Annotated[Path, typer.Argument(help="The folder of the bundle.")]
Out = Annotated[Path, typer.Option(help="The folder to write.")]
Force = Annotated[bool, typer.Option(help="Replace a folder that this command made.")]


@deploy.command()
def fixed(
    bundle: BundleFolder,
    out: Out,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels; the contract's own if left out.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a call.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, int8, fp16, or auto.")] = "fp32",
    force: Force = False,
) -> None:
    """A copy at one size, for compilers that take no other (CoreML, NPUs, TensorRT), with ONNX test data sets."""
    from edgeport_export.deploy.fixed import deploy_fixed

    chosen = None if precision == "auto" else precision
    console.say(str(deploy_fixed(Bundle(bundle), out, size_px=read_size(size), batch=batch, precision=chosen, force=force)))


@deploy.command()
def triton(
    bundle: BundleFolder,
    out: Out,
    name: Annotated[str | None, typer.Option(help="The model's name there; the bundle's if left out.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, int8 or fp16; left out: what auto takes for the largest batch, on a GPU fp32.")] = None,
    gpu: Annotated[bool, typer.Option(help="Instances on each GPU instead of the CPU.")] = False,
    instances: Annotated[int, typer.Option(min=1, help="How many run at a time.")] = 1,
    delay_us: Annotated[int, typer.Option(min=0, help="Microseconds for which a request may wait for others to share its batch.")] = 500,
    force: Force = False,
) -> None:
    """A model repository for NVIDIA's Triton: batching, instances, warm-up by a golden image, labels."""
    from edgeport_export.deploy.triton import deploy_triton

    place = deploy_triton(Bundle(bundle), out, name=name, precision=precision, gpu=gpu, instances=instances, delay_us=delay_us, force=force)
    console.say(f"written: {place}")
    console.say(f"tritonserver --model-repository {quote(str(out))}")


@deploy.command()
def mlserver(
    bundle: BundleFolder,
    out: Out,
    name: Annotated[str | None, typer.Option(help="The model's name there; the bundle's if left out.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, int8 or fp16; what auto takes if left out.")] = None,
    force: Force = False,
) -> None:
    """A folder for MLServer: a small runtime that gathers requests into batches, and the bundle, whose golden cases run before it is ready."""
    from edgeport_export.deploy.mlserver import deploy_mlserver

    console.say(f"written: {deploy_mlserver(Bundle(bundle), out, name=name, precision=precision, force=force)}")
    console.say(f"pip install -r {quote(str(out / 'requirements.txt'))}, beside the runtime; then: mlserver start {quote(str(out))}")


@deploy.command()
def web(
    bundle: BundleFolder,
    out: Out,
    precision: Annotated[str | None, typer.Option(help="One variant; left out: all, and the page lets one choose.")] = None,
    package: Annotated[Path | None, typer.Option(help="A folder of the npm package onnxruntime-web, instead of fetching it with npm.")] = None,
    force: Force = False,
) -> None:
    """A static folder whose page answers images in the browser, and re-runs the golden cases there."""
    from edgeport_export.deploy.web import deploy_web

    console.say(f"written: {deploy_web(Bundle(bundle), out, precision=precision, package=package, force=force)}")
    console.say(f"python -m http.server --directory {quote(str(out))} 8000")


@deploy.command()
def node(
    bundle: BundleFolder,
    out: Out,
    precision: Annotated[str | None, typer.Option(help="One variant; all that Node runs if left out.")] = None,
    force: Force = False,
) -> None:
    """A folder for Node that replays the golden cases and answers images."""
    from edgeport_export.deploy.node import deploy_node

    console.say(f"written: {deploy_node(Bundle(bundle), out, precision=precision, force=force)}")
    console.say(f"cd {quote(str(out))} && npm install && node main.mjs check")


@deploy.command()
def check(folder: Annotated[Path, typer.Argument(help="A folder that `edgeport deploy` made.")]) -> int:
    """Whether files are as they were made, and a Triton configuration that was changed still fits its model. Exit code 1 if something is wrong."""
    from edgeport_export.deploy.deployment import read_deployment
    from edgeport_export.deploy.triton import CONFIG, repository_faults

    found = read_deployment(folder)
    faults = repository_faults(folder) if found.target == "triton" else []
    changed = [each for each in found.altered if found.target == "triton" and each.endswith(CONFIG)]  # it may be, if it fits
    faults += [
        f"{each} was altered, or is gone"
        for each in found.altered
        if each not in changed and not any(f"{Path(each).name} are missing" in fault for fault in faults)
    ]
    if faults:
        raise ParityError(f"{folder}: {'; '.join(faults)}")
    fits = f"{', '.join(changed)} was changed, and still fits the model" if changed else "nothing was altered"
    console.say(f"{folder}: {found.target} of {found.name}, {fits}")
    return 0
