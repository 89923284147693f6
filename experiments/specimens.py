"A specimen of the experiments: the patient, the camera, and X-rays whose poses are known. From the DeepFluoro file or its twin, or simulated from a CT."

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchio

from diffpose.calibration import Camera
from diffpose.data import read
from diffpose.deepfluoro import DeepFluoroDataset, Evaluator
from diffpose.deepfluoro.layout import FILE_NAME, SDD_MM
from diffpose.deepfluoro.twin import ROOM_MM
from diffpose.drr import DRR
from diffpose.images import open_field
from diffpose.metrics import registration_errors
from diffpose.pose import RigidTransform
from diffpose.registration import default_landmarks
from diffpose.simulation import Physics, simulate_xray
from diffpose.training import NormalPoses

CT_XRAYS = 20  # simulated from a CT
FIELD_MM = 278.6  # of the detector for these: DeepFluoro's, without the border
CT_SEED = 4000  # of their poses


@dataclass(frozen=True)
class Specimen:
    "What the scripts need."

    name: str
    subject: torchio.Subject  # the CT, view PA
    n: int  # X-rays
    xray: Callable  # k -> (1 1 H W line integrals, 1 1 H W bool: between the blades)
    camera: Callable  # k -> Camera
    errors: Callable  # k, RigidTransform -> RegistrationErrors
    landmarks: torch.Tensor  # N 3, world [mm]


def load(
    specimen: int,  # number in the file; with a CT, only a name
    data: Path | None,  # HDF5 file, or its folder (None: where `diffpose data deepfluoro` put it), or a CT: NIfTI, NRRD, DICOM folder; labels.nii.gz beside it are its labels
    height: int,  # rows of the X-rays
    tool_mm: float = 0.0,  # with a CT: a metal rod across the X-rays
) -> Specimen:
    "A specimen by number."
    if data is None or Path(data).suffix.lower() in (".h5", ".hdf5") or (Path(data) / FILE_NAME).exists():
        return _from_file(specimen, data, height)
    return _from_ct(specimen, Path(data), height, tool_mm)


def _from_file(number: int, data: Path | None, height: int) -> Specimen:
    dataset = DeepFluoroDataset(number, data, height=height, exclude_bad=True)

    def xray(k: int) -> tuple:
        image = dataset[k][0]
        return image, open_field(image)

    return Specimen(f"specimen {number}", dataset.subject, len(dataset), xray, dataset.camera_of, lambda k, pose: Evaluator(dataset, k)(pose), dataset.fiducials[0])


def _from_ct(number: int, path: Path, height: int, tool_mm: float) -> Specimen:
    labels = path.with_name("labels.nii.gz")
    subject = read(path, labelmap=labels if labels.exists() else None, orientation="PA")
    camera = Camera(SDD_MM, height, height, FIELD_MM / height, FIELD_MM / height)
    drr = DRR.from_camera(subject, camera, persistent=False)
    landmarks = default_landmarks(drr).float()
    draws = 20 * CT_XRAYS
    truth = _seen(NormalPoses().sample(draws, torch.Generator().manual_seed(CT_SEED + number)), drr, landmarks)
    if len(truth) < CT_XRAYS:
        raise SystemExit(f"{path}: {len(truth)} of {draws} views of the published range hold half of the landmarks, {CT_XRAYS} are needed: is this a CT of a pelvis, with its landmarks in the middle?")
    images, field = simulate_xray(subject, camera, truth, seed=CT_SEED, physics=Physics(tool_mm=tool_mm), return_mask=True)
    errors = lambda k, pose: registration_errors(truth[k].double(), pose.double(), landmarks[None].double(), drr.detector)
    return Specimen(path.parent.name, subject, CT_XRAYS, lambda k: (images[k : k + 1], field[k : k + 1]), lambda k: camera, errors, landmarks)


def _seen(poses: RigidTransform, drr: DRR, landmarks: torch.Tensor) -> RigidTransform:
    "The first views that hold half of the landmarks, with the patient between source and detector."
    at = drr.perspective_projection(poses, landmarks[None])
    size = torch.tensor([drr.detector.width, drr.detector.height])
    held = ((at > 0) & (at < size)).all(-1).float().mean(-1) >= 0.5
    distance = poses.translation.norm(dim=-1)
    kept = held & (distance > ROOM_MM[0]) & (distance < drr.detector.sdd - ROOM_MM[1])
    return poses[kept.nonzero()[:CT_XRAYS, 0]]
