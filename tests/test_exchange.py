"""Cameras and poses of other programs: files that their own writers made, and points that their own conventions put somewhere.

The law is the same throughout: a landmark of the CT that the other program projects falls on the pixel where this package has it. What OpenCV's
FileStorage wrote is kept here as text, so that it is read on machines without OpenCV too; where OpenCV or DeepDRR's geometry is installed, they are asked.
"""

import json
import warnings
import zipfile
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pydicom
import pytest
import scipy.io
import SimpleITK as sitk
import torch
from pydicom import uid
from typer.testing import CliRunner

from diffpose.calibration import Camera, Detector, carm_pose
from diffpose.cli import app
from diffpose.errors import UserError
from diffpose.exchange import XrayGeometry, load_start, start_pose
from diffpose.exchange.geometry import FORMATS
from diffpose.files import data_path
from diffpose.phantom import make_phantom
from diffpose.report import save_image, write_ct
from diffpose.results import pose_to_dict
from diffpose.simulation import simulate_xray

LPS = np.diag([-1.0, -1.0, 1.0])

# written by cv::FileStorage of OpenCV 5.0.0 (cv2.FileStorage, names of its calibration sample)
YAML = """%YAML 1.2
---
image_width: 1040
image_height: 1000
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 5000., 0., 519.5, 0., 5010., 499.5, 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [ -0.10000000000000001, 0.02, 0.001, 0., 0. ]
rvec: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [ 0.10000000000000001, 0.20000000000000001, 0.29999999999999999 ]
tvec: !!opencv-matrix
   rows: 3
   cols: 1
   dt: d
   data: [ 1., 2., 700. ]
calibration_time: Fri
"""
XML = """<?xml version="1.0"?>
<opencv_storage>
<image_width>1040</image_width>
<image_height>1000</image_height>
<camera_matrix type_id="opencv-matrix">
  <rows>3</rows>
  <cols>3</cols>
  <dt>d</dt>
  <data>
    5000. 0. 519.5 0. 5010. 499.5 0. 0. 1.</data></camera_matrix>
<distortion_coefficients type_id="opencv-matrix">
  <rows>1</rows>
  <cols>5</cols>
  <dt>d</dt>
  <data>
    -0.10000000000000001 0.02 0.001 0. 0.</data></distortion_coefficients>
<rvec type_id="opencv-matrix">
  <rows>3</rows>
  <cols>1</cols>
  <dt>d</dt>
  <data>
    0.10000000000000001 0.20000000000000001 0.29999999999999999</data></rvec>
<tvec type_id="opencv-matrix">
  <rows>3</rows>
  <cols>1</cols>
  <dt>d</dt>
  <data>
    1. 2. 700.</data></tvec>
<calibration_time>Fri</calibration_time>
</opencv_storage>
"""
JSON = """{
    "image_width": 1040,
    "image_height": 1000,
    "camera_matrix": {
        "type_id": "opencv-matrix",
        "rows": 3,
        "cols": 3,
        "dt": "d",
        "data": [ 5000.0, 0.0, 519.5, 0.0, 5010.0, 499.5, 0.0, 0.0, 1.0 ]
    },
    "distortion_coefficients": {
        "type_id": "opencv-matrix",
        "rows": 1,
        "cols": 5,
        "dt": "d",
        "data": [ -0.10000000000000001, 0.02, 0.001, 0.0, 0.0 ]
    },
    "rvec": {
        "type_id": "opencv-matrix",
        "rows": 3,
        "cols": 1,
        "dt": "d",
        "data": [ 0.10000000000000001, 0.20000000000000001,
            0.29999999999999999 ]
    },
    "tvec": {
        "type_id": "opencv-matrix",
        "rows": 3,
        "cols": 1,
        "dt": "d",
        "data": [ 1.0, 2.0, 700.0 ]
    },
    "calibration_time": "Fri"
}
"""


