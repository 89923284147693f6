"""Is the stated error of a registration as large as it says? Several X-rays, moving bones and cameras that are wrong within their tolerance.

    DIFFPOSE_GAUNTLET=folder DIFFPOSE_DATA=folder python experiments/calibration.py [FOLDER] [--parts exact camera pairs femora] [--scenarios clean real] [--only 0::2]
    python experiments/calibration.py FOLDER --report     only the tables and the plot of what is there

The parts, on X-rays that other programs made (the gauntlet, see `gauntlet.py`; two X-rays of one patient are a biplane pair, for their true poses are known), from small starts:
`exact` one view, the camera as it is; `camera` one view, the camera stated wrongly by random numbers of its prior (scenarios `sdd3`, `pp5` and `pix5`: by what they say);
`pairs` two views whose sources are 40 to 140 degrees apart: cameras exact, cameras wrong within their prior, relative pose wrong within its prior, both;
`femora` X-rays that are simulated from a pelvis whose two femora are turned by up to 15 degrees about their heads, two views, three bodies.
A row is written after each registration, and what is there is not computed again: a stopped run goes on where it was.
"""

import argparse
import json
import math
import os
import time
import zlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import gauntlet
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from gauntlet import NINETY, RIGHT, WRONG, markdown, subject
from scenes import Rows, draw_starts, launch, read_rows
from scipy import ndimage

from diffpose.calibration import Camera, carm_pose
from diffpose.data import read
from diffpose.drr import DRR
from diffpose.pose import RigidTransform
from diffpose.registration.joint import JointRegistration, JointResult
from diffpose.registration.unknowns import CameraPrior, MotionPrior
from diffpose.simulation import simulate_xray
from diffpose.twists import se3_exp, se3_log

# ---------------------------------------------------------------- knobs
LOOSE = CameraPrior(sdd=0.02, principal_point=3.0)  # one view: what is known of the camera
TIGHT = CameraPrior(sdd=0.01, principal_point=2.0)
OFF = {name: CameraPrior(0.02, 4.0, 0.02) for name in ("sdd3", "pp5", "pix5")}  # scenarios whose camera is wrong as it is
PAIR = CameraPrior(sdd=0.03, principal_point=5.0)  # two views
ROUGH = MotionPrior(5.0, 20.0)  # how well the second view is known to the first
APART = 40.0  # angle between two views, at least [deg]
PAIRS = 3  # of one patient in a scenario, at most
TURN = 15.0  # of a femur, at most [deg]
FEMURS = ((75, 77), (76, 78))  # labels of a femur and of its hip
FEMUR = (8.0, 2.0)  # prior of a femur: turn about each axis [deg], shift of its head [mm]
SOFT = 50.0  # soft tissue in a bone's place [HU]
CAMERA = Camera(1020.0, 128, 128, 3.0, 3.0)  # of the femora
DISTANCE = 720.0  # from the source to the femoral heads [mm]
HIGHER = 105.0  # the beam's middle above the femoral heads, for the CT ends 33 mm below them [mm]
CASES = 50  # of the femora
# ----------------------------------------------------------------------

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("_runs/calibration"))
parser.add_argument("--parts", nargs="+", default=["exact", "camera", "pairs", "femora"], choices=["exact", "camera", "pairs", "femora"])
parser.add_argument("--scenarios", nargs="*", default=None, help="default: all whose X-rays are as stated; camera: sdd3, pp5 and pix5, too")
parser.add_argument("--kinds", nargs="*", default=None, help="of each part: exact; tight, loose, given; exact, camera, relative, both; femora; default: all")
parser.add_argument("--subjects", nargs="*", default=["pelvis", "chest", "phantom7", "phantom8"])
parser.add_argument("--only", default="0::1", help="first::every, of each scenario's X-rays or pairs, and of the femora")
parser.add_argument("--report", action="store_true", help="compute nothing")


def random(*key) -> np.random.Generator:
    "Random numbers that depend on the case alone."
    return np.random.default_rng(zlib.crc32("/".join(map(str, key)).encode()))


