"""Real X-rays: radius, ulna and third metacarpal of one wrist, each found in both cameras of a biplane system together.

    python experiments/wrist.py [FOLDER] [--frames 0002 0099] [--bones radius] [--turns 24]
    python experiments/wrist.py FOLDER --report             only tables and pictures of what is there

DIFFPOSE_DATA names the folder with `wrist`: the sample data of SlicerAutoscoperM's Autoscoper, X-rays of two calibrated cameras at two times, and a CT of each
bone. Nobody's true pose ships. So the two cameras judge each other: a pose from one camera alone is measured in the other. A bone's start is where its ends were seen
on both X-rays (ENDS, read off by eye); the turn about its axis, which these do not tell, is tried all around. FOLDER gets CSVs and pictures.
"""

import argparse
import json
import math
import os
import time
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageSequence
from scenes import Rows
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from diffpose.calibration import Camera, from_opencv
from diffpose.calibration.formats import read_mayacam
from diffpose.data import in_tissue, read, read_xray
from diffpose.drr import DRR, silhouette
from diffpose.images import resize_image
from diffpose.pose import RigidTransform
from diffpose.registration.joint import JointRegistration, JointResult
from diffpose.registration.residuals import standardise_band
from diffpose.registration.unknowns import CameraPrior
from diffpose.twists import se3_log, so3_exp

# ---------------------------------------------------------------- knobs
STACKS = {"radius": "rad", "ulna": "uln", "metacarpal": "mc3"}
PAIR = "mc2_mc3"  # the second and third metacarpal in one stack of the same CT
VOXEL = (0.39625, 0.39625, 0.625)  # mm; the stacks' first page is the end towards the fingers
FLIPS = (1, 1, 1)  # signs of its columns, rows and pages along x, y, z; (1, -1, 1) would be the other hand
SDD = 1500.0  # mm; a calibration in pixels leaves the scale of the detector open
SHRINK, COARSE = 3, 5  # X-ray pixels averaged into one, and while turns are tried
AROUND = 22.0  # mm at the bone that the crop shows around its ends
MARGIN = 10.0  # mm on the detector around the silhouette that count
ROUNDS = 2  # masks around the pose found are drawn anew, so often
TRIED = 5  # starts that are registered, of those that the search likes best
SHAKEN, SHAKE = 20, (6.0, 3.0)  # these are turned at random first: so many times, by degrees about each axis
REACH = 3.0  # mm at the bone by which a start may be shifted, in each of two looks
TOLERANCE = CameraPrior(sdd=0.01, principal_point=1.0)  # of a camera that is not taken as exact
TURNS = 24  # about the bone's axis
TILT = 7.0  # degrees by which the axis that was read off may be wrong, in the image or towards the camera
HEAD = {"radius": 24, "ulna": 12, "metacarpal": 6, PAIR: 6}  # page of the end that was read off
ENDS = {  # (column, row) of that end, and of a place on the axis farther from the fingers, in camera 1 and in camera 2
    ("0099", "radius"): (((845, 1245), (885, 1690)), ((700, 1270), (625, 1690))),
    ("0099", "ulna"): (((775, 1205), (762, 1640)), ((855, 1250), (803, 1690))),
    ("0099", "metacarpal"): (((910, 660), (870, 1000)), ((930, 685), (765, 1030))),
    ("0002", "radius"): (((905, 1260), (912, 1690)), ((605, 1275), (572, 1690))),
    ("0002", "ulna"): (((865, 1215), (822, 1640)), ((745, 1235), (738, 1690))),
    ("0002", "metacarpal"): (((1245, 781), (978, 1026)), ((504, 760), (630, 1070))),
}
BEADS = [  # (column, row) of steel beads on the skin, frame 0099, camera 1 and camera 2; the centre within 7 pixels is looked for
    *(((779, 1319), (896, 1381)), ((764, 1350), (892, 1412)), ((806, 1340), (878, 1400)), ((766, 1374), (888, 1438)), ((796, 1372), (880, 1434)), ((788, 1397), (880, 1460))),
    *(((932, 817), (878, 850)), ((919, 834), (896, 871)), ((931, 855), (856, 888)), ((909, 875), (885, 913)), ((914, 905), (861, 943))),
]
# ----------------------------------------------------------------------

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("_runs/wrist"))
parser.add_argument("--frames", nargs="+", default=["0002", "0099"], choices=["0002", "0099"])
parser.add_argument("--bones", nargs="+", default=list(STACKS), choices=list(STACKS))
parser.add_argument("--turns", type=int, default=TURNS, help="how many starts about a bone's axis")
parser.add_argument("--report", action="store_true", help="compute nothing")


