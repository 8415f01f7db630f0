"""Charts as drawings within the page (SVG): their colors are the page's, so they follow light, dark and print. By matplotlib."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeport_export.errors import ExportError
from edgeport_runtime.json_text import printable
from edgeport_runtime.scorers import SHARES

from .facts import BundleFacts

INK, SOFT, INTEGER, FLOAT, ACCENT = "#010101", "#020202", "#030303", "#040404", "#050505"  # stand for the page's colors
COLORS = {INK: "var(--ink)", SOFT: "var(--soft)", INTEGER: "var(--integer)", FLOAT: "var(--float)", ACCENT: "var(--accent)"}
WIDTH_IN, HEIGHT_IN = 7.2, 3.4
MOST_BARS = 16
NEEDS = "a report needs matplotlib and jinja2: install edgeport with the extra `report`"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """`svg`: a drawing. `title`: in a few words. `says`: what it shows, for those who do not see it."""

    svg: str
    title: str
    says: str


def pyplot() -> Any:
    """matplotlib without a window. Raises ExportError if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ExportError(NEEDS) from error
    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    return plt


def chart(draw: Callable[[Any], None], title: str, says: str, *, name: str, height_in: float = HEIGHT_IN) -> Chart:
    """One pair of axes, drawn by `draw`. `name`: unlike those of the page's other charts, because their ids must differ."""
    plt = pyplot()
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.parse_math": False,  # names may hold dollars
        "text.color": INK,
        "axes.edgecolor": SOFT,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": SOFT,
        "grid.alpha": 0.35,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(WIDTH_IN, height_in), layout="constrained")
        try:
            draw(axes)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        finally:
            plt.close(figure)
    return Chart(svg=_for_the_page(buffer.getvalue(), says, name), title=title, says=says)


def _for_the_page(svg: str, says: str, name: str) -> str:
    """Without a header of its own, in the page's colors, as wide as there is space, and told to a screen reader as one picture."""
    svg = printable(svg[svg.index("<svg") :])
    for given, color in COLORS.items():
        svg = svg.replace(given, color)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"\b(id=\"|url\(#|xlink:href=\"#)", rf"\g<1>{name}-", svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head[0])
    title = printable(says).replace("&", "&amp;").replace("<", "&lt;")
    opened = (
        f'<svg {box[0] if box else ""} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-labelledby="{name}-says">'
    )
    return f'{opened}<title id="{name}-says">{title}</title>{svg[head.end() :]}'