def misstated(camera: Camera, prior: CameraPrior, rng: np.random.Generator) -> Camera:
    "A camera as somebody might state it who knows it as well as the prior says."
    z = rng.standard_normal(4)
    larger = math.exp(prior.pixel * z[3])
    moved = {"x0": camera.x0 + prior.principal_point * z[1], "y0": camera.y0 + prior.principal_point * z[2]}
    return replace(camera, sdd=camera.sdd * math.exp(prior.sdd * z[0]), delx=camera.delx * larger, dely=camera.dely * larger, **moved)


def displaced(truth: torch.Tensor, prior: MotionPrior, rng: np.random.Generator) -> torch.Tensor:  # 4 4 to 4 4
    "A view as somebody might state it who knows its place as well as the prior says."
    z = torch.tensor(rng.standard_normal(6))
    twist = torch.cat([prior.translation_mm * z[:3], math.radians(prior.rotation_deg) * z[3:]])
    return se3_exp(twist[None])[0] @ truth


@lru_cache(maxsize=8)
def xrays(scenario: str):
    "A scenario's arrays and cases."
    z = np.load(Path(os.environ["DIFFPOSE_GAUNTLET"]) / f"{scenario}.npz")
    return z, json.loads(str(z["cases"]))


def seen(scenario: str, i: int) -> dict:
    "An X-ray with its truth."
    z, cases = xrays(scenario)
    case, c = cases[i], cases[i]["camera"]
    camera = Camera(c["sdd"], c["h"], c["w"], c["dx"], c["dy"], c["x0"], c["y0"])
    truth, start = (torch.tensor(z[f"{i}.{name}"]).double() for name in ("pose", "start.small"))
    points = torch.tensor(z[f"{i}.points"]).double()
    return case | dict(camera=camera, xray=gauntlet.load(z, i, case, camera), truth=truth, start=start, points=points)


def errors(found: torch.Tensor, truth: torch.Tensor, points: torch.Tensor, beam: torch.Tensor) -> dict:  # 4 4, 4 4, N 3, 3
    "Root mean square error of points [mm]: in all, along a beam and across it; and the turn [deg]."
    off = found @ torch.linalg.inv(truth)
    moved = points @ off[:3, :3].mT + off[:3, 3] - points
    along = moved @ beam
    rms = lambda square: square.mean().sqrt().item()
    turn = math.degrees(se3_log(off[None])[0, 3:].norm())
    return dict(tre_mm=rms(moved.square().sum(1)), along_mm=rms(along.square()), across_mm=rms(moved.square().sum(1) - along.square()), turn_deg=turn)


def chi_square(found: torch.Tensor, truth: torch.Tensor, covariance: torch.Tensor) -> float:
    "How far a pose 4 4 is from the truth, in squares of the stated standard deviations; of 6 degrees of freedom."
    twist = se3_log((truth @ torch.linalg.inv(found))[None])[0].roll(3)
    if not covariance.isfinite().all():
        return 0.0
    return (twist @ torch.linalg.pinv(covariance, hermitian=True, rtol=1e-14) @ twist).item()


def stated(result: JointResult, v: int, k: int) -> dict:
    "What is said of the error of a body in a view."
    along, across = result.error_mm[v, k].tolist()
    return dict(expected_mm=math.hypot(along, across), expected_along_mm=along, expected_across_mm=across)


def compared(result: JointResult, reorient: torch.Tensor, truth: torch.Tensor, points: torch.Tensor, v: int) -> dict:
    "Error and stated error of the first body in a view."
    found = result.poses.matrix[v]
    beam = (truth @ reorient.double())[:3, 2]
    about = errors(found, truth, points, beam) | stated(result, v, 0)
    return about | {"chi2": chi_square(found, truth, result.covariances[v, 0])}


def verdict(result: JointResult, seconds: float) -> dict:
    "What is said of a registration as a whole."
    codes = " ".join(reason.code for reason in result.reasons)
    return dict(verdict=result.verdict, seconds=seconds, renders=result.renders, codes=codes, reasons="; ".join(result.reasons))