def wrist() -> Path:
    "The folder of the data."
    root = os.environ.get("DIFFPOSE_DATA")
    if root is None or not (Path(root) / "wrist").is_dir():
        raise SystemExit("DIFFPOSE_DATA names a folder that holds wrist/: X-rays, calibrations and stacks of Autoscoper's sample data")
    return Path(root) / "wrist"


# ---------------------------------------------------------------- cameras


def calibration() -> tuple[RigidTransform, list[Camera]]:
    "Where both cameras stand in the world of the calibration, and what they are."
    views = []
    for k in (1, 2):
        file = read_mayacam(wrist() / f"xr_calib_wrist_cam0{k}.txt")
        views.append(from_opencv(*file, sdd=SDD))
    return RigidTransform(torch.cat([pose.matrix for pose, _ in views]).double()), [camera for _, camera in views]


def by_hand(points: np.ndarray) -> np.ndarray:  # N 3 [mm] to 2 N 2 (column, row), centre of the first pixel at 0
    "Where the calibration files put points on both X-rays, by K, R and t alone."
    seen = []
    for k in (1, 2):
        file = read_mayacam(wrist() / f"xr_calib_wrist_cam0{k}.txt")
        x = (points @ file.R.T + file.t) @ file.K.T
        seen.append(x[:, :2] / x[:, 2:])
    return np.stack(seen)


def triangulate(pixels: np.ndarray) -> np.ndarray:  # 2 N 2 (column, row) to N 3 [mm]
    "The points of the calibration's world nearest to two pixels' rays."
    files = [read_mayacam(wrist() / f"xr_calib_wrist_cam0{k}.txt") for k in (1, 2)]
    points = []
    for pair in pixels.swapaxes(0, 1):
        rows = []
        for file, (u, v) in zip(files, pair):
            P = file.K @ np.c_[file.R, file.t]
            rows += [row / np.linalg.norm(row[:3]) for row in (u * P[2] - P[0], v * P[2] - P[1])]
        A = np.array(rows)
        points.append(np.linalg.lstsq(A[:, :3], -A[:, 3], rcond=None)[0])
    return np.array(points)


# ---------------------------------------------------------------- bones and X-rays


class Bone:
    "A bone as soft tissue shows it, in a world of its own (the CT's axes, its box's middle at the origin), or moved from there to a place."

    def __init__(self, name: str, place: torch.Tensor | None = None):
        pages = ImageSequence.Iterator(Image.open(wrist() / f"{STACKS.get(name, name)}_dcm_cropped.tif"))
        stack = np.stack([np.array(page) for page in pages]).transpose(2, 1, 0)
        self.name, self.inside, self.middle_index = name, (stack > 0).astype(np.int16), (np.array(stack.shape) - 1) / 2
        affine = np.diag([*(np.array(VOXEL) * FLIPS), 1.0])
        affine[:3, 3] = -affine[:3, :3] @ self.middle_index
        options = {"labels": 1, "affine": affine, "hu_max": 3071.0, "center_volume": False, "transform": place}
        self.ct = in_tissue(read(stack.astype(np.float32) - 1024, labelmap=self.inside, **options))
        world = torch.from_numpy(self.ct.density.affine)
        index = torch.from_numpy(np.argwhere(self.inside)).double()
        voxels = index @ world[:3, :3].T + world[:3, 3]
        self.voxels, self.points = voxels, voxels[::997]  # all, and where errors are stated
        page = index[:, 2]
        tip, rest = voxels[(page - HEAD[name]).abs() < 3].mean(0), voxels[page >= page.max() - 5].mean(0)
        self.middle = voxels.mean(0)
        self.tip, self.axis = tip, (rest - tip) / (rest - tip).norm()

    def drr(self, camera: Camera) -> DRR:
        "Its DRR in a camera."
        return DRR.from_camera(self.ct, camera, renderer="trilinear")

    def starts(self, ends: np.ndarray, turns: int) -> torch.Tensor:  # 2 3 [mm] to turns tilts 4 4
        "Where it may be in the calibration's world, with its ends where they were seen."
        ends = torch.from_numpy(ends)
        along = (ends[1] - ends[0]) / (ends[1] - ends[0]).norm()
        swing = torch.linalg.cross(self.axis, along)
        turn = so3_exp((swing / swing.norm() * torch.atan2(swing.norm(), self.axis @ along))[None])
        angles = 2 * math.pi * torch.arange(turns, dtype=torch.float64) / turns
        tilts = [torch.linalg.cross(along, aside) for aside in torch.eye(3, dtype=torch.float64)[[0, 2]]]
        tilts = torch.stack([torch.zeros(3, dtype=torch.float64), *(sign * math.radians(TILT) * t for t in tilts for sign in (-1, 1))])
        rotations = so3_exp(tilts)[None] @ so3_exp(angles[:, None] * along)[:, None] @ turn
        found = torch.eye(4, dtype=torch.float64).repeat(rotations.shape[0], len(tilts), 1, 1)
        found[..., :3, :3] = rotations
        found[..., :3, 3] = ends[0] - rotations @ self.tip
        return found


