"""What each guidance method really does: every option of configs/guidance on six exact laws, and some on trained networks.

    python scripts/guidance_ranking.py [--laws tree digits ...] [--methods cfg apg ...] [--n 400] [--evaluations 64] [--seed 0]
        [--output outputs/guidance_ranking]
    python scripts/guidance_ranking.py --networks digits|mnist [--seeds 0 1 2] [--methods ...] [--n 200]
        [--data mnist10k.npz] [--output ...]

Laws are exact, and so is their denoiser: what is measured is guidance alone. One class of each law is sampled by
DPM-Solver++(2M), with equally many network evaluations per sample for all methods. A method has four scales with the first
value of its main knob, and two other values of the knob at its third scale (scripts/ranking/methods.py). Options of
configs/guidance that a law cannot take are printed with the reason.

Writes ranking.csv (every run), ranking.md (a row per method, means over the laws) and ranking.png (samples on a law of the
plane, at the scale of the short table). Figures are explained in `Truth.measure`. What the folder has is reused.
On one core about ten minutes.

--networks trains the default model of digits, or a small one of MNIST's digits in an .npz file, per seed, and compares some
methods at several scales: FD, precision, recall, label accuracy, and the area under the trade-off curves (scripts/ranking/
networks.py). Models and samples in the folder are reused.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from ranking.laws import LAWS, make_law
from ranking.measures import Truth
from ranking.methods import METHODS, UNSUITED
from ranking.networks import NETWORK_METHODS, NETWORKS, compare_networks
from ranking.picture import draw_panels
from ranking.runs import EXACT, TILTED, Ranking
from ranking.tables import format_markdown, middle_rows, read_csv, write_csv

from diffguide.files.run_folders import write_atomically

PICTURED = ("anisotropic", "tree", "three Gaussians")  # the law of the picture: the first of these that is ranked


def rank_laws(arguments: argparse.Namespace) -> None:
    """Runs all methods on all laws, and writes the tables and the picture."""
    for name, reason in UNSUITED.items():
        print(f"not tried: {name}: {reason}")
    ranking = Ranking(arguments.n, arguments.evaluations, arguments.seed)
    rows = [row for name in arguments.laws for row in rank_law(ranking, name, arguments)]
    write_csv(arguments.output / "ranking.csv", rows)
    table = format_markdown(rows)
    write_atomically(arguments.output / "ranking.md", lambda path: path.write_text(table, encoding="utf-8"))
    print(table)
    pictured = next((name for name in PICTURED if name in arguments.laws), None)
    if pictured is not None:
        law = make_law(pictured)
        shown = [laws[pictured] for laws in middle_rows(rows).values() if pictured in laws]
        draw_panels(arguments.output / "ranking.png", law, [(row, ranking.draw(law, row)) for row in shown])
    print(arguments.output)


def rank_law(ranking: Ranking, name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a law; methods in its file, which an earlier run with the same numbers wrote, are not run again."""
    path = arguments.output / f"laws/{name}_{ranking.n}_{ranking.evaluations}_{ranking.seed}.csv"
    rows = read_csv(path) if path.exists() else []
    truth = Truth(make_law(name), ranking.n, ranking.seed)
    wanted = [EXACT, TILTED, *(arguments.methods or METHODS)]
    for method in wanted:
        if not any(row["method"] == method for row in rows):
            for row in ranking.run(truth, method):
                rows.append(row)
                figures = " ".join(f"{key}={value:.3g}" for key, value in row.items() if isinstance(value, float))
                print(f"{name}: {row['method']} {row['value']} {figures}", flush=True)
            write_csv(path, rows)
    return [row for row in read_csv(path) if row["method"] in wanted]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument(
        "--methods", nargs="+", help=f"of laws: {', '.join(METHODS)}; of networks: {', '.join(NETWORK_METHODS)}"
    )
    parser.add_argument("--n", type=int, default=400, help="samples of each run; exact sets have as many")
    parser.add_argument("--evaluations", type=int, default=64, help="of the network, per sample")
    parser.add_argument("--seed", type=int, default=0, help="of the samples on laws")
    parser.add_argument("--output", type=Path, default=Path("outputs/guidance_ranking"))
    parser.add_argument("--networks", choices=NETWORKS, help="rank on trained networks of these data, not on laws")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--data", type=Path, help="of --networks mnist: .npz with images [N, 28, 28] and labels")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.networks:
        compare_networks(chosen)
    else:
        rank_laws(chosen)


if __name__ == "__main__":
    main()