def timed(registration: JointRegistration, *args, **kwargs) -> tuple[JointResult, float]:
    "A registration, and the processor time that it took."
    begun = time.process_time()
    return registration.register(*args, **kwargs), time.process_time() - begun


def single(scenario: str, i: int, tolerance: str) -> dict:
    "One view."
    x = seen(scenario, i)
    prior = {"exact": CameraPrior(), "tight": TIGHT, "loose": LOOSE}.get(tolerance) or OFF[scenario]
    camera = x["camera"] if tolerance in ("exact", "given") else misstated(x["camera"], prior, random(scenario, i, tolerance))
    drr = DRR.from_camera(subject(x["subject"]), camera)
    result, seconds = timed(JointRegistration(drr, camera_prior=prior), x["xray"], RigidTransform(x["start"][None]), landmarks=x["points"])
    return verdict(result, seconds) | compared(result, drr.subject.reorient, x["truth"], x["points"], 0)


def angle(a: torch.Tensor, b: torch.Tensor) -> float:  # 4 4 each
    "Between two sources, as seen from the isocentre [deg]."
    places = torch.stack([a[:3, 3], b[:3, 3]])
    return math.degrees(math.acos(torch.nn.functional.cosine_similarity(places[:1], places[1:]).clamp(-1, 1).item()))


PAIR_KINDS = {"exact": (None, None), "camera": (PAIR, None), "relative": (None, ROUGH), "both": (PAIR, ROUGH)}


def pair(scenario: str, i: int, j: int, kind: str) -> dict:
    "Two views; the numbers are of the first."
    views, rng = [seen(scenario, k) for k in (i, j)], random(scenario, i, j, kind)
    camera_prior, relative_prior = PAIR_KINDS[kind]
    cameras = [x["camera"] if camera_prior is None else misstated(x["camera"], camera_prior, rng) for x in views]
    places = [x["truth"] for x in views]
    if relative_prior:  # a motion of the second view in the patient's world, about the isocentre
        places[1] = displaced(places[1], relative_prior, rng)
    drr = DRR.from_camera(subject(views[0]["subject"]), cameras[0])
    options = {"camera_prior": camera_prior or CameraPrior(), "relative_prior": relative_prior or MotionPrior()}
    registration = JointRegistration(drr, cameras, RigidTransform(torch.stack(places)), **options)
    result, seconds = timed(registration, [x["xray"] for x in views], RigidTransform(views[0]["start"][None]), landmarks=views[0]["points"])
    row = verdict(result, seconds) | compared(result, drr.subject.reorient, views[0]["truth"], views[0]["points"], 0)
    other = compared(result, drr.subject.reorient, views[1]["truth"], views[0]["points"], 1)
    return row | {f"second_{name}": other[name] for name in ("tre_mm", "along_mm", "across_mm", "expected_mm", "chi2")}


# ---------------------------------------------------------------- femora


@lru_cache(maxsize=1)
def pelvis() -> tuple:
    "The pelvis with its labels, its HU, and the centres of the femoral heads in the world [mm]."
    root = Path(os.environ["DIFFPOSE_DATA"]) / "pelvis"
    patient = read(root / "ct.nii.gz", labelmap=root / "labels.nii.gz")
    hu, labels = patient.volume.data[0].double().numpy(), patient.mask.data[0].numpy()
    affine, heads = np.asarray(patient.volume.affine), []
    for femur, hip in FEMURS:
        near = ndimage.distance_transform_edt(labels != hip, sampling=np.linalg.norm(affine[:3, :3], axis=0)) < 6
        skin = (labels == femur) & ~ndimage.binary_erosion(labels == femur) & near
        x = np.argwhere(skin) @ affine[:3, :3].T + affine[:3, 3]
        solution, *_ = np.linalg.lstsq(np.c_[2 * x, np.ones(len(x))], (x**2).sum(1), rcond=None)  # a sphere
        heads.append(solution[:3])
    return patient, hu, labels, affine, heads


