"""The pictures of answers in docs/runtime.md, made from bundles.

python docs/pictures.py FOLDER, which holds the bundles detector, segmenter, generator, distances, place and features: `edgeport train` and
`edgeport export` make the first two, `edgeport demo` the third, examples/maps_and_points.py and examples/embedding.py the rest.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from edgeport_models import load_data
from edgeport_runtime import Example, load
from edgeport_runtime.drawing import drawn

DOCS = Path(__file__).parent
WIDTH_PX = 480


def main(folder: Path) -> None:
    scenes, photos = load_data("scenes", truth="boxes").test, load_data("photos", truth="image").test
    several = next(each for each in scenes if len(each.truth.boxes) == 3)
    one = next(each for each in scenes if len(each.truth.boxes) == 1 and each.truth.boxes[0, 3] - each.truth.boxes[0, 1] > 30)
    none = next(each for each in scenes if not len(each.truth.boxes) and not len(load(folder / "detector")(each.source).at_least(0.3)))
    shown: dict[str, tuple[Path, Example]] = {
        "detection": (folder / "detector", several),
        "nothing": (folder / "detector", none),
        "segmentation": (folder / "segmenter", several),
        "map": (folder / "distances", several),
        "values": (folder / "place", one),
        "image-to-image": (folder / "generator", photos[7]),
        "embedding": (folder / "features", several),
    }
    save(drawn(load(DOCS.parent / "examples" / "digits")(DOCS.parent / "examples" / "seven.png"), DOCS.parent / "examples" / "seven.png"), "classification")
    for name, (bundle, example) in shown.items():
        source = np.asarray(example.source)
        save(drawn(load(bundle)(source), source), name)


def save(picture: Image.Image, name: str) -> None:
    (DOCS / "pictures").mkdir(exist_ok=True)
    height = round(picture.height * WIDTH_PX / picture.width)
    picture.resize((WIDTH_PX, height), Image.Resampling.LANCZOS).quantize(128).save(DOCS / "pictures" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
