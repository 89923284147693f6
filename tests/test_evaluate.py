"""`experiments/evaluate.py` counts right: rows of known errors in, the tables out."""

import subprocess
import sys

import pandas as pd
import pytest

from tools.notebook import ROOT


def rows_of(folder, method, specimen, errors, verdicts):
    "What register.py would have written."
    names = ("mpe_px", "mrpe_mm", "mtre_mm", "dgeo_mm")
    table = {"specimen": specimen, "name": f"specimen {specimen}", "method": method, "xray": range(len(errors)), "seconds": 2.0, "verdict": verdicts}
    table |= {f"{name}_before": 40.0 for name in names} | {f"{name}_after": errors for name in names}
    pd.DataFrame(table).to_csv(folder / f"rows_{method}_{specimen}.csv", index=False)


def evaluate(folder, *words):
    return subprocess.run([sys.executable, "experiments/evaluate.py", "--out", str(folder), *words], cwd=ROOT, capture_output=True, text=True)


def test_tables_count_what_the_rows_say(tmp_path):
    rows_of(tmp_path, "gauss_newton", 1, [0.1, 0.22, 0.3, 1.02], ["converged", "converged", "stalled", "converged"])
    rows_of(tmp_path, "gauss_newton", 2, [0.4, 12.0, float("nan"), 0.6], ["converged", "converged", "converged", "ambiguous"])
    done = evaluate(tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "table.csv", dtype={"specimen": str}).set_index("specimen")
    assert list(table.index) == ["1", "2", "all"]
    for who, success, gross, converged, wrong in (("1", 0.75, 0.0, 3, 1), ("2", 0.5, 0.5, 3, 2), ("all", 0.625, 0.25, 6, 3)):
        line = table.loc[who]
        assert (line["success"], line["gross"], line["converged"], line["wrong_called_converged"]) == (success, gross, converged, wrong)
    assert table.loc["1", "mtre_mm_after_median"] == pytest.approx(0.26) and table.loc["1", "mtre_mm_after_q75"] == pytest.approx(0.48)
    assert table.loc["all", "mtre_mm_before_median"] == 40.0
    assert "| 1 | GaussNewton | 4 | 40.00 [40.00, 40.00] | 0.26 [0.19, 0.48] |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "boxes.png").stat().st_size > 5000


def test_nothing_to_evaluate_is_said(tmp_path):
    done = evaluate(tmp_path)
    assert done.returncode != 0 and "register.py first" in done.stderr and "Traceback" not in done.stderr
