"""Samples from Python scripts."""

from pathlib import Path

import numpy as np
import pytest

from onnxprune.data.samples import load_samples
from onnxprune.data.scripts import script_of
from onnxprune.errors import CalibrationError
from onnxprune.runtime.session import InputSpec

SPEC = InputSpec("x", np.dtype(np.float32), ("N", 2))
HEAD = "import numpy as np\n"


def write(folder: Path, body: str) -> Path:
    path = folder / "script.py"
    path.write_text(HEAD + body)
    return path


def test_paths_of_scripts():
    assert script_of("a/b.py") == (Path("a/b.py"), "samples")
    assert script_of("a/b.py:rows") == (Path("a/b.py"), "rows")
    assert script_of("b.npz") is None
    assert script_of("b.npz:rows") is None


@pytest.mark.parametrize(
    "body",
    [
        "def samples():\n    for n in range(3):\n        yield {'x': np.full((2, 2), n, np.float32)}",
        "def samples():\n    yield from (np.full((2, 2), n, np.float32) for n in range(3))",
        "def samples():\n    return [{'x': np.full((2, 2), n, np.float32)} for n in range(3)]",
        "def samples():\n    return {'x': np.repeat(np.arange(3, dtype=np.float32), 4).reshape(6, 2)}",
        "def samples():\n    return np.repeat(np.arange(3, dtype=np.float32), 4).reshape(6, 2)",
        "class Rows:\n    def __getitem__(self, n):\n        if n > 2: raise IndexError\n        return {'x': "
        "np.full((2, 2), n, np.float32)}\n    def __iter__(self):\n        return (self[n] for n in range(3))\n"
        "samples = Rows",
    ],
)
def test_what_a_script_may_give(tmp_path: Path, body: str):
    path = write(tmp_path, body)
    found = load_samples(path, [SPEC])
    np.testing.assert_array_equal(found.arrays["x"][:, 0], [0, 0, 1, 1, 2, 2])
    assert found.origin == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["script.py"]


def test_a_function_by_name_with_neighbours_and_dataclasses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "beside_the_script.py").write_text("def late():\n    import beside_too\n    return beside_too.ROWS\n")
    (tmp_path / "beside_too.py").write_text("import numpy as np\nROWS = np.ones((2, 2), np.float32)\n")
    path = write(
        tmp_path,
        "from __future__ import annotations\nimport dataclasses, beside_the_script\nprint('hello')\n"
        "@dataclasses.dataclass\nclass A:\n    n: int = 0\n"
        "def rows():\n    print('rows')\n    yield {'x': beside_the_script.late(), 'labels': np.arange(2)}\n",
    )
    path.write_text(path.read_text().removeprefix(HEAD).replace("import dataclasses", f"{HEAD}import dataclasses"))
    found = load_samples(f"{path}:rows", [SPEC])
    assert found.count == 2
    np.testing.assert_array_equal(found.labels, [0, 1])
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "hello\nrows\n")


def test_no_more_is_asked_for_than_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    body = (
        "def samples():\n    try:\n        while True:\n            print('one')\n"
        "            yield np.ones((2, 2), np.float32)\n    finally:\n        print('end')\n"
    )
    assert load_samples(write(tmp_path, body), [SPEC], limit=3).count == 3
    assert capsys.readouterr().err == "one\none\nend\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def samples(:\n    pass", "line 2: SyntaxError"),
        ("import nothing_of_that_name", "line 2: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit(0)", "line 2: SystemExit: 0"),
        ("def deep():\n    1 / 0\ndef samples():\n    deep()", "line 3: ZeroDivisionError"),
        ("\n\n1 / 0", "line 4: ZeroDivisionError: division by zero"),
        ("def samples():\n    return np.ones((1, 2)) @ np.ones((3, 1))", "line 3: ValueError: matmul"),
        (
            "def samples():\n    yield np.ones((2, 2))\n    raise OSError('the\\ndisk')",
            "OSError: the disk: repair",
        ),
        ("def samples(path):\n    pass", "TypeError: samples() missing 1 required positional argument"),
        ("def samples():\n    raise StopIteration", "line 3: StopIteration: repair"),
        ("rows = 3", "the script has no function 'samples': define it, or name another as script.py:FUNCTION"),
        ("samples = 3", "no function 'samples'"),
        ("def samples():\n    return 3", "'samples' returned the type int"),
        ("def samples():\n    yield (1, 2)", "part 0 of the samples is of the type tuple"),
        ("def samples():\n    yield {'y': np.ones((2, 2)), 'z': 1}", "no array for 'x'"),
        ("def samples():\n    yield from ()", "there are no samples"),
        ("def samples():\n    try:\n        yield np.ones((2, 2))\n    finally:\n        1 / 0", "line 6: Zero"),
    ],
)
def test_what_goes_wrong_in_a_script_is_one_sentence(tmp_path: Path, body: str, words: str):
    path = write(tmp_path, body)
    with pytest.raises(CalibrationError) as caught:
        load_samples(path, [SPEC], limit=2 if "finally" in body else 1024)
    text = str(caught.value)
    assert words in text
    assert text.startswith(str(path))
    assert "\n" not in text


@pytest.mark.parametrize(
    "body",
    ["raise KeyboardInterrupt", "def samples():\n    yield np.ones((2, 2))\n    raise KeyboardInterrupt"],
)
def test_an_interrupt_passes(tmp_path: Path, body: str):
    with pytest.raises(KeyboardInterrupt):
        load_samples(write(tmp_path, body), [SPEC])


def test_scripts_that_are_not_there(tmp_path: Path):
    with pytest.raises(CalibrationError, match=r"none\.py: there is no such file"):
        load_samples(tmp_path / "none.py", [SPEC])
    with pytest.raises(CalibrationError, match=r"none\.py: the script cannot be read \(no such file"):
        load_samples(f"{tmp_path / 'none.py'}:rows", [SPEC])
