"""What the readers do with files that are damaged, leave something open or contradict themselves.

Every file is written by somebody else's writer, or byte by byte after the format's own description. The law is the same throughout: what a file says
is what is read; what it leaves open is said aloud, with the option that settles it; what contradicts itself is refused before any work, by name.
"""

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from diffpose.data import _load, read_xray

RNG = np.random.default_rng(0)
BLOCK = RNG.integers(-1000, 1500, (12, 10, 8)).astype(np.int16)
AFFINE = np.array([[-1.5, 0, 0, 30.0], [0, 2, 0, -80], [0, 0, 2.5, 400], [0, 0, 0, 1]])
COUNTS = RNG.integers(100, 4000, (40, 50)).astype(np.uint16)


def voxels(path, **how):
    return _load(path, **how)[0].numpy()


# damage


def write_nifti(path):
    nib.save(nib.Nifti1Image(BLOCK, AFFINE), path)
    return path


def write_mgh(path):
    nib.save(nib.MGHImage(BLOCK, AFFINE), path)
    return path


def write_itk(path):
    sitk.WriteImage(sitk.GetImageFromArray(BLOCK.T), str(path), useCompression=True)
    return path.with_suffix(".raw.gz" if path.suffix == ".nhdr" else ".zraw") if path.suffix in (".nhdr", ".mhd") else path


def write_png(path):
    Image.fromarray(COUNTS).save(path)
    return path


def pixels(path):
    return read_xray(path)[0].numpy()


@pytest.mark.parametrize(
    "name, write, reader",
    [
        ("a.nii.gz", write_nifti, voxels),
        ("a.mgz", write_mgh, voxels),
        ("a.nrrd", write_itk, voxels),
        ("a.nhdr", write_itk, voxels),
        ("a.mha", write_itk, voxels),
        ("a.mhd", write_itk, voxels),
        ("a.png", write_png, pixels),
        ("x.nii.gz", lambda path: nib.save(nib.Nifti1Image(COUNTS.T, np.eye(4)), path) or path, pixels),
    ],
)
def test_a_flipped_bit_is_never_taken(tmp_path, name, write, reader):
    path = tmp_path / name
    holder = write(path)
    sound, content = reader(path), bytearray(holder.read_bytes())
    taken = 0
    for at in np.linspace(len(content) // 4, len(content) - 1, 60).astype(int):
        flipped = content.copy()
        flipped[at] ^= 1 << int(at % 8)
        holder.write_bytes(flipped)
        try:
            assert np.array_equal(reader(path), sound), f"bit flipped in byte {at} of {len(content)}"
            taken += 1
        except ValueError as error:
            assert name in str(error)
    assert taken < 8  # a length or a number of padding that no reader needs
    holder.write_bytes(content)
    assert np.array_equal(reader(path), sound)


def test_damage_is_said_with_what_to_do(tmp_path):
    path = write_nifti(tmp_path / "ct.nii.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ct\.nii\.gz is damaged \(.*\): copy or download it again"):
        voxels(path)


def test_a_stream_that_goes_on_is_refused_in_pieces(tmp_path):
    path = write_nifti(tmp_path / "bomb.nii.gz")
    content = gzip.decompress(path.read_bytes())
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(content)
        for _ in range(64):
            stream.write(bytes(1 << 20))
    with pytest.raises(ValueError, match="unpacks to more than its header announces"):
        voxels(path)
