"""What the readers do with files that are damaged, leave something open or contradict themselves.

Every file is written by somebody else's writer, or byte by byte after the format's own description. The law is the same throughout: what a file says
is what is read; what it leaves open is said aloud, with the option that settles it; what contradicts itself is refused before any work, by name.
"""

import contextlib
import gzip
import json
import re
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
import torchio as tio
import typer
from PIL import Image
from scipy.ndimage import gaussian_filter

from diffpose.calibration import carm_pose
from diffpose.calibration.formats import read_mayacam, read_opencv
from diffpose.files import load_json
from diffpose.cli.words import reported
from diffpose.results import load_poses, pose_from_dict, pose_to_dict, write_json
from diffpose.data import containers
from diffpose.data import max_memory, read, read_xray
from diffpose.data.memory import bytes_of, check_memory
from diffpose.data.slices import _even_places
from diffpose.data.volumes import load_volume
from diffpose.deepfluoro import check_layout
from diffpose.deepfluoro.checking import open_hdf5
from diffpose.deepfluoro.datasets import _voxels
from diffpose.drr import DRR
from diffpose.phantom import phantom_volume
from diffpose.training.checkpoints import load_saved

RNG = np.random.default_rng(0)
BLOCK = RNG.integers(-1000, 1500, (12, 10, 8)).astype(np.int16)
AFFINE = np.array([[-1.5, 0, 0, 30.0], [0, 2, 0, -80], [0, 0, 2.5, 400], [0, 0, 0, 1]])
COUNTS = RNG.integers(100, 4000, (40, 50)).astype(np.uint16)


def voxels(path, **how):
    return load_volume(path, **how)[0].numpy()


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


# pixels


def png(bits, kind, values, palette=None):
    "A PNG after its specification: bit depth, colour type, samples [H W C] as bytes."
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    colours = b"" if palette is None else chunk(b"PLTE", palette.tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + colours + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values, order=">", photometric=1, orientation=1):
    "An uncompressed grey TIFF after its specification."
    bits, data = values.dtype.itemsize * 8, values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries = [(256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1), (262, photometric), (273, 8), (274, orientation), (277, 1), (278, values.shape[0]), (279, len(data))]
    tags = b"".join(struct.pack(order + "HHI", tag, 4 if tag in (273, 279) else 3, 1) + struct.pack(order + ("I" if tag in (273, 279) else "HH"), *((value,) if tag in (273, 279) else (value, 0))) for tag, value in entries)
    start = {">": b"MM", "<": b"II"}[order] + struct.pack(order + "HI", 42, 8 + len(data))
    return start + data + struct.pack(order + "H", len(entries)) + tags + bytes(4)


def seen(path, **how):
    "The stored values, as `read_xray` understands them."
    return read_xray(path, polarity="bone_bright", already_line_integral=True, **how)[0][0, 0].numpy()


