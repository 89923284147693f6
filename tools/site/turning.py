"""A C-arm to turn on the landing page: DRRs of the phantom from many sides, rendered beforehand into one picture, and `turning.html` that shows them."""

import io
from pathlib import Path

MARK = "<!-- Here the site has a C-arm to turn. -->"
PRIMARY, SECONDARY = range(-60, 61, 6), range(-30, 31, 10)  # degrees: LAO and cranial are positive
SIDE, PITCH, SDD, SID = 256, 1.22, 1020.0, 800.0  # pixels, mm
SPACING, BONE = 2.0, 2.5  # of the CT [mm]; how many times bone attenuates, so that it stands out
SHEET, STILL = "media/turning.webp", "media/turning_still.webp"


def views():
    "DRRs from all sides, one row for each secondary angle, as (rows, columns, height, width) of values from 0 to 1."
    import torch

    from diffpose.calibration import Camera, carm_pose
    from diffpose.drr import DRR
    from diffpose.phantom import make_phantom

    drr = DRR.from_camera(make_phantom(0, SPACING), Camera(SDD, SIDE, SIDE, PITCH, PITCH), renderer="trilinear")
    with torch.no_grad():
        rows = [drr(carm_pose(torch.tensor([float(a) for a in PRIMARY]), float(b), SID), bone_attenuation_multiplier=BONE) for b in SECONDARY]
    images = torch.stack(rows)[:, :, 0]
    bright = images.flatten(2).quantile(0.997, dim=2)[..., None, None]  # as a C-arm sets its exposure for each view
    return (images / bright).clamp(0, 1) ** 1.6


def write_turning(folder: Path) -> str:
    "The pictures into a folder, and the HTML that shows them, for a page at the site's root."
    from PIL import Image

    images = (255 * views()).byte().numpy()
    sheet = images.transpose(0, 2, 1, 3).reshape(len(SECONDARY) * SIDE, len(PRIMARY) * SIDE)
    for name, values in {SHEET: sheet, STILL: images[len(SECONDARY) // 2, len(PRIMARY) // 2]}.items():
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "WEBP", quality=75, method=4)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(buffer.getbuffer())
    text = (Path(__file__).parent / "turning.html").read_text(encoding="utf-8")
    known = {"SHEET": SHEET, "STILL": STILL, "SIDE": SIDE, "COUNT": len(PRIMARY) * len(SECONDARY)}
    for name, angles in {"PRIMARY": PRIMARY, "SECONDARY": SECONDARY}.items():
        known |= {f"{name}_FIRST": angles[0], f"{name}_LAST": angles[-1], f"{name}_STEP": angles.step}
    for name, value in known.items():
        text = text.replace(f"[[{name}]]", str(value))
    return text