@pytest.fixture(scope="module", params=["AP", "PA"])
def shown(request):
    "A pose and a camera of one view, landmarks in the CT's LPS coordinates, and the pixels where the detector has them."
    view = request.param
    subject = make_phantom(spacing=8.0, orientation=view)
    camera = Camera(1020.0, 200, 240, 1.5, 1.4, 11.0, -7.0, sid=700.0)
    pose = carm_pose(30.0, -10.0, 700.0, view, 5.0).double()
    points = subject.fiducials.double()
    pixels = Detector.from_camera(camera, subject.reorient.double()).double().project(pose, points)[0].numpy()
    lps = subject.scan_from_world(points)[0].numpy() @ LPS
    return XrayGeometry("found", stated=camera, poses=(pose_to_dict(pose, subject),)), lps, pixels, subject, pose


@pytest.mark.parametrize("name, text", [("a.yml", YAML), ("a.xml", XML), ("a.json", JSON)])
def test_what_opencv_wrote_is_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = XrayGeometry.read(tmp_path / name)
    assert (found.kind, found.height, found.width, found.distortion) == ("opencv", 1000, 1040, (-0.1, 0.02, 0.001, 0.0, 0.0))
    assert np.allclose(found.K, [[5000, 0, 520], [0, 5010, 500], [0, 0, 1]])
    with pytest.warns(UserWarning, match="in which frame its pose is"):
        E = found.from_scan("lps")
    turn = np.linalg.norm([0.1, 0.2, 0.3])  # by Rodrigues' formula
    x, y, z = np.array([0.1, 0.2, 0.3]) / turn
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    assert np.allclose(E[:3, :3], np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * cross @ cross)
    assert E[:3, 3].tolist() == [1, 2, 700]