class Film:
    "An X-ray around a bone, with its camera and the pixels that can be trusted."

    def __init__(self, frame: str, view: int, camera: Camera, box: tuple[int, int, int, int], shrink: int):
        xray, _, mask = read_xray(wrist() / f"xr_cam0{view + 1}_{frame}.tif", camera=camera, return_mask=True)
        top, left, height, width = box
        h, w = height // shrink, width // shrink
        part = (..., slice(top, top + h * shrink), slice(left, left + w * shrink))
        self.camera = camera.crop(top, left, h * shrink, w * shrink).resize(h, w)
        self.xray, share = resize_image(xray[part], h, w, mask[part])
        self.mask = share > 0.999


def boxes(cameras: list[Camera], places: RigidTransform, points: torch.Tensor) -> list[tuple[int, int, int, int]]:  # top, left, height, width
    "What of both X-rays is around points of the calibration's world."
    found = []
    for camera, seen, place in zip(cameras, by_hand(points.numpy()), places.matrix):
        depth = (points - place[:3, 3]).norm(dim=-1).mean().item()
        reach = AROUND * camera.sdd / camera.delx / depth
        low, high = np.floor(seen.min(0) - reach), np.ceil(seen.max(0) + reach)
        left, top = np.maximum(low, 0).astype(int)
        right, bottom = np.minimum(high, [camera.width, camera.height]).astype(int)
        found.append((int(top), int(left), int(bottom - top), int(right - left)))
    return found


# ---------------------------------------------------------------- registration


def masks(bone: Bone, films: list[Film], poses: RigidTransform) -> list[torch.Tensor]:
    "Trusted pixels at most a margin from the bone, as poses have it."
    return [film.mask & silhouette(bone.drr(film.camera), poses[v : v + 1].float(), MARGIN) for v, film in enumerate(films)]


def together(bone: Bone, films: list[Film], places: RigidTransform, poses: RigidTransform, rounds: int) -> JointResult:
    "Both cameras, each round in masks of the pose before."
    solver = JointRegistration(bone.drr(films[0].camera), [film.camera for film in films], relative=places, restarts=0)
    for _ in range(rounds):
        result = solver.register([film.xray for film in films], poses, masks(bone, films, poses), bone.points, find_field=False)
        poses = result.poses
    return result


