"""The tables of docs/speed.md and docs/deepspeed.md from what the benchmarks measured, so that none is typed by hand.

    python benchmarks/speed_tables.py docs/speed.md docs/deepspeed.md

In a document, the line `<!-- speed: FILE -->` is followed by what this script writes, up to `<!-- end -->`: the
machine, the date, the revision, the command and the tables of the JSON file FILE, whose path is relative to the
document. If FILE does not exist, that text is kept. The figure of `scaling.py` is written beside its JSON file.
"""

import json
import re
import sys
from pathlib import Path

XS = {  # of each sweep of `scaling.py`: the key of what it changes, and the title of its panel
    "replies": ("replies", "replies an iteration"),
    "prompts": ("prompt", "tokens of a prompt"),
    "lengths": ("reply", "tokens of a reply"),
    "models": (None, "model"),
}
MARKED = re.compile(r"(<!-- speed: (\S+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def fps(row: dict) -> str:
    digits = 1 if row["fps"] >= 10 else 2
    return f"{row['fps']:.{digits}f} ± {row['spread']:.{digits}f}"


def speed_table(rows: list[dict]) -> str:
    """A line for each contestant; times are relative to the first of its kind.

    Args:
        rows: the rows of one model, as `ppo_speed.py` writes them.
    """
    first: dict[str, float] = {}
    for row in rows:
        first.setdefault(row["script"], row["fps"])
    columns = ["", "FPS", "times the first", "GFLOP a token", "rollout", "rewards", "update", "update's GFLOP/s"]
    with_rollout = any("rollout_of_matmul" in row for row in rows)  # older files lack it
    columns += ["of a matmul's", *(["rollout's"] if with_rollout else []), "peak GB"]
    if has_trl := "trl_ppo.py" in first:
        columns.insert(3, "times TRL")
    lines = [f"| {' | '.join(columns)} |", f"| --- {'| ---: ' * (len(columns) - 1)}|"]
    for row in rows:
        work = ("", "", "") if row["compile"] else (row["gflop_a_token"], row["update_gflops"], row["of_matmul"])
        if "--cuda-graphs" in row.get("flags", ()):  # what a graph computes is not counted
            work = ("", *work[1:])
        cells = [
            row["label"],
            fps(row),
            f"{row['fps'] / rows[0]['fps']:.2f}",
            *([f"{row['fps'] / first['trl_ppo.py']:.2f}"] if has_trl else []),
            f"{work[0]:.2f}" if work[0] else "",
            *(f"{share:.0%}" for share in row["shares"]),
            f"{work[1]:.0f}" if work[1] else "",
            f"{work[2]:.0%}" if work[2] else "",
            *([f"{row['rollout_of_matmul']:.0%}" if work[2] else ""] if with_rollout else []),
            f"{row['peak_gb']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rollout_table(rows: list[dict]) -> str:
    """The seconds of a rollout by the number of replies."""
    lines = ["| model | precision | replies at once | rollout s | ms a reply |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        each = 1000 * row["seconds"] / row["replies"]
        lines.append(f"| {row['model']} | {row['precision']} | {row['replies']} | {row['seconds']:.2f} | {each:.0f} |")
    return "\n".join(lines)


def scaling_tables(measured: dict, file: str) -> list[str]:
    """A table for each sweep of `scaling.py`, after its figure."""
    tables = [f"![FPS by replies, prompt, reply and model, and the limit]({Path(file).with_suffix('.png')})\n"]
    for sweep in dict.fromkeys(row["sweep"] for row in measured["rows"]):
        lines = [
            "| model | replies | prompt | reply | FPS | limit | of it | rollout | rewards | update | peak GB |",
            f"| --- {'| ---: ' * 10}|",
        ]
        for row in (row for row in measured["rows"] if row["sweep"] == sweep):
            cells = [", ".join([row["model"], *row["flags"]]), row["replies"], row["prompt"], row["reply"]]
            if "failed" in row:
                cells += [row["failed"], *[""] * 6]
            else:
                cells += [fps(row), f"{row['limit_fps']:.0f}"]
                cells += [f"{row['fps'] / row['limit_fps']:.0%}", *(f"{share:.0%}" for share in row["shares"])]
                cells += [f"{row['peak_gb']:.1f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        tables.append("\n".join(lines) + "\n")
    return tables


def scaling_figure(measured: dict, path: Path) -> None:
    """FPS and its limit, a panel for each sweep of `scaling.py`."""
    from matplotlib.figure import Figure

    rows = [row for row in measured["rows"] if "failed" not in row]
    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    figure = Figure(figsize=(1.5 + 3 * len(sweeps), 3), layout="constrained")
    for sweep, axes in zip(sweeps, figure.subplots(1, len(sweeps), squeeze=False)[0], strict=True):
        some = [row for row in rows if row["sweep"] == sweep]
        key, title = XS[sweep]
        places = [str(row[key]) if key else "\n".join([row["model"], *row["flags"]]) for row in some]
        axes.plot(places, [row["limit_fps"] for row in some], "o--", color="gray", label="limit")
        axes.plot(places, [row["fps"] for row in some], "o-", label="measured")
        axes.set(title=title, yscale="log", ylabel="tokens of replies a second" if sweep == sweeps[0] else "")
        axes.yaxis.set_major_formatter("{x:g}")
        if max(row["limit_fps"] for row in some) < 10 * min(row["fps"] for row in some):  # else labels would overlap
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="both", labelsize=7)
        axes.tick_params(axis="x", rotation=0 if key else 20)
    axes.legend()
    figure.savefig(path, dpi=120)


def deepspeed_table(rows: list[dict]) -> str:
    """A line for each variant of `deepspeed_speed.py`."""
    lines = ["| | devices | FPS | GB a device | by the table |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        table = "" if row["table_gb"] is None else f"{row['table_gb']:.2f}"
        lines.append(f"| {row['variant']} | {row['devices']} | {row['fps']:.1f} | {row['gb']:.2f} | {table} |")
    return "\n".join(lines)


def block(measured: dict, file: str) -> str:
    """The text of one JSON file between the marks."""
    facts = "; ".join(measured[key] for key in ("machine", "versions", "revision", "setting"))
    parts = [f"{facts}:\n", f"<!-- not run: a benchmark -->\n```bash\n{measured['command']}\n```\n"]
    if measured["kind"] == "scaling":
        return "\n" + "\n".join([*parts, *scaling_tables(measured, file)]) + "\n"
    if measured["kind"] == "deepspeed":
        return "\n" + "\n".join([*parts, deepspeed_table(measured["rows"])]) + "\n\n"
    for model in dict.fromkeys(row["model"] for row in measured["rows"]):
        rows = [row for row in measured["rows"] if row["model"] == model]
        parts.append(f"{model}, prompts of {rows[0]['prompt_tokens']:.0f} tokens on average\n\n{speed_table(rows)}\n")
    if measured["rollouts"]:
        parts.append(rollout_table(measured["rollouts"]) + "\n")
    return "\n" + "\n".join(parts) + "\n"


def filled(text: str, folder: Path) -> str:
    """A document with its marked blocks written anew, but for those of files that are not there yet."""

    def write(match: re.Match) -> str:
        if not (folder / match[2]).exists():
            return match[0]
        return match[1] + block(json.loads((folder / match[2]).read_text(encoding="utf-8")), match[2])

    return MARKED.sub(write, text)


if __name__ == "__main__":
    for document in map(Path, sys.argv[1:]):
        text = document.read_text(encoding="utf-8")
        for file in [document.parent / match[2] for match in MARKED.finditer(text)]:
            if not file.exists():
                print(f"{file} is not measured yet")
            elif (measured := json.loads(file.read_text(encoding="utf-8")))["kind"] == "scaling":
                scaling_figure(measured, file.with_suffix(".png"))
        document.write_text(filled(text, document.parent), encoding="utf-8")
