"""One X-ray, written as every kind of DICOM X-ray: whatever the kind, the image and the camera are those of the plain one.

Files are written by pydicom and by ITK. What a header says of pixels, view, geometry and shutters is taken; what contradicts itself is said.
"""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from diffpose.calibration import Camera, carm_angles, carm_pose, reorientation
from diffpose.cli import app
from diffpose.cli.inputs import viewed
from diffpose.cli.case import Case
from diffpose.cli.job import Job, _doubt_depth
from diffpose.cli.options import Counted, Patient, Start, Taken
from diffpose.cli.tracking import load_frames
from diffpose.data import pictures, read_xray
from diffpose.drr import DRR
from diffpose.exchange import XrayGeometry, load_start, start_pose
from diffpose.metrics import ncc
from diffpose.phantom import make_phantom
from diffpose.report import write_ct
from diffpose.results import pose_to_dict
from diffpose.simulation import simulate_xray

RNG = np.random.default_rng(0)
INTEGRAL = gaussian_filter(RNG.normal(size=(60, 80)), 6)
INTEGRAL = 4 * (INTEGRAL - INTEGRAL.min()) / np.ptp(INTEGRAL)
COUNTS = np.round(60_000 * np.exp(-INTEGRAL)).astype(np.uint16)
LOG = np.round(10_000 * INTEGRAL).astype(np.uint16) + 500  # bone bright
GEOMETRY = {"DistanceSourceToDetector": 1000, "DistanceSourceToPatient": 700, "ImagerPixelSpacing": [0.4, 0.3]}
XA = {"Modality": "XA", "kind": uid.XRayAngiographicImageStorage}
DX = {"Modality": "DX", "kind": uid.DigitalXRayImageStorageForPresentation, "PresentationIntentType": "FOR PRESENTATION"}


def item(**tags):
    ds = pydicom.Dataset()
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def table(values, first=0):
    "An item of a LUT sequence."
    values = np.asarray(values).astype(np.uint16)
    entry = item(LUTDescriptor=[len(values) % 65536, first, 16])
    entry.add_new("LUTData", "OW", values.tobytes())
    return entry


