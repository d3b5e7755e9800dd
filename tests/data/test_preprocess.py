"""What --preprocess says and does."""

from pathlib import Path

import numpy as np
import pytest

from onnxprune.data.preprocess import InputForm, Preprocess, Steps, parse_preprocess
from onnxprune.data.samples import load_samples
from onnxprune.data.settings import parse_settings
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.runtime.session import InputSpec

F32, F64, U8, F16 = (np.dtype(kind) for kind in (np.float32, np.float64, np.uint8, np.float16))
IMAGE = InputSpec("x", F32, ("N", 3, 4, 5))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = "mean=0.485,0.456,0.406;std=0.229,0.224,0.225;scale=1/255"


def loaded(source: object, text: object, spec: InputSpec = IMAGE) -> np.ndarray:
    return load_samples(source, [spec], form=InputForm(parse_preprocess(text))).arrays[spec.name]


def test_every_key_is_understood():
    text = "mean=0.5,.25,0;std=1e-1;scale=1/255;layout=NHWC;size=224;resize=256;crop=224x200;color=bgr;dtype=float16"
    steps = Steps((0.5, 0.25, 0), (0.1,), (1 / 255,), "nhwc", (224, 224), (256,), (224, 200), "bgr", "float16")
    found = parse_preprocess(text)
    assert found == Preprocess({"": steps})
    assert parse_preprocess(str(found)) == found
    assert parse_preprocess(found) is found
    assert parse_preprocess(None) == Preprocess()
    assert parse_preprocess(" mean = 0.5 , 1 ; ; resize = 2x3 ;") == Preprocess(
        {"": Steps(mean=(0.5, 1), resize=(2, 3))}
    )