GREY = (COUNTS // 16).astype(np.uint8)


@pytest.mark.parametrize("order, kind", [("<", np.uint8), (">", np.uint8), ("<", np.uint16), (">", np.uint16), ("<", np.uint32)])
def test_tiff_of_either_byte_order(tmp_path, order, kind):
    values = GREY.astype(kind) * kind(np.iinfo(kind).max // 255)
    (tmp_path / "x.tif").write_bytes(tiff(values, order))
    assert np.array_equal(seen(tmp_path / "x.tif"), values.astype(np.float32))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_white_may_be_zero(tmp_path, kind):
    values = GREY.astype(kind) * kind(np.iinfo(kind).max // 255)
    (tmp_path / "x.tif").write_bytes(tiff(values, "<", photometric=0))
    assert np.array_equal(seen(tmp_path / "x.tif"), (np.iinfo(kind).max - values).astype(np.float32))


def test_a_palette_is_looked_up(tmp_path):
    grey = RNG.permutation(256).astype(np.uint8)
    (tmp_path / "x.png").write_bytes(png(8, 3, GREY[..., None], np.repeat(grey[:, None], 3, 1)))
    assert np.array_equal(seen(tmp_path / "x.png"), grey[GREY].astype(np.float32))
    (tmp_path / "y.png").write_bytes(png(8, 3, GREY[..., None], RNG.integers(0, 256, (256, 3)).astype(np.uint8)))
    with pytest.raises(ValueError, match=r"y\.png.*a colour image; an X-ray has one grey value per pixel: save it as grey"):
        seen(tmp_path / "y.png")


def test_alpha_and_16_bit_channels(tmp_path):
    opaque = np.stack([GREY, np.full_like(GREY, 255)], -1)
    for name, kind, values in (("la", 4, opaque), ("rgba", 6, opaque[..., [0, 0, 0, 1]]), ("rgb", 2, opaque[..., [0, 0, 0]])):
        (tmp_path / f"{name}.png").write_bytes(png(8, kind, values))
        assert np.array_equal(seen(tmp_path / f"{name}.png"), GREY.astype(np.float32))
        (tmp_path / f"{name}16.png").write_bytes(png(16, kind, values.astype(">u2") * 257))
        with pytest.raises(ValueError, match="16 bits in each of several channels"):
            seen(tmp_path / f"{name}16.png")
    opaque[3, 4, 1] = 100
    (tmp_path / "clear.png").write_bytes(png(8, 4, opaque))
    with pytest.raises(ValueError, match="transparent pixels"):
        seen(tmp_path / "clear.png")
    (tmp_path / "deep.png").write_bytes(png(16, 0, COUNTS.astype(">u2")[..., None]))
    assert np.array_equal(seen(tmp_path / "deep.png"), COUNTS.astype(np.float32))


def test_one_bit_is_zero_or_one(tmp_path):
    bits = RNG.integers(0, 2, (40, 48)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "x.png")
    Image.fromarray(bits).save(tmp_path / "y.tif")
    for name in ("x.png", "y.tif"):
        assert np.array_equal(seen(tmp_path / name), bits.astype(np.float32))


def test_cmyk_is_grey_or_refused(tmp_path):
    black = np.zeros((40, 50, 4), np.uint8)
    black[..., 3] = 255 - GREY
    Image.fromarray(black, "CMYK").save(tmp_path / "x.tif")
    assert np.array_equal(seen(tmp_path / "x.tif"), GREY.astype(np.float32))
    smooth = np.zeros((48, 48, 4), np.uint8)
    smooth[..., 3] = np.linspace(0, 250, 48)
    Image.fromarray(smooth, "CMYK").save(tmp_path / "x.jpg", quality=98)
    assert abs(seen(tmp_path / "x.jpg") - (255.0 - smooth[..., 3])).max() < 6
    smooth[..., 1] = 90
    Image.fromarray(smooth, "CMYK").save(tmp_path / "y.jpg", quality=98)
    with pytest.raises(ValueError, match="a colour image"):
        seen(tmp_path / "y.jpg")


TURNED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90}


@pytest.mark.parametrize("turn", TURNED)
def test_orientation_tags_are_followed(tmp_path, turn):
    (tmp_path / "x.tif").write_bytes(tiff(GREY, orientation=turn))
    tag = Image.Exif()
    tag[274] = turn
    Image.fromarray(GREY).save(tmp_path / "x.png", exif=tag)
    for name in ("x.tif", "x.png"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert np.array_equal(seen(tmp_path / name), TURNED[turn](GREY).astype(np.float32)), name
        assert bool(said) == (turn != 1)
        if turn != 1:
            assert "orientation tag" in str(said[0].message) and "camera=" in str(said[0].message)
            with pytest.raises(ValueError, match="orientation tag"):
                seen(tmp_path / name, sdd=1000, spacing=0.3)


def test_complex_numbers_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", COUNTS + 1j)
    np.save(tmp_path / "v.npy", BLOCK + 1j)
    nib.save(nib.Nifti1Image(BLOCK.astype(np.complex64), AFFINE), tmp_path / "v.nii")
    nib.save(nib.Nifti1Image(COUNTS.astype(np.complex64), AFFINE), tmp_path / "x.nii")
    for call in (
        lambda: read_xray(tmp_path / "x.npy"),
        lambda: read_xray(tmp_path / "x.nii"),
        lambda: read_xray(COUNTS + 1j),
        lambda: read_xray(torch.from_numpy(COUNTS + 1j)),
        lambda: load_volume(tmp_path / "v.npy", spacing=1),
        lambda: load_volume(tmp_path / "v.nii"),
        lambda: load_volume(BLOCK + 1j, spacing=1),
        lambda: load_volume(torch.from_numpy(BLOCK + 1j), spacing=1),
    ):
        with pytest.raises(TypeError, match="complex numbers"):
            call()


# headers of volumes


def said(call, *words):
    "What a call returns; its warning has these words."
    with pytest.warns(UserWarning) as caught:
        result = call()
    text = " ".join(str(w.message) for w in caught)
    assert all(word in text for word in words), text
    return result


@pytest.fixture
def silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("unit, mm", [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_units_of_nifti(tmp_path, silence, unit, mm):
    "ITK knows the unit too: where a voxel is does not depend on the reader."
    image = nib.Nifti1Image(BLOCK, np.diag([1 / mm] * 3 + [1]) @ AFFINE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    affine = load_volume(tmp_path / "a.nii.gz")[1]
    assert np.allclose(affine, AFFINE, atol=1e-3)
    itk = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), itk.GetSpacing(), rtol=1e-4)
    nib.save(nib.Nifti1Image(COUNTS.T, None, image.header), tmp_path / "x.nii")
    camera = read_xray(tmp_path / "x.nii", sdd=1000)[1]
    assert np.allclose((camera.delx, camera.dely), (1.5, 2.0), rtol=1e-4)


def nifti(path, size=(1.5, 2, 2.5), qform=0, sform=0, other=None):
    "A NIfTI file with these voxel sizes and codes in its header, byte by byte."
    image = nib.Nifti1Image(BLOCK, AFFINE)
    image.set_qform(AFFINE if other is None else other, 1)
    content = bytearray(image.to_bytes())
    struct.pack_into("<3f", content, 80, *size)
    struct.pack_into("<2h", content, 252, qform, sform)
    path.write_bytes(content)
    return path


def test_voxel_size_zero_is_refused(tmp_path):
    path = nifti(tmp_path / "a.nii", size=(0, 2, 2.5), qform=1)
    with pytest.raises(ValueError, match=r"a\.nii gives a voxel size of \[0.0, 2.0, 2.5\]: pass spacing="):
        voxels(path)
    assert np.allclose(np.linalg.norm(load_volume(path, spacing=(1.5, 2, 2.5))[1][:3, :3], axis=0), (1.5, 2, 2.5))
    assert np.allclose(load_volume(path, affine=AFFINE)[1], AFFINE)


def test_nifti_without_orientation(tmp_path, silence):
    path = nifti(tmp_path / "a.nii")
    with warnings.catch_warnings():
        said(lambda: voxels(path), "orientation codes 0", "x to the left, y to the front, z to the head", "affine=")
    assert np.allclose(load_volume(path, affine=AFFINE)[1], AFFINE)
    for codes in ((1, 0), (0, 1), (1, 1)):
        assert np.allclose(load_volume(nifti(tmp_path / "b.nii", qform=codes[0], sform=codes[1]))[1], AFFINE, atol=1e-3)


def test_two_affines_that_differ(tmp_path):
    moved = AFFINE.copy()
    moved[:3, 3] += 20
    path = nifti(tmp_path / "a.nii", qform=1, sform=2, other=moved)
    assert np.allclose(said(lambda: load_volume(path), "two affines that differ", "affine=")[1], AFFINE)


def nrrd(path, *lines, data=None):
    "A NRRD file after its specification."
    head = ["NRRD0005", "type: int16", "dimension: 3", "sizes: 12 10 8", "endian: little", "encoding: raw", *lines, "", ""]
    path.write_bytes("\n".join(head).encode() + (BLOCK.tobytes("F") if data is None else data))
    return path


DIRECTIONS = ("space directions: (1.5,0,0) (0,-2,0) (0,0,2.5)", "space origin: (-30,80,400)")


def test_nrrd_says_its_size_and_frame(tmp_path, silence):
    lps = np.diag([-1.0, -1, 1, 1])
    path = nrrd(tmp_path / "a.nrrd", "space: left-posterior-superior", *DIRECTIONS)
    assert np.allclose(load_volume(path)[1], AFFINE) and np.array_equal(voxels(path), BLOCK)
    ras = nrrd(tmp_path / "b.nrrd", "space: right-anterior-superior", *DIRECTIONS)
    assert np.allclose(load_volume(ras)[1], lps @ AFFINE)
    bare = nrrd(tmp_path / "c.nrrd")
    with pytest.raises(ValueError, match=r"c\.nrrd does not give the size of its voxels: pass spacing="):
        voxels(bare)
    assert np.allclose(load_volume(bare, affine=AFFINE)[1], AFFINE)
    with warnings.catch_warnings():
        for lines in (["spacings: 1.5 2 2.5"], ["space dimension: 3", *DIRECTIONS]):
            affine = said(lambda: load_volume(nrrd(tmp_path / "d.nrrd", *lines)), "how its axes lie", "affine=")[1]
            assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), (1.5, 2, 2.5))


def test_units_of_nrrd(tmp_path, silence):
    metres = nrrd(tmp_path / "a.nrrd", "space: LPS", "space directions: (0.0015,0,0) (0,-0.002,0) (0,0,0.0025)", "space origin: (-0.03,0.08,0.4)", 'space units: "m" "m" "m"')
    assert np.allclose(load_volume(metres)[1], AFFINE)
    with pytest.raises(ValueError, match="gives lengths in inch"):
        voxels(nrrd(tmp_path / "b.nrrd", "space: LPS", *DIRECTIONS, 'space units: "inch" "inch" "inch"'))


def meta(path, *lines):
    "A MetaImage file after its description."
    head = ["ObjectType = Image", "NDims = 3", "DimSize = 12 10 8", "ElementType = MET_SHORT", "BinaryDataByteOrderMSB = False", *lines, "ElementDataFile = LOCAL", ""]
    path.write_bytes("\n".join(head).encode() + BLOCK.tobytes("F"))
    return path


def test_metaimage_says_its_size_and_frame(tmp_path, silence):
    frame = ("TransformMatrix = 1 0 0 0 -1 0 0 0 1", "Offset = -30 80 400")
    assert np.allclose(load_volume(meta(tmp_path / "a.mha", *frame, "ElementSpacing = 1.5 2 2.5"))[1], AFFINE)
    for lines in (frame, (*frame, "ElementSpacing = 1.5 0 2.5")):
        with pytest.raises(ValueError, match="does not give the size of its voxels"):
            voxels(meta(tmp_path / "b.mha", *lines))
    with warnings.catch_warnings():
        said(lambda: voxels(meta(tmp_path / "c.mha", "ElementSpacing = 1.5 2 2.5")), "how its axes lie", "affine=")


IMPLANTS = {  # mm in the phantom's frame, from and to, and HU
    "clip": (((20, 24), (0, 4), (0, 4)), 3000),
    "screw": (((-60, -20), (10, 14), (-10, -6)), 3071),
    "hip prosthesis": (((80, 100), (-20, 0), (-170, -30)), 20000),
    "rod in the table": (((-200, 200), (-130, -126), (-40, -36)), 8000),
}


@pytest.fixture(scope="module")
def patient():
    phantom = phantom_volume(seed=0, spacing=4.0)
    return phantom.hu.astype(np.float32), phantom.affine


def image(hu, affine, **how):
    with torch.no_grad():
        return DRR(read(hu, affine=affine, **how), sdd=1020.0, height=64, delx=6.0)(carm_pose(0.0, 0.0, 760.0))[0, 0]


@pytest.mark.parametrize("name", IMPLANTS)
def test_metal_leaves_the_rest_of_the_image_alone(patient, name):
    "An implant with the blurred edge of a scanner: rays beside it see what they saw without it; with a clip that is given, they do not."
    hu, affine = patient
    box, value = IMPLANTS[name]
    places = [affine[k, k] * np.arange(n) + affine[k, 3] for k, n in enumerate(hu.shape)]
    inside = np.ix_(*[(x >= low) & (x < high) for x, (low, high) in zip(places, box)])
    metal = np.zeros_like(hu)
    metal[inside] = 1
    share = gaussian_filter(metal, 0.6)
    share[share < 1e-3] = 0
    scan = (1 - share) * hu + share / share.max() * value
    missed = image(np.where(share > 0, 1000.0, -1000.0).astype(np.float32), affine) == 0
    assert 0.5 < missed.float().mean() < 1
    before = image(hu, affine)[missed]
    assert np.isclose(hu.max(), read(scan, affine=affine).contrast.bone_max, rtol=0.03)
    torch.testing.assert_close(image(scan, affine)[missed], before, rtol=0.03, atol=0)
    assert image(scan, affine, hu_max=value)[missed].sum() < 0.7 * before.sum()


def test_the_densest_bone_sets_the_scale_of_a_scan_without_metal(patient):
    "To the last bit, up to the HU of enamel."
    hu, affine = patient
    for top in (hu.max(), 2500):
        scan = np.where(hu == hu.max(), top, hu)
        assert read(scan, affine=affine).contrast.metal_max is None
        assert torch.equal(image(scan, affine), image(scan, affine, hu_max=3071))


def test_a_volume_that_is_not_in_hu_is_said(tmp_path):
    stored = (BLOCK.astype(int) + 1024).astype(np.uint16)
    said(lambda: read(stored, spacing=1), "below 0 HU", "1024")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(BLOCK, spacing=1)


def test_an_image_of_torchio_is_read_as_its_file_is(tmp_path):
    path = write_nifti(tmp_path / "ct.nii.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    for call in (lambda: read(tio.ScalarImage(path)), lambda: read(BLOCK, tio.LabelMap(path), spacing=1), lambda: read(BLOCK, spacing=1, resample_target=path)):
        with pytest.raises(ValueError, match=r"ct\.nii\.gz is damaged"):
            call()


# DICOM


def dicom(path, pixels, kind=pydicom.uid.CTImageStorage, **tags):
    "A DICOM file of unsigned 16-bit pixels; a tag that is None is left out."
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = kind
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = pydicom.uid.generate_uid()
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.Rows, ds.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.PixelData = pixels.astype(np.uint16).tobytes()
    for name, value in tags.items():
        if value is not None:
            setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def ct_slice(path, k, z=None, **tags):
    said = {"Modality": "CT", "SeriesInstanceUID": "1.2.3", "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [2.0, 1.5], "RescaleSlope": 1, "RescaleIntercept": -1024}
    place = {"ImagePositionPatient": [-30, 80, 400 + 2.5 * k if z is None else z]}
    return dicom(path, BLOCK[:, :, k].T.astype(int) + 1024, **(said | place | tags))


def ct_folder(folder, names="IM{:04d}", **tags):
    folder.mkdir(parents=True, exist_ok=True)
    return [ct_slice(folder / names.format(k), k, **tags) for k in range(BLOCK.shape[2])]


@pytest.mark.parametrize("names", ["IM{:04d}", "{:02d}.dcm", "{:02d}.ima", "1.2.840.{}"])
@pytest.mark.parametrize("which", [0, 4, 7])
@pytest.mark.parametrize("keep", [0, 60, 140, 250, 500, -40])
def test_a_damaged_slice_is_named(tmp_path, names, which, keep):
    paths = ct_folder(tmp_path / "ct", names)
    (tmp_path / "ct" / "README").write_text("no slice")
    (tmp_path / "ct" / ("._" + paths[0].name)).write_bytes(b"kept by a system")
    assert np.array_equal(voxels(tmp_path / "ct"), BLOCK)
    paths[which].write_bytes(paths[which].read_bytes()[:keep])
    with pytest.raises(ValueError, match=paths[which].name):
        voxels(tmp_path / "ct")


@pytest.mark.parametrize("pitch", [[-2.0, 1.5], [0, 1.5], [2.0]])
def test_pixel_spacing_is_two_positive_numbers(tmp_path, pitch):
    ct_folder(tmp_path / "ct", PixelSpacing=pitch)
    with pytest.raises(ValueError, match="two positive numbers are expected; pass spacing="):
        voxels(tmp_path / "ct")
    for tag in ("PixelSpacing", "ImagerPixelSpacing"):
        with pytest.raises(ValueError, match=f"{tag} is .* two positive numbers are expected; pass spacing="):
            read_xray(dicom(tmp_path / "x.dcm", COUNTS, DistanceSourceToDetector=1000, **{tag: pitch}))
    assert read_xray(tmp_path / "x.dcm", spacing=0.3)[1].delx == 0.3


def test_values_that_are_not_rescaled_are_said(tmp_path):
    ct_folder(tmp_path / "ct", RescaleSlope=None, RescaleIntercept=None)
    assert np.array_equal(said(lambda: voxels(tmp_path / "ct"), "stored values are taken as HU", "affine="), BLOCK + 1024)
    said(lambda: read(tmp_path / "ct"), "below 0 HU", "taken as HU")
    ct_folder(tmp_path / "zero", RescaleSlope=0)
    with pytest.raises(ValueError, match="slope 0"):
        voxels(tmp_path / "zero")


def test_colours_of_dicom_are_refused(tmp_path):
    for kind in ("PALETTE COLOR", "RGB"):
        tags = {"PhotometricInterpretation": kind, "SamplesPerPixel": 3 if kind == "RGB" else 1}
        with pytest.raises(ValueError, match=f"x.dcm is a colour image .{kind}"):
            read_xray(dicom(tmp_path / "x.dcm", COUNTS, **tags))


def test_the_plane_of_pixel_spacing_is_said(tmp_path, silence):
    path = dicom(tmp_path / "x.dcm", COUNTS, DistanceSourceToDetector=1000, PixelSpacing=[0.4, 0.3])
    with warnings.catch_warnings():
        camera = said(lambda: read_xray(path), "not in which plane", "spacing=")[1]
    assert (camera.dely, camera.delx) == (0.4, 0.3)
    assert read_xray(path, spacing=0.2)[1].delx == 0.2
    read_xray(dicom(tmp_path / "y.dcm", COUNTS, DistanceSourceToDetector=1000, PixelSpacing=[0.4, 0.3], ImagerPixelSpacing=[0.5, 0.5]))


RUN = np.stack([COUNTS, COUNTS // 2, COUNTS + 7])
XA = {"Modality": "XA", "DistanceSourceToDetector": 1000, "ImagerPixelSpacing": [0.4, 0.3]}


def test_a_frame_of_a_rotational_run_has_its_own_angle(tmp_path):
    tags = XA | {"PositionerPrimaryAngle": -30, "PositionerSecondaryAngle": 5, "PositionerPrimaryAngleIncrement": [0, 2.5, 6], "PositionerSecondaryAngleIncrement": [0, 0, -1]}
    run = dicom(tmp_path / "run.dcm", RUN, **tags)
    for frame, angles in ((0, (-30, 5)), (1, (-27.5, 5)), (2, (-24, 4)), (-1, (-24, 4))):
        xray, camera = read_xray(run, frame=frame)
        assert (camera.primary_angle, camera.secondary_angle) == angles
        assert np.allclose(xray, read_xray(RUN[frame])[0])
    with pytest.raises(ValueError, match="the arm moves between the frames"):
        read_xray(run, frame="mean")
    still = dicom(tmp_path / "still.dcm", RUN, **(tags | {"PositionerPrimaryAngleIncrement": [0, 0, 0], "PositionerSecondaryAngleIncrement": None}))
    assert read_xray(still, frame="mean")[1].primary_angle == -30
    steps = dicom(tmp_path / "steps.dcm", RUN, **(tags | {"PositionerPrimaryAngleIncrement": [0, 2, 2]}))
    assert said(lambda: read_xray(steps, frame=2), "counted from the first frame", "camera=")[1].primary_angle == -28
    with pytest.raises(ValueError, match="3 frames and 2 of PositionerPrimaryAngleIncrement"):
        read_xray(dicom(tmp_path / "short.dcm", RUN, **(tags | {"PositionerPrimaryAngleIncrement": [0, 2]})), frame=1)


def group(**sequences):
    "Functional groups: {name of the sequence: its tags}."
    ds = pydicom.Dataset()
    for name, tags in sequences.items():
        item = pydicom.Dataset()
        for tag, value in tags.items():
            setattr(item, tag, value)
        setattr(ds, name, [item])
    return ds


def test_functional_groups_say_what_a_frame_is(tmp_path):
    frames = [group(PositionerPositionSequence={"PositionerPrimaryAngle": a, "PositionerSecondaryAngle": 3}, PixelValueTransformationSequence={"RescaleSlope": s, "RescaleIntercept": 0}) for a, s in ((10, 1), (20, 2), (35, 4))]
    shared = group(XRayGeometrySequence={"DistanceSourceToDetector": 1200, "DistanceSourceToPatient": 800})
    tags = {"Modality": "XA", "ImagerPixelSpacing": [0.4, 0.3], "PerFrameFunctionalGroupsSequence": frames, "SharedFunctionalGroupsSequence": [shared]}
    path = dicom(tmp_path / "x.dcm", RUN, **tags)
    for frame, (angle, slope) in enumerate(((10, 1), (20, 2), (35, 4))):
        xray, camera = read_xray(path, frame=frame, already_line_integral=True, polarity="bone_bright")
        assert (camera.primary_angle, camera.secondary_angle, camera.sdd, camera.sid) == (angle, 3, 1200, 800)
        assert np.array_equal(xray[0, 0], RUN[frame].astype(np.float32) * slope)
    with pytest.raises(ValueError, match="the arm moves"):
        read_xray(path, frame="mean")
    with pytest.raises(ValueError, match="3 frames and describes 2"):
        read_xray(dicom(tmp_path / "y.dcm", RUN, **(tags | {"PerFrameFunctionalGroupsSequence": frames[:2]})), frame=0)


# places of slices


def test_rounded_positions_are_an_even_stack(tmp_path, silence):
    (tmp_path / "ct").mkdir()
    for k in range(8):
        ct_slice(tmp_path / "ct" / f"{k}.dcm", k, z=round(400.3 + 0.625 * k, 1))
    volume, affine = load_volume(tmp_path / "ct")
    assert np.array_equal(volume.numpy(), BLOCK) and abs(affine[2, 2] - 0.625) < 0.1 / 7
    places = np.round(-61.2 + 0.625 * np.arange(500), 1)
    assert _even_places(places, "ct") is None
    with pytest.raises(ValueError, match="slices are missing between"):
        _even_places(np.delete(places, 250), "ct")


def test_how_even_a_stack_must_be_can_be_said(tmp_path):
    ct_folder(tmp_path / "ct")
    ct_slice(tmp_path / "ct" / "IM0003", 3, z=400 + 2.5 * 3 + 0.3)
    with pytest.raises(ValueError, match=r"the one at 407.80 mm is 0.2\d mm off its place .* pass slice_tolerance="):
        read(tmp_path / "ct")
    assert np.array_equal(read(tmp_path / "ct", slice_tolerance=0.4).volume.data[0].numpy(), BLOCK)
    regions = np.r_[np.arange(40.0), 39 + 1.1 * np.arange(1, 40)]
    with pytest.warns(UserWarning, match=r"1.00 to 1.10 mm apart"):
        assert np.allclose(np.interp(_even_places(regions, "ct"), np.arange(79), regions)[[0, -1]], regions[[0, -1]])
    with pytest.raises(ValueError, match="unevenly spaced"):
        _even_places(np.r_[regions, regions[-1] + 1.4], "one slice moved")


def test_a_copy_of_a_slice_counts_once(tmp_path):
    paths = ct_folder(tmp_path / "ct")
    (tmp_path / "ct" / "copy of 3").write_bytes(paths[3].read_bytes())
    assert np.array_equal(said(lambda: voxels(tmp_path / "ct"), "is a copy of another slice"), BLOCK)
    ct_slice(tmp_path / "ct" / "other", 3, RescaleIntercept=-1000)
    with pytest.raises(ValueError, match="two slices at 407.50 mm that differ.*keep one of them"):
        said(lambda: voxels(tmp_path / "ct"), "is a copy")
    (tmp_path / "ct" / "other").unlink()
    again = pydicom.dcmread(paths[3])  # sent twice: another number, the same pixels
    again.SOPInstanceUID, again.InstanceNumber = pydicom.uid.generate_uid(), 99
    again.save_as(tmp_path / "ct" / "copy of 3")
    assert np.array_equal(said(lambda: voxels(tmp_path / "ct"), "is a copy of another slice"), BLOCK)
    again.PixelData = bytes(len(again.PixelData))
    again.save_as(tmp_path / "ct" / "copy of 3")
    with pytest.raises(ValueError, match="two slices at 407.50 mm that differ"):
        read(tmp_path / "ct")


def test_frames_without_positions_need_an_affine(tmp_path, silence):
    stack = BLOCK.transpose(2, 1, 0).astype(int) + 1024
    path = dicom(tmp_path / "ct.dcm", stack, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    with pytest.raises(ValueError, match="no ImagePositionPatient.* pass affine="):
        voxels(path)
    volume, affine = load_volume(path, affine=AFFINE)
    assert np.array_equal(volume.numpy(), BLOCK) and np.array_equal(affine, AFFINE)


# sizes


def test_sizes_are_held_against_memory(tmp_path):
    "Before a byte of the voxels is asked for; all of these files are small."
    nii = nifti(tmp_path / "a.nii", sform=1)
    content = bytearray(nii.read_bytes())
    struct.pack_into("<3h", content, 42, 30000, 30000, 30000)
    nii.write_bytes(content)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content))
    raw = nrrd(tmp_path / "c.nrrd", "space: LPS", *DIRECTIONS)
    raw.write_bytes(raw.read_bytes().replace(b"sizes: 12 10 8", b"sizes: 30000 30000 30000"))
    mha = meta(tmp_path / "d.mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1 1 1")
    mha.write_bytes(mha.read_bytes().replace(b"DimSize = 12 10 8", b"DimSize = 30000 30000 30000"))
    many = dicom(tmp_path / "e.dcm", BLOCK.transpose(2, 1, 0), Rows=11000, Columns=11000, NumberOfFrames=500000, RescaleSlope=1)
    for path in (nii, tmp_path / "b.nii.gz", raw, mha, many):
        with pytest.raises(ValueError, match=rf"{path.name} asks for \d+ x \d+ x \d+ values, \d+\.\d GB of memory, and \d+\.\d GB are free"):
            voxels(path)


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own word on the smaller one
def test_images_of_a_billion_pixels_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(8, 0, np.zeros((1, 1), np.uint8)).replace(struct.pack(">II", 1, 1), struct.pack(">II", 40000, 25000)))
    (tmp_path / "b.png").write_bytes(png(8, 0, np.zeros((1, 1), np.uint8)).replace(struct.pack(">II", 1, 1), struct.pack(">II", 13000, 12000)))
    for name in ("a.png", "b.png"):  # the checksum of the header is put right
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:])
    dicom(tmp_path / "c.dcm", COUNTS, Rows=40000, Columns=25000)
    image = nib.Nifti1Image(COUNTS.T, AFFINE).to_bytes()
    (tmp_path / "d.nii").write_bytes(image[:42] + struct.pack("<2h", 30000, 30000) + image[46:])
    for name in ("a.png", "b.png", "c.dcm", "d.nii"):
        with pytest.raises(ValueError, match=rf"{name} is an image .*at most 134217728"):
            read_xray(tmp_path / name)
    with pytest.raises(ValueError, match="resample_target= asks for .* choose a coarser"):
        read(BLOCK, affine=AFFINE, resample_target=1e-4)


def test_numbers_of_labels(tmp_path):
    labels = np.zeros(BLOCK.shape, np.uint32)
    labels[3:6], labels[8:] = 614454277, 7
    patient = read(BLOCK, labels, labels=[614454277, 3_000_000_000], spacing=1)
    assert np.array_equal(patient.mask.data[0].numpy(), np.where(labels > 7, labels, 0).astype(np.int32))
    with pytest.raises(ValueError, match="select no voxel; the label map has 0, 7, 614454277"):
        read(BLOCK, labels, labels=5, spacing=1)
    labels[0] = 3_000_000_000
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "labels.nii.gz")
    with pytest.raises(ValueError, match="the number 3000000000, and labels go up to 2147483647"):
        read(BLOCK, tmp_path / "labels.nii.gz", affine=AFFINE)
    with pytest.raises(ValueError, match="NaN or infinity"):
        read(BLOCK, np.full(BLOCK.shape, np.inf), spacing=1)


def shortage(kind):
    "An error of numpy, torch or ITK when memory runs out, as they raise it."
    if kind == "numpy":
        np.empty(1 << 62, np.uint8)
    elif kind == "torch":
        torch.empty(1 << 62, dtype=torch.uint8)
    else:
        sitk.Image(1 << 21, 1 << 21, 1 << 12, sitk.sitkFloat64)


@pytest.mark.parametrize("kind", ["numpy", "torch", "itk"])
def test_a_lack_of_memory_is_no_fault_of_ours(tmp_path, capsys, monkeypatch, kind):
    with pytest.raises(typer.Exit) as stop, reported():
        shortage(kind)
    text = capsys.readouterr().err
    assert stop.value.exit_code == 2 and "not enough memory" in text and "fault of diffpose" not in text
    path = write_nifti(tmp_path / "ct.nii.gz")
    monkeypatch.setattr("diffpose.data.volumes.stored_voxels", lambda *given: shortage(kind))
    with pytest.raises(MemoryError, match=r"not enough memory to read .*ct\.nii\.gz"):
        voxels(path)


@pytest.mark.parametrize("size, n", [("8GB", 8e9), (" 1.5 gib", 1.5 * 2**30), ("500MB", 5e8), ("2k", 2000), (4096, 4096), ("7 B", 7)])
def test_a_size_is_typed_as_people_write_it(size, n):
    assert bytes_of(size) == n


@pytest.mark.parametrize("size", ["", "GB", "-1GB", "0", 0, -3, float("nan"), float("inf"), "8 gigs", "1e9", "9" * 400])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match="x is a size such as 8GB, 500MB or 2GiB, not"):
        bytes_of(size, "x")


