"""Data in, `plotly` figures out: pure functions by theme, all of them importable from here.

No widgets here and no training; arithmetic beyond counting and axis limits belongs to the rooms that know it.
"""

# ruff: noqa: F401
from dphrl_lite.figures.analysis import (
    cover_curves,
    diversity,
    estimator_errors,
    front,
    matched_differences,
    solved_flow,
    swept,
)
from dphrl_lite.figures.classroom import class_progress
from dphrl_lite.figures.debate import beside_paper, exchanges, guessing, levers, off_target, own_front, rungs
from dphrl_lite.figures.dynamics import answer_mass, collapse_lab, hybrid_split, optima, pass_over_time, strength_front
from dphrl_lite.figures.estimates import clamp_curves, estimator_bars, estimator_table, filtering_curves
from dphrl_lite.figures.geometry import coverage, divergence_explorer, gallery, generators, mass_map, simplex
from dphrl_lite.figures.page import alt_text, install, to_html
from dphrl_lite.figures.paths import loss_by_distance, path_fronts
from dphrl_lite.figures.qlora import cost_bars, four_bits, memory_ladder, rank_explorer, reward_by_run, token_kernels
from dphrl_lite.figures.rollouts import completion_table, token_grid
from dphrl_lite.figures.runs import (
    keep_forget_gain,
    partition_histogram,
    pass_at_k_curves,
    solution_bars,
    training_dashboard,
)
from dphrl_lite.figures.style import BUCKETS, COLORS, color
from dphrl_lite.figures.tasks import query_results, verdict, verdict_table

install()