def turned_patient(turns: list[np.ndarray]):  # 4 4 each, world
    "The patient with bones cut out, moved, and put back, with soft tissue where they were."
    patient, hu, labels, affine, _ = pelvis()
    new, moved = hu.copy(), []
    for (label, _), M in zip(FEMURS, turns):
        inside = (labels == label).astype(float)
        new[labels == label] = SOFT
        back = np.linalg.inv(affine) @ np.linalg.inv(M) @ affine
        moved.append([ndimage.affine_transform(v, back[:3, :3], back[:3, 3], order=1) for v in (inside, inside * (hu - SOFT))])
    for share, excess in moved:
        there = np.where(new < 200, (1 - share) * new + share * SOFT + excess, np.maximum(new, SOFT + excess))
        new = np.where(share > 0, there, new)
    return read(torch.tensor(new).float(), affine=torch.tensor(affine), orientation="AP", center_volume=False)


def femur_case(i: int) -> dict:
    "Two X-rays of a pelvis whose femora have moved, and what is true."
    rng, (_, _, labels, affine, heads) = random("femora", i), pelvis()
    turns = []
    for head in heads:
        axis = rng.standard_normal(3)
        M = np.eye(4)
        M[:3, :3] = se3_exp(torch.tensor(np.r_[0, 0, 0, axis / np.linalg.norm(axis) * math.radians(TURN * rng.uniform())])[None])[0, :3, :3].numpy()
        M[:3, 3] = head - M[:3, :3] @ head
        turns.append(M)
    side = rng.choice([-1, 1])
    angles = torch.tensor([rng.uniform(-5, 5), side * rng.uniform(35, 50)]), torch.tensor(rng.uniform(-3, 3, 2))
    poses = carm_pose(*angles, DISTANCE).double().matrix.clone()
    poses[:, :3, 3] += torch.tensor(np.mean(heads, 0) + [0, 0, HIGHER] + rng.uniform(-8, 8, 3))
    images = simulate_xray(turned_patient(turns), CAMERA, RigidTransform(poses), seed=i)
    points = [torch.tensor(rng.permutation(np.argwhere(labels == label))[:200] @ affine[:3, :3].T + affine[:3, 3]) for label, _ in FEMURS]
    hips = np.argwhere(np.isin(labels, [25, 77, 78])) @ affine[:3, :3].T + affine[:3, 3]
    near = hips[np.linalg.norm(hips - np.mean(heads, 0), axis=1) < 110]
    return dict(turns=[torch.tensor(M) for M in turns], poses=poses, xrays=[image[None] for image in images], points=[torch.tensor(rng.permutation(near)[:200]), *points])


def femora(i: int) -> dict:
    "Pelvis and two femora in two views; the numbers are of the first view."
    case, (patient, _, _, _, heads) = femur_case(i), pelvis()
    drr = DRR.from_camera(patient, CAMERA, renderer="trilinear")
    places, cameras = RigidTransform(case["poses"]), [CAMERA, CAMERA]
    start = draw_starts(RigidTransform(case["poses"][:1]), 1, 5.0, 5.0, seed=i)
    prior = [MotionPrior(*FEMUR, about=tuple(head)) for head in heads]
    registration = JointRegistration(drr, cameras, places, bodies=[[label] for label, _ in FEMURS], body_prior=prior)
    result, seconds = timed(registration, case["xrays"], start, landmarks=case["points"][0])
    row = verdict(result, seconds) | compared(result, patient.reorient, case["poses"][0], case["points"][0], 0)
    for k, M in enumerate(case["turns"], 1):
        truth = torch.linalg.inv(M) @ case["poses"][0]
        found = torch.linalg.inv(result.motions.matrix[k]) @ result.poses.matrix[0]
        beam = (truth @ patient.reorient.double())[:3, 2]
        about = errors(found, truth, case["points"][k], beam) | stated(result, 0, k)
        about |= dict(chi2=chi_square(found, truth, result.covariances[0, k]), turned_deg=math.degrees(se3_log(M[None])[0, 3:].norm()))
        row |= {f"femur{k}_{name}": value for name, value in about.items()}
    whole, more = timed(JointRegistration(drr, cameras, places), case["xrays"], start, landmarks=case["points"][0])
    one = verdict(whole, more) | compared(whole, patient.reorient, case["poses"][0], case["points"][0], 0)
    return row | {f"whole_{name}": value for name, value in one.items()}