def test_the_limit_of_memory_can_be_set(tmp_path, monkeypatch):
    "By argument and by environment, upwards too; the readers of volumes, slices, pictures and arrays ask for it."
    ct_folder(tmp_path / "slices")
    np.save(tmp_path / "a.npy", BLOCK)
    dicom(tmp_path / "f.dcm", COUNTS, kind=pydicom.uid.XRayAngiographicImageStorage, ImagerPixelSpacing=[1, 1], DistanceSourceToDetector=1000)
    volumes = [write_nifti(tmp_path / "a.nii"), write_nifti(tmp_path / "a.nii.gz"), write_itk(tmp_path / "a.nrrd"), write_itk(tmp_path / "a.mha"), tmp_path / "slices", tmp_path / "a.npy"]
    pictures = [write_png(tmp_path / "a.png"), tmp_path / "f.dcm"]
    np.save(tmp_path / "x.npy", COUNTS)
    calls = [lambda path=path: voxels(path, affine=AFFINE) for path in volumes] + [lambda path=path: pixels(path) for path in [*pictures, tmp_path / "x.npy"]]
    for call, path in zip(calls, [*volumes, *pictures, tmp_path / "x.npy"]):
        sound = call()
        with max_memory("2 kB"), pytest.raises(ValueError, match=rf"{path.name} asks for .* and max_memory= allows 2.0 kB: .*max_memory="):
            call()
        monkeypatch.setenv("DIFFPOSE_MAX_MEMORY", "2kB")
        with pytest.raises(ValueError, match="and DIFFPOSE_MAX_MEMORY allows"):
            call()
        with max_memory("1 TB"):
            assert np.array_equal(call(), sound)
        monkeypatch.delenv("DIFFPOSE_MAX_MEMORY")
    large = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (30000, 30000, 30000), (0, 0, 0))
    with max_memory("1000 TB"):
        check_memory("a", large.shape, 8)  # more than any machine has
    with pytest.raises(ValueError, match="a asks for 30000 x 30000 x 30000 values, 216000.0 GB of memory, and"):
        check_memory("a", large.shape, 8)