def _without_formulas(axis: Any) -> None:
    """A logarithmic axis with its figures as plain text: matplotlib's own are formulas, which are switched off here."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))  # labels in between where it spans less than one power of ten


def parity_chart(facts: BundleFacts) -> Chart | None:
    """Error against image size."""
    cases = [each for each in facts.parity if each.height is not None and each.width is not None]
    if len({(each.height, each.width) for each in cases}) < 2:
        return None
    worst: dict[tuple[int, int], tuple[float, float]] = {}
    for each in cases:
        key = (int(each.height or 0), int(each.width or 0))
        onnx, torch = worst.get(key, (0.0, 0.0))
        worst[key] = max(onnx, each.onnx), max(torch, each.torch)
    sizes = sorted(worst, key=lambda side: (side[0] * side[1], side))

    def draw(axes: Any) -> None:
        places = range(len(sizes))
        axes.plot(places, [worst[size][1] for size in sizes], "o-", color=SOFT, label="PyTorch in float32")
        axes.plot(places, [worst[size][0] for size in sizes], "s-", color=ACCENT, label="the fp32 variant")
        axes.set_yscale("log")
        _without_formulas(axes.yaxis)
        axes.set_xticks(list(places), [f"{height}x{width}" for height, width in sizes], rotation=45, ha="right")
        axes.set_ylabel("largest distance from float64")
        axes.legend()

    says = f"The largest distance from PyTorch in float64 at {len(sizes)} image sizes, of PyTorch in float32 and of the fp32 variant."
    return chart(draw, "Error against image size", says, name=f"{facts.key}-parity-chart")


def stages_chart(facts: BundleFacts) -> Chart | None:
    """What each stage contributes; the last row, from end to end, is not among the bars."""
    shown = facts.stages[:-1]
    if not any(each.rms for each in shown):
        return None

    def draw(axes: Any) -> None:
        places = range(len(shown))
        axes.barh(list(places), [each.rms or 0.0 for each in shown], color=ACCENT)
        axes.set_yticks(list(places), [each.name for each in shown])
        axes.set_xscale("log")
        _without_formulas(axes.xaxis)
        axes.invert_yaxis()
        axes.set_xlabel("root mean square of the change, over the answers' spread")

    most = max(shown, key=lambda each: each.rms or 0.0)
    says = f"How far each stage moves the answers: {most.name} moves them most, by {most.rms:.1e} of their spread. A stage without a bar changes nothing."
    return chart(draw, "From the file to the answer", says, name=f"{facts.key}-stages-chart", height_in=1.2 + 0.3 * len(shown))


def plan_chart(facts: BundleFacts) -> Chart | None:
    """Time gained against error, product by product."""
    shown = [each for each in facts.products if each.speedup is not None and each.sqnr_db is not None]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        for reason, color, marker, label in ((False, INTEGER, "o", "runs as integers"), (True, FLOAT, "s", "stays in float")):
            part = [each for each in shown if (each.reason is not None) is reason]
            if part:
                most = max(each.macs for each in shown)
                sizes = [20 + 180 * each.macs / most for each in part]
                axes.scatter([each.speedup for each in part], [each.sqnr_db for each in part], s=sizes, c=color, marker=marker, alpha=0.75, label=label)
        axes.axvline(1.0, color=SOFT, linewidth=1)
        axes.set_xlabel("speed of the whole variant with this product as integers, over the same with it in float")
        axes.set_ylabel("dB from fp32 if it alone is integer")
        axes.legend()

    says = f"For {len(shown)} products, how much faster the variant is if the product runs as integers, and the error that this alone makes."
    return chart(draw, "Time gained against error", says, name=f"{facts.key}-plan-chart")


def order_chart(facts: BundleFacts) -> Chart | None:
    """Error along the graph."""
    shown = [each for each in facts.products if each.sqnr_db is not None]
    if len(shown) < 2:
        return None

    def draw(axes: Any) -> None:
        colors = [INTEGER if each.reason is None else FLOAT for each in shown]
        axes.bar(range(len(shown)), [each.sqnr_db for each in shown], color=colors)
        axes.set_xlabel("products in the graph's order")
        axes.set_ylabel("dB from fp32 if it alone is integer")

    least = min(shown, key=lambda each: each.sqnr_db or 0.0)
    says = f"The error that each of {len(shown)} products makes alone, along the graph. {least.name} makes the largest: {least.sqnr_db:.1f} dB."
    return chart(draw, "Error along the graph", says, name=f"{facts.key}-order-chart")


def curve_chart(facts: BundleFacts) -> Chart | None:
    """The plans that were tried, as error against time."""
    shown = [each for each in facts.curve if each.speedup is not None]
    if len(shown) < 2:
        return None

    def draw(axes: Any) -> None:
        axes.plot([each.speedup for each in shown], [each.sqnr_db for each in shown], "-", color=SOFT)
        for inside, color, label in ((True, INTEGER, "keeps the budget"), (False, FLOAT, "does not keep it")):
            part = [each for each in shown if each.in_budget is inside]
            if part:
                axes.scatter([each.speedup for each in part], [each.sqnr_db for each in part], color=color, label=label, zorder=3)
        for each in shown:
            axes.annotate(f"{each.in_float} in float", (each.speedup, each.sqnr_db), textcoords="offset points", xytext=(6, 6), fontsize=9)
        axes.set_xlabel("times as fast as fp32")
        axes.set_ylabel("dB from fp32")
        axes.legend()

    return chart(
        draw, "Plans that were tried", f"{len(shown)} plans, each with its speed over fp32 and its distance from fp32.", name=f"{facts.key}-curve-chart"
    )


def recovery_chart(facts: BundleFacts) -> Chart | None:
    """What each step gave."""
    steps = list(facts.recovery)
    if not steps:
        return None

    def draw(axes: Any) -> None:
        for place, step in enumerate(steps):
            color = INTEGER if step.taken else SOFT
            axes.plot([step.before_db, step.after_db], [place, place], "-", color=color, linewidth=3)
            axes.plot([step.after_db], [place], "o", color=color)
        axes.set_yticks(range(len(steps)), [step.name for step in steps])
        axes.margins(y=0.4)
        axes.invert_yaxis()
        axes.set_xlabel("dB from fp32, before (line's end) and after (dot)")

    told = "; ".join(f"{each.name}: {each.before_db:.1f} to {each.after_db:.1f} dB, {'taken' if each.taken else 'not taken'}" for each in steps)
    return chart(
        draw,
        "Steps towards fp32",
        f"What was tried to bring int8 nearer to fp32. {told}.",
        name=f"{facts.key}-recovery-chart",
        height_in=1.2 + 0.45 * len(steps),
    )


def clipping_chart(facts: BundleFacts) -> Chart | None:
    """What calibration's ranges cut off."""
    shown = sorted((each for each in facts.clipped if each["share"] > 0), key=lambda each: -each["share"])[:MOST_BARS]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        places = range(len(shown))
        axes.barh(list(places), [100 * float(each["share"]) for each in shown], color=ACCENT)
        axes.set_yticks(list(places), [str(each.get("layer") or each.get("value")) for each in shown])
        axes.invert_yaxis()
        axes.set_xlabel("% of its values beyond the calibrated range, on other images")

    worst = shown[0]
    says = f"The share of values beyond the calibrated range for {len(shown)} layers. The most is {100 * float(worst['share']):.3g} % at {worst.get('layer')}."
    return chart(draw, "Values beyond the calibrated ranges", says, name=f"{facts.key}-clipping-chart", height_in=1.2 + 0.28 * len(shown))


def tradeoff_chart(facts: BundleFacts) -> Chart | None:
    """Quality against speed."""
    shown = [each for each in facts.variants if each.quality is not None and each.speedup]
    if len(shown) < 2 or facts.metric is None:
        return None

    def draw(axes: Any) -> None:
        for each in shown:
            speed = each.speedup[max(each.speedup)]
            axes.scatter([speed], [each.quality], color=INTEGER if each.precision == "int8" else ACCENT, s=70)
            axes.annotate(each.precision, (speed, each.quality), textcoords="offset points", xytext=(8, 6))
        if facts.torch_quality is not None:
            axes.axhline(facts.torch_quality, color=SOFT, linewidth=1, label="PyTorch")
            axes.legend()
        axes.margins(0.3)
        if facts.metric in SHARES:
            axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))  # no share is larger
        axes.set_xlabel(f"times as fast as fp32, batch {max(shown[0].speedup)}")
        axes.set_ylabel(facts.metric_name)

    told = "; ".join(f"{each.precision}: {facts.quality(each.quality)}, {each.speedup[max(each.speedup)]:.2f} times as fast as fp32" for each in shown)
    return chart(draw, "Quality against speed", f"Quality against speed. {told}.", name=f"{facts.key}-tradeoff-chart")