# ---------------------------------------------------------------- run and report


def jobs(args):
    "What is to be done: part, scenario, number or numbers, what is wrong, and about the X-ray."
    first, every = map(int, args.only.split("::"))
    paths = sorted(Path(os.environ["DIFFPOSE_GAUNTLET"]).glob("*.npz")) if set(args.parts) != {"femora"} else []
    for path in paths:
        scenario = path.stem
        if args.scenarios is not None and scenario not in args.scenarios:
            continue
        cases = xrays(scenario)[1]
        right, off = not any(case["wrong"] for case in cases), scenario in OFF
        for part, kinds in (("exact", ["exact"]), ("camera", ["given"] if off else ["tight", "loose"])):
            if part in args.parts and (right and scenario != "femur" or part == "camera" and off):
                yield from ((part, scenario, (i,), kind, cases[i]) for i in range(first, len(cases), every) for kind in kinds)
        if "pairs" in args.parts and right and scenario != "femur":
            found = [ij for name in sorted({case["subject"] for case in cases}) for ij in couples(scenario, name)]
            yield from (("pairs", scenario, ij, kind, cases[ij[0]]) for ij in found[first::every] for kind in PAIR_KINDS)
    if "femora" in args.parts:
        about = {"subject": "pelvis", "view": "AP"}
        yield from (("femora", "femora", (i,), "femora", about) for i in range(first, CASES, every))


def couples(scenario: str, patient: str) -> list[tuple[int, int]]:
    "Pairs of a patient's X-rays that are far enough apart."
    z, cases = xrays(scenario)
    mine = [i for i, case in enumerate(cases) if case["subject"] == patient]
    poses = {i: torch.tensor(z[f"{i}.pose"]) for i in mine}
    found = [(i, j) for i in mine for j in mine if i < j and APART <= angle(poses[i], poses[j]) <= 180 - APART]
    return found[:PAIRS]


def run(args) -> None:
    "A row per registration."
    for part, scenario, numbers, kind, case in jobs(args):
        if case["subject"] not in args.subjects or args.kinds is not None and kind not in args.kinds:
            continue
        rows = Rows(args.folder / f"rows_{part}.csv", ["id", "kind"])
        name = f"{scenario}-{'-'.join(map(str, numbers))}"
        if rows.has(name, kind):
            continue
        about = dict(id=name, kind=kind, part=part, scenario=scenario, subject=case["subject"], view=case["view"])
        work = {"exact": single, "camera": single, "pairs": pair}.get(part)
        rows.add(about | (work(scenario, *numbers, kind) if work else femora(*numbers)))


def sized(rows: pd.DataFrame) -> pd.Series:
    "Which registrations stand behind their stated error: converged, or of no other doubt than that it is large."
    return (rows["verdict"] != "stalled") & rows["codes"].map(lambda codes: set(codes.split()) <= {"agreement", "uncertain"})


def ratio(rows: pd.DataFrame, name: str = "tre_mm", stated: str = "expected_mm") -> str:
    "Root mean square of true errors over that of the stated ones."
    return f"{math.sqrt((rows[name] ** 2).mean() / (rows[stated] ** 2).mean()):.2f}" if len(rows) else ""


def summary(rows: pd.DataFrame) -> pd.Series:
    "What a table says of some registrations."
    good, done = rows[sized(rows)], rows[rows["verdict"] == "converged"]
    share = lambda part: f"{(part['chi2'] <= NINETY).mean():.0%}" if len(part) else ""
    worst = (done["tre_mm"] > WRONG) & (done["tre_mm"] > 3 * done["expected_mm"])
    return pd.Series({
        "n": len(rows),
        "converged": len(done),
        "in 90%": share(done),
        "true / stated": ratio(done),
        "far off, unsaid": int(worst.sum()),
        "or uncertain": len(good) - len(done),
        "in 90%, both": share(good),
        "true / stated, both": ratio(good),
        "along": ratio(good, "along_mm", "expected_along_mm"),
        "across": ratio(good, "across_mm", "expected_across_mm"),
        "error [mm]": f"{good['tre_mm'].median():.2f} ({good['tre_mm'].quantile(0.95):.2f})",
        "depth [mm]": f"{good['along_mm'].median():.2f} ({good['along_mm'].quantile(0.95):.2f})",
        "right, not converged": int(((rows["tre_mm"] < RIGHT) & (rows["verdict"] != "converged")).sum()),
        "seconds": f"{rows['seconds'].median():.1f}",
    })