def write(path, pixels, kind=uid.XRayAngiographicImageStorage, geometry=GEOMETRY, **tags):
    "A DICOM file of unsigned 16-bit pixels; a tag that is None is left out."
    ds = item(SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", PixelRepresentation=0, BitsAllocated=16, BitsStored=16, HighBit=15)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = kind
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid.generate_uid()
    ds.Rows, ds.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.PixelData = np.ascontiguousarray(pixels).astype(np.uint16).tobytes()
    for name, value in (geometry | tags).items():
        if value is not None:
            setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def taken(path, **how):
    "What is read, and what is said."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_xray(path, **how)
    return *found, " ".join(str(w.message) for w in caught)


# pixels

FALLING = {"RescaleSlope": -1, "RescaleIntercept": 65535}
SINE = np.round(65535 * np.sin(np.linspace(0, np.pi / 2, 65536)))
KINDS = {  # of the same image: stored pixels, tags, the gain of what is read
    "XA, counts": (COUNTS, XA | {"PixelIntensityRelationship": "LIN"}, 1),
    "XA that says nothing": (COUNTS, XA, 1),
    "RF, MONOCHROME1": (65535 - COUNTS, XA | {"Modality": "RF", "PhotometricInterpretation": "MONOCHROME1"}, 1),
    "XA, shown inverted by a slope": (COUNTS, XA | {"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": 1} | FALLING, 1),
    "XA, a slope and an offset beside counts": (COUNTS, XA | {"PixelIntensityRelationship": "LIN", "RescaleSlope": 2, "RescaleIntercept": -1024}, 1),
    "XA, logarithm, and a table that undoes it": (65535 - LOG, XA | {"PixelIntensityRelationship": "LOG", "ModalityLUTSequence": [table(65535 * np.exp(np.linspace(-6.5, 0, 65536)))]}, 10_000),
    "XA, a table that makes counts of what is stored": (np.arange(65536)[::-1][COUNTS], XA | {"ModalityLUTSequence": [table(np.arange(65536)[::-1])]}, 1),
    "DX, for presentation": (LOG, DX | {"PresentationLUTShape": "IDENTITY"}, 10_000),
    "DX, MONOCHROME1 and INVERSE": (65535 - LOG, DX | {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, 10_000),
    "DX, MONOCHROME1 alone": (65535 - LOG, DX | {"PhotometricInterpretation": "MONOCHROME1"}, 10_000),
    "DX, every statement": (65535 - LOG, DX | {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE", "PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": 1, "RescaleSlope": 1, "RescaleIntercept": 0}, 10_000),
    "DX, negative slope": (65535 - LOG, DX | FALLING, 10_000),
    "DX, falling VOI LUT": (65535 - LOG, DX | {"VOILUTSequence": [table(SINE[::-1])]}, 10_000),
    "DX, rising VOI LUT": (LOG, DX | {"VOILUTSequence": [table(SINE)], "WindowCenter": None}, 10_000),
    "DX, window that clips": (LOG, DX | {"WindowCenter": 9000, "WindowWidth": 100}, 10_000),
    "DX, for processing, counts": (COUNTS, DX | {"PresentationIntentType": "FOR PROCESSING", "PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": 1, "PhotometricInterpretation": "MONOCHROME1"}, 1),
    "CR": (LOG, {"Modality": "CR", "kind": uid.ComputedRadiographyImageStorage}, 10_000),
}


@pytest.mark.parametrize("name", KINDS)
def test_one_image_whatever_the_pixels_mean(tmp_path, name):
    pixels, tags, gain = KINDS[name]
    xray, _, mask, said = taken(write(tmp_path / "x.dcm", pixels, **tags), return_mask="pixels")
    found = xray[0, 0].numpy() / gain
    assert np.abs(found - found.mean() - INTEGRAL + INTEGRAL.mean()).max() < 2e-3
    assert not said and mask.float().mean() > 0.98  # it is no contradiction to say a thing twice


@pytest.mark.parametrize(
    "tags, words",
    [
        (DX | {"PresentationLUTShape": "INVERSE"}, "MONOCHROME2 and PresentationLUTShape INVERSE do not go together"),
        (DX | {"PixelIntensityRelationshipSign": 1}, "PixelIntensityRelationshipSign +1 says that it shows it dark: the display is believed"),
        ({"Modality": "RTIMAGE", "kind": uid.RTImageStorage, "RTImageSID": 1000, "ImagePlanePixelSpacing": [0.4, 0.3]}, "does not say how its pixels are related to the beam"),
    ],
)
def test_contradictions_are_told_with_the_option(tmp_path, tags, words):
    path = write(tmp_path / "x.dcm", LOG, **tags)
    xray, _, said = taken(path)
    assert words in said and "polarity=" in said
    assert np.corrcoef(xray[0, 0].ravel(), INTEGRAL.ravel())[0, 1] > 0.999
    assert not taken(path, polarity="bone_bright")[-1]


@pytest.fixture(scope="module")
def surrounded():
    "Counts and logarithm of a body with air around it, and of the part that it fills."
    integral = DRR.from_camera(make_phantom(seed=0, spacing=6.0), Camera(1020.0, 120, 150, 4.8, 4.8))(carm_pose(0.0, 0.0, 750.0))
    integral = (3 * integral / integral.max())[0, 0].numpy()
    counts = RNG.poisson(20_000 * np.exp(-integral)).clip(1)
    return counts.astype(np.uint16), np.round(20_000 - 2000 * np.log(counts)).astype(np.uint16)


@pytest.mark.parametrize("modality", ["XA", "DX"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("right", [True, False])
def test_what_surrounds_the_body_is_held_against_the_header(tmp_path, surrounded, modality, photometric, right):
    "Told, with the option, and never inverted by itself; where the body fills the image, or the user says how bone is shown, nothing is."
    counts, log = surrounded
    stored, tags = (counts, XA | {"PixelIntensityRelationship": "LIN"}) if modality == "XA" else (log, DX)
    stored = stored if right == (photometric == "MONOCHROME2") else 65535 - stored
    path = write(tmp_path / "x.dcm", stored, **tags | {"PhotometricInterpretation": photometric})
    xray, _, said = taken(path)
    assert ("what surrounds the body is" in said) == (not right)
    assert (np.corrcoef(xray[0, 0].ravel(), log.ravel())[0, 1] > 0) == right
    if right:
        return
    shown, other = ("dark", "bone_bright") if (modality == "XA") == (photometric == "MONOCHROME2") else ("bright", "bone_dark")
    assert f"its header ({modality}, {photometric}) says that bone in its stored values is {shown}" in said and f"polarity='{other}'" in said
    mended, _, silent = taken(path, polarity=other)
    assert np.corrcoef(mended[0, 0].ravel(), log.ravel())[0, 1] > 0.8 and not silent
    middle = write(tmp_path / "part.dcm", stored[45:80, 55:95], **tags | {"PhotometricInterpretation": photometric})
    assert "what surrounds" not in taken(middle)[-1]


def test_a_picture_that_shows_bone_bright_is_told(tmp_path, surrounded):
    counts, log = surrounded
    for name, stored, right in (("counts", counts, True), ("log", log, False)):
        Image.fromarray(stored).save(tmp_path / f"{name}.png")
        said = taken(tmp_path / f"{name}.png", sdd=1000, spacing=1)[-1]
        assert ("nothing says how it shows bone, which is taken to be dark" in said) == (not right)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_the_transfer_syntax_changes_nothing(tmp_path, name, kind):
    "One image of pydicom's, in five encodings; ITK decodes JPEG-LS."
    read = []
    for file in ("MR_small.dcm", name):
        ds = pydicom.dcmread(get_testdata_file(file))
        ds.PhotometricInterpretation, ds.Modality, ds.RescaleSlope, ds.RescaleIntercept = kind, "DX", -2, 7
        ds.save_as(tmp_path / file)
        read.append(taken(tmp_path / file, sdd=1000, spacing=0.3)[0])
    assert torch.equal(*read)
    stored = torch.from_numpy(pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array.astype(np.float32))
    shown = stored if kind == "MONOCHROME1" else stored.max() - stored  # the negative slope turns it once more
    assert torch.equal(read[0][0, 0] - read[0].min(), 2 * (shown - shown.min()))


@pytest.mark.parametrize("compressor, syntax", [("JPEG", uid.JPEGLosslessSV1), ("JPEG2000", uid.JPEG2000Lossless)])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_what_itk_compressed_is_what_was_stored(tmp_path, compressor, syntax, kind):
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO"), writer.SetFileName(str(tmp_path / "x.dcm")), writer.SetUseCompression(True), writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(COUNTS))
    ds = pydicom.dcmread(tmp_path / "x.dcm")
    assert ds.file_meta.TransferSyntaxUID == syntax
    ds.Modality, ds.PhotometricInterpretation, ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "XA", kind, "LIN", 1
    ds.save_as(tmp_path / "x.dcm")
    assert torch.equal(taken(tmp_path / "x.dcm", sdd=1000, spacing=0.3)[0], read_xray(COUNTS)[0])


def encoded(path, pixels, bits, syntax, **tags):
    "A file of so many bits, in a syntax that pydicom or ITK writes."
    if syntax in ("JPEG", "JPEG2000"):
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO"), writer.SetFileName(str(path)), writer.SetUseCompression(True), writer.SetCompressor(syntax)
        writer.Execute(sitk.GetImageFromArray(pixels.astype(np.uint8 if bits == 8 else np.uint16)))
    else:
        write(path, pixels)
    ds = pydicom.dcmread(path)
    ds.BitsStored, ds.HighBit = bits, bits - 1
    if bits == 8 and "PixelData" in ds and not ds.file_meta.TransferSyntaxUID.is_compressed:
        ds.BitsAllocated, ds.PixelData = 8, pixels.astype(np.uint8).tobytes()
    if syntax == "RLE":
        ds.compress(uid.RLELossless)
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.save_as(path)
    return path


@pytest.mark.parametrize("syntax", ["plain", "RLE", "JPEG", "JPEG2000"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_white_at_zero_is_inverted_about_the_bits_that_are_stored(tmp_path, syntax, bits):
    "And not about the values that the image has, which would change how dense everything is."
    last = 2**bits - 1
    counts = np.round(0.6 * last * np.exp(-INTEGRAL) + 0.02 * last).astype(np.uint16)
    tags = {"Modality": "XA", "PhotometricInterpretation": "MONOCHROME1"}
    found, *_, said = taken(encoded(tmp_path / "x.dcm", last - counts, bits, syntax, **tags), sdd=1000, spacing=0.3)
    assert torch.equal(found, read_xray(counts.astype(np.float32))[0]) and not said
    if bits == 8:  # as a picture that shows bone bright
        found = read_xray((last - counts).astype(np.uint8), polarity="bone_bright")[0]
        assert torch.equal(found, read_xray(counts.astype(np.float32))[0])


def test_bits_that_cannot_be_meant_are_told(tmp_path):
    "12 bits that the header calls 16: no X-ray loses 6% of its beam only."
    counts = np.round(4000 * np.exp(-INTEGRAL)).astype(np.uint16)
    tags = {"Modality": "XA", "PhotometricInterpretation": "MONOCHROME1"}
    found, *_, said = taken(write(tmp_path / "x.dcm", 4095 - counts, **tags))
    assert "where 65535 could be stored" in said and "its own range" in said
    stored = 4095 - counts
    assert torch.equal(found, read_xray((stored.max() + stored.min() - stored).astype(np.float32))[0])
    turned, *_, said = taken(write(tmp_path / "x.dcm", 4095 - counts, RescaleSlope=-1, RescaleIntercept=4095, Modality="XA"))
    assert torch.equal(turned, read_xray(counts.astype(np.float32))[0]) and not said  # the offset says where no beam is left


@pytest.mark.parametrize("shift", [0, 2, 4])
def test_twelve_bits_are_read_wherever_they_stand(tmp_path, shift):
    "Beside an overlay in the bits that are left, as older files have it."
    counts = (COUNTS // 16).astype(np.uint16)
    beside = RNG.integers(0, 2, counts.shape).astype(np.uint16) << (12 if shift == 0 else 0)
    path = write(tmp_path / "x.dcm", (counts << shift) | beside, BitsStored=12, HighBit=11 + shift, **XA)
    assert torch.equal(read_xray(path)[0], read_xray(counts.astype(np.float32))[0])


def test_pixels_may_be_floats(tmp_path):
    ds = pydicom.dcmread(write(tmp_path / "x.dcm", COUNTS, **XA))
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(ds, name)
    ds.BitsAllocated, ds.FloatPixelData = 32, COUNTS.astype(np.float32).tobytes()
    for kind, polarity in (("MONOCHROME2", "bone_dark"), ("MONOCHROME1", "bone_bright")):
        ds.PhotometricInterpretation = kind
        ds.save_as(tmp_path / "x.dcm")
        assert torch.equal(read_xray(tmp_path / "x.dcm")[0], read_xray(COUNTS.astype(np.float32), polarity=polarity)[0])


def test_a_damaged_table_is_refused_by_name(tmp_path):
    for entry in (item(), item(LUTDescriptor=[3, 0, 16])):
        with pytest.raises(ValueError, match="x.dcm has a ModalityLUTSequence that cannot be read"):
            read_xray(write(tmp_path / "x.dcm", COUNTS, ModalityLUTSequence=[entry], **XA))


def test_padding_is_no_measurement(tmp_path):
    pixels = LOG.copy()
    pixels[10:20, 30:50] = 63_000
    tags = DX | {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 63_000, "PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": -1}
    xray, _, mask, _ = taken(write(tmp_path / "x.dcm", pixels, **(tags | {"PhotometricInterpretation": "MONOCHROME2"})), return_mask="file")
    assert not mask[0, 0, 10:20, 30:50].any() and mask.sum() == LOG.size - 200
    clear = mask[0, 0].numpy()
    expected = read_xray(np.where(clear, LOG, LOG[clear].max()), polarity="bone_bright")[0]
    assert torch.allclose(xray[mask], expected[mask], atol=1e-4)  # nor does it set the limits of the inversion


# geometry


def camera(path, **how):
    found = taken(path, **how)
    return found[1], found[-1]


def test_a_receptor_in_front_of_the_chest_is_the_view_pa(tmp_path):
    angles = {"PositionerPrimaryAngle": 30, "PositionerSecondaryAngle": -10}
    found, said = camera(write(tmp_path / "x.dcm", COUNTS, **XA, **angles))
    assert (found.view, found.primary_angle, found.secondary_angle, found.sid) == ("PA", 30, -10, 700) and not said
    assert torch.equal(found.pose().matrix, carm_pose(30.0, -10.0, 700.0, "PA").matrix)
    found.to_json(tmp_path / "camera.json")
    assert Camera.from_json(tmp_path / "camera.json") == found
    for position, view, primary in (("AP", "AP", 0), ("PA", "PA", 0), ("LL", "PA", 90), ("RL", "PA", -90)):
        found, _ = camera(write(tmp_path / "x.dcm", LOG, ViewPosition=position, **DX))
        assert (found.view, found.primary_angle, found.secondary_angle) == (view, primary, 0)
        detector = -found.pose().translation[0]  # the side of the receptor: at LL the patient's left
        assert detector.abs().argmax() == (1 if position in ("AP", "PA") else 0)
        assert detector[1] < 0 if position == "AP" else detector[1] > 0 if position == "PA" else detector[0] * primary < 0
    found, said = camera(write(tmp_path / "x.dcm", COUNTS, ViewPosition="AP", **XA, **(angles | {"PositionerPrimaryAngle": 0})))
    assert found.view == "PA" and "ViewPosition AP has the source in front" in said
    found, said = camera(write(tmp_path / "x.dcm", COUNTS, ViewPosition="AP", **DX, **(angles | {"PositionerPrimaryAngle": 0})))
    assert found.view == "AP" and not said  # no C-arm: what its column says is no positioner's angle
    assert camera(write(tmp_path / "x.dcm", LOG, **DX))[0].view is None


@pytest.mark.parametrize("letters, axes", [(("L", "F"), (True, False)), (("R", "H"), (False, True)), (("L", "H"), (True, True)), (("R", "F"), (False, False))])
def test_both_letters_of_the_orientation_count(tmp_path, letters, axes):
    for tags in ({}, {"PositionerPrimaryAngle": 20, "PositionerSecondaryAngle": 5}):
        found, said = camera(write(tmp_path / "x.dcm", COUNTS, PatientOrientation=list(letters), **XA, **tags))
        assert (found.reverse_x_axis, found.reverse_y_axis) == axes and not said


def test_a_lateral_image_is_hung_as_its_letters_say(tmp_path):
    "From the receptor at the patient's left, the front is on the left; a column towards the back is mirrored for the other side."
    for primary, letter, usual in ((90, "P", True), (90, "A", False), (-90, "P", False), (-90, "A", True)):
        found, said = camera(write(tmp_path / "x.dcm", COUNTS, PatientOrientation=[letter, "F"], PositionerPrimaryAngle=primary, PositionerSecondaryAngle=0, **XA))
        assert found.reverse_x_axis == usual and not said
        x = (found.pose().matrix @ reorientation("PA"))[0, 1, 0]  # of the camera's x axis, towards the front
        assert (x < 0 if found.reverse_x_axis else x > 0) == (letter == "A")
    assert "which cannot be" in camera(write(tmp_path / "x.dcm", COUNTS, PatientOrientation=["L", "F"], PositionerPrimaryAngle=90, PositionerSecondaryAngle=0, **XA))[1]


CUT = (slice(10, 50), slice(5, 45))


@pytest.mark.parametrize("detector", [{"DetectorActiveDimensions": [24, 24]}, {"PhysicalDetectorSize": [24, 24]}, {"PositionOfIsocenterProjection": [29.5, 39.5]}, {"DetectorActiveDimensions": [24, 24], "DetectorElementSpacing": [0.2, 0.15], "DetectorBinning": [2, 2], "FieldOfViewOrigin": [20, 10]}])
def test_a_part_of_the_detector_has_the_camera_of_that_part(tmp_path, detector):
    part, said = camera(write(tmp_path / "x.dcm", COUNTS[CUT], **(XA | {"FieldOfViewOrigin": [10, 5]} | detector)))
    whole, _ = camera(write(tmp_path / "y.dcm", COUNTS, **XA))
    assert part == whole.crop(10, 5, 40, 40) and "FieldOfViewOrigin" in said
    size_unknown, said = camera(write(tmp_path / "x.dcm", COUNTS[CUT], FieldOfViewOrigin=[10, 5], **XA))
    assert size_unknown.x0 == 0 and "camera=" in said and "does not say how large" in said


def test_a_binned_detector_has_larger_pixels(tmp_path):
    elements = GEOMETRY | {"ImagerPixelSpacing": None, "DetectorElementSpacing": [0.2, 0.15], "DetectorBinning": [2, 2]}
    found, said = camera(write(tmp_path / "x.dcm", COUNTS, geometry=elements, **XA))
    assert (found.dely, found.delx) == (0.4, 0.3) and not said
    both = elements | {"ImagerPixelSpacing": [0.2, 0.15]}
    assert "DetectorBinning 0.4 mm" in camera(write(tmp_path / "x.dcm", COUNTS, geometry=both, **XA))[1]


@pytest.mark.parametrize("tag, value, words, left", [("DistanceSourceToDetector", 100, "states 100 mm as the distance from source to detector", True), ("DistanceSourceToPatient", 70, "states 70 mm", True), ("PositionerPrimaryAngle", 400, "states 400 degrees as the primary angle", False), ("ImagerPixelSpacing", [400, 300], "states 300 mm as the width", True)])
def test_a_number_that_no_xray_has_is_told(tmp_path, tag, value, words, left):
    "Centimetres, micrometres, angles beyond a turn: what can be used is, what cannot is left out."
    path = write(tmp_path / "x.dcm", COUNTS, **XA | {"PositionerPrimaryAngle": 10, "PositionerSecondaryAngle": 0} | {"geometry": GEOMETRY | {tag: value}} if tag in GEOMETRY else XA | {"PositionerSecondaryAngle": 0, tag: value})
    found, said = camera(path)
    assert words in said and (found.primary_angle is None) == (not left)
    with pytest.raises(ValueError, match="x.dcm does not say enough of its geometry"):
        taken(write(tmp_path / "x.dcm", COUNTS, geometry=GEOMETRY | {"DistanceSourceToDetector": "1e30"}, **XA))


def test_the_size_of_the_detector_is_held_against_its_pixels(tmp_path):
    assert not camera(write(tmp_path / "x.dcm", COUNTS, DetectorActiveDimensions=[24, 24], **XA))[1]
    for tag in ("DetectorActiveDimensions", "FieldOfViewDimensions"):
        said = camera(write(tmp_path / "x.dcm", COUNTS, **XA, **{tag: [27, 27]}))[1]
        assert f"24 x 24 mm, and {tag} is 27 x 27 mm" in said and "spacing=" in said


def test_pixels_measured_in_the_patient_are_led_back(tmp_path):
    patient = {"ImagerPixelSpacing": None, "PixelSpacing": [0.28, 0.21], "PixelSpacingCalibrationType": "GEOMETRY"}
    found, said = camera(write(tmp_path / "x.dcm", COUNTS, geometry=GEOMETRY | patient, **XA))
    assert (found.dely, found.delx) == pytest.approx((0.4, 0.3)) and "1.429 times" in said
    stated = patient | {"EstimatedRadiographicMagnificationFactor": 1.5}
    found, said = camera(write(tmp_path / "x.dcm", COUNTS, geometry=GEOMETRY | stated, **XA))
    assert found.delx == pytest.approx(0.315) and not said
    with pytest.raises(ValueError, match="neither EstimatedRadiographicMagnificationFactor nor the depth of what it was measured on.*pass spacing="):
        read_xray(write(tmp_path / "x.dcm", COUNTS, geometry=GEOMETRY | patient | {"PixelSpacingCalibrationType": "FIDUCIAL"}, **XA))
    found, _ = camera(write(tmp_path / "x.dcm", COUNTS, geometry=GEOMETRY | stated | {"PixelSpacingCalibrationType": "FIDUCIAL"}, **XA))
    assert found.delx == pytest.approx(0.315)


@pytest.mark.parametrize("calibrated, pitch", [({}, 0.4), ({"TableHeight": 170.0, "DistanceObjectToTableTop": 100.0}, 0.28 * 1000 / 630), ({"TableHeight": 170.0, "DistanceObjectToTableTop": 100.0, "BeamAngle": 60.0}, 0.28 * 1000 / 560), ({"EstimatedRadiographicMagnificationFactor": 1.5}, 0.42)])
def test_the_pixel_of_an_enhanced_file_in_the_object_is_led_back(tmp_path, calibrated, pitch):
    "DICOM PS3.3, C.8.19.6.9.1: the object's pixel is the detector's by SOD / SID, SOD the isocentre's distance less what the object is below it, along the beam."
    group = item(ObjectPixelSpacingInCenterOfBeam=[0.28, 0.28], **calibrated)
    shared = item(ProjectionPixelCalibrationSequence=[group], XRayGeometrySequence=[item(DistanceSourceToDetector=1000.0, DistanceSourceToIsocenter=700.0)])
    tags = {"Modality": "XA", "SharedFunctionalGroupsSequence": [shared]}
    found, said = camera(write(tmp_path / "x.dcm", COUNTS[None], uid.EnhancedXAImageStorage, {}, **tags))
    assert (found.dely, found.delx) == pytest.approx((pitch, pitch), rel=1e-6)
    assert ("times as large" in said) is ("EstimatedRadiographicMagnificationFactor" not in calibrated)


def test_what_is_missing_of_a_pixel_in_the_object_is_said(tmp_path):
    path = write(tmp_path / "x.dcm", COUNTS, geometry={"DistanceSourceToDetector": 1000, "ObjectPixelSpacingInCenterOfBeam": [0.28, 0.28]}, **XA)
    with pytest.raises(ValueError, match="ObjectPixelSpacingInCenterOfBeam is in the patient, and it has neither Estimated.*DistanceSourceToPatient.*pass spacing="):
        read_xray(path)
    assert read_xray(path, spacing=0.4)[1].delx == 0.4


POSITIONS = {"HFS": ("headfirst", "supine"), "FFP": ("feet-first", "prone"), "HFDL": ("headfirst", "left lateral decubitus"), "FFS": ("feet-first", "supine")}


@pytest.mark.parametrize("lying, angles, axes", [("HFS", (20, 5), (True, False)), ("FFP", (160, -5), (False, True)), ("HFDL", (-70, 5), (True, False)), ("FFS", (-20, -5), (False, True))])
@pytest.mark.parametrize("coded", [False, True])
def test_angles_against_the_table_become_those_of_the_patient(tmp_path, lying, angles, axes, coded):
    names = {"headfirst": ("F-10470", "SRT"), "feet-first": ("102541007", "SCT"), "supine": ("F-10340", "SRT"), "prone": ("1240000", "SCT"), "left lateral decubitus": ("102536004", "SCT")}
    first, side = (item(CodeValue=names[word][0], CodingSchemeDesignator=names[word][1], CodeMeaning=word) for word in POSITIONS[lying])
    position = {"PatientPosition": lying} if not coded else {"PatientOrientationCodeSequence": [item(PatientOrientationModifierCodeSequence=[side])], "PatientGantryRelationshipCodeSequence": [first]}
    frames = [item(IsocenterReferenceSystemSequence=[item(PositionerIsocenterPrimaryAngle=20.0 + k, PositionerIsocenterSecondaryAngle=5.0, PositionerIsocenterDetectorRotationAngle=0.0)]) for k in (0, 1)]
    tags = {"Modality": "XA", "PerFrameFunctionalGroupsSequence": frames} | position
    path = write(tmp_path / "x.dcm", np.stack([COUNTS] * 2), uid.EnhancedXAImageStorage, **tags)
    _, found, said = taken(path, frame=0)
    assert (found.primary_angle, found.secondary_angle, found.view) == (*angles, "PA") and f"patient {lying} on" in said
    assert (found.reverse_x_axis, found.reverse_y_axis) == axes
    turned = taken(path, frame=0, rotate=180)[1]  # letters and pixels are turned alike
    assert (turned.reverse_x_axis, turned.reverse_y_axis) == (not axes[0], not axes[1])
    with pytest.raises(ValueError, match="the arm moves"):
        read_xray(path, frame="mean")


def test_angles_against_a_table_of_which_nothing_is_known_are_left_out_aloud(tmp_path):
    isocentre = {"PositionerIsocenterPrimaryAngle": 20.0, "PositionerIsocenterSecondaryAngle": 5.0}
    for tags, why in (({}, "PatientPosition is not given"), ({"PatientPosition": "HFS", "TableHeadTiltAngle": 3.0}, "TableHeadTiltAngle is 3"), ({"PatientPosition": "HFS", "PositionerIsocenterDetectorRotationAngle": -12.0}, "PositionerIsocenterDetectorRotationAngle is -12")):
        _, found, said = taken(write(tmp_path / "x.dcm", COUNTS, **(isocentre | tags), **XA))
        assert found.primary_angle is None and found.view is None and why in said and "left out" in said
    _, found, said = taken(write(tmp_path / "x.dcm", COUNTS, PositionerPrimaryAngle=3, PositionerSecondaryAngle=4, **isocentre, **XA))
    assert (found.primary_angle, said) == (3, "")


def test_functional_groups_of_an_enhanced_file(tmp_path):
    frames = [
        item(
            PositionerPositionSequence=[item(PositionerPrimaryAngle=10.0 * k, PositionerSecondaryAngle=3.0)],
            FieldOfViewSequence=[item(FieldOfViewOrigin=[10.0, 5.0 * k], FieldOfViewRotation=0.0, FieldOfViewHorizontalFlip="NO")],
            FrameDisplayShutterSequence=[item(ShutterShape="CIRCULAR", CenterOfCircularShutter=[20, 20], RadiusOfCircularShutter=10 + k)],
        )
        for k in range(3)
    ]
    shared = item(
        XRayGeometrySequence=[item(DistanceSourceToDetector=1200.0, DistanceSourceToIsocenter=800.0)],
        FramePixelDataPropertiesSequence=[item(PixelIntensityRelationship="LOG", PixelIntensityRelationshipSign=1, ImagerPixelSpacing=[0.4, 0.4])],
    )
    run = np.stack([(65535 - LOG)[CUT]] * 3)
    path = write(tmp_path / "x.dcm", run, uid.EnhancedXAImageStorage, {}, Modality="XA", PhysicalDetectorSize=[24.0, 32.0], SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames)
    for k in range(3):
        xray, found, mask, _ = taken(path, frame=k, return_mask="file")
        expected = Camera(1200.0, 60, 80, 0.4, 0.4, sid=800.0, primary_angle=10.0 * k, secondary_angle=3.0, view="PA").crop(10, 5 * k, 40, 40)
        assert (found.x0, found.y0) == pytest.approx((expected.x0, expected.y0), abs=1e-9)
        assert (found.sdd, found.sid, found.primary_angle, found.view) == (1200, 800, 10 * k, "PA")
        assert np.allclose(xray[0, 0] - xray.min(), (LOG[CUT] - LOG[CUT].min()))
        assert mask.sum() == (np.hypot(*np.mgrid[-19:21, -19:21]) <= 10 + k).sum()
    several = write(tmp_path / "y.dcm", np.stack([COUNTS] * 3), PositionerPrimaryAngle=[0, 5, 10], PositionerSecondaryAngle=0, **XA)
    assert [taken(several, frame=k)[1].primary_angle for k in range(3)] == [0, 5, 10]
    with pytest.raises(ValueError, match="the arm moves"):
        read_xray(several, frame="mean")
    with pytest.raises(ValueError, match="1 frames and 3 of PositionerPrimaryAngle"):
        read_xray(write(tmp_path / "y.dcm", COUNTS, PositionerPrimaryAngle=[0, 5, 10], PositionerSecondaryAngle=0, **XA))


def test_a_reconstructed_volume_is_no_xray(tmp_path):
    with pytest.raises(ValueError, match="reconstructed volume"):
        read_xray(write(tmp_path / "x.dcm", np.stack([COUNTS] * 3), uid.BreastTomosynthesisImageStorage, Modality="MG"), frame=0)


@pytest.mark.parametrize("lying, gantry, source", [("HFS", 0, (0, 1)), ("HFS", 90, (-1, 0)), ("HFP", 0, (0, -1)), ("HFP", 90, (1, 0)), ("FFS", 90, (1, 0)), ("FFS", 180, (0, -1)), ("FFP", 0, (0, -1)), ("FFP", 270, (1, 0))])
def test_the_gantry_of_radiotherapy(tmp_path, lying, gantry, source):
    "IEC 61217: at gantry 90 the source is at the patient's left, if supine with the head first."
    tags = {"Modality": "RTIMAGE", "RTImageSID": 1500, "RadiationMachineSAD": 1000, "ImagePlanePixelSpacing": [0.4, 0.3], "GantryAngle": gantry, "PatientPosition": lying, "PixelIntensityRelationshipSign": 1}
    centred = [-0.3 * 79 / 2, 0.4 * 59 / 2]
    found, said = camera(write(tmp_path / "x.dcm", COUNTS, uid.RTImageStorage, {}, RTImagePosition=centred, **tags))
    assert (found.sdd, found.sid, found.delx, found.dely) == (1500, 1000, 0.3, 0.4) and not said
    assert (found.x0, found.y0) == pytest.approx((0, 0), abs=1e-9)
    pose = found.pose(dtype=torch.float64)
    assert np.allclose(pose.matrix[0, :2, 3], 1000 * np.array(source), atol=1e-6)
    # the receptor's x is the room's at gantry 0 and turns with it, its y points into the gantry: rows and columns as IEC has them
    turn = np.deg2rad(gantry)
    left, head = {"HFS": (1, 1), "HFP": (-1, 1), "FFS": (-1, -1), "FFP": (1, -1)}[lying]
    front = {"HFS": 1, "HFP": -1, "FFS": 1, "FFP": -1}[lying]
    right_of_room = np.array([np.cos(turn) * -left, -np.sin(turn) * front, 0.0])  # in RAS
    axes = (pose.matrix @ reorientation(found.view, torch.float64))[0, :3, :2].numpy() * [1 if not found.reverse_x_axis else -1, 1 if found.reverse_y_axis else -1]
    assert np.allclose(axes[:, 0], right_of_room, atol=1e-6) and np.allclose(axes[:, 1], [0, 0, -head], atol=1e-6)
    moved, _ = camera(write(tmp_path / "x.dcm", COUNTS, uid.RTImageStorage, {}, RTImagePosition=[centred[0] + 9, centred[1] - 4], **tags))
    assert (moved.x0, moved.y0) == pytest.approx((-9, -4))
    assert "PatientSupportAngle 30" in camera(write(tmp_path / "x.dcm", COUNTS, uid.RTImageStorage, {}, PatientSupportAngle=30, **tags))[1]


# shutters


def test_a_shutter_of_any_shape_and_what_is_painted_behind_it(tmp_path):
    (row, column), dense = np.mgrid[1:61, 1:81], LOG + 20_000
    inside = np.hypot((row - 30) * (0.4 / 0.3), column - 40) <= 25  # pixels are taller than wide
    shape = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [30, 40], "RadiusOfCircularShutter": 25}
    for fill in (0, 21_000, 65_535):  # black, grey, white
        tags = DX | {"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": -1} | shape
        xray, _, mask, said = taken(write(tmp_path / "x.dcm", np.where(inside, dense, fill), **tags), return_mask="file")
        assert np.array_equal(mask[0, 0], inside) and not said and xray.isfinite().all()
        alone = read_xray(np.where(inside, dense, dense[inside].max()), polarity="bone_bright")[0][0, 0]
        off = (xray[0, 0] - alone)[torch.from_numpy(inside)]
        assert off.max() - off.min() < 1e-4, fill  # a constant, to which registration is blind


@pytest.mark.parametrize("edges, words", [((9, 22, 3, 20), "in millimetres"), ((1, 8, 1, 6), "leaves 1.0% of an image that goes on"), ((900, 950, 1, 80), "leaves nothing")])
def test_a_shutter_that_cannot_be_is_passed_over(tmp_path, edges, words):
    names = ("ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge", "ShutterLeftVerticalEdge", "ShutterRightVerticalEdge")
    path = write(tmp_path / "x.dcm", LOG, ShutterShape="RECTANGULAR", **dict(zip(names, edges)), **DX)
    if "millimetres" in words:
        path = write(tmp_path / "x.dcm", LOG, ShutterShape="RECTANGULAR", **dict(zip(names, (1, 24, 1, 24))), **DX)
    *_, mask, said = taken(path, return_mask="file")
    assert mask.all() and words in said and "passed over" in said
    assert not taken(path, return_mask="pixels")[-1]


def test_a_mask_and_the_whole_image_overrule_the_header(tmp_path):
    tags = DX | {"ShutterShape": "RECTANGULAR", "ShutterRightVerticalEdge": 40, "PositionerPrimaryAngle": 0, "PositionerSecondaryAngle": 0}
    path = write(tmp_path / "x.dcm", LOG, **tags)
    Image.fromarray(np.full(LOG.shape, 255, np.uint8)).save(tmp_path / "mask.png")
    counted = lambda **how: Job(path, tmp_path, Case(tmp_path, counted=Counted(**how)), None).seen()[2].sum()
    assert counted(mask=tmp_path / "mask.png") == counted(whole_image=True) == LOG.size
    assert counted() <= LOG.size / 2


def test_the_depth_that_is_found_is_held_against_the_header(tmp_path, recwarn):
    camera = Camera(1020.0, 60, 60, 6.0, 6.0, sid=760.0, primary_angle=0.0, secondary_angle=0.0, view="PA")
    for sid, told in ((828.0, True), (790.0, False)):
        result = SimpleNamespace(verdict="converged", pose=carm_pose(3.0, 2.0, sid, "PA"))
        _doubt_depth(result, camera, "PA", tmp_path / "x.dcm")
        assert any(f"found {sid:.0f} mm from the middle" in str(w.message) for w in recwarn.list) == told
        recwarn.clear()


# from the file to the pose


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    "A CT, and what an X-ray of it looks like from a source under the table."
    folder = tmp_path_factory.mktemp("clinic")
    patient = make_phantom(spacing=3.0)
    write_ct(folder / "ct.nii.gz", patient)
    arm = Camera(1020.0, 128, 128, 3.0, 3.0)
    return folder, patient, arm


def shot(clinic, view, primary, secondary):
    "Counts of an X-ray, and its true pose."
    _, patient, arm = clinic
    reoriented = type(patient)(**{**patient, "orientation": view, "reorient": reorientation(view)})
    truth = carm_pose(primary, secondary, 760.0, view, offset=torch.tensor([[10.0, -12.0]]))
    image = simulate_xray(reoriented, arm, truth, seed=0)[0, 0]
    return (60_000 * torch.exp(image.min() - image)).round().numpy(), truth


HEAD = {"DistanceSourceToDetector": 1020, "DistanceSourceToPatient": 770, "ImagerPixelSpacing": [3.0, 3.0]}


@pytest.mark.parametrize("stated", ["PA", "nothing that is true"])
def test_register_takes_the_view_from_the_file_and_tries_the_other(clinic, stated):
    folder, patient, arm = clinic
    if stated == "PA":
        counts, truth = shot(clinic, "PA", 12.0, -4.0)
        path = write(folder / "xa.dcm", counts, geometry=HEAD, PositionerPrimaryAngle=8, PositionerSecondaryAngle=0, PatientOrientation=["L", "F"], **XA)
    else:  # the tube was above the table
        counts, truth = shot(clinic, "AP", 6.0, -4.0)
        path = write(folder / "xb.dcm", counts, geometry=HEAD, PositionerPrimaryAngle=3, PositionerSecondaryAngle=0, **XA)
    out = folder / path.stem
    result = CliRunner().invoke(app, [str(a) for a in ("register", folder / "ct.nii.gz", path, "--restarts", 4, "--out", out)])
    assert result.exit_code == 0, result.output
    said = json.loads((out / "pose.json").read_text())
    view = "PA" if stated == "PA" else "AP"
    assert said["orientation"] == view and f"view            {view}, " in result.output
    assert ("which converged; PA, as the header" in result.output) == (stated != "PA")
    found = torch.tensor(said["pose_matrix"], dtype=torch.float64)
    points = torch.cat([patient.fiducials[0].double(), torch.ones(len(patient.fiducials[0]), 1)], 1)
    off = points @ (torch.linalg.inv(found) - torch.linalg.inv(truth.matrix[0].double())).T
    assert off[:, :3].norm(dim=1).mean() < 1.0
    assert carm_angles(truth, view).sid > 0


def test_a_foreign_camera_and_the_patient_share_one_view(tmp_path):
    "Whoever names the view: camera and patient follow the same, and the DRR from the true pose is the X-ray."
    subject = make_phantom(seed=0, spacing=6.0, orientation="PA")
    lens = Camera(1020.0, 60, 60, 6.0, 6.0, sid=700.0, primary_angle=20.0, secondary_angle=5.0, view="PA")
    image = DRR.from_camera(subject, lens)(lens.pose("PA"))
    counts = (60000 * (-4 * (image - image.min()) / image.max())[0, 0].exp()).numpy().astype(np.uint16)
    tags = dict(DistanceSourceToDetector=1020, DistanceSourceToPatient=700, PositionerPrimaryAngle=20, PositionerSecondaryAngle=5, ImagerPixelSpacing=[6, 6])
    path = write(tmp_path / "x.dcm", counts, geometry=tags, Modality="XA", PixelIntensityRelationship="LIN", PixelIntensityRelationshipSign=1)
    (tmp_path / "pose.json").write_text(json.dumps({**pose_to_dict(lens.pose("PA"), subject), "camera": lens.to_dict()}))
    XrayGeometry.read(tmp_path / "pose.json").write(tmp_path / "camera.yml")
    for init in ("carm", "LAO 20 CRAN 5 SOD 700", str(tmp_path / "pose.json"), str(tmp_path / "camera.yml")):
        for said in (None, "PA"):
            case = Case(tmp_path, Patient(said), Taken(tmp_path / "camera.yml"), start=Start(init))
            job = Job(path, tmp_path, case, None) if init == "carm" else Job(path, tmp_path, case, load_start(init))
            xray, camera, _ = job.seen()
            there = viewed(subject, case.view(camera, job.start)[0])
            begin = start_pose(job.start, there, replace(camera, sid=700.0), init)
            assert ncc(DRR.from_camera(there, camera)(begin), xray).item() > 0.99, (init, said)


MIRRORED = {"PatientOrientation": ["R", "F"]}  # columns run to the patient's right: mirrored against how radiologists hang it


@pytest.mark.parametrize("flip, rotate", [("horizontal", 0), ("vertical", 0), (None, 90), (None, 180), ("horizontal", 270)])
def test_a_turned_picture_has_the_camera_that_follows(tmp_path, flip, rotate):
    "The pixel at a ray is the same one; letters in the header follow, and where there are none the result is as radiologists hang it."
    part = dict(FieldOfViewOrigin=[4, 10], FieldOfViewRotation=0, FieldOfViewHorizontalFlip="NO", DetectorActiveDimensions=[40.0, 36.0])
    for letters in ({}, MIRRORED):
        path = write(tmp_path / "x.dcm", COUNTS, **XA | part | letters)
        plain, stored, all_, _ = taken(path, return_mask=True)
        xray, camera, mask, said = taken(path, return_mask=True, flip=flip, rotate=rotate)
        turn = lambda x: np.rot90({"horizontal": x[:, ::-1], "vertical": x[::-1]}.get(flip, x), -rotate // 90)
        assert np.array_equal(xray[0, 0], turn(plain[0, 0].numpy())) and np.array_equal(mask[0, 0], turn(all_[0, 0].numpy()))
        assert (camera.height, camera.width) == xray.shape[-2:]
        bead = np.zeros(plain.shape[-2:])
        bead[7, 51] = 1
        row, column = np.argwhere(turn(bead))[0] + 0.5
        seen, of_stored = (np.linalg.solve(c.K, [u, v, 1]) for c, u, v in ((camera, column, row), (stored, 51.5, 7.5)))
        assert np.isclose(np.hypot(*seen[:2]), np.hypot(*of_stored[:2])) and ("as radiologists hang it" in said) == (not letters)
        if not rotate and letters:  # a flip that the header knows of changes no ray
            sign = lambda c: (-1 if c.reverse_x_axis else 1, 1 if c.reverse_y_axis else -1)
            assert np.allclose(seen[:2] * sign(camera), of_stored[:2] * sign(stored)) and "PatientOrientation follows" in said
        elif not letters:
            assert (camera.reverse_x_axis, camera.reverse_y_axis) == (True, False)


def test_a_patient_on_the_side_is_turned_upright(tmp_path):
    path = write(tmp_path / "x.dcm", COUNTS, **XA | {"PatientOrientation": ["F", "R"]})
    assert "lies on the side" in taken(path)[-1]
    xray, camera, said = taken(path, rotate=90)
    assert "lies on the side" not in said and (camera.reverse_x_axis, camera.reverse_y_axis) == (True, False)


def test_the_command_turns_a_mirrored_picture_back(clinic, tmp_path):
    "A mirrored and turned PNG beside the calibration of the picture as the machine shows it; and one whose calibration is of the stored picture."
    folder, patient, _ = clinic
    camera = Camera(1020.0, 60, 80, 6.0, 6.0, 9.0, sid=700.0, primary_angle=10.0, secondary_angle=0.0)
    image = DRR.from_camera(patient, camera)(camera.pose())[0, 0]
    counts = (60_000 * (-4 * image / image.max()).exp()).numpy().astype(np.uint16)
    Image.fromarray(np.ascontiguousarray(np.rot90(counts)[:, ::-1])).save(tmp_path / "stored.png")  # undone by a flip, and a turn clockwise
    camera.to_json(tmp_path / "shown.json")
    turned = Taken(tmp_path / "shown.json", flip="horizontal", rotate="90")
    case = Case(folder / "ct.nii.gz", taken=turned, counted=Counted(whole_image=True))
    with pytest.warns(match="is taken to be of stored.png as --flip horizontal --rotate 90 turns it"):
        xray, found, _ = Job(tmp_path / "stored.png", tmp_path, case, None).seen()
    assert found == camera and ncc(xray, image[None, None]).item() > 0.99
    of_stored = camera.rotate90(3).flip_horizontal()
    of_stored.to_json(tmp_path / "stored.json")
    result = CliRunner().invoke(app, ["camera", str(tmp_path / "stored.json"), "--flip", "horizontal", "--rotate", "90", "--out", str(tmp_path / "followed.json")])
    assert result.exit_code == 0, result.output
    assert Camera.from_json(tmp_path / "followed.json") == replace(camera, reverse_x_axis=True)


def test_every_frame_is_registered_and_listed(clinic, tmp_path, monkeypatch):
    "A run of three frames in one file: each by itself, from its own angle, and a row for each."
    folder, patient, arm = clinic
    lens = replace(arm, height=64, width=64, delx=6.0, dely=6.0)
    seen = []
    for angle in (0.0, 10.0, 20.0):
        pose = carm_pose(angle, 0.0, 700.0, "PA")
        image = DRR.from_camera(viewed(patient, "PA"), lens)(pose)[0, 0]
        seen.append((60_000 * (-4 * image / image.max()).exp()).numpy().astype(np.uint16))
    geometry = {"DistanceSourceToDetector": 1020, "DistanceSourceToPatient": 700, "ImagerPixelSpacing": [6, 6]}
    angles = {"PositionerPrimaryAngle": 0, "PositionerPrimaryAngleIncrement": [0, 10, 20], "PositionerSecondaryAngle": 0, "PixelIntensityRelationship": "LIN"}
    write(tmp_path / "run.dcm", np.stack(seen), geometry=geometry, **XA, **angles)
    said = ["register", str(folder / "ct.nii.gz"), str(tmp_path / "run.dcm"), "--frame", "0,2", "--each", "--out", str(tmp_path / "out"), "--whole-image"]
    decoded, decode = [], pictures.stored_pixels
    monkeypatch.setattr(pictures, "stored_pixels", lambda path: decoded.append(path) or decode(path))
    result = CliRunner().invoke(app, said)
    assert result.exit_code == 0, result.output
    assert len(decoded) == 1  # and not once for each frame
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["xrays"]
    assert [(row["frame"], row["folder"], row["verdict"]) for row in rows] == [("0", "run_0", "converged"), ("2", "run_2", "converged")]
    for row, angle in zip(rows, (0.0, 20.0)):
        found = json.loads((tmp_path / "out" / row["folder"] / "pose.json").read_text())["carm"]
        assert abs(found["primary_angle_deg"] - angle) < 0.2
    alone = CliRunner().invoke(app, [word for word in said if word != "--each"])
    assert alone.exit_code == 2 and "--frame 0,2 are several" in alone.output


@pytest.mark.parametrize("flip, rotate", [("horizontal", None), ("vertical", "90")])
def test_a_mask_is_turned_with_the_frames_of_a_sequence(tmp_path, flip, rotate):
    "As `track` reads them: a mirrored file with a mirrored mask is the file as it was, pixel by pixel."
    back = (lambda x: x[..., ::-1]) if flip == "horizontal" else (lambda x: np.rot90(x, 1, (-2, -1))[..., ::-1, :])
    run, mask = np.stack([COUNTS, COUNTS // 2 + 7, COUNTS // 3 + 9]), np.zeros(COUNTS.shape, np.uint8)
    mask[5:30, 40:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png"), Image.fromarray(np.ascontiguousarray(back(mask))).save(tmp_path / "turned.png")
    turned = back(run)
    pitch = [0.3, 0.4] if rotate else [0.4, 0.3]
    write(tmp_path / "run.dcm", run, **XA), write(tmp_path / "turned.dcm", turned, **XA | {"geometry": GEOMETRY | {"ImagerPixelSpacing": pitch}})
    case = lambda mask, **how: Case(tmp_path / "ct", Patient(), Taken(**how), counted=Counted(tmp_path / mask))
    plain = load_frames([tmp_path / "run.dcm"], case("mask.png"))
    again = load_frames([tmp_path / "turned.dcm"], case("turned.png", flip=flip, rotate=rotate))
    assert torch.equal(plain.images, again.images) and torch.equal(plain.masks, again.masks)
    assert plain.masks.sum() == 3 * 25 * 40 and plain.camera.delx == again.camera.delx
