"""What an editor shows is true: a type checker believes the package, and finds what its users do wrong."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.notebook import ROOT

TY = shutil.which("ty", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
pytestmark = pytest.mark.skipif(TY is None, reason="the type checker ty is not installed: pip install -e '.[dev]'")

# a user's script; what follows a line of it as "# wrong: rule" is the mistake in it that has to be found
SCRIPT = '''
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from diffpose.calibration import Camera
from diffpose.data import read, read_xray
from diffpose.drr import DRR
from diffpose.images import resize_image
from diffpose.metrics import mpe, registration_errors
from diffpose.pose import RigidTransform, convert
from diffpose.registration import GaussNewton, PosePrior, Result, Stage
from diffpose.simulation import simulate_xray


def render(ct: Path) -> tuple[DRR, RigidTransform, Tensor]:
    subject = read(ct, labelmap=ct.with_name("labels.nii.gz"), labels=[1, 2], orientation="AP")
    camera = Camera(sdd=1020.0, height=200, width=200, delx=2.0, dely=2.0).crop(0, 0, 100, 200).rescale(0.5)
    drr = DRR.from_camera(subject, camera, patch_size=64)
    turn, shift = torch.zeros(1, 3), torch.tensor([[0.0, 850.0, 0.0]])
    pose = convert(turn, shift, parameterization="euler_angles", convention="ZXY")
    same: Tensor = drr(turn, shift, parameterization="euler_angles", convention="ZXY", degrees=True, mask_to_channels=True)
    image: Tensor = drr(pose, calibration=camera, bone_attenuation_multiplier=[1.5], beer_lambert=True, renderer="trilinear")
    image, jacobian = drr.jacobian(pose)
    small: Tensor = resize_image(image + same.sum(1, keepdim=True), 50, 50)
    small, share = resize_image(image, 50, 50, torch.ones_like(image))
    xray, field = simulate_xray(subject, camera, pose, return_mask=True)
    return drr.to("cpu"), pose.compose(pose.inverse()), xray * field + small.mean() + share.mean() + jacobian.mean()


def register(drr: DRR, xray: Tensor, start: RigidTransform, truth: RigidTransform) -> list[float]:
    solver = GaussNewton(drr, stages=[Stage(64), Stage(128, "mncc", refine=True)])
    one = solver.register(xray, start)
    several = cast(list[Result], solver.register(xray.expand(2, -1, -1, -1), PosePrior(start, 15.0, [20.0, 50.0, 20.0])))
    again: Result = solver.assess(xray, one.pose)
    errors = registration_errors(truth, again.pose, drr.subject.fiducials, drr)
    shift = mpe(truth, several[0].pose, drr.subject.fiducials, lambda pose, points: drr.detector.project(pose, points))
    return (errors.mtre_mm + shift).tolist()


def mistakes(drr: DRR, pose: RigidTransform) -> None:
    drr(torch.zeros(1, 3), torch.zeros(1, 3))  # wrong: no-matching-overload
    drr(pose, rendrer="siddon")  # wrong: no-matching-overload
    Camera(sdd="far", height=200, width=200, delx=2.0, dely=2.0)  # wrong: invalid-argument-type
    drr(pose).matrix  # wrong: missing-attribute
    GaussNewton(drr).register(drr(pose))  # wrong: missing-argument
    xray, camera = read_xray("xray.dcm", return_mask=True)  # wrong: invalid-assignment
'''


def check(*args, cwd=ROOT):
    "Each finding as (file, line, rule)."
    command = [TY, "check", "--python", sys.prefix, "--output-format", "concise", "--error-on-warning", "--no-progress", *map(str, args)]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found = re.findall(r"^(.+?):(\d+):\d+: (?:error|warning)\[([\w-]+)\]", run.stdout, re.M)
    assert bool(found) == bool(run.returncode), run.stdout + run.stderr
    return [(name, int(line), rule) for name, line, rule in found]


def test_the_package_has_the_types_that_it_says():
    "`[tool.ty.src]` in pyproject.toml names what is left out, and why."
    assert check() == []


def test_a_users_script_is_right_and_its_mistakes_are_found(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    wanted = [(k, line.split("# wrong: ")[1]) for k, line in enumerate(SCRIPT.splitlines(), 1) if "# wrong: " in line]
    assert [(line, rule) for _, line, rule in check("--extra-search-path", ROOT, script, cwd=tmp_path)] == wanted
