"""Every table of the study as a reader sees it: few columns, numbers to the digits that their intervals support."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.figures import style
from lib.figures.style import Shown
from lib.io import atomic, write_csv

TEX = str.maketrans({
    "−": "$-$", "≤": r"$\le$", "≥": r"$\ge$", "±": r"$\pm$", "α": r"$\alpha$", "Δ": r"$\Delta$", "²": "$^2$",
    "×": r"$\times$",
})  # fmt: skip
"""What LaTeX cannot read as it is."""
NONE = "–"  # stands where there is no number


@dataclass
class Table(Shown):
    """`raw` has every digit and is what is saved as CSV; `printed`, text in every cell, is what is shown."""

    raw: pd.DataFrame
    printed: pd.DataFrame
    caption: str = ""

    def content(self) -> tuple[dict, dict]:
        with pd.option_context("display.max_colwidth", None):
            shown = self.printed.to_html(index=False, border=0, justify="left")
        for cell in ("th", "td"):  # Jupyter's own style puts them right
            shown = shown.replace(f"<{cell}>", f'<{cell} style="text-align: left">')
        return {"text/html": shown, "text/plain": self.printed.to_string(index=False)}, {}

    def write(self, folder: Path, name: str) -> None:
        """Write CSV and LaTeX (booktabs)."""
        write_csv(folder / f"{name}.csv", self.raw)
        caption = self.caption.translate({ord(letter): f"\\{letter}" for letter in "%_&#"} | {ord("^"): r"\^{}"})
        how = {"index": False, "escape": True, "label": f"tab:{name}", "position": "htbp"}
        with atomic(folder / f"{name}.tex") as partial:
            partial.write_text(self.printed.to_latex(caption=caption, **how).translate(TEX))


def plain(
    table: pd.DataFrame | None, columns: dict | list | None = None, digits: int = 3, caption: str = "",
    raw: pd.DataFrame | None = None,
) -> Table | None:  # fmt: skip
    """Any table of results, readable, None where it is empty; `raw` is what is saved as CSV in its place.

    Numbers `x` with columns `x_low` and `x_high` beside them are printed with that interval, to the digits that it
    supports; those with `x_se` with that standard error; others to so many significant `digits`. `columns` are shown,
    as {column: heading} or under their own names. Those without any number are left out, and leading columns of text
    are blank where they repeat the row above.
    """
    if table is None or table.empty:
        return None
    beside = {f"{name}_{end}" for name in table for end in ("low", "high", "se")}
    columns = columns or [name for name in table if name not in beside]
    headings = columns if isinstance(columns, dict) else {name: str(name).replace("_", " ") for name in columns}
    printed = pd.DataFrame({heading: _cells(table, name, digits) for name, heading in headings.items()})
    printed = printed.loc[:, (printed != NONE).any()]
    numbers = {heading for name, heading in headings.items() if pd.api.types.is_numeric_dtype(table[name])}
    leading = list(itertools.takewhile(lambda heading: heading not in numbers, printed))
    repeated = (printed[leading] == printed[leading].shift()).astype(int).cumprod(axis=1).astype(bool)
    printed[leading] = printed[leading].mask(repeated, "")
    return Table(table if raw is None else raw, printed, caption)


def _cells(table, name, digits):
    """A column as text, with its interval or standard error where the table has one."""
    if f"{name}_low" in table:
        rows = table[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)
        return [NONE if np.isnan(value) else style.rounded(value, ends) for value, *ends in rows]
    if f"{name}_se" in table:
        rows = table[[name, f"{name}_se"]].to_numpy(float)
        return [NONE if np.isnan(value) else f"{value:.4f} ± {error:.4f}" for value, error in rows]
    return [_text(value, digits) for value in table[name]]


def _text(value, digits):
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return NONE
    if not isinstance(value, (int, float, np.number)):
        return str(value)
    whole = abs(value) >= 10**digits or float(value).is_integer()
    text = f"{value:,.0f}" if whole else f"{value:#.{digits}g}".rstrip(".")
    return text if "e-" in text else text.replace("-", "−")


def _fixed(values, decimals=1):
    """Numbers as text, with so many decimals."""
    return [NONE if np.isnan(value) else f"{value:z.{decimals}f}".replace("-", "−") for value in values.astype(float)]


def losses(names: Iterable[str]) -> dict[str, str]:
    """{loss: as a reader says it}: validation_mse is validation MSE, test_dataset_nll is test dataset bits."""
    return {name: name.replace("_mse", " MSE").replace("_nll", " bits").replace("_", " ") for name in names}


def laws(table: pd.DataFrame) -> Table:
    """The headline law of every regime, beside the best baseline; `table` is of `lib.fit.summary.laws_table`."""
    columns = {
        "regime": "regime", "metric": "loss", "alpha": "exponent α", "c": "floor c",
        "limit": "floor at infinite training", "exact_floor": "exact floor", "baseline": "best baseline",
        "largest": "loss of the largest", "status": "status",
    }  # fmt: skip
    caption = (
        "L(P) = a P^(-alpha) + c, fitted to size means, with 95 % intervals that allow for unfinished training and, of "
        "c, for the error over held-out donors or cells; 2 (≥ 1) has no upper end. Best baseline: principal "
        "components or conditional Gaussian."
    )
    shown = table.assign(metric=table["metric"].map(losses(table["metric"])))
    return plain(shown, columns, 4, caption, raw=table)


def bought(steps: pd.DataFrame | None) -> Table | None:
    """What twice as much of one thing buys; `steps` are those of `lib.fit.conditions.Bought`."""
    columns = {"twice_the": "twice the", "smaller": "from", "larger": "to", "points": "points per doubling",
               "baseline": "gain of the best baseline"}  # fmt: skip
    caption = (
        "What twice as much of one thing adds to the share of the gene mean's squared error that the largest run "
        "explains, in percentage points: the last measured step, all else at its largest or best, intervals over seeds."
    )
    shown = steps if steps is None else steps.assign(baseline=_fixed(steps["baseline"], 2))
    return plain(shown, columns, caption=caption, raw=steps)


def runs(table: pd.DataFrame) -> Table:
    """Size means and the shares of the reducible loss explained; `table` is of `lib.fit.runs.summary`."""
    shares = {"explained": "reached (%)", "explained_by_pca": "by PCA", "explained_by_gaussian": "by Gaussian"}
    shares = {name: heading for name, heading in shares.items() if name in table}
    columns = {"regime": "regime", "metric": "loss", "size": "size", "parameters": "parameters", "seeds": "seeds",
               "loss": "mean", "test": "on test"}  # fmt: skip
    caption = (
        f"Mean loss of every size over its seeds, {len(table):,} size means, and how much of the way from "
        "each gene's mean (0) to the exact floor (100; no loss, where no floor is known) it has come."
    )
    fixed = {name: _fixed(100 * table[name]) for name in shares}
    shown = table.assign(metric=table["metric"].map(losses(table["metric"])), **fixed)
    return plain(shown, columns | shares, 4, caption, raw=table)


def forms(table: pd.DataFrame) -> Table | None:
    """The forms compared; `table` is what `lib.fit.summary.comparison_table` gives."""
    if table.empty:
        return None
    table = table.reset_index()
    columns = {"regime": "regime", "form": "form", "parameters": "constants", "delta_aicc": "ΔAICc",
               "loso_rmse": "leave-one-size-out error", "lack_of_fit": "lack of fit (p)"}  # fmt: skip
    caption = (
        "Forms of the law compared: AICc above the best form of the regime, the root mean square error of predicting "
        "the mean of a size that was left out, and the p value of sizes scattering about the law no more than seeds "
        "do; one size of unlike seeds raises it."
    )
    shown = table.assign(delta_aicc=_fixed(table["delta_aicc"]))
    return plain(shown, columns, 3, caption, raw=table)


def rollout(table: pd.DataFrame) -> Table | None:
    """What small sizes predict for large ones; `table` is what `lib.fit.summary.rollout_table` gives."""
    if table.empty:
        return None
    raw = table.drop(columns="interval").assign(held_out=table["held_out"].map(" ".join))
    raw[["predicted_low", "predicted_high"]] = np.array(table["interval"].tolist(), float)
    inside = raw["observed"].between(raw["predicted_low"], raw["predicted_high"])
    columns = {
        "regime": "regime", "held_out": "fitted without", "size": "predicts", "predicted": "predicted",
        "observed": "observed", "missed": "missed by (%)", "inside": "inside",
    }  # fmt: skip
    caption = (
        "Laws fitted without the largest sizes, and what they predict for them, with prediction intervals in brackets: "
        f"{inside.sum()} of {len(inside)} means lie inside, and {(raw['miss'] < 0).sum()} below the prediction."
    )
    missed = _fixed(100 * raw["miss"] / raw["predicted"])
    return plain(raw.assign(missed=missed, inside=inside), columns, 4, caption, raw=raw)


def sizes(table: pd.DataFrame) -> Table | None:
    """Shapes and costs of the sizes, those of regimes alike shown once; `table` is of `lib.model.sizes.table`."""
    if table.empty:
        return None
    alike = ["size", "genes", "parameters"]
    regimes = table.groupby(alike)["regime"].transform(", ".join)
    flops = [style.short(number) for number in table["flops_per_cell"]]
    shown = table.assign(regime=regimes, ff=table["d"] * table["ff_mult"], flops=flops).drop_duplicates(alike)
    columns = {
        "regime": "regimes", "size": "size", "genes": "genes", "d": "width", "layers": "blocks", "heads": "heads",
        "ff": "feed-forward", "parameters": "parameters", "flops": "FLOPs of a cell",
    }  # fmt: skip
    caption = "Shapes of the models, their exact parameter counts, and the forward pass of one cell."
    return plain(shown, columns, 12, caption, raw=table)


def listed(facts: dict) -> Table:
    """Facts, {what: value}, one to a row."""
    table = pd.DataFrame({"": list(facts), " ": [str(value) for value in facts.values()]})
    return Table(table, table)
