"""Commands that repeat what a page tells, as a shell takes them. Words in capitals are the user's own files."""

import shlex

from .facts import BundleFacts


def commands(facts: BundleFacts, *, held_out: bool) -> list[str]:
    """`held_out`: whether the page shows the held-out images' truth."""
    folder, model = shlex.quote(facts.bundle.folder.name), facts.provenance.get("model")
    is_factory = model is None or ":" in model  # without a name, the network came from Python
    network = f"--model {'MY.PACKAGE:FACTORY' if model is None else shlex.quote(model)} " if is_factory else ""
    needs_images = is_factory and facts.plan is not None and facts.plan.recovery is not None
    verify = f"edgeport verify {folder} {network}--checkpoint CHECKPOINT{' --calibration IMAGES' if needs_images else ''}"
    found = [f"edgeport-run check {folder} --manifest-sha256 {facts.bundle.sha256}", f"edgeport-run bench {folder}", f"{verify} --stages --json > found.json"]
    found.append(f"edgeport report {folder}{' --verification found.json' if facts.found else ''}{' --held-out IMAGES' if held_out else ''}")
    if model is not None:
        plan = f" --plan {folder}" if facts.plan is not None else ""
        found.append(f"edgeport export {shlex.quote(model)} --checkpoint CHECKPOINT --out again{plan}")
    return found
