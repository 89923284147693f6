"""The paper's tables of what `register.py` wrote: CSV, Markdown and box plots, in OUT.

    python experiments/evaluate.py --out _runs/paper
    python experiments/evaluate.py --out _runs/paper --specimens 1 2
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from scenes import read_rows

from diffpose.metrics import RegistrationErrors


# ---------------------------------------------------------------- knobs
@dataclass(frozen=True)
class Config:
    out: Path  # folder of the experiment
    specimens: tuple[int, ...] = ()  # only these (none named: all)
    success_mm: float = 1.0  # mTRE below is a success
    gross_mm: float = 10.0  # mTRE above is a gross failure
    data: Path | None = None  # accepted, so that the launcher may give all scripts the same words
# ----------------------------------------------------------------------


ERRORS = RegistrationErrors._fields
NAMES = {"mpe": "mPE", "mrpe": "mRPE", "mtre": "mTRE", "dgeo": "dGeo"}
METHODS = {"network": "network", "prior": "GaussNewton, no network", "adam": "Adam on patches", "adam_dense": "Adam, whole image", "gauss_newton": "GaussNewton"}


def summary(rows: pd.DataFrame, config: Config) -> dict:
    "One line of the table."
    wrong, lost = (~(rows["mtre_mm_after"] < limit) for limit in (config.success_mm, config.gross_mm))  # an error that is not a number is one
    converged = rows["verdict"] == "converged"
    line = {"X-rays": len(rows)}
    for name in ERRORS:
        for when in ("before", "after"):
            low, middle, high = rows[f"{name}_{when}"].quantile([0.25, 0.5, 0.75])
            line |= {f"{name}_{when}_median": middle, f"{name}_{when}_q25": low, f"{name}_{when}_q75": high}
    line |= {"success": 1 - wrong.mean(), "gross": lost.mean()}
    line |= {"converged": converged.sum(), "wrong_called_converged": (converged & wrong).sum(), "gross_called_converged": (converged & lost).sum()}
    return {**line, "seconds_median": rows["seconds"].median(), "seconds_p90": rows["seconds"].quantile(0.9)}


def markdown(table: pd.DataFrame, config: Config) -> str:
    "The table as people read it: median [quartiles], before and after refinement."
    shown = pd.DataFrame({"specimen": table["specimen"], "method": [METHODS.get(m, m) for m in table["method"]], "X-rays": table["X-rays"]})
    spread = lambda row, name: f"{row[f'{name}_median']:.2f} [{row[f'{name}_q25']:.2f}, {row[f'{name}_q75']:.2f}]"
    for name in ERRORS:
        quantity, unit = name.rsplit("_", 1)
        for when in ("before", "after"):
            shown[f"{NAMES.get(quantity, quantity)} {when} ({unit})"] = [spread(row, f"{name}_{when}") for _, row in table.iterrows()]
    shown[f"< {config.success_mm:g} mm"] = table["success"].map("{:.0%}".format)
    shown[f">= {config.gross_mm:g} mm"] = table["gross"].map("{:.0%}".format)
    shown["converged"] = table["converged"]
    shown[f"of these >= {config.success_mm:g} mm"] = table["wrong_called_converged"]
    shown["s per X-ray"] = table["seconds_median"].map("{:.2f}".format)
    head = "| " + " | ".join(shown.columns) + " |\n|" + " --- |" * len(shown.columns)
    return head + "\n" + "\n".join("| " + " | ".join(map(str, row)) + " |" for row in shown.itertuples(index=False)) + "\n"


def plots(rows: pd.DataFrame, path: Path) -> None:
    "A box per specimen and method, for each error; the network's are those before refinement."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    if "network" not in set(rows["method"]):
        guesses = rows.drop_duplicates(["specimen", "xray"])
        rows = pd.concat([guesses.assign(method="network", **{f"{name}_after": guesses[f"{name}_before"] for name in ERRORS}), rows], ignore_index=True)
    order = [m for m in METHODS if m in set(rows["method"])]
    rows = rows.assign(method=rows["method"].map(METHODS))
    fig, axes = plt.subplots(1, len(ERRORS), figsize=(4 * len(ERRORS), 3.6), layout="constrained")
    for ax, name in zip(axes, ERRORS):
        sns.boxplot(rows, x="specimen", y=f"{name}_after", hue="method", hue_order=[METHODS[m] for m in order], log_scale=(False, True), fliersize=2, linewidth=0.8, ax=ax, legend=ax is axes[-1])
        quantity, unit = name.rsplit("_", 1)
        ax.set(xlabel="specimen", ylabel=f"{NAMES.get(quantity, quantity)} ({unit})")
        ax.grid(axis="y", alpha=0.3)
    axes[-1].legend(fontsize=7)
    fig.savefig(path, dpi=120)


def main(config: Config) -> None:
    rows = read_rows(config.out) if any(config.out.glob("rows_*.csv")) else pd.DataFrame({"specimen": []})
    rows = rows[rows["specimen"].isin(config.specimens)] if config.specimens else rows
    if rows.empty:
        raise SystemExit(f"{config.out} holds no rows of specimens {config.specimens or '(any)'}: run register.py first")
    rows["verdict"] = rows["verdict"].fillna("")
    order = [m for m in METHODS if m in set(rows["method"])]
    everything = pd.concat([rows.assign(specimen=rows["specimen"].astype(str)), rows.assign(specimen="all")])
    lines = [{"specimen": s, "method": m, **summary(part, config)} for m in order for s, part in everything[everything["method"] == m].groupby("specimen", sort=False)]
    table = pd.DataFrame(lines)
    table.round(4).to_csv(config.out / "table.csv", index=False)
    text = markdown(table, config)
    (config.out / "table.md").write_text(text)
    plots(rows, config.out / "boxes.png")
    print(text)
    print(f"written: {config.out / 'table.csv'}, {config.out / 'table.md'}, {config.out / 'boxes.png'}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