@contextlib.contextmanager
def little_memory():
    "Python's objects and numpy's arrays take less than 16 MB meanwhile."
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < 1 << 24, taken


@pytest.mark.parametrize("which", ["voxels", "remarks", "nifti2"])
def test_a_nifti_header_does_not_lead_far_into_a_stream(tmp_path, which):
    "A bomb of 64 kB, which nibabel would unpack to 64 MB."
    image = (nib.Nifti2Image if which == "nifti2" else nib.Nifti1Image)(BLOCK, AFFINE)
    content = bytearray(image.to_bytes())
    if which == "remarks":
        content[348:352] = b"\1\0\0\0"
        struct.pack_into("<f", content, 108, float(1 << 26))
        content[352:352] = struct.pack("<2i", 1 << 26, 6)
    else:
        struct.pack_into(*(("<q", content, 168, 1 << 26) if which == "nifti2" else ("<f", content, 108, float(1 << 26))))
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(content) + bytes(1 << 26)))
    assert path.stat().st_size < 1 << 17
    for reader in (voxels, pixels):
        with little_memory(), pytest.raises(ValueError, match=r"bomb.nii.gz is damaged: its voxels begin at byte .* copy or download it again"):
            reader(path)


def test_remarks_in_a_nifti_header_are_read_past(tmp_path):
    image = nib.Nifti1Image(BLOCK, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a" * 100_000))
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, tmp_path / name)
        assert np.array_equal(voxels(tmp_path / name), BLOCK)


