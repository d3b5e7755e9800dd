"""Samples from folders of images."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxprune.data.images import fit, image_files, image_form
from onnxprune.data.preprocess import InputForm, Steps, parse_preprocess
from onnxprune.data.samples import Samples, load_samples
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.runtime.session import InputSpec

F32, U8 = np.dtype(np.float32), np.dtype(np.uint8)
SPEC = InputSpec("x", F32, ("N", 3, 6, 8))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)


def save(folder: Path, names: list[str], pixels: np.ndarray = PIXELS) -> Path:
    for name, array in zip(names, pixels, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / name)
    return folder


def load(folder: Path, spec: InputSpec = SPEC, text: str = "scale=1", **options: object) -> Samples:
    form = InputForm(parse_preprocess(text), options.pop("shapes", {}), options.pop("classes", None))
    return load_samples(folder, [spec], form=form, **options)


def test_pixels_arrive_unchanged_where_the_size_fits(tmp_path: Path):
    save(tmp_path, ["a.png", "b.bmp", "c.PNG"])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"no image")
    found = load(tmp_path)
    assert found.arrays["x"].dtype == np.float32
    assert (found.count, found.labels, found.origin, found.notes) == (3, None, str(tmp_path), ())
    order = [int(np.flatnonzero((image.transpose(1, 2, 0) == PIXELS).all((1, 2, 3)))[0]) for image in found.arrays["x"]]
    assert sorted(order) == [0, 1, 2]
    last = load(tmp_path, InputSpec("x", U8, (None, 6, 8, 3)), "layout=nhwc")
    np.testing.assert_array_equal(last.arrays["x"], PIXELS[order])
    bgr = load(tmp_path, text="color=bgr;scale=1")
    np.testing.assert_array_equal(bgr.arrays["x"], found.arrays["x"][:, ::-1])


def test_jpeg_and_one_channel(tmp_path: Path):
    gray = np.tile(np.arange(0, 240, 30, dtype=np.uint8), (6, 1))
    save(tmp_path, ["a.jpg", "b.jpeg", "c.png"], np.stack([gray] * 3))
    found = load(tmp_path, InputSpec("x", F32, ("N", 1, 6, 8)))
    assert found.arrays["x"].shape == (3, 1, 6, 8)
    assert np.abs(found.arrays["x"] - gray).max() <= 4
    np.testing.assert_array_equal(load(tmp_path).arrays["x"][:, 0], found.arrays["x"][:, 0])


def test_transparent_and_indexed_images(tmp_path: Path):
    image = Image.fromarray(PIXELS[0])
    image.convert("RGBA").save(tmp_path / "a.png")
    image.convert("P").convert("RGB").save(tmp_path / "b.png")
    image.convert("P").save(tmp_path / "c.png")
    found = {bytes(row.astype(np.uint8)) for row in load(tmp_path).arrays["x"]}
    assert len(found) == 2
    assert PIXELS[0].transpose(2, 0, 1).tobytes() in found


def test_the_shorter_side_and_then_the_centre(tmp_path: Path):
    """A red square in the middle of a wide image: what lies beside the centre is cut off."""
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70, 0] = 255
    save(tmp_path, ["a.png"], wide[None])
    square = InputSpec("x", F32, ("N", 3, 20, 20))
    assert load(tmp_path, square).arrays["x"][0, 0, :, 1:-1].min() == 255
    assert load(tmp_path, square).arrays["x"][0, 0].min() > 200, "only the edges of the square are blurred"
    assert load(tmp_path, square).arrays["x"][0, 1:].max() == 0
    stretched = load(tmp_path, square, "resize=20x20;scale=1").arrays["x"][0, 0]
    assert (stretched[:, :5].max(), stretched[:, 9:11].min(), stretched[:, 15:].max()) == (0, 255, 0)
    tall = load(tmp_path, square, "resize=40;scale=1").arrays["x"]
    np.testing.assert_array_equal(tall[0].transpose(1, 2, 0), wide[10:30, 40:60])
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "a.png")
    turned = load(tmp_path, square, "resize=40;scale=1").arrays["x"]
    np.testing.assert_array_equal(turned[0].transpose(1, 2, 0), wide.transpose(1, 0, 2)[40:60, 10:30])
    cut = load(tmp_path, square, "resize=40;crop=40;scale=1").arrays["x"]
    assert cut.shape == (1, 3, 20, 20)
    assert cut[0, 0, :, 2:-2].min() == 255
    assert cut[0, 1:].max() == 0


@pytest.mark.parametrize(
    ("size", "text", "wanted"),
    [
        ((300, 400), "resize=256;crop=224", (256, 341)),
        ((400, 300), "resize=256", (341, 256)),
        ((200, 200), "resize=232x250", (232, 250)),
        ((300, 400), "size=224", (224, 299)),
        ((400, 300), "size=224x300", (400, 300)),
        ((10, 1000), "size=224", (224, 22400)),
    ],
)
def test_sizes_before_the_cut(size: tuple[int, int], text: str, wanted: tuple[int, int], monkeypatch):
    spec = InputSpec("x", F32, (1, 3, None, None))
    steps = parse_preprocess(text + ("" if "size=224" in text else ";size=224")).inputs[""]
    form = image_form(spec, steps, spec.shape)
    resized = []
    inner = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, how: resized.append(to[::-1]) or inner(self, to, how))
    image = fit(Image.new("RGB", size[::-1]), form, Path("a.png"))
    assert resized[:1] == ([wanted] if wanted != size else [])
    assert (image.height, image.width) == (form.height, form.width)


@pytest.mark.parametrize(
    ("shape", "text", "wanted"),
    [
        (("N", 3, 6, 8), "", ("nchw", 3, 6, 8)),
        (("N", 6, 8, 1), "", ("nhwc", 1, 6, 8)),
        (("N", None, 6, 8), "layout=nchw", ("nchw", 3, 6, 8)),
        (("N", 3, "h", "w"), "size=5x7", ("nchw", 3, 5, 7)),
        (("N", 3, "h", "w"), "crop=5", ("nchw", 3, 5, 5)),
        (("N", 3, 1, 3), "layout=nchw", ("nchw", 3, 1, 3)),
        (("N", 3, 6, 8), "crop=4", ("nchw", 3, 6, 8)),
    ],
)
def test_the_form_comes_from_the_input_and_the_options(shape, text, wanted):
    steps = parse_preprocess(text).inputs[""] if text else Steps()
    form = image_form(InputSpec("x", F32, shape), steps, shape)
    assert (form.layout, form.channels, form.height, form.width) == wanted


@pytest.mark.parametrize(
    ("shape", "text", "kind", "words"),
    [
        (("N", 5), "", CalibrationError, "of the shape Nx5 takes no images"),
        (("N", 3, 1, 3), "", UsageError, "does not say where its channels are: give --preprocess with layout=nchw"),
        (("N", "c", 6, 8), "", UsageError, "does not say where its channels are"),
        (("N", 4, 6, 8), "layout=nchw", CalibrationError, "takes images of 4 channels"),
        (("N", 3, "h", "w"), "", UsageError, "size=224, or --input-shape x:1x3x224x224"),
        (("N", 3, "h", "w"), "resize=5", UsageError, "leaves the size of images open"),
    ],
)
def test_inputs_that_take_no_images(shape, text, kind, words):
    steps = parse_preprocess(text).inputs[""] if text else Steps()
    with pytest.raises(kind, match=words):
        image_form(InputSpec("x", F32, shape), steps, shape)


def test_given_shapes_set_the_size(tmp_path: Path):
    save(tmp_path, ["a.png"])
    spec = InputSpec("x", F32, ("N", 3, "h", "w"))
    assert load(tmp_path, spec, shapes={"x": (1, 3, 12, 16)}).arrays["x"].shape == (1, 3, 12, 16)


def test_two_inputs(tmp_path: Path):
    save(tmp_path, ["a.png"])
    with pytest.raises(CalibrationError, match="images do not feed a model with 2 inputs"):
        load_samples(tmp_path, [SPEC, InputSpec("y", F32, ("N",))])


def test_subfolders_are_classes(tmp_path: Path):
    names = [f"{kind}/{n}.png" for kind in ("cat", "dog", "Eel") for n in range(4)]
    save(tmp_path, names)
    found = load(tmp_path, classes=3)
    for image, label in zip(found.arrays["x"], found.labels, strict=True):
        kind = names[int(np.flatnonzero((image.transpose(1, 2, 0) == PIXELS).all((1, 2, 3)))[0])].partition("/")[0]
        assert sorted(("cat", "dog", "Eel"))[label] == kind
    assert load(tmp_path, classes=0).labels is not None
    assert load(tmp_path, classes=None).labels is None
    unknown = load(tmp_path, classes=1000)
    assert unknown.labels is None
    assert "3 subfolders do not tell which of the 1000 classes" in unknown.notes[0]


def test_the_order_is_drawn_so_that_every_class_is_held_out(tmp_path: Path):
    save(tmp_path, [f"{kind}/{n:02}.png" for kind in "ab" for n in range(20)], np.repeat(PIXELS, 4, axis=0))
    first, again, other = (load(tmp_path, classes=2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.arrays["x"], again.arrays["x"])
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.labels != other.labels).any()
    assert [sorted(set(part.labels)) for part in first.split()] == [[0, 1], [0, 1]]
    assert load(tmp_path, classes=2, limit=5).count == 5


def test_numbers_as_names_are_the_classes(tmp_path: Path):
    save(tmp_path, ["2/a.png", "10/a.png", "2/below/b.png"])
    found = load(tmp_path, classes=1000)
    assert sorted(found.labels.tolist()) == [2, 2, 10]
    assert found.notes == ()


def test_images_beside_subfolders_have_no_labels(tmp_path: Path):
    save(tmp_path, ["a/a.png", "b.png"])
    found = load(tmp_path, classes=2)
    assert found.labels is None
    assert "beside the subfolders" in found.notes[0]


def test_links_to_folders_are_classes_and_no_loops(tmp_path: Path):
    save(tmp_path / "far", ["a.png"])
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "0").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "near")
    assert image_files(tmp_path / "near") == [tmp_path / "near" / "0" / "a.png"]


def test_only_drawn_images_are_decoded(tmp_path: Path):
    save(tmp_path, ["a.png"])
    for number in range(99):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    seeds = [seed for seed in range(1000) if np.random.default_rng(seed).choice(100, 1, replace=False)[0] == 99]
    np.testing.assert_array_equal(load(tmp_path, limit=1, seed=seeds[0]).arrays["x"][0], PIXELS[0].transpose(2, 0, 1))
    with pytest.raises(CalibrationError, match=r"\d+\.png: the image is unreadable or damaged: remove or replace it"):
        load(tmp_path, limit=2, seed=seeds[0])


def test_damaged_images(tmp_path: Path):
    save(tmp_path, ["whole.png"])
    whole = (tmp_path / "whole.png").read_bytes()
    Image.fromarray(PIXELS[0]).save(tmp_path / "whole.jpg")
    jpeg = (tmp_path / "whole.jpg").read_bytes()
    contents = {"empty.png": b"", "cut.png": whole[: len(whole) // 2], "head.jpg": jpeg[:30], "text.bmp": b"BMhello",
                "chunk.png": whole[:36] + b"\0" + whole[37:],
                "wrong.png": whole[:20] + b"\xff" * 20 + whole[40:]}  # fmt: skip
    for name, content in contents.items():
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(CalibrationError, match="unreadable or damaged") as caught:
            load(folder)
        assert name in str(caught.value)


def test_images_of_more_than_eight_bits(tmp_path: Path):
    Image.fromarray(np.full((6, 8), 60000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(CalibrationError, match=r"deep\.png: the image has more than 8 bits"):
        load(tmp_path)


def test_images_smaller_than_the_cut(tmp_path: Path):
    save(tmp_path, ["a.png"])
    with pytest.raises(CalibrationError, match="4x5 before 6x8 are cut out: give a larger resize"):
        load(tmp_path, text="resize=4")


def test_without_preprocessing_a_note_says_the_range(tmp_path: Path):
    save(tmp_path, ["a.png"])
    found = load_samples(tmp_path, [SPEC])
    assert [f"from {PIXELS[0].min()} to {PIXELS[0].max()}" in note for note in found.notes] == [True]


def test_images_and_archives_in_one_folder(tmp_path: Path):
    save(tmp_path, ["a.png"])
    np.savez(tmp_path / "b.npz", x=PIXELS)
    with pytest.raises(CalibrationError, match=r"has \.npz files and images"):
        load(tmp_path)


def test_pillow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, ["a.png"])
    inner = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "PIL" else inner(name, *rest))
    with pytest.raises(UsageError, match=r'images need Pillow: install "onnxprune\[images\]"'):
        load(tmp_path)