def matched(film: Film, drr: DRR, poses: RigidTransform) -> tuple[torch.Tensor, torch.Tensor]:  # B, B 2 (column, row)
    "How well DRRs of poses agree with an X-ray where they agree best, and by how many pixels they are shifted there."
    with torch.no_grad():
        near = (film.mask & silhouette(drr, poses, MARGIN)).float()
        a, b = standardise_band(drr(poses), near)[0], standardise_band(film.xray, film.mask.float())[0]
    size = [2 * n for n in a.shape[-2:]]
    a_, b_, there = (torch.fft.rfft2(x, size) for x in (a, b, (a != 0).any(1, keepdim=True).float()))
    against = lambda x, y: torch.fft.irfft2((x.conj() * y), size)
    energy = against(there, torch.fft.rfft2(b.square().sum(1, keepdim=True), size))[:, 0]
    ncc = against(a_, b_).sum(1) / (energy.clamp(min=1).sqrt() * a.flatten(1).norm(dim=1)[:, None, None])
    reach = round(REACH * film.camera.sdd / film.camera.delx / poses.translation.norm(dim=-1).mean().item())
    ncc = torch.roll(ncc, (reach, reach), (1, 2))[:, : 2 * reach + 1, : 2 * reach + 1]
    best, where = ncc.flatten(1).max(1)
    return best, torch.stack([where % (2 * reach + 1), where // (2 * reach + 1)], 1) - reach


def signs(camera: Camera) -> torch.Tensor:  # 2
    "Which way columns and rows run along the C-arm's axes."
    return torch.tensor([-1.0 if camera.reverse_x_axis else 1.0, 1.0 if camera.reverse_y_axis else -1.0]).double()


def search(bone: Bone, films: list[Film], places: RigidTransform, motions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # B 4 4, B
    "Motions after the shifts that both X-rays ask for, and how well they agree there."
    for _ in range(2):
        rows, wanted, total = [], [], 0
        for film, place in zip(films, places.matrix):
            score, shift = matched(film, bone.drr(film.camera), RigidTransform(torch.linalg.inv(motions) @ place).float())
            total = total + score
            seen = torch.linalg.inv(place @ bone.ct.reorient.double())  # the C-arm's own axes
            depth = (motions[:, :3, 3] @ seen[:3, :3].T + seen[:3, 3])[:, 2]
            pitch = torch.tensor([film.camera.delx, film.camera.dely]) / film.camera.sdd
            rows.append((seen[:2, :3] * signs(film.camera)[:, None]).expand(len(motions), 2, 3))
            wanted.append(shift.double() * pitch * depth[:, None])
        step = torch.linalg.lstsq(torch.cat(rows, 1), torch.cat(wanted, 1)[..., None]).solution[..., 0]
        motions = motions.clone()
        motions[:, :3, 3] += step
    return motions, total / len(films)


def poses_of(motion: torch.Tensor, places: RigidTransform) -> RigidTransform:  # 4 4: a bone in the calibration's world
    "Where both cameras stand in the bone's own world."
    return RigidTransform(torch.linalg.inv(motion) @ places.matrix)


def found_in(places: RigidTransform, poses: RigidTransform, view: int) -> torch.Tensor:  # 4 4
    "A bone in the calibration's world, of a pose of a view in the bone's."
    return places.matrix[view] @ torch.linalg.inv(poses.matrix[0])


def apart(bone: Bone, a: torch.Tensor, b: torch.Tensor, beam: torch.Tensor | None = None) -> dict:
    "Root mean square distance of two motions of a bone [mm], the turn between them [deg]; of a beam: how much farther the first is along it, and the distance across."
    off = bone.points @ (a - b)[:3, :3].T + (a - b)[:3, 3]
    turn = se3_log((a @ torch.linalg.inv(b))[None])[0, 3:].norm().rad2deg().item()
    found = {"apart_mm": off.square().sum(-1).mean().sqrt().item(), "turned_deg": turn}
    if beam is None:
        return found
    across = off - (off @ beam)[:, None] * beam
    return found | {"farther_mm": (off @ beam).mean().item(), "across_mm": across.square().sum(-1).mean().sqrt().item()}


def agreement(bone: Bone, film: Film, pose: RigidTransform, around: torch.Tensor) -> float:
    "Correlation of the fine structure of X-ray and DRR, in a mask."
    weight = around.float()
    with torch.no_grad():
        a, b = (standardise_band(x, weight)[0] for x in (bone.drr(film.camera)(pose.float()), film.xray))
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def first_poses(bone: Bone, frame: str, places: RigidTransform, cameras: list[Camera], turns: int) -> tuple[list[torch.Tensor], list, list]:
    "What is worth a registration, best first: motions 4 4, their agreement, and the box around the bone."
    ends = triangulate(np.array(ENDS[frame, bone.name], dtype=float))
    box = boxes(cameras, places, torch.from_numpy(ends))
    films = [Film(frame, v, camera, box[v], COARSE) for v, camera in enumerate(cameras)]
    starts = bone.starts(ends, turns)
    motions, scores = search(bone, films, places, starts.flatten(0, 1))
    motions, scores = motions.reshape(starts.shape), scores.reshape(starts.shape[:2])
    best, tilt = scores.max(1)
    generator, found = torch.Generator().manual_seed(0), []
    for k in best.argsort(descending=True)[:TRIED].tolist():
        one = motions[k, tilt[k]]
        for degrees in SHAKE:
            near = one.repeat(SHAKEN, 1, 1)
            shake = so3_exp(math.radians(degrees) * torch.randn(SHAKEN, 3, generator=generator, dtype=torch.float64))
            near[1:, :3, :3] = shake[1:] @ near[1:, :3, :3]
            near[:, :3, 3] = one[:3, :3] @ bone.middle + one[:3, 3] - near[:, :3, :3] @ bone.middle
            near, score = search(bone, films, places, near)
            one = near[score.argmax()]
        found.append((score.max().item(), k, one))
    found.sort(key=lambda one: -one[0])
    return [motion for *_, motion in found], [(k, score) for score, k, _ in found], box


def solve(bone: Bone, frame: str, places: RigidTransform, cameras: list[Camera], turns: int) -> tuple:
    "Of the starts worth it, the answer that agrees best in the camera where it agrees least; what else was tried; the X-rays."
    motions, scores, box = first_poses(bone, frame, places, cameras, turns)
    films, tried = [Film(frame, v, camera, box[v], SHRINK) for v, camera in enumerate(cameras)], []
    for motion, (turn, score) in zip(motions, scores):
        result = together(bone, films, places, poses_of(motion, places), 1)
        least = min(e["local_agreement"] if math.isfinite(e["local_agreement"]) else -1.0 for e in result.evidence)
        tried.append((least, len(tried), result, {"frame": frame, "bone": bone.name, "turn": turn, "search": score, "least_agreement": least, "verdict": result.verdict}))
    answer = together(bone, films, places, max(tried)[2].poses, ROUNDS)
    there = found_in(places, answer.poses[:1], 0)
    off = [apart(bone, found_in(places, result.poses[:1], 0), there) for _, _, result, _ in tried]
    rows = [row | {"from_answer_mm": x["apart_mm"], "turned_deg": x["turned_deg"]} for (*_, row), x in zip(tried, off)]
    return answer, rows, films


def row_of(frame: str, bone: Bone, places: RigidTransform, result: JointResult, seconds: float) -> dict:
    "What a table says of both cameras together."
    row = {"frame": frame, "bone": bone.name, "verdict": result.verdict, "expected_mm": result.expected_tre_mm, "seconds": seconds}
    for v, e in enumerate(result.evidence):
        along, across = result.error_mm[v, 0].tolist()
        row |= {f"agreement_{v + 1}": e["local_agreement"], f"detail_{v + 1}": e["agreement"], f"along_{v + 1}_mm": along, f"across_{v + 1}_mm": across}
    motion = found_in(places, result.poses[:1], 0)
    return row | {"reasons": "; ".join(result.reasons), "motion": " ".join(f"{x:.9g}" for x in motion.flatten().tolist())}


def alone(frame: str, bone: Bone, films: list[Film], places: RigidTransform, result: JointResult) -> list[dict]:
    "Each camera by itself from the joint pose: how far it goes, what it states, and how it looks in the other."
    rows, around, joint = [], masks(bone, films, result.poses), found_in(places, result.poses[:1], 0)
    for v, film in enumerate(films):
        w = 1 - v
        one = JointRegistration(bone.drr(film.camera), [film.camera], restarts=0)
        single = one.register(film.xray, result.poses[v : v + 1], [around[v]], bone.points, find_field=False)
        motion = found_in(places, single.poses, v)
        beam, other = ((place @ bone.ct.reorient.double())[:3, 2] for place in (places.matrix[v], places.matrix[w]))
        seen = RigidTransform((torch.linalg.inv(motion) @ places.matrix[w])[None])
        row = {"frame": frame, "bone": bone.name, "camera": v + 1, "verdict": single.verdict, "agreement": single.evidence[0]["local_agreement"]}
        loose = JointRegistration(bone.drr(film.camera), [film.camera], camera_prior=TOLERANCE, restarts=0)
        loose = loose.register(film.xray, result.poses[v : v + 1], [around[v]], bone.points, find_field=False)
        row |= {"stated_along_mm": single.error_mm[0, 0, 0].item(), "stated_across_mm": single.error_mm[0, 0, 1].item()}
        row |= {"tolerance_along_mm": loose.error_mm[0, 0, 0].item(), "tolerance_across_mm": loose.error_mm[0, 0, 1].item()}
        row |= {**apart(bone, motion, joint, beam)}
        row |= {"in_other_mm": apart(bone, motion, joint, other)["across_mm"]}
        row |= {"other_agrees": agreement(bone, films[w], seen, around[w]), "other_agrees_jointly": agreement(bone, films[w], result.poses[w : w + 1], around[w])}
        rows.append(row | {"motion": " ".join(f"{x:.9g}" for x in motion.flatten().tolist())})
    return rows


def released(frame: str, bone: Bone, films: list[Film], places: RigidTransform, result: JointResult) -> dict:
    "What both images together want of cameras that are not taken as exact."
    solver = JointRegistration(bone.drr(films[0].camera), [film.camera for film in films], relative=places, camera_prior=TOLERANCE, restarts=0)
    loose = solver.register([film.xray for film in films], result.poses, masks(bone, films, result.poses), bone.points, find_field=False)
    off = apart(bone, found_in(places, loose.poses[:1], 0), found_in(places, result.poses[:1], 0))
    row = {"frame": frame, "bone": bone.name, "verdict": loose.verdict, "stated_mm": loose.expected_tre_mm, "moved_mm": off["apart_mm"]}
    for v, (camera, film) in enumerate(zip(loose.cameras, films), 1):
        row |= {f"sdd_{v}_percent": 100 * (camera.sdd / film.camera.sdd - 1), f"x0_{v}_mm": camera.x0 - film.camera.x0, f"y0_{v}_mm": camera.y0 - film.camera.y0}
    return row


def in_the_pair() -> torch.Tensor:  # 4 4
    "From the world of the third metacarpal's stack to that of the stack of two, in which the same voxels are: a shift."
    one, two = Bone("metacarpal"), Bone(PAIR)
    size, axes = [a + b for a, b in zip(one.inside.shape, two.inside.shape)], (0, 1, 2)
    product = np.fft.irfftn(np.fft.rfftn(one.inside, size, axes).conj() * np.fft.rfftn(two.inside, size, axes), size, axes)
    offset = np.array(np.unravel_index(product.argmax(), size))
    offset = np.where(offset > np.array(size) / 2, offset - size, offset)
    print(f"{product.max() / one.inside.sum():.1%} of the third metacarpal's voxels are in the stack of two, shifted by {offset.tolist()}")
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.from_numpy(np.array(VOXEL) * FLIPS * (offset - two.middle_index + one.middle_index))
    return shift


def with_its_neighbour(frame: str, films: list[Film], places: RigidTransform, result: JointResult) -> dict:
    "The third metacarpal's pose against that of second and third together, from another stack of the same CT."
    shift, one, two = in_the_pair(), Bone("metacarpal"), Bone(PAIR)
    motion = found_in(places, result.poses[:1], 0)
    both = together(two, films, places, poses_of(motion @ torch.linalg.inv(shift), places), ROUNDS)
    theirs = found_in(places, both.poses[:1], 0) @ shift
    turn = se3_log((theirs @ torch.linalg.inv(motion))[None])[0, 3:]
    off = apart(one, theirs, motion) | {"about_own_axis": (turn @ (motion[:3, :3] @ one.axis) / turn.norm()).item()}
    agreements = {f"agreement_{v}": e["local_agreement"] for v, e in enumerate(both.evidence, 1)}
    return {"frame": frame, "bone": "metacarpal", "verdict": both.verdict, "stated_mm": both.expected_tre_mm, **agreements, **off}


def all_at_once(frame: str, found: dict[str, torch.Tensor], places: RigidTransform, cameras: list[Camera]) -> list[dict]:
    "All bones as bodies of one problem, each in the calibration's world where it was found alone."
    bones = {name: Bone(name, place) for name, place in found.items()}
    box = boxes(cameras, places, torch.cat([bone.points for bone in bones.values()]))
    films = [Film(frame, v, camera, box[v], 4) for v, camera in enumerate(cameras)]
    near = [torch.stack([each[v] for each in (masks(bone, films, places) for bone in bones.values())]).any(0) for v in (0, 1)]
    first, *_ = bones.values()
    solver = JointRegistration([bone.drr(films[0].camera) for bone in bones.values()], [film.camera for film in films], relative=places, restarts=0)
    begun = time.perf_counter()
    result = solver.register([film.xray for film in films], places, near, first.points, find_field=False)
    seconds, rows = time.perf_counter() - begun, []
    for k, (name, bone) in enumerate(bones.items()):
        moved = places.matrix[0] @ torch.linalg.inv(result.poses.matrix[0]) @ result.motions.matrix[k]
        still = torch.eye(4, dtype=torch.float64)
        stated = result.error_mm[:, k].norm(dim=-1).max().item()
        rows.append({"frame": frame, "bone": name, "verdict": result.verdict, "agreement": min(e["local_agreement"] for e in result.evidence), "stated_mm": stated, **apart(bone, moved, still), "seconds": seconds, "reasons": "; ".join(result.reasons)})
    return rows


def run(args) -> None:
    "A row per bone and frame."
    places, cameras = calibration()
    prove(args.folder, places, cameras)
    tables = {name: Rows(args.folder / f"rows_{name}.csv", ["frame", "bone"]) for name in ("starts", "joint", "alone", "cameras", "pair", "bodies")}
    for frame in args.frames:
        for name in args.bones:
            if not tables["joint"].has(frame, name):
                one(frame, Bone(name), places, cameras, args.turns, tables)
        found = {row["bone"]: motion_of(row) for row in rows_of(args.folder, "joint") if row["frame"] == frame}
        if not tables["bodies"].has(frame, args.bones[0]) and len(found) == len(STACKS):
            for row in all_at_once(frame, found, places, cameras):
                tables["bodies"].add(row)


def one(frame: str, bone: Bone, places: RigidTransform, cameras: list[Camera], turns: int, tables: dict[str, Rows]) -> None:
    "All that is asked of a bone in a frame."
    begun = time.perf_counter()
    result, tried, films = solve(bone, frame, places, cameras, turns)
    seconds = time.perf_counter() - begun
    for name, rows in {"starts": tried, "alone": alone(frame, bone, films, places, result), "cameras": [released(frame, bone, films, places, result)]}.items():
        for row in rows:
            tables[name].add(row)
    if bone.name == "metacarpal":
        tables["pair"].add(with_its_neighbour(frame, films, places, result))
    tables["joint"].add(row_of(frame, bone, places, result, seconds))
    print(f"{frame} {bone.name}: {result}, {seconds:.0f} s", flush=True)


def rows_of(folder: Path, name: str) -> list[dict]:
    "A table that is there."
    return pd.read_csv(folder / f"rows_{name}.csv", dtype={"frame": str}).to_dict("records")


def prove(folder: Path, places: RigidTransform, cameras: list[Camera]) -> None:
    "The calibration as this package has it against K, R and t by hand, and both against steel beads that both cameras see."
    bone = Bone("metacarpal")
    points = torch.tensor([110.0, 150, 90]).double() + 40 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = [bone.drr(camera).perspective_projection(places[v : v + 1], points[None])[0].numpy() for v, camera in enumerate(cameras)]
    off = np.abs(np.stack(ours) - 0.5 - by_hand(points.numpy())).max()
    beads = np.array(BEADS, dtype=float).swapaxes(0, 1)
    for v in (0, 1):
        image = -np.log((np.array(Image.open(wrist() / f"xr_cam0{v + 1}_0099.tif")).astype(float) + 8) / 264)
        beads[v] = [centroid(gaussian_filter(image, 1) - gaussian_filter(image, 6), *map(int, bead)) for bead in beads[v]]
    miss = lambda beads: np.abs(by_hand(triangulate(beads)) - beads).max((0, 2))
    misses, below = miss(beads), miss(np.stack([beads[..., 0], cameras[0].height - 1 - beads[..., 1]], -1))
    folder.mkdir(parents=True, exist_ok=True)
    proof = {"projection_differs_px": float(off), "beads": len(misses), "beads_miss_px_median": float(np.median(misses)), "beads_miss_px_max": float(misses.max())}
    proof |= {"rows_from_below_miss_px_median": float(np.median(below))}
    (folder / "calibration.json").write_text(json.dumps(proof, indent=1) + "\n")
    print(proof, flush=True)


def centroid(image: np.ndarray, column: int, row: int, reach: int = 5) -> tuple[float, float]:
    "The middle of the bead nearest to a pixel."
    part = image[row - 7 : row + 8, column - 7 : column + 8]
    i, j = np.unravel_index(part.argmax(), part.shape)
    row, column = row + i - 7, column + j - 7
    part = image[row - reach : row + reach + 1, column - reach : column + reach + 1]
    part = np.clip(part - np.percentile(part, 60), 0, None)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return column + (part * x).sum() / part.sum(), row + (part * y).sum() / part.sum()


# ---------------------------------------------------------------- report


def motion_of(row) -> torch.Tensor:  # 4 4
    "Where a row has a bone in the calibration's world."
    return torch.tensor([float(x) for x in row["motion"].split()], dtype=torch.float64).reshape(4, 4)


def report(folder: Path) -> None:
    "Tables and pictures of what is there."
    show = lambda table: print(table.drop(columns=["motion", "reasons"], errors="ignore").round(2).to_string(index=False), end="\n\n")
    for path in sorted(folder.glob("rows_*.csv")):
        print(path.stem)
        show(pd.read_csv(path, dtype={"frame": str}))
    joint, single = (pd.DataFrame(rows_of(folder, name)) for name in ("joint", "alone"))
    bones = {name: Bone(name) for name in joint["bone"].unique()}
    between = pd.DataFrame(views_apart(bones, single))
    between.to_csv(folder / "views.csv", index=False)
    show(between)
    moved = pd.DataFrame(motions(bones, joint))
    moved.to_csv(folder / "motions.csv", index=False)
    show(moved)
    for frame in joint["frame"].unique():
        overlay(folder, frame, bones, joint[joint["frame"] == frame])


def views_apart(bones: dict, single: pd.DataFrame) -> list[dict]:
    "How far the poses of single cameras are from each other, against what they state."
    rows = []
    for (frame, name), pair in single.groupby(["frame", "bone"], sort=False):
        a, b = (motion_of(row) for _, row in pair.iterrows())
        stated = math.sqrt((pair[["stated_along_mm", "stated_across_mm"]] ** 2).to_numpy().sum())
        off = apart(bones[name], a, b)
        rows.append({"frame": frame, "bone": name, "stated_mm": stated, "apart_mm": off["apart_mm"], "turned_deg": off["turned_deg"], "ratio": off["apart_mm"] / stated})
    return rows


def motions(bones: dict, joint: pd.DataFrame) -> list[dict]:
    "How bones moved against the radius between two frames, and how near they are to it in each."
    found, rows = {(row["frame"], row["bone"]): motion_of(row) for _, row in joint.iterrows()}, []
    frames = list(joint["frame"].unique())
    for name in bones:
        against = "radius" if name != "radius" else "the cameras"
        if name == "radius":
            local = {frame: found[frame, name] for frame in frames if (frame, name) in found}
        else:
            local = {f: torch.linalg.inv(found[f, "radius"]) @ found[f, name] for f in frames if (f, "radius") in found and (f, name) in found}
        gaps = {f"gap_{f}_mm": gap(bones[name], local[f], bones["radius"]) for f in local if name != "radius"}
        for a, b in pairwise(local):
            motion = local[b] @ torch.linalg.inv(local[a])
            middle = bones[name].points @ local[a][:3, :3].T + local[a][:3, 3]
            shift = (middle @ motion[:3, :3].T + motion[:3, 3] - middle).mean(0).norm().item()
            turn = se3_log(motion[None])[0, 3:]
            about = (turn / turn.norm()) @ bones["radius"].axis if name != "radius" else math.nan
            rows.append({"bone": name, "against": against, "from": a, "to": b, "turned_deg": turn.norm().rad2deg().item(), "about_radius_axis": float(about), "middle_moved_mm": shift} | gaps)
    return rows


def gap(bone: Bone, motion: torch.Tensor, radius: Bone) -> float:
    "Least distance between voxels of a bone, moved into the radius's world, and voxels of the radius [mm]."
    moved = bone.voxels @ motion[:3, :3].T + motion[:3, 3]
    return float(cKDTree(radius.voxels.numpy()).query(moved.numpy())[0].min())


def overlay(folder: Path, frame: str, bones: dict, rows: pd.DataFrame) -> None:
    "Outlines of the bones on both X-rays."
    places, cameras = calibration()
    found = {row["bone"]: motion_of(row) for _, row in rows.iterrows()}
    points = torch.cat([bones[name].points @ m[:3, :3].T + m[:3, 3] for name, m in found.items()])
    box = boxes(cameras, places, points)
    fig, axes = plt.subplots(1, 4, figsize=(16, 10), layout="constrained")
    for v, camera in enumerate(cameras):
        film = Film(frame, v, camera, box[v], 2)
        fine = standardise_band(film.xray, film.mask.float())[0][0].sum(0)
        for ax, image, limits in ((axes[2 * v], film.xray[0, 0], None), (axes[2 * v + 1], fine, (-3, 4))):
            low, high = limits or torch.quantile(film.xray[film.mask][::7], torch.tensor([0.02, 0.995])).tolist()
            ax.imshow(image, cmap="gray", vmin=low, vmax=high)
            ax.axis("off")
            for (name, motion), colour in zip(found.items(), ("#ff8c1a", "#4da6ff", "#66cc66", "#ff66cc")):
                with torch.no_grad():
                    pose = RigidTransform((torch.linalg.inv(motion) @ places.matrix[v])[None]).float()
                    shadow = bones[name].drr(film.camera)(pose)[0, 0]
                levels = [0.03 * float(shadow.max()), *torch.quantile(shadow[shadow > 0], torch.tensor([0.6, 0.9])).tolist()]
                ax.contour(shadow, levels=sorted(set(levels)), colors=colour, linewidths=[1.0, 0.5, 0.5])
        axes[2 * v].set_title(f"camera {v + 1}, frame {frame}")
        axes[2 * v + 1].set_title("fine structure")
    fig.savefig(folder / f"overlay_{frame}.png", dpi=90)
    plt.close(fig)


if __name__ == "__main__":
    args = parser.parse_args()
    if not args.report:
        run(args)
    report(args.folder)
