"""The tables of docs/speed.md from what `ppo_speed.py --out` measured, so that no figure is typed by hand.

    python benchmarks/speed_tables.py docs/speed.md

In a document, a line `<!-- speed: FILE -->` stands before what this script writes: the machine, the date, the revision,
the command and the tables of the JSON file FILE, whose path is relative to the document, up to `<!-- end -->`.
"""

import json
import re
import sys
from pathlib import Path

MARKED = re.compile(r"(<!-- speed: (\S+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def speed_table(rows: list[dict]) -> str:
    """A line for each contestant; times are relative to the first of its kind.

    Args:
        rows: the rows of one model, as `ppo_speed.py` writes them.
    """
    first: dict[str, float] = {}
    for row in rows:
        first.setdefault(row["script"], row["fps"])
    lines = [
        "| | FPS | times the first | times TRL | GFLOP a token | rollout | rewards | update | update's GFLOP/s "
        "| of a matmul's | peak GB |",
        f"| --- {'| ---: ' * 10}|",
    ]
    for row in rows:
        times_trl = f"{row['fps'] / first['trl_ppo.py']:.2f}" if "trl_ppo.py" in first else ""
        work = ("", "", "") if row["compile"] else (row["gflop_a_token"], row["update_gflops"], row["of_matmul"])
        cells = [
            row["label"],
            f"{row['fps']:.1f} ± {row['spread']:.1f}",
            f"{row['fps'] / rows[0]['fps']:.2f}",
            times_trl,
            f"{work[0]:.2f}" if work[0] else "",
            *(f"{share:.0%}" for share in row["shares"]),
            f"{work[1]:.0f}" if work[1] else "",
            f"{work[2]:.0%}" if work[2] else "",
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


def block(measured: dict) -> str:
    """What stands in the document for one JSON file."""
    facts = "; ".join(measured[key] for key in ("machine", "versions", "revision", "setting"))
    parts = [f"{facts}:\n", f"<!-- not run: a benchmark -->\n```bash\n{measured['command']}\n```\n"]
    for model in dict.fromkeys(row["model"] for row in measured["rows"]):
        rows = [row for row in measured["rows"] if row["model"] == model]
        parts.append(f"{model}, prompts of {rows[0]['prompt_tokens']:.0f} tokens on average\n\n{speed_table(rows)}\n")
    if measured["rollouts"]:
        parts.append(rollout_table(measured["rollouts"]) + "\n")
    return "\n" + "\n".join(parts) + "\n"


def filled(text: str, folder: Path) -> str:
    """A document with its marked blocks written anew."""

    def write(match: re.Match) -> str:
        return match[1] + block(json.loads((folder / match[2]).read_text(encoding="utf-8")))

    return MARKED.sub(write, text)


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(filled(document.read_text(encoding="utf-8"), document.parent), encoding="utf-8")
