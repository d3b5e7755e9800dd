"""Networks of installed packages, with inputs as they meet them: rendered lines of text, and files."""

import functools
import importlib.util
import random
import string
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_sheet import Sizes, Subject

FONTS = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "LiberationSans-Regular.ttf",
         "LiberationSerif-Italic.ttf", "LiberationMono-Bold.ttf")  # fmt: skip
"""Tried by name where Pillow looks for fonts; its own one is there always."""

BLOCK, SIDE, PADDING = 4096, 1024, 256
"""Magika reads the first and the last ``SIDE`` bytes of the stripped first and last block; 256 stands for none."""

PER_SUFFIX = 40
"""Most files of one suffix, so that no kind dominates."""


def real(names: Sequence[str], sizes: Sizes) -> Iterator[Subject]:
    """Yields the networks that are installed; calibration and verdict never share a sample."""
    for name in names:
        package, file, make = REAL[name]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            data, held = make(sizes)
            yield Subject(name, Path(spec.origin).parent / "models" / file, data, held)


def _lines_for_reading(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    return lines(2 * sizes.samples, 1, 320), lines(sizes.verdict, 2, 320)


def _lines_to_turn(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    return lines(2 * sizes.samples, 3, 192, turned=True), lines(sizes.verdict, 4, 192, turned=True)


def lines(count: int, seed: int, width: int, *, turned: bool = False) -> np.ndarray:
    """Returns lines of text, 48 pixels high, from -1 to 1: fonts, sizes, grounds, noise and places are drawn.

    Half of the ``turned`` ones stand on their head.
    """
    from PIL import Image, ImageDraw

    draw = random.Random(seed)
    noise = np.random.default_rng(seed)
    images = []
    for number in range(count):
        ground = draw.randint(150, 255)
        image = Image.new("RGB", (width, 48), tuple(max(ground - draw.randint(0, 30), 0) for _ in range(3)))
        ink = tuple(draw.randint(0, 90) for _ in range(3))
        place = draw.randint(2, 12), draw.randint(0, 10)
        ImageDraw.Draw(image).text(place, text(draw), ink, _font(draw.choice(FONTS), draw.randint(18, 34)))
        if turned and number % 2:
            image = image.rotate(180)
        values = np.asarray(image, np.float32) + noise.normal(0, draw.uniform(0, 8), (48, width, 3))
        images.append((values.clip(0, 255) / 127.5 - 1).transpose(2, 0, 1).astype(np.float32))
    return np.stack(images)


def _pages(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    return pages(2 * sizes.samples, 6), pages(sizes.verdict, 7)


def pages(count: int, seed: int, side: int = 320) -> np.ndarray:
    """Returns images of a few lines of text, normalized as for photographs: places, sizes and grounds are drawn."""
    draw = random.Random(seed)
    strips = (lines(8 * count, seed, side).transpose(0, 2, 3, 1) + 1) / 2
    images = np.stack([np.full((side, side, 3), draw.uniform(0.5, 1.0), np.float32) for _ in range(count)])
    for number, strip in enumerate(strips):
        top, left = draw.randrange(0, side - 48), draw.randrange(0, side // 2)
        images[number % count, top : top + 48, left:] = strip[:, : side - left]
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return np.ascontiguousarray(((images - mean) / spread).transpose(0, 3, 1, 2).astype(np.float32))


def text(draw: random.Random) -> str:
    """Returns a few drawn words and numbers."""
    words = []
    for _ in range(draw.randint(1, 4)):
        letters = "".join(draw.choices(string.ascii_lowercase, _frequencies(), k=draw.randint(2, 9)))
        number = f"{draw.randint(0, 99999)}{draw.choice(['', '.5', '%', '-A'])}"
        words.append(draw.choice([letters, letters.capitalize(), letters.upper(), number]))
    return " ".join(words)


def _frequencies() -> list[int]:
    """Returns about how often each letter occurs in English text, in tenths of a percent."""
    return [82, 15, 28, 43, 127, 22, 20, 61, 70, 2, 8, 40, 24, 67, 75, 19, 1, 60, 63, 91, 28, 10, 24, 2, 20, 1]


@functools.cache
def _font(name: str, size: int) -> Any:
    from PIL import ImageFont

    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return ImageFont.load_default(size)


def _files(sizes: Sizes) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns files of this Python installation as Magika reads them, drawn into two parts."""
    found: dict[str, list[Path]] = {}
    for root in dict.fromkeys(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "include")):
        for path in sorted(Path(root).rglob("*")):
            if path.is_file() and path.stat().st_size >= 64:
                found.setdefault(path.suffix.lower(), []).append(path)
    draw = random.Random(5)
    chosen = [path for paths in found.values() for path in draw.sample(paths, min(len(paths), PER_SUFFIX))]
    draw.shuffle(chosen)
    rows = np.stack([as_bytes(path.read_bytes()) for path in chosen[: sizes.samples + sizes.verdict]])
    held = min(sizes.verdict, len(rows) // 3)
    return {"bytes": rows[held:]}, {"bytes": rows[:held]}


def as_bytes(content: bytes) -> np.ndarray:
    """Returns the beginning and the end of a file, padded behind and before."""
    first, last = content[:BLOCK].lstrip()[:SIDE], content[-BLOCK:].rstrip()[-SIDE:]
    row = np.full(2 * SIDE, PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2 * SIDE - len(last) :] = np.frombuffer(last, np.uint8)
    return row


REAL: dict[str, tuple[str, str, Callable[[Sizes], tuple[Any, Any]]]] = {
    "PP-OCRv4 rec": ("rapidocr_onnxruntime", "ch_PP-OCRv4_rec_infer.onnx", _lines_for_reading),
    "PP-OCR cls": ("rapidocr_onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx", _lines_to_turn),
    "PP-OCRv4 det": ("rapidocr_onnxruntime", "ch_PP-OCRv4_det_infer.onnx", _pages),
    "magika": ("magika", "standard_v3_3/model.onnx", _files),
}
