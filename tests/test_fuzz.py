"""What the fuzz would not miss, and what a message never says: arguments of Python."""

import ast

import pydicom
import pytest
from typer.testing import CliRunner

from diffpose.cli import app
from tests.fuzz import PYTHON, ROOT, broken, write_dicom, write_slices

MESSAGE = "error: ct.nii is damaged: copy it again\n"


@pytest.mark.parametrize(
    "code, text, written, law",
    [
        (0, "a.png: 24 x 28 pixels\n", ("a.png",), None),
        (2, MESSAGE, (), None),
        (2, "\u256d\u2500 Error \u2500\u256e\n", (), None),
        (2, "error: x.png has 4 x 4 pixels: python -c \"Camera.from_json('a').resize(height=4)\"\n", (), None),
        (2, "error: in/seed=/ct.nii is a folder\n", (), None),
        (3, MESSAGE, (), "exit code 3"),
        (1, "Traceback (most recent call last):\n", (), "a traceback"),
        (2, "error: KeyError: x\nThis is a fault of diffpose.\n", (), "a fault of the package"),
        (2, "\n", (), "no message"),
        (2, "error: \n", (), "no message"),
        (2, "error: no voxel size; pass affine= (voxel to RAS, mm)\n", (), "an argument of Python: 'affine='"),
        (0, "warning: odd, pass slice_tolerance=.\n", (), "an argument of Python"),
        (2, MESSAGE, ("a.png",), "exit code 2, and ['a.png'] written"),
        (1, "not converged\n", ("a/.writing-x/pose.json",), "left behind: ['.writing-x']"),
    ],
)
def test_a_law_that_is_broken_is_named(tmp_path, code, text, written, law):
    for name in written:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = "; ".join(broken(code, text, tmp_path))
    assert law in found if law else not found


def said(module):
    "The texts that a module, or each of a package, raises and warns with, X where a value or an argument (diffpose.errors) stands."
    files = sorted((ROOT / "diffpose" / module).glob("*.py")) or [ROOT / "diffpose" / f"{module}.py"]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Raise) and "new_call(" in ast.unparse(node):
            continue  # the answer to an old call in Python, which no command makes
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "warn"):
            inside = [text for text in ast.walk(node) if isinstance(text, ast.JoinedStr) or isinstance(text, ast.Call) and getattr(text.func, "id", "") in ("argument", "worded")]
            parts = {id(part) for text in inside for part in ast.walk(text) if part is not text}
            for text in ast.walk(node):
                if isinstance(text, ast.JoinedStr) and id(text) not in parts:
                    yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in text.values)
                elif isinstance(text, ast.Constant) and isinstance(text.value, str) and id(text) not in parts:
                    yield text.value


BEYOND = {"transform=", "hu_max=", "n_subsample=", "crop=", "resample_target="}  # of what no command does


@pytest.mark.parametrize("module", ["files", "calibration", "data", "deepfluoro", "field", "images", "phantom", "training"])
def test_what_readers_say_names_arguments_as_data(module):
    for text in said(module):
        left = set(PYTHON.findall(text)) - BEYOND
        assert not left, (left, text)


def call(*args):
    result = CliRunner().invoke(app, [str(a) for a in args])
    return result.exit_code, " ".join(result.output.split())


def test_a_slice_off_its_place_is_allowed_by_an_option(tmp_path):
    from diffpose.phantom import make_phantom

    volume = make_phantom(0, 20.0).volume
    write_slices(tmp_path / "ct", volume.data[0].numpy(), volume.affine)
    header = pydicom.dcmread(tmp_path / "ct" / "IM005.dcm")
    header.ImagePositionPatient[2] += 3
    header.save_as(tmp_path / "ct" / "IM005.dcm")
    job = ("render", tmp_path / "ct", "--height", 8, "--out", tmp_path / "a.png")
    code, text = call(*job)
    assert code == 2 and "pass --slice-tolerance (mm) if that is good enough" in text, text
    code, text = call(*job, "--slice-tolerance", 4)
    assert code == 0 and "8 x 8 pixels" in text, text
    assert call(*job, "--force", "--slice-tolerance", 1)[0] == 2 and call(*job, "--force", "--slice-tolerance", -1)[0] == 2


def test_a_warning_is_one_line_in_words_of_the_command(tmp_path):
    import nibabel as nib
    import numpy as np

    from diffpose.phantom import make_phantom

    image = nib.Nifti1Image(make_phantom(0, 20.0).volume.data[0].numpy() + 1024, np.diag([20.0, 20, 20, 1]))
    image.set_sform(None, 0), image.set_qform(None, 0)
    nib.save(image, tmp_path / "ct.nii")
    with pytest.warns(UserWarning, match="affine="):
        from diffpose.data import read

        read(tmp_path / "ct.nii")
    result = CliRunner().invoke(app, ["render", str(tmp_path / "ct.nii"), "--height", "8", "--out", str(tmp_path / "a.png")])
    told = [line for line in result.stderr.splitlines() if line]
    assert result.exit_code == 0 and all(line.startswith("warning: ") for line in told) and len(told) == 2, told
    assert told[0].endswith("other programs may show the mirror image; if that is wrong, correct the header") and told[1].endswith("if these are, pass --hu-offset -1024"), told


def test_dicom_of_the_fuzz_is_sound(tmp_path):
    "Its own writer is checked by pydicom."
    import numpy as np

    write_dicom(tmp_path / "a.dcm", np.arange(12, dtype=np.uint16).reshape(3, 4), "1.2.840.10008.5.1.4.1.1.12.1", Modality="XA")
    assert (pydicom.dcmread(tmp_path / "a.dcm").pixel_array.ravel() == np.arange(12)).all()
