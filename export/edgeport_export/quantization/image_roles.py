"""Which images do what: fitting the ranges, choosing between variants, judging the one that was chosen. No image does two of these if there are enough.

A figure that was measured on the images by which a variant was chosen flatters it: of many variants the one that had luck there is taken. One network
was told to be 30.6 dB from fp32, and stood at 28.4 dB on other images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeport_runtime import Example
from edgeport_runtime.tasks import find_task

from .calibration import pixel_arrays
from .label_changes import LEAST_CLEAR, LabelChanges, clear_labels, label_changes
from .variants import Names, Probes, QuantizableGraph, VariantBuilder

PROBES = 8  # images by whose errors variants are chosen
JUDGED, JUDGED_BYTES = 256, 2**27  # images at most that judge, and memory for their outputs
AUDITED = 32  # held-out images whose activations are examined for clipping
HELD_BACK = 5  # without truth, one of so many calibration images is held back
LEAST_HELD = 4  # of which there must be so many
LEAST_JUDGED = 16  # images that judge and do nothing else: of four that happened to look alike nothing could be told


@dataclass(frozen=True, kw_only=True)
class Images:
    """`sample`: images to calibrate with. `spare`: others of the same kind, on which nothing is fitted."""

    sample: Sequence[Example]
    spare: Sequence[Example] = ()


def calibration_sample(examples: Sequence[Example], most: int, seed: int = 0) -> Images:
    """At most `most` examples, drawn evenly at random, in their own order; the others are spare."""
    if len(examples) <= most:
        return Images(sample=list(examples))
    taken = set(np.random.default_rng(seed).choice(len(examples), most, replace=False).tolist())
    sample, spare = ([each for index, each in enumerate(examples) if (index in taken) is wanted] for wanted in (True, False))
    return Images(sample=sample, spare=spare)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """`fitted`: calibrated with. `rounded_with`: weights are rounded for these; none if there are too few. `chosen`: variants are compared on these.
    `judged`: the last word; None if that is left to those that chose.

    `audited`: looked at for clipping. `unseen`: whether nothing was fitted to those that judge.
    """

    fitted: Sequence[Example]
    rounded_with: Sequence[Example]
    chosen: Sequence[Example]
    judged: Sequence[Example] | None
    audited: Sequence[Example]
    unseen: bool

    def judged_within(self, probes: Probes) -> list[Example]:
        """As many of `judged` as their outputs fit into JUDGED_BYTES. `probes`: those of `chosen`, which tell how large an output is."""
        assert self.judged is not None
        largest = max(sum(each.nbytes for each in outputs.values()) / len(next(iter(outputs.values()))) for outputs in probes.expected)
        return spread(self.judged, max(PROBES, min(JUDGED, int(JUDGED_BYTES / max(1.0, largest)))))


def roles_of(images: Images, held_out: Sequence[Example] | None) -> Roles:
    """`held_out`: images with their truth, which then decides; None if there are none."""
    sample = list(images.sample)
    held = sample[::HELD_BACK] if len(sample) >= HELD_BACK * LEAST_HELD else []
    others = [each for index, each in enumerate(sample) if index % HELD_BACK] if held else []
    probed = spread(held or sample, PROBES)
    if held_out is not None:
        return Roles(fitted=sample, rounded_with=others, chosen=probed, judged=None, audited=spread(held_out, AUDITED), unseen=False)
    fitted = others or sample
    left = [each for each in [*held, *images.spare] if all(each is not other for other in probed)]
    judged = left if len(left) >= LEAST_JUDGED else None
    return Roles(fitted=fitted, rounded_with=others, chosen=probed, judged=judged, audited=spread(held, AUDITED), unseen=bool(held) or judged is not None)


def spread(examples: Sequence[Example], most: int) -> list[Example]:
    """At most `most`, evenly taken: folders list one class after the other."""
    return [examples[index] for index in np.linspace(0, len(examples) - 1, min(most, len(examples))).round().astype(int)]


def probes_of(graph: QuantizableGraph, examples: Sequence[Example]) -> Probes:
    """Raises ImageError for an image that cannot be read."""
    return Probes(graph, pixel_arrays(graph.contract, examples))


@dataclass(frozen=True, kw_only=True)
class LabelJudge:
    """A classifier's images without truth: variants are chosen by the labels of those that were calibrated with, and judged by those of others."""

    output: str
    chosen: Probes
    judged: Probes

    @classmethod
    def of(cls, graph: QuantizableGraph, fitted: Sequence[Example], judged: Probes) -> "LabelJudge | None":
        """None if there are no labels, other outputs beside them, or too few clear ones on either side."""
        contract = graph.contract
        if not find_task(contract.task).answers_are_labels or len(contract.outputs) > 1:
            return None
        found = cls(output=contract.outputs[0].name, chosen=probes_of(graph, fitted), judged=judged)
        enough = all(clear_labels([each[found.output] for each in probes.expected]).sum() >= LEAST_CLEAR for probes in (found.chosen, found.judged))
        return found if enough else None

    def changes(self, builder: VariantBuilder, names: Names, probes: Probes) -> LabelChanges:
        """What a variant changes of the float graph's labels."""
        got = probes.outputs(builder.model(names), [self.output])
        return label_changes(*([each[self.output] for each in arrays] for arrays in (probes.expected, got)))