def bodies(rows: pd.DataFrame) -> pd.DataFrame:
    "A line for each body of the femora, and one for the whole taken as one body."
    lines = {}
    for name, prefix in (("pelvis", ""), ("femur, label 75", "femur1_"), ("femur, label 76", "femur2_"), ("as one body", "whole_")):
        part = {key: rows[f"{prefix}{key}"] for key in ("tre_mm", "turn_deg", "expected_mm", "chi2")}
        within = (part["tre_mm"] < 1) & (part["turn_deg"] < 1)
        square = lambda x: (x**2).mean()
        lines[name] = {
            "n": len(rows),
            "error [mm]": f"{part['tre_mm'].median():.2f} ({part['tre_mm'].quantile(0.95):.2f})",
            "turn [deg]": f"{part['turn_deg'].median():.2f} ({part['turn_deg'].quantile(0.95):.2f})",
            "< 1 mm and 1 deg": f"{within.mean():.0%}",
            "in 90%": f"{(part['chi2'] <= NINETY).mean():.0%}",
            "true / stated": f"{math.sqrt(square(part['tre_mm']) / square(part['expected_mm'])):.2f}",
            "verdicts": ", ".join(f"{n} {v}" for v, n in rows["whole_verdict" if prefix == "whole_" else "verdict"].value_counts().items()),
        }
    return pd.DataFrame(lines).T.rename_axis("body")


def curves(rows: pd.DataFrame, path: Path) -> None:
    "How many truths are inside the regions of each content, and true errors against stated ones."
    from scipy.stats import chi2

    fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    contents = np.linspace(0.01, 0.99, 99)
    for (part, kind), group in rows[sized(rows)].groupby(["part", "kind"]):
        if len(group) < 10:
            continue
        inside = [(group["chi2"] <= chi2.ppf(c, 6)).mean() for c in contents]
        axes[0].plot(100 * contents, 100 * np.array(inside), label=f"{part}, {kind} ({len(group)})")
        axes[1].loglog(group["expected_mm"], group["tre_mm"], ".", ms=4)
    axes[0].plot([0, 100], [0, 100], "k:", lw=1)
    axes[0].set(xlabel="content of the stated region [%]", ylabel="truth inside [%]", xlim=(0, 100), ylim=(0, 100))
    if len(axes[0].lines) > 1:
        axes[0].legend(fontsize=7)
    axes[1].axline((0.1, 0.1), (1, 1), color="k", ls=":", lw=1)
    axes[1].set(xlabel="stated error [mm]", ylabel="true error [mm]")
    fig.savefig(path, dpi=100)


def report(folder: Path) -> None:
    "Tables by what is wrong, view and scenario; of the femora; and a plot."
    rows = read_rows(folder)
    several = rows[rows["part"] != "femora"]
    for keys in (["part", "kind"], ["part", "kind", "view"], ["part", "kind", "scenario"]) if len(several) else ():
        table = several.groupby(keys).apply(summary, include_groups=False)
        print(markdown(table), end="\n\n")
        table.to_csv(folder / f"table_{keys[-1]}.csv")
    if (rows["part"] == "femora").any():
        table = bodies(rows[rows["part"] == "femora"])
        print(markdown(table))
        table.to_csv(folder / "table_bodies.csv")
    curves(rows, folder / "calibration.png")


if __name__ == "__main__":
    knobs = {name: str(value) for name, value in globals().copy().items() if name.isupper()}
    launch(parser.parse_args(), run, report, **knobs)