def test_a_deflated_dicom_file_is_unpacked_only_where_there_is_room(tmp_path):
    path = dicom(tmp_path / "x.dcm", COUNTS, kind=pydicom.uid.XRayAngiographicImageStorage, ImagerPixelSpacing=[1, 1], DistanceSourceToDetector=1000)
    sound, header = pixels(path), pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    header.save_as(path)
    assert np.array_equal(pixels(path), sound)
    header.add_new(0x00091010, "OB", bytes(1 << 26))
    header.save_as(path)
    assert path.stat().st_size < 1 << 17
    for reader in (pixels, voxels):
        with max_memory("50 MB"), little_memory(), pytest.raises(ValueError, match="x.dcm asks for .* max_memory= allows 50.0 MB"):
            reader(path)
    (tmp_path / "scan").mkdir()
    path.rename(tmp_path / "scan" / "x.dcm")
    with max_memory("50 MB"), pytest.raises(ValueError, match="x.dcm"):
        voxels(tmp_path / "scan")


def test_every_frame_of_a_picture_has_the_size_of_the_first(tmp_path):
    small, large = Image.fromarray(COUNTS), Image.new("1", (30000, 20000))
    small.save(tmp_path / "a.tif", save_all=True, append_images=[large], compression="tiff_adobe_deflate")
    with pytest.raises(ValueError, match=r"a.tif: frames of different sizes \(40 x 50 and 20000 x 30000 pixels\)"):
        read_xray(tmp_path / "a.tif", frame=0)