def test_keys_of_several_inputs_carry_their_names():
    found = parse_preprocess("image.mean=0.5;in.put.1.std=2;image.scale=1/2")
    assert found == Preprocess({"image": Steps(mean=(0.5,), scale=(0.5,)), "in.put.1": Steps(std=(2,))})
    assert parse_preprocess(str(found)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (";;", "is empty"),
        ("imagenet", "'imagenet' is not key=value"),
        ("mena=1", "'mena' is unknown: choose from mean, std"),
        ("x.mena=1", "'x.mena' is unknown"),
        ("mean=1;mean=2", "given twice"),
        ("mean=", "mean='' is not understood"),
        ("mean=a,b", "mean='a,b'"),
        ("mean=1,,2", "mean='1,,2'"),
        ("mean=nan", "mean='nan'"),
        ("scale=1/0", "scale='1/0'"),
        ("scale=inf", "scale='inf'"),
        ("scale=0", "other than 0"),
        ("std=1,0,1", "other than 0"),
        ("layout=chw", "give nchw or nhwc"),
        ("color=gray", "give rgb or bgr"),
        ("dtype=float8", "dtype='float8'"),
        ("size=0", "size='0'"),
        ("size=1x2x3", "size='1x2x3'"),
        ("resize=-1", "resize='-1'"),
        ("crop=1.5", "crop='1.5'"),
        ("crop=²", "crop='²'"),
        (5, "of the type int"),
        ({}, "is empty"),
        ({"mean": None}, "mean='None'"),
        ({"x": {"mean": "q"}}, "x.mean='q'"),
    ],
)
def test_what_is_not_understood_is_one_sentence(text: object, words: str):
    with pytest.raises(UsageError) as caught:
        parse_preprocess(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("--preprocess")
    assert "\n" not in str(caught.value)


def test_a_dict_and_a_file_say_the_same(tmp_path: Path):
    wanted = parse_preprocess(IMAGENET + ";layout=nchw;size=4x5")
    given = {"mean": list(MEAN), "std": np.array(STD), "scale": 1 / 255, "layout": "nchw", "size": (4, 5)}
    assert parse_preprocess(given) == wanted
    (tmp_path / "p.YAML").write_text(
        "---\n# as in training\nmean: [0.485, 0.456, 0.406]\nstd:\n- 0.229\n- 0.224  # green\n- 0.225\n\n"
        "scale: 1/255\nlayout: 'nchw'\n\"size\": 4x5\n"
    )
    assert parse_preprocess(tmp_path / "p.YAML") == parse_preprocess(str(tmp_path / "p.YAML")) == wanted
    (tmp_path / "two.yml").write_text("image:\n  mean: 0.5\n  std:\n    - 0.5\nother:\n    scale: 2\n")
    assert parse_preprocess(tmp_path / "two.yml") == parse_preprocess("image.mean=0.5;image.std=0.5;other.scale=2")


def test_quotes_and_comments_in_files():
    text = "'a # b': \"c #d\"  # e\n# f\ng#h: [i#j, 'k']\n"
    assert parse_settings(text, "p.yaml") == {"a # b": "c #d", "g#h": ["i#j", "k"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mean 0.5", "line 1: 'mean 0.5' is not understood"),
        ("mean:0.5", "line 1: 'mean:0.5'"),
        ("mean: 1\nmean: 2", "'mean' is empty or stands there twice"),
        ("mean: {a: 1}", "line 1"),
        ("mean: &a 1", "line 1"),
        ("mean: |\n  1", "line 1"),
        ("mean: [1, 2", "line 1"),
        ("mean: [[1], 2]", "line 1"),
        ("mean: 1\n  std: 2", "line 2: 'std: 2'"),
        ("x:\n    mean: 1\n  std: 2", "line 3"),
        ("mean:\n  - 1\n  std: 2", "line 3"),
        ("\tmean: 1", "tab"),
        ("x:\n  y:\n    mean: 1", "x.y"),
        ("", "is empty"),
        ("# nothing", "is empty"),
        ("mean: 'a", "line 1"),
        ("mena: 1", "'mena' is unknown"),
    ],
)
def test_files_that_are_not_understood(tmp_path: Path, text: str, words: str):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        parse_preprocess(tmp_path / "p.yaml")
    assert words in str(caught.value)
    assert "p.yaml" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name, words in (("none.yaml", "No such file"), ("bytes.yaml", "not text")):
        with pytest.raises(UsageError, match=words):
            parse_preprocess(str(tmp_path / name))


def test_the_arithmetic_is_that_of_training(tmp_path: Path):
    """The archive calls its images otherwise than the model does."""
    np.savez(tmp_path / "d.npz", images=PIXELS, labels=np.arange(6))
    column = (1, 3, 1, 1)
    wanted = (PIXELS.astype(np.float64) / 255 - np.reshape(MEAN, column)) / np.reshape(STD, column)
    found = load_samples(tmp_path / "d.npz", [IMAGE], form=InputForm(parse_preprocess(IMAGENET)))
    assert found.arrays["x"].dtype == np.float32
    np.testing.assert_allclose(found.arrays["x"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.labels, np.arange(6))
    assert found.notes == ()
    np.testing.assert_allclose(loaded(PIXELS, "mean=10;std=2"), (PIXELS - 10.0) / 2, rtol=1e-6)
    np.testing.assert_allclose(loaded(PIXELS / 3.0, "scale=3"), PIXELS, rtol=1e-6)
    half = InputSpec("x", F16, IMAGE.shape)
    assert loaded(PIXELS, "scale=1/255", half).dtype == np.float16
    exact = loaded(PIXELS, "scale=1/3", InputSpec("x", F64, IMAGE.shape))
    np.testing.assert_allclose(exact, PIXELS / 3.0, rtol=1e-15)


def test_the_source_is_not_changed():
    rows = np.ones((2, 3, 4, 5), np.float32)
    loaded(rows, "mean=1")
    assert rows.min() == 1


def test_channels_in_either_layout():
    last = InputSpec("x", F32, ("N", 4, 5, 3))
    nhwc = PIXELS.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(loaded(nhwc, IMAGENET, last), loaded(PIXELS, IMAGENET).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(loaded(nhwc, IMAGENET + ";layout=nchw"), loaded(PIXELS, IMAGENET))
    np.testing.assert_array_equal(loaded(PIXELS, IMAGENET + ";layout=nhwc", last), loaded(nhwc, IMAGENET, last))
    with pytest.raises(CalibrationError, match="axis 1 of Nx3x4x5 is 3"):
        loaded(nhwc, "mean=1")
    square = InputSpec("x", F32, ("N", 3, 4, 3))
    with pytest.raises(CalibrationError, match=r"x3x4x3 has two axes of that size: say layout=nchw"):
        loaded(PIXELS[..., :3], IMAGENET, square)
    assert loaded(PIXELS[..., :3], IMAGENET + ";layout=nchw", square).shape == (6, 3, 4, 3)


@pytest.mark.parametrize("text", ["mean=1,2", "std=1,2,3,4"])
def test_as_many_numbers_as_channels(text: str):
    with pytest.raises(CalibrationError, match="6x3x4x5 has no channel axis of that size"):
        loaded(PIXELS, text)


def test_features_have_a_channel_axis_too():
    rows = np.arange(6, dtype=np.int64).reshape(3, 2)
    spec = InputSpec("x", F32, ("N", 2))
    np.testing.assert_array_equal(loaded(rows, "mean=1,2", spec), rows - np.array([1, 2]))


def test_the_type_after_the_arithmetic():
    spec = InputSpec("x", U8, (None, 3, 4, 5))
    found = loaded(PIXELS / 255.0, "scale=255;dtype=uint8", spec)
    np.testing.assert_array_equal(found, PIXELS)
    assert loaded(np.full((1, 3, 4, 5), 1.6), "scale=1;dtype=uint8", spec).max() == 2
    for text in ("scale=400", "mean=60"):
        with pytest.raises(CalibrationError, match="beyond the range of uint8"):
            loaded(np.tile([0.0, 1.0, 0.5, 0.2, 0.1], (1, 3, 4, 1)), f"{text};dtype=uint8", spec)
    with pytest.raises(CalibrationError, match="is of the type float32, but the model expects uint8"):
        loaded(PIXELS, "scale=1/255", spec)
    np.testing.assert_array_equal(loaded(PIXELS, "layout=nchw", spec), PIXELS)


def test_integer_images_are_fed_as_floats_with_one_note():
    parts = [{"x": PIXELS[:2]}, {"x": PIXELS[2:]}]
    found = load_samples(parts, [IMAGE])
    np.testing.assert_array_equal(found.arrays["x"], PIXELS)
    assert found.arrays["x"].dtype == np.float32
    assert len(found.notes) == 1
    assert f"'x' holds integers from {PIXELS.min()} to {PIXELS.max()}" in found.notes[0]
    assert len(load_samples(parts, [IMAGE], form=InputForm(parse_preprocess("layout=nchw"))).notes) == 1
    assert load_samples(parts, [IMAGE], form=InputForm(parse_preprocess("scale=1/255"))).notes == ()
    assert load_samples(PIXELS * 1.0, [IMAGE]).notes == ()


def test_samples_that_were_read_are_not_prepared_again():
    samples = load_samples(PIXELS * 1.0, [IMAGE])
    assert load_samples(samples, [IMAGE], form=InputForm()).count == 6
    with pytest.raises(UsageError, match="read before"):
        load_samples(samples, [IMAGE], form=InputForm(parse_preprocess("mean=1")))


def test_steps_are_for_inputs_of_the_model():
    two = [InputSpec("a", F32, ("N", 2)), InputSpec("b", F32, ("N", 2))]
    arrays = {"a": np.ones((3, 2), np.float32), "b": np.ones((3, 2), np.float32)}
    found = load_samples(arrays, two, form=InputForm(parse_preprocess("b.scale=4")))
    assert (found.arrays["a"].max(), found.arrays["b"].max()) == (1, 4)
    for text, specs, words in (
        ("scale=4", two, "for which of the inputs 'a', 'b' it is: put the name before each key, as in a.mean=0.5"),
        ("c.scale=4", two, "for 'c', but the inputs are 'a', 'b'"),
        ("scale=4;x.mean=1", [IMAGE], "with and without the name 'x'"),
    ):
        with pytest.raises(UsageError) as caught:
            parse_preprocess(text).for_inputs(specs)
        assert words in str(caught.value)
