"""Draw the SVG files of this folder: `python docs/images/draw.py [FOLDER]`.

Each has a ground of its own, light or dark as its reader's screen is, so that it can be read on any page.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

STYLE = """
.ground{fill:#fbfbf9;stroke:#d5d8dd} text{font:14px system-ui,"Segoe UI",Helvetica,Arial,sans-serif;fill:#23272e}
.faint{fill:#68707c} .small{font-size:12px} .title{font-size:16px;font-weight:600} .mono{font-family:monospace}
.line{stroke:#68707c;fill:none} .arrow{stroke:#454c57;stroke-width:1.6;fill:none} .head{fill:#454c57}
.none{fill:#f0f0ec;stroke:#d5d8dd} .kept{fill:#a9cdf0} .now{fill:#f5a742} .gone{fill:#dde0e4} .ours{fill:#cfe6d3}
.map{fill:#a9cdf0;stroke:#5d8fbf} .op{fill:#cfe6d3;stroke:#5a9a68} .label{fill:#f8d9a8;stroke:#cf9636}
.window{fill:none;stroke:#b3261e;stroke-width:2} .a{fill:#4c78a8} .b{fill:#e0a030} .c{fill:#59a14f}
@media (prefers-color-scheme: dark){
.ground{fill:#1a1d22;stroke:#3a3f47} text{fill:#e8eaed} .faint{fill:#a0a7b1} .line{stroke:#a0a7b1}
.arrow{stroke:#c4c9d1} .head{fill:#c4c9d1} .none{fill:#24282f;stroke:#3a3f47} .kept{fill:#2f5d8a} .now{fill:#c97a12}
.gone{fill:#3a3f47} .ours{fill:#2c4d35} .map{fill:#2f5d8a;stroke:#6ea6dc} .op{fill:#2c4d35;stroke:#6cb37c}
.label{fill:#6b4a14;stroke:#dda64a} .window{stroke:#ff8a80}}
"""


class Drawing:
    """An SVG file of shapes, which have classes of STYLE."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []
        self.box(0.5, 0.5, width - 1, height - 1, "ground", radius=8)

    def box(self, x: float, y: float, width: float, height: float, style: str, radius: float = 0) -> None:
        size = f'width="{width:g}" height="{height:g}"'
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" {size} rx="{radius:g}" class="{style}"/>')

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>')

    def lines(
        self, x: float, y: float, texts: list[str], style: str = "", anchor: str = "start", step: int = 18
    ) -> None:
        for i, text in enumerate(texts):
            self.text(x, y + i * step, text, style, anchor)

    def path(self, points: list[tuple[float, float]], style: str = "line") -> None:
        way = " ".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        self.parts.append(f'<path d="{way}" class="{style}"/>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw an arrow along the points; its last stretch is level or upright."""
        (x0, y0), (x1, y1) = points[-2:]
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        self.path([*points[:-1], (x1 - 6 * dx, y1 - 6 * dy)], "arrow")
        back, side = (x1 - 8 * dx, y1 - 8 * dy), (4 * dy, 4 * dx)
        corners = ((x1, y1), (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1]))
        self.parts.append(f'<path d="M{" L".join(f"{x:g} {y:g}" for x, y in corners)}Z" class="head"/>')

    def __str__(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
        head += f'width="{self.width}" height="{self.height}" role="img">'
        title, style = f"<title>{escape(self.title)}</title>", f"<style>{STYLE}</style>"
        return "\n".join([head, title, style, *self.parts, "</svg>\n"])


def decoder() -> Drawing:
    drawing = Drawing(900, 392, "The decoder of Light-Weight RefineNet")
    levels = [("1/4", 118, 62), ("1/8", 92, 142), ("1/16", 66, 222), ("1/32", 44, 302)]
    drawing.text(24, 34, "encoder", "title")
    drawing.text(300, 34, "decoder: per level one fusion and one CRP", "title")
    for i, (size, width, y) in enumerate(levels):
        drawing.box(24 + (118 - width) / 2, y, width, 44, "map", 4)
        drawing.text(83, y + 27, size, "", "middle")
        drawing.arrow((83 + width / 2 + 4, y + 22), (300, y + 22))
        drawing.box(300, y, 128, 44, "op", 6)
        drawing.text(364, y + 27, "fusion", "", "middle")
        drawing.arrow((432, y + 22), (470, y + 22))
        drawing.box(470, y, 128, 44, "op", 6)
        drawing.text(534, y + 27, "CRP", "", "middle")
        if i:
            above = levels[i - 1][2]
            drawing.arrow((83, levels[i - 1][2] + 46), (83, y - 2))
            drawing.arrow((534, y - 2), (534, y - 18), (364, y - 18), (364, above + 46))
    drawing.text(446, 138 - 18, "half the size: upsampled", "faint small", "middle")
    drawing.arrow((602, 84), (640, 84))
    drawing.box(640, 62, 96, 44, "none", 6)
    drawing.text(688, 89, "3x3 conv", "", "middle")
    drawing.arrow((688, 108), (688, 142))
    drawing.box(640, 142, 236, 44, "op", 6)
    drawing.text(758, 169, "upsample_argmax", "", "middle")
    drawing.arrow((758, 188), (758, 222))
    drawing.box(640, 222, 236, 124, "label", 4)
    drawing.lines(758, 276, ["label map", "uint8, the image's size"], "", "middle", 22)
    drawing.text(24, 376, "green: one fused operation of lwrn_fast each", "faint small")
    return drawing


def wavefront() -> Drawing:
    """Draw step 5 of csrc/cpu/wavefront.h: 4 stages on a map of 44 rows, in bands of 6."""
    stages, height, band, skew, step = 4, 44, 6, 2, 5
    row, top_y, left, width, gap = 7, 92, 30, 74, 44

    def top(stage: int, step: int) -> int:
        return max(0, min(height, (step - stage) * band - skew * stage))

    drawing = Drawing(900, 470, "The wavefront of CRP")
    drawing.text(24, 34, "CRP: all stages advance together, a band of rows at a time", "title")
    names = ["x", "t1", "t2", "t3", "x + t1 + ... + t4"]
    for column, name in enumerate(names):
        stage, x = column - 1, left + column * (width + gap)
        drawing.text(x + width / 2, 78, name, "", "middle")
        for r in range(height):
            if stage < 0 or (stage == stages - 1 and r < top(stage, step)):
                style = "kept"
            elif top(stage, step) <= r < top(stage, step + 1):
                style = "now"
            elif r >= top(stage, step + 1):
                style = "none"
            else:
                ring = max(3 * band + 4, (stages - stage) * band + skew * (stages - 1 - stage))
                style = "kept" if r >= top(stage, step + 1) - min(ring, height) else "gone"
            drawing.box(x, top_y + r * row, width, row - 1, style)
        if stage + 1 < stages:
            first, last = top(stage + 1, step), top(stage + 1, step + 1)
            if last > first:
                above, below = max(0, first - 2), min(height, last + 2)
                drawing.box(x - 3, top_y + above * row - 2, width + 6, (below - above) * row + 3, "window")
                middle = top_y + (first + last) / 2 * row
                drawing.arrow((x + width + 5, middle), (x + width + gap - 5, middle))
    x = left + 5 * (width + gap) + 6
    key = [
        ("kept", ["in memory"]),
        ("now", ["being written in this step"]),
        ("gone", ["overwritten: only a ring", "of rows of each stage exists"]),
        ("none", ["to come"]),
        ("window", ["read for it: pooling 5x5", "needs two more rows", "on either side"]),
    ]
    y = 106
    for style, texts in key:
        drawing.box(x, y - 12, 20, 14, style)
        drawing.lines(x + 30, y, texts, "small", step=16)
        y += 18 + 16 * len(texts)
    lag = ["Each stage lies one band and", "two rows behind the one before."]
    tickets = ["Workers draw tiles as tickets:", "no barrier, one parallel region."]
    drawing.lines(x, y + 6, lag + tickets, "faint small", step=16)
    note = "each arrow: 5x5 maximum in two passes, then the 1x1 convolution, while the rows are in the cache"
    drawing.text(24, 446, note, "faint small")
    return drawing


def fusion() -> Drawing:
    drawing = Drawing(900, 330, "What fusion does")
    drawing.text(24, 34, "fusion: one pass writes the result, tile by tile", "title")
    drawing.box(24, 62, 150, 104, "map", 4)
    drawing.lines(99, 104, ["input 0", "full size"], "", "middle")
    drawing.box(24, 216, 84, 62, "map", 4)
    drawing.lines(66, 243, ["input 1", "half size"], "small", "middle", 16)
    drawing.arrow((178, 114), (470, 114))
    drawing.text(324, 104, "W0 x, a tile of pixels", "small", "middle")
    drawing.arrow((112, 247), (216, 247))
    drawing.text(164, 236, "W1 x", "small", "middle")
    drawing.box(216, 216, 84, 62, "kept", 4)
    drawing.lines(258, 240, ["float32", "scratch"], "small", "middle", 16)
    drawing.arrow((304, 247), (560, 247), (560, 170))
    drawing.text(432, 236, "four points, interpolated", "small", "middle")
    drawing.text(432, 266, "(in the cache, never at full size)", "faint small", "middle")
    drawing.box(470, 62, 180, 104, "op", 6)
    drawing.lines(560, 92, ["sums in registers", "+ bias", "+ interpolated", "activation"], "small", "middle", 18)
    drawing.arrow((654, 114), (726, 114))
    drawing.box(726, 62, 150, 104, "map", 4)
    drawing.lines(801, 104, ["result", "written once"], "", "middle")
    plain = ["PyTorch's own operations write and", "read again, at full size: both"]
    what = ["convolutions' results, the upsampled", "map, the sum, and the activation's."]
    drawing.lines(600, 208, plain + what, "faint small", step=17)
    note = "a 1x1 convolution and a bilinear upsampling can change places: the small map is convolved at its own size"
    drawing.text(24, 312, note, "faint small")
    return drawing


def upsample_argmax() -> Drawing:
    drawing = Drawing(900, 330, "What upsample_argmax does")
    drawing.text(24, 34, "upsample_argmax: the upsampled logits exist only in registers", "title")
    for i, style in enumerate(("a", "b", "c")):
        x, y = 24 + 14 * i, 66 + 14 * i
        drawing.box(x, y, 130, 100, "ground")
        for r in range(5):
            for c in range(6):
                value = 0.25 + 0.75 * ((3 * r + 5 * c + 7 * i * (r + 1)) % 11) / 10
                drawing.parts.append(
                    f'<rect x="{x + 4 + 20.5 * c:g}" y="{y + 4 + 18.5 * r:g}" width="19" height="17" class="{style}" '
                    f'opacity="{value:.2f}"/>'
                )
    drawing.lines(100, 222, ["logits, a map per class,", "at a quarter of the size"], "small", "middle", 16)
    drawing.arrow((190, 130), (258, 130))
    drawing.lines(224, 96, ["between", "two rows"], "small", "middle", 15)
    for i, style in enumerate(("a", "b", "c")):
        y = 84 + 34 * i
        for c in range(6):
            value = 0.25 + 0.75 * ((4 * c + 5 * i + 2) % 9) / 8
            drawing.parts.append(
                f'<rect x="{262 + 24 * c}" y="{y}" width="22" height="22" class="{style}" opacity="{value:.2f}"/>'
            )
    drawing.lines(334, 222, ["one row per class, in the cache", "(float32)"], "small", "middle", 16)
    drawing.arrow((412, 130), (480, 130))
    drawing.lines(446, 96, ["between", "columns"], "small", "middle", 15)
    drawing.box(480, 72, 180, 116, "op", 6)
    steps = ["per vector of pixels,", "class after class:", "larger than the best?", "keep value and class"]
    drawing.lines(570, 100, steps, "small", "middle", 22)
    drawing.arrow((664, 130), (720, 130))
    row = "aaaaabbbbbbccccaaabbbb"
    for r in range(14):
        for c in range(18):
            if r < 8:
                style = row[(c + (r * r) // 9) % len(row)]
                drawing.box(724 + 8.4 * c, 66 + 8.8 * r, 7.6, 8, style)
            else:
                drawing.box(724 + 8.4 * c, 66 + 8.8 * r, 7.6, 8, "none")
    drawing.lines(800, 222, ["labels, row by row:", "uint8, a byte per pixel"], "small", "middle", 16)
    plain = "for 21 classes and a image of 512 x 512, PyTorch's own operations write and read 22 MB of logits;"
    drawing.lines(24, 282, [plain, "here 0.26 MB of labels are written."], "faint small", step=17)
    return drawing


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "decoder.svg": decoder,
    "crp.svg": wavefront,
    "fusion.svg": fusion,
    "upsample_argmax.svg": upsample_argmax,
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, draw in DRAWINGS.items():
        (folder / name).write_text(str(draw()), encoding="utf-8")


if __name__ == "__main__":
    main()