def test_what_a_data_set_declares_is_held_against_memory(tmp_path):
    "HDF5 keeps nothing of what was never written."
    with h5py.File(tmp_path / "a.h5", "w") as file:
        item = file.create_dataset("vol/pixels", (30000, 30000, 30000), np.float32, chunks=(1, 100, 100))
        with pytest.raises(ValueError, match=r"a.h5: vol/pixels asks for 30000 x 30000 x 30000 values"):
            _voxels({"pixels": item})


def test_a_text_file_without_end_is_refused(tmp_path):
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match=r"a.json is not a camera: it has 1074 MB, and at most 67 MB are read as text"):
        load_json(path, "a camera")


def test_a_large_label_keeps_its_number(tmp_path):
    "int16, as which the kernels take labels, would make 70,000 a 4,464."
    labels = np.zeros(BLOCK.shape, np.int32)
    labels[3:6] = 70_000
    drr = DRR(read(BLOCK, labels, spacing=1), sdd=1000.0, height=8, delx=9.0)
    assert drr.mask.unique().tolist() == [0, 70_000]
    with pytest.raises(ValueError, match="up to the largest label, which is 70000: number the structures anew"):
        drr(carm_pose(0.0, 0.0, 850.0), mask_to_channels=True)


def test_a_model_that_unpacks_without_end_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as file, file.open("archive/data/0", "w") as part:
        for _ in range(64):
            part.write(bytes(1 << 20))
    assert (tmp_path / "model.pt").stat().st_size < 1 << 17
    with max_memory("50 MB"), pytest.raises(ValueError, match="model.pt asks for 67108864 values, 134.2 MB of memory, and max_memory= allows 50.0 MB"):
        load_saved(tmp_path)


# files that lead elsewhere