@pytest.mark.parametrize("ending", ["yml", "yaml", "xml", "json", "yml.gz", "yaml.gz", "xml.gz", "json.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_opencv_writes_now_is_read(tmp_path, ending, packed):
    "Its calibration sample's fields: remarks, points of two channels, a list that OpenCV makes a matrix of one axis; numbers in digits and in base64."
    cv2 = pytest.importorskip("cv2")
    path, K = tmp_path / f"calib.{ending}", np.array([[2300.25, 0, 511.5], [0, 2310.5, 383.25], [0, 0, 1]])
    lens, rvec, tvec = np.array([[0.02, -0.3, 1e-4, -2e-4, 0.5]]), np.array([0.3, -1.2, 0.4]), np.array([[-20.0], [35.5], [810.0]])
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE | (cv2.FILE_STORAGE_BASE64 if packed else 0))
    file.write("calibration_time", "Fri 27 Nov 2026: 10 h")
    file.writeComment("flags: +zero_tangent_dist", False)
    file.write("image_points", np.random.default_rng(0).random((4, 30, 2)).astype(np.float32))
    for key, value in (("camera_matrix", K), ("distortion_coefficients", lens.astype(np.float32)), ("rvec", rvec), ("tvec", tvec)):
        file.write(key, value)
    file.write("image_size", np.array([1024, 768], np.int32))
    file.release()
    found = XrayGeometry.read(path)
    assert (found.height, found.width) == (768, 1024) and np.allclose(found.distortion, lens, rtol=1e-6)
    assert np.allclose(found.K - K, [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    points = np.random.default_rng(1).uniform(-80, 80, (9, 3))
    E = np.array(found.poses[0]["opencv_from"])
    x = (points @ E[:3, :3].T + E[:3, 3]) @ found.K.T
    assert np.allclose(x[:, :2] / x[:, 2:] - 0.5, cv2.projectPoints(points, rvec, tvec, K, None)[0][:, 0], atol=1e-6)


def test_what_opencv_calibrates_is_a_camera_however_it_is_kept(tmp_path):
    "calibrateCamera's own return values: by numpy.savez and in MATLAB's file; six views are six poses, none of which is the pose."
    cv2 = pytest.importorskip("cv2")
    rng, board, K = np.random.default_rng(2), np.zeros((48, 3), np.float32), np.array([[900.0, 0, 99.5], [0, 905, 119.5], [0, 0, 1]])
    board[:, :2] = 20 * np.mgrid[:8, :6].T.reshape(-1, 2)
    shots = [cv2.projectPoints(board, rng.normal(0, 0.3, 3), np.array([-70.0, -50, 800]) + rng.normal(0, 20, 3), K, None)[0].astype(np.float32) for _ in range(6)]
    _, mtx, dist, rvecs, tvecs = cv2.calibrateCamera([board] * 6, shots, (200, 240), None, None)
    np.savez(tmp_path / "a.npz", mtx=mtx, dist=dist, rvecs=rvecs, tvecs=tvecs, image_size=(200, 240))
    scipy.io.savemat(tmp_path / "a.mat", {"s": {"K": mtx + [[0, 0, 1], [0, 0, 1], [0, 0, 0]], "FocalLength": mtx[[0, 1], [0, 1]], "PrincipalPoint": mtx[:2, 2] + 1, "ImageSize": [240.0, 200], "RadialDistortion": dist[0, [0, 1, 4]], "TangentialDistortion": dist[0, 2:4]}})
    one, two = XrayGeometry.read(tmp_path / "a.npz"), XrayGeometry.read(tmp_path / "a.mat")
    assert (one.height, one.width, len(one.poses), len(two.poses)) == (240, 200, 6, 0) == (two.height, two.width, 6, 0)
    assert np.allclose(one.K, two.K) and np.allclose(one.distortion, two.distortion) and np.allclose(one.K[:2, 2], K[:2, 2] + 0.5, atol=0.2)
    seen = cv2.projectPoints(board, rvecs[3], tvecs[3], mtx, None)[0][:, 0]
    E = np.array(one.poses[3]["opencv_from"])
    x = (board @ E[:3, :3].T + E[:3, 3]) @ one.K.T
    assert np.abs(x[:, :2] / x[:, 2:] - 0.5 - seen).max() < 1e-3
    with pytest.raises(UserError, match="6 poses"):
        load_start(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("name", ["view.yml", "view.xml", "view.opencv.json", "view.yml.gz", "view.xml.gz"])
def test_opencv_reads_what_is_written_and_projects_to_the_same_pixels(tmp_path, shown, name):
    cv2 = pytest.importorskip("cv2")
    geometry, lps, pixels, subject, pose = shown
    geometry.write(tmp_path / name)
    file = cv2.FileStorage(str(tmp_path / name), cv2.FILE_STORAGE_READ)
    rvec, tvec, K, lens = (file.getNode(n).mat() for n in ("rvec", "tvec", "camera_matrix", "distortion_coefficients"))
    assert int(file.getNode("image_width").real()) == 240
    seen = cv2.projectPoints(lps[:, None], rvec, tvec, K, lens)[0][:, 0]
    assert np.abs(seen + 0.5 - pixels).max() < 1e-5
    back = XrayGeometry.read(tmp_path / name).pose(subject, geometry.stated)
    assert (back.matrix - pose.matrix).abs().max() < 1e-4


@pytest.mark.parametrize("n", [4, 5, 8, 12])
def test_images_are_straightened_as_opencv_does(n):
    cv2 = pytest.importorskip("cv2")
    k = (-0.3, 0.05, 2e-3, -1e-3, 0.01, 0.02, 0.01, 0.003, 1e-3, 2e-3, -2e-3, 1e-3)[:n]
    K = np.array([[90.0, 0, 61], [0, 95, 50], [0, 0, 1]])
    image = np.random.default_rng(0).random((100, 120))
    image = cv2.GaussianBlur(image, (0, 0), 3).astype(np.float32)
    half = K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    wanted = cv2.undistort(image, half, np.array(k))
    found = XrayGeometry("a", K, 100, 120, distortion=k).undistorted(torch.from_numpy(image)[None, None])[0, 0].numpy()
    inside = np.s_[8:-8, 8:-8]
    assert np.abs(image - wanted)[inside].max() > 0.05  # it is bent
    assert np.abs(found - wanted)[inside].max() < 2e-3  # OpenCV rounds to 1/32 pixel


def test_deepdrr_projects_to_the_same_pixels(tmp_path, shown):
    geo = pytest.importorskip("killeengeo")
    geometry, lps, pixels, subject, pose = shown
    geometry.write(tmp_path / "a.deepdrr.json")
    config = json.loads((tmp_path / "a.deepdrr.json").read_text())
    inner = geo.CameraIntrinsicTransform.from_config(config["intrinsic"])
    projection = geo.CameraProjection(inner, geo.FrameTransform(np.array(config["extrinsic"]["data"])))
    assert (inner.sensor_width, inner.sensor_height) == (240, 200)
    seen = np.array([np.array(projection @ geo.point(*(LPS @ p))) for p in lps])
    assert np.abs(seen - pixels).max() < 1e-3
    config = {"intrinsic": inner.get_config(), "extrinsic": projection.camera3d_from_world.get_config()}
    (tmp_path / "theirs.json").write_text(json.dumps(config))
    theirs = XrayGeometry.read(tmp_path / "theirs.json")
    assert theirs.kind == "deepdrr" and (theirs.pose(subject, geometry.stated).matrix - pose.matrix).abs().max() < 1e-3


def test_itk_resamples_the_xrays_frame_into_the_ct(tmp_path, shown):
    geometry, lps, pixels, subject, pose = shown
    geometry.write(tmp_path / "a.tfm")
    transform = sitk.ReadTransform(str(tmp_path / "a.tfm"))
    x = np.array([transform.TransformPoint(p.tolist()) for p in lps]) @ geometry.pinhole().T
    assert np.abs(x[:, :2] / x[:, 2:] - pixels).max() < 1e-5
    other = sitk.VersorRigid3DTransform()  # as another program may write it, composed and backwards
    backwards = sitk.AffineTransform(transform.GetInverse())
    other.SetMatrix(backwards.GetMatrix(), 1e-6)
    other.SetTranslation(backwards.GetTranslation())
    sitk.WriteTransform(sitk.CompositeTransform([other.GetInverse()]), str(tmp_path / "b.h5"))
    back = XrayGeometry.read(tmp_path / "b.h5").pose(subject, geometry.stated)
    assert (back.matrix - pose.matrix).abs().max() < 1e-4


def test_every_format_that_is_written_is_read_again(tmp_path, shown):
    geometry, _, _, subject, pose = shown
    for kind, form in FORMATS.items():
        for ending in form.suffixes:
            if form.write is None or not ending or kind == "diffpose" or (kind == "opencv" and ending == ".json") or ending in (".txt", ".csv", ".json"):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a CT that is not there
                geometry.write(tmp_path / f"a{ending}")
                again = load_start(str(tmp_path / f"a{ending}"), "lps")
            found = start_pose(again, subject, geometry.stated, ending)
            assert (found.matrix - pose.matrix).abs().max() < 2e-3, (kind, ending)


@pytest.mark.parametrize("name", ["scene.mrb", "scene.mrml"])
def test_a_scene_has_the_ct_of_a_dicom_folder(tmp_path, shown, name):
    "Each voxel is where ITK's own reader of the series has it; a prone patient, slices stored downwards."
    geometry, *_ = shown
    voxels = np.random.default_rng(0).integers(-1000, 2000, (6, 5, 7)).astype(np.int16)
    series, frame = uid.generate_uid(), uid.generate_uid()
    (tmp_path / "ct").mkdir()
    for k, plane in enumerate(voxels):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid.generate_uid()
        ds.Modality, ds.SeriesInstanceUID, ds.FrameOfReferenceUID, ds.InstanceNumber = "CT", series, frame, k
        ds.ImageOrientationPatient, ds.ImagePositionPatient, ds.PixelSpacing = [-1, 0, 0, 0, -1, 0], [30, 40, 100 - 2.5 * k], [1.5, 1.25]
        ds.RescaleSlope, ds.RescaleIntercept, ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 0, 1, "MONOCHROME2"
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 5, 7, 16, 16, 15, 1
        ds.PixelData = plane.tobytes()
        ds.save_as(tmp_path / "ct" / f"{k}.dcm", enforce_file_format=True)
    replace(geometry, ct=tmp_path / "ct").write(tmp_path / name)
    if name.endswith(".mrb"):
        zipfile.ZipFile(tmp_path / name).extractall(tmp_path)
    scene = ElementTree.parse(next(tmp_path.rglob("scene.mrml")))
    ids = {node.get("id"): node for node in scene.getroot()}
    volume = next(node for node in ids.values() if node.tag == "Volume" and node.get("name") == "CT")
    file = next(tmp_path.rglob("scene.mrml")).parent / ids[volume.get("references").split(";")[0].split(":")[1]].get("fileName")
    found = sitk.ReadImage(str(file))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct"))
    wanted = sitk.ReadImage(names)
    for index in np.ndindex(wanted.GetSize()):
        assert found[found.TransformPhysicalPointToIndex(wanted.TransformIndexToPhysicalPoint(index))] == wanted[index]


@pytest.mark.parametrize("name", ["a.yml", "a.xml", "a.json", "a.npz", "a.mat", "a.txt", "a.csv", "a.pth", "a.tfm", "a.h5", "a.mrml", "a.mrb", "a.dcm", "a"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 200, b"{", b"[1, 2]", b'{"K": "x", "R": 3, "t": []}', b"K: [1, 2\n", b"\xff\xfe\x00", b"PK\x03\x04", b'{"intrinsic": {"data": 3}}', b"image size\n1,2\n"])
def test_what_is_no_such_file_is_refused_in_words(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}"):
        XrayGeometry.read(tmp_path / name)


def test_the_command_takes_a_calibration_with_distortion_and_the_words_of_the_room(tmp_path):
    "From an X-ray that a lens has bent, a calibration file of OpenCV and what the display shows, to files for other programs."
    subject = make_phantom(spacing=4.0)
    write_ct(tmp_path / "ct.nii.gz", subject)
    camera = Camera(1020.0, 96, 96, 4.0, 4.0)
    truth = carm_pose(4.0, -3.0, 845.0, roll=2.0)
    image = simulate_xray(subject, camera, truth, seed=0)
    # a bent image: the lens put at (u', v') what the straight image has at (u, v), so it is looked up by the inverse, found by fixed-point steps
    k1, f, c = -0.9, 255.0, 48.0
    v, u = (np.mgrid[0.5:96, 0.5:96] - c) / f
    x, y = u.copy(), v.copy()
    for _ in range(80):
        x, y = u / (1 + k1 * (x * x + y * y)), v / (1 + k1 * (x * x + y * y))
    grid = torch.from_numpy(np.stack([(x * f + c) / 48 - 1, (y * f + c) / 48 - 1], -1)).float()[None]
    bent = torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
    save_image(tmp_path / "xray.png", (bent.min() - bent)[0, 0].exp(), (0, 1), 16, quantity="intensity")
    lens = XrayGeometry("a", camera.K.numpy(), 96, 96, distortion=(k1, 0.0, 0.0, 0.0, 0.0))
    lens.write(tmp_path / "calib.yml")
    said = ["register", "ct.nii.gz", "xray.png", "--camera", "calib.yml", "--sdd", "1020", "--init", "LAO 10 CAUD 8 SOD 850", "--out", "out"]
    said = [str(tmp_path / word) if word in ("ct.nii.gz", "xray.png", "calib.yml", "out") else word for word in said]
    run = CliRunner().invoke(app, [*said, "--restarts", "0", "--export", "pose.tfm", "--export", "scene.mrml", "--export", "view.yml"])
    assert run.exit_code in (0, 1) and "straightened by OpenCV's" in " ".join(run.output.split()), run.output
    found = XrayGeometry.read(tmp_path / "out" / "pose.json")
    assert (found.pose(subject).matrix - truth.double().matrix).abs().max() < 8, run.output
    display = found.poses[0]["carm"]["display"]
    assert display.startswith("LAO ") and "CAUD " in display and display in run.output
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"pose.tfm", "scene.mrml", "scene_beam.vtk", "scene_xray.nrrd", "view.yml"} <= files
    same = XrayGeometry.read(tmp_path / "out" / "view.yml")
    assert np.allclose(same.from_scan("lps"), found.from_scan("lps"))
    straight = replace(lens, distortion=())
    straight.write(tmp_path / "plain.yml")
    run = CliRunner().invoke(app, [*[w.replace("calib.yml", "plain.yml") for w in said], "--restarts", "0", "--force"])
    worse = XrayGeometry.read(tmp_path / "out" / "pose.json").pose(subject).matrix - truth.double().matrix
    assert worse.abs().max() > (found.pose(subject).matrix - truth.double().matrix).abs().max(), "the lens makes no difference"


@pytest.mark.skipif(data_path("wrist") is None, reason="real scans: DIFFPOSE_DATA has no wrist")
def test_the_real_calibrations_of_a_biplane_system_are_cameras():
    for k in (1, 2):
        path = data_path("wrist", f"xr_calib_wrist_cam0{k}.txt")
        run = CliRunner().invoke(app, ["camera", str(path), "--sdd", "1500"])
        assert run.exit_code == 0 and "mayacam" in run.output and "1760 x 1760" in run.output, run.output
        found = XrayGeometry.read(path)
        with pytest.warns(UserWarning, match="half as far again"):
            camera = found.camera()
        lines = path.read_text().split("\n\n")
        f = [float(x) for x in lines[1].splitlines()[1].split(",")]
        assert abs(camera.sdd / camera.delx / f[0] - 1) < 1e-9 and abs(camera.K[0, 2] - f[2] - 0.5) < 1e-6


@pytest.mark.parametrize("fx, fy", [(500.0, -510.0), (-500.0, -510.0)])
@pytest.mark.parametrize("view", ["AP", "PA"])
def test_axes_of_the_image_may_run_either_way(tmp_path, fx, fy, view):
    "A camera with negative focal lengths and a lens: OpenCV's pixels are ours, straight and bent."
    cv2 = pytest.importorskip("cv2")
    K, lens = np.array([[fx, 0, 61], [0, fy, 47], [0, 0, 1]]), np.array([-0.1, 0.02, 0.01, -0.02, 0.03, 0.01, 0.02, 0.003, 0.01, 0.02, 0.03, 0.04])
    rvec, tvec, subject = np.array([1.5, 0.1, -0.2]), np.array([10.0, -5, 720]), make_phantom(spacing=20.0, orientation=view)
    np.savez(tmp_path / "a.npz", K=K, dist=lens, rvec=rvec, tvec=tvec, image_size=(120, 100), frame="LPS")
    found = XrayGeometry.read(tmp_path / "a.npz")
    camera, points = found.camera(sdd=1000.0, orientation=view), subject.fiducials.double()
    pixels = Detector.from_camera(camera, subject.reorient.double()).double().project(found.pose(subject, camera), points)[0].numpy()
    lps = subject.scan_from_world(points)[0].numpy() @ LPS
    straight, bent = (cv2.projectPoints(lps, rvec, tvec, K, k)[0][:, 0] + 0.5 for k in (None, lens))
    assert np.abs(pixels - straight).max() < 1e-6 < np.abs(straight - bent).max()
    inside = (np.abs(straight - [60, 50]) < [55, 45]).all(1)  # where a pixel of the straight image looks in the bent one
    assert inside.any()
    ramps = torch.from_numpy(np.stack(np.mgrid[0.5:100, 0.5:120][::-1]))[:, None]
    looked = found.undistorted(ramps)[:, 0].numpy()
    at = np.floor(straight[inside]).astype(int)
    assert np.abs(looked[:, at[:, 1], at[:, 0]].T - bent[inside]).max() < 1.5