@pytest.mark.parametrize("place", ["..", "absolute", "list", "pattern"])
def test_headers_lead_only_to_files_beside_them(tmp_path, silence, place):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.raw").write_bytes(BLOCK.tobytes("F"))
    away = {"..": "../secret.raw", "absolute": str(tmp_path / "secret.raw"), "list": "LIST\n../secret.raw", "pattern": "../secret%d.raw 1 8 1"}[place]
    nhdr = nrrd(tmp_path / "in" / "a.nhdr", "space: LPS", *DIRECTIONS, f"data file: {away}", data=b"")
    mhd = meta(tmp_path / "in" / "b.mhd", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1 1 1")
    mhd.write_bytes(mhd.read_bytes().split(b"LOCAL")[0] + away.encode() + b"\n")
    (tmp_path / "in" / "c.dat").write_bytes(nhdr.read_bytes())  # ITK would know it all the same
    for path in (nhdr, mhd, tmp_path / "in" / "c.dat"):
        for reader in (voxels, pixels):
            with pytest.raises(ValueError, match=rf"{path.name} takes its data from .*secret.*outside its folder"):
                reader(path)


def test_data_beside_a_header_are_read(tmp_path, silence):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.raw").write_bytes(BLOCK.tobytes("F"))
    assert np.array_equal(voxels(nrrd(tmp_path / "a.nhdr", "space: LPS", *DIRECTIONS, "data file: data/a.raw", data=b"")), BLOCK)
    mhd = meta(tmp_path / "b.mhd", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1 1 1")
    mhd.write_bytes(mhd.read_bytes().split(b"LOCAL")[0] + b"data/a.raw\n")
    assert np.array_equal(voxels(mhd), BLOCK)


@pytest.mark.parametrize("way", ["storage", "link", "virtual"])
def test_hdf5_leads_only_to_files_beside_it(tmp_path, way):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.raw").write_bytes(BLOCK.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = BLOCK
    path = tmp_path / "in" / "a.h5"
    with h5py.File(path, "w") as file:
        if way == "storage":
            file.create_dataset("proj-params/intrinsic", BLOCK.shape, BLOCK.dtype, external=[(str(tmp_path / "secret.raw"), 0, h5py.h5f.UNLIMITED)])
        elif way == "link":
            file["a"] = h5py.ExternalLink("../secret.h5", "a")
        else:
            layout = h5py.VirtualLayout(BLOCK.shape, BLOCK.dtype)
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "a", BLOCK.shape)
            file.create_virtual_dataset("proj-params/intrinsic", layout)
    for reader in (voxels, pixels, check_layout):
        with pytest.raises(ValueError, match="a.h5 takes its data from .*secret.*outside its folder"):
            reader(path)


def test_hdf5_data_sets_are_looked_at_when_they_are_read(tmp_path, monkeypatch):
    "A benchmark's file has thousands: opening it looks at none, and reading one that leads away is refused all the same."
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.raw").write_bytes(BLOCK.tobytes())
    path = tmp_path / "in" / "a.h5"
    with h5py.File(path, "w") as file:
        for k in range(50):
            file[f"many/{k}"] = k
        file.create_dataset("deep/below", BLOCK.shape, BLOCK.dtype, external=[(str(tmp_path / "secret.raw"), 0, h5py.h5f.UNLIMITED)])
        file.create_dataset("bomb", (1 << 40, 3), np.float32, chunks=(1 << 16, 3))  # none of its chunks is there: the file stays small
        file["by-another-name"] = h5py.SoftLink("/deep/below")
        layout = h5py.VirtualLayout(BLOCK.shape, BLOCK.dtype)
        layout[:] = h5py.VirtualSource(".", "/deep/below", BLOCK.shape)
        file.create_virtual_dataset("by-itself", layout)
    looked = []
    monkeypatch.setattr(containers, "_check_hdf5_storage", lambda path, item, check=containers._check_hdf5_storage: looked.append(item) or check(path, item))
    with open_hdf5(path) as file:
        assert not looked
        assert containers.hdf5_value(file["many/7"]) == 7 and len(looked) == 1
        for name in ("deep/below", "by-another-name"):
            with pytest.raises(ValueError, match="a.h5 takes its data from .*secret.*outside its folder"):
                containers.hdf5_value(file[name])
        with pytest.raises(ValueError, match="a.h5: by-itself takes its data from other data sets"):
            containers.hdf5_value(file["by-itself"])
        with pytest.raises(ValueError, match=r"a.h5: bomb asks for 1099511627776 x 3 values, .* GB are free"):
            containers.hdf5_value(file["bomb"])


def test_a_pose_file_with_a_flipped_bit_is_refused(tmp_path):
    "Or says the same: what was flipped then is the name of the checksum."
    patient = read(torch.full((4, 4, 4), -1000.0), spacing=(2.0, 2.0, 2.0))
    pose = carm_pose(20.0, -10.0, 700.0)
    path = tmp_path / "pose.json"
    write_json(path, {**pose_to_dict(pose, patient), "verdict": "converged", "expected_tre_mm": float("nan")})
    whole, same = path.read_bytes(), 0
    first = load_poses(path)[0]
    assert torch.allclose(pose_from_dict(first, patient).matrix, pose.matrix.double(), atol=1e-4)
    for bit in np.random.default_rng(0).choice(8 * len(whole), 500, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = load_poses(path)[0]
        except ValueError as error:
            assert "pose.json" in str(error)
        else:
            same += 1
            assert {key: found[key] for key in first} == first
    assert same < 25
    edited = json.loads(whole)
    del edited["sha256"], edited["world_from_camera"]  # by hand, as the message says
    path.write_text(json.dumps(edited))
    assert load_poses(path)[0] == edited


OPENCV = '{"K": {"type_id": "opencv-matrix", "rows": 1, "cols": 2, "dt": "d", "data": [5, 7]}}'
YAML = "%YAML:1.0\n---\nK: !!opencv-matrix\n   rows: 1\n   cols: 2\n   dt: d\n   data: [ 5., 7. ]\n"
MAYACAM = "image size\n4,3\n\ncamera matrix\n9,0,2\n0,9,1\n0,0,1\n\nrotation\n1,0,0\n0,1,0\n0,0,1\n\ntranslation\n1\n2\n3\n"


@pytest.mark.parametrize("reader, text", [(read_opencv, OPENCV), (read_opencv, YAML), (read_mayacam, MAYACAM)])
def test_calibrations_of_others_are_read_or_refused_by_name(tmp_path, reader, text):
    path = tmp_path / "calibration"
    path.write_text(text)
    numbers = np.concatenate([np.ravel(x) for x in (reader(path).values() if reader is read_opencv else reader(path))])
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    again = reader(path)
    assert np.array_equal(numbers, np.concatenate([np.ravel(x) for x in (again.values() if reader is read_opencv else again)]))
    twice = text.replace('{"K"', '{"K": 1, "K"') if text is OPENCV else 2 * text
    for wrong in (twice.encode(), text.replace("7", '"x"' if text is OPENCV else "x", 1).replace("9,0", "9,x", 1).encode(), text[: len(text) // 2].encode(), b"\x89PNG\xff"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            reader(path)


# more of the same kinds


@pytest.mark.parametrize("flag", ["True", "T", "1"])
def test_a_compressed_metaimage_is_read_to_its_checksum_however_it_says_so(tmp_path, flag):
    packed = zlib.compress(BLOCK.tobytes("F"))
    head = ["ObjectType = Image", "NDims = 3", "CompressedData = " + flag, f"CompressedDataSize = {len(packed)}", "TransformMatrix = 1 0 0 0 1 0 0 0 1"]
    head += ["ElementSpacing = 1 1 1", "DimSize = 12 10 8", "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]
    path = tmp_path / "a.mha"
    path.write_bytes("\n".join(head).encode() + packed)
    assert np.array_equal(voxels(path), BLOCK)
    for at in range(20, len(packed), 97):
        flipped = bytearray(packed)
        flipped[at] ^= 4
        path.write_bytes("\n".join(head).encode() + flipped)
        with pytest.raises(ValueError, match="a.mha"):
            voxels(path)


def test_a_deflated_tiff_is_read_to_its_checksum(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(COUNTS.astype(np.float32)).save(path, compression="tiff_adobe_deflate")
    content, sound = path.read_bytes(), pixels(path)
    with Image.open(path) as picture:
        start, size = picture.tag_v2[273][0], picture.tag_v2[279][0]
    for at in range(start + 20, start + size, 61):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            assert np.array_equal(pixels(path), sound)
        except ValueError as error:
            assert "a.tif" in str(error)


def test_pictures_in_memory_are_read_as_their_files_are(tmp_path):
    palette = RNG.permutation(256).astype(np.uint8)
    picture = Image.fromarray((COUNTS >> 4).astype(np.uint8)).convert("P")
    picture.putpalette(np.repeat(palette[:, None], 3, 1).tobytes())
    picture.save(tmp_path / "a.png")
    assert np.array_equal(seen(picture), seen(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="colour image"):
        seen(Image.fromarray(RNG.integers(0, 255, (40, 50, 3)).astype(np.uint8)))


def test_signed_bytes_and_a_grey_of_16_bits_that_is_transparent(tmp_path):
    values = RNG.integers(-100, 100, (40, 50)).astype(np.int8)
    data = values.tobytes()
    entries = [(256, 50), (257, 40), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 40), (279, len(data)), (339, 2)]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    (tmp_path / "a.tif").write_bytes(b"II" + struct.pack("<HI", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + tags + bytes(4))
    assert np.array_equal(seen(tmp_path / "a.tif"), values)
    Image.fromarray(COUNTS).save(tmp_path / "b.png", transparency=int(COUNTS[3, 4]))
    with pytest.raises(ValueError, match="transparent"):
        seen(tmp_path / "b.png")


FRAME = ("TransformMatrix = 1 0 0 0 1 0 0 0 1",)


def test_sizes_below_zero_and_axes_without_one_are_refused(tmp_path):
    for path in (
        meta(tmp_path / "a.mha", *FRAME, "ElementSpacing = -1.5 2 2.5"),
        nrrd(tmp_path / "a.nrrd", "spacings: -1.5 2 2.5"),
    ):
        with pytest.raises(ValueError, match="sizes are positive"):
            voxels(path)
    with pytest.raises(ValueError, match="does not give the size"):
        voxels(nrrd(tmp_path / "b.nrrd", "space: LPS", "space directions: none (0,2,0) (0,0,2.5)"))
    with pytest.raises(ValueError, match="gives ElementSpacing twice"):
        voxels(meta(tmp_path / "c.mha", *FRAME, "ElementSpacing = 1 1 1", "ElementSpacing = 2 2 2"))


def test_units_and_scales_of_text_headers(tmp_path, silence):
    size = lambda path: np.linalg.norm(load_volume(path)[1][:3, :3], axis=0)
    assert np.allclose(size(meta(tmp_path / "a.mha", *FRAME, "ElementSpacing = 1500 2000 2500", "DistanceUnits = um")), (1.5, 2, 2.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the frame
        assert np.allclose(size(nrrd(tmp_path / "a.nrrd", "spacings: 0.0015 0.002 0.0025", 'units: "m" "m" "m"')), (1.5, 2, 2.5))
    scaled = meta(tmp_path / "b.mha", *FRAME, "ElementSpacing = 1 1 1", "ElementToIntensityFunctionSlope = 2", "ElementToIntensityFunctionOffset = -24")
    assert np.array_equal(voxels(scaled), 2.0 * BLOCK - 24)


@pytest.mark.parametrize("name", ["a.MHA", "a.Mha", "a.MHD", "a.GIPL", "a.NRRD", "a.Nii.Gz", "a.NII"])
def test_endings_in_capitals(tmp_path, name):
    path = tmp_path / name.lower()
    image = sitk.GetImageFromArray(BLOCK.T)
    image.SetSpacing((1.5, 2, 2.5))
    sitk.WriteImage(image, str(path))
    path.rename(tmp_path / name)
    assert np.array_equal(voxels(tmp_path / name), BLOCK)


def test_a_file_that_ends_early_takes_no_memory(tmp_path):
    content = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), AFFINE).to_bytes())
    struct.pack_into("<8h", content, 40, 3, 500, 500, 500, 1, 1, 1, 1)
    (tmp_path / "a.nii").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="ends before its last voxel"):
        voxels(tmp_path / "a.nii")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_what_stands_at_an_end_of_the_scan_is_not_passed_over_in_silence(tmp_path):
    paths = ct_folder(tmp_path / "link")
    paths[0].unlink()
    paths[0].symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=paths[0].name):
        voxels(tmp_path / "link")
    for k, (tag, value) in enumerate({"Rows": 5, "ImageOrientationPatient": [0, 1, 0, 0, 0, 1], "SeriesInstanceUID": "9.9", "FrameOfReferenceUID": "7.7"}.items()):
        paths = ct_folder(tmp_path / str(k))
        header = pydicom.dcmread(paths[7])
        setattr(header, tag, value)
        header.save_as(paths[7])
        said(lambda: voxels(tmp_path / str(k)), paths[7].name, "passed over")
    for which in (0, 3, 7):
        folder = tmp_path / f"aside{which}"
        paths = ct_folder(folder)
        ct_slice(paths[which], which, ImagePositionPatient=[-29, 80, 400 + 2.5 * which])
        with pytest.raises(ValueError, match="moved sideways"):
            voxels(folder)


def test_fewer_pixels_than_the_header_says_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot decode the pixels"):
        read_xray(dicom(tmp_path / "x.dcm", COUNTS, Rows=80), sdd=1000, spacing=0.3)


def test_values_that_may_not_be_hu_are_said(tmp_path):
    for k, (tags, words) in enumerate([({"RescaleIntercept": None}, "has no RescaleIntercept"), ({"RescaleType": "US"}, "not HU"), ({"Modality": "RTDOSE"}, "not CT")]):
        ct_folder(tmp_path / str(k), **tags)
        said(lambda: voxels(tmp_path / str(k)), words, "taken as HU")
    padded = (BLOCK + 1024).clip(0)
    padded[0] = -2000
    said(lambda: read(padded, affine=AFFINE), "air, lung and fat")
    said(lambda: read(BLOCK / 1500, affine=AFFINE), "air, lung and fat")


def test_a_dicom_image_upside_down_or_on_its_side(tmp_path, silence):
    geometry = {"DistanceSourceToDetector": 1000, "ImagerPixelSpacing": [0.3, 0.3]}
    camera = lambda *way: read_xray(dicom(tmp_path / "x.dcm", COUNTS, PatientOrientation=list(way), **geometry))[1]
    assert (camera("L", "F").reverse_x_axis, camera("L", "F").reverse_y_axis) == (True, False)
    assert (camera("R", "H").reverse_x_axis, camera("R", "H").reverse_y_axis) == (False, True)  # half a turn
    with warnings.catch_warnings():
        said(lambda: camera("F", "L"), "lies on the side")
        said(lambda: read_xray(dicom(tmp_path / "x.dcm", COUNTS, DistanceSourceToPatient=1500, **geometry)), "not nearer to the source")
        said(lambda: read_xray(dicom(tmp_path / "x.dcm", COUNTS, ShutterShape="RECTANGULAR", ShutterUpperHorizontalEdge=900, **geometry), return_mask="file"), "leaves nothing")


def test_the_table_moves_between_frames(tmp_path):
    path = dicom(tmp_path / "x.dcm", np.stack([COUNTS] * 3), TableLateralIncrement=[0, 10, 20], DistanceSourceToDetector=1000, ImagerPixelSpacing=[0.3, 0.3])
    with pytest.raises(ValueError, match="their mean is no X-ray"):
        read_xray(path, frame="mean")


def test_odd_labels_are_refused_and_tables_named(tmp_path):
    mask = (BLOCK > 0).astype(np.uint8)
    for label in (1.7, True, float("nan")):
        with pytest.raises(ValueError, match="neither a whole number nor a name"):
            read(BLOCK, mask, labels=[label], affine=AFFINE)
    for rows in ("a,1\nb,1\n", "a,1e300\n", "a,-1\n"):
        (tmp_path / "s.csv").write_text("structure,id\n" + rows)
        with pytest.raises(ValueError, match=r"s\.csv: the table of structures has the id '"):
            read(BLOCK, mask, structures=tmp_path / "s.csv", affine=AFFINE)
    with pytest.raises(ValueError, match="three positive whole numbers"):
        read(BLOCK, affine=AFFINE, resample_target=((-5, 5, 5), AFFINE))
    with pytest.raises(ValueError, match="at most 1e"):
        read(BLOCK, affine=AFFINE, bone_attenuation_multiplier=1e300)


def test_a_pose_in_two_units_is_refused(tmp_path):
    pose = {"rotation_zxy_deg": [0, 0, 0], "translation_mm": [0, 850, 0]}
    for extra in ({"rotation_zxy_rad": [1, 0, 0]}, {"translation_cm": [0, 85, 0]}):
        (tmp_path / "p.json").write_text(json.dumps(pose | extra))
        with pytest.raises(ValueError, match="keep those of one unit"):
            load_poses(tmp_path / "p.json")
    (tmp_path / "p.csv").write_text("alpha_deg,beta_deg,gamma_deg,bx_mm,by_mm,bz_mm,bx_cm\n0,0,0,0,850,0,9\n")
    with pytest.raises(ValueError, match="keep those of one unit"):
        load_poses(tmp_path / "p.csv")


@pytest.mark.parametrize("top, alone", [(2300, True), (2300, False), (1900, True)])
def test_metal_that_may_be_bone_is_said(top, alone, recwarn):
    hu = np.full((40, 40, 40), -100, np.int16)
    hu[2:6, 2:6, 2:6], hu[30:33, 30:33, 30:33] = 900 if alone else 1950, top
    read(hu, affine=AFFINE)
    assert any("If it is metal" in str(w.message) for w in recwarn) == (alone and top > 2000)


def test_stored_values_around_a_round_field_are_still_asked_about():
    "HU + 1024 with 0 outside the scanner's circle: the 0 is air, and the rest is not HU."
    x, y = np.mgrid[-1:1:40j, -1:1:40j]
    hu = np.where(np.hypot(x, y) < 0.6, 40.0, -1000.0) + np.random.default_rng(0).normal(0, 20, (40, 40))
    stored = np.where(np.hypot(x, y) < 1, np.clip(hu + 1024, 0, None), 0)[..., None].repeat(12, 2)
    for how in ({}, {"outside": 0}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read(stored, spacing=1.0, **how)
        assert any("hu_offset=-1024" in str(w.message) and w.filename == __file__ for w in caught), how
    with pytest.raises(ValueError, match="no voxel has the value outside=7"):
        read(stored, spacing=1.0, outside=7)


def test_slices_that_nearly_coincide_are_not_interpolated(tmp_path):
    places = np.r_[np.arange(30.0), 29.005]
    with pytest.raises(ValueError, match="two slices at 29.00 mm are 0.005 mm apart"):
        _even_places(places, "ct", None, True)
