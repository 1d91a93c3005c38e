"""All figures of a study in the order of the page, in a size for papers."""

from __future__ import annotations

from collections.abc import Callable

from gnnscale.report.figures.comparisons import draw_equal_compute, draw_learning_rates, draw_sources, draw_subset_bias
from gnnscale.report.figures.depth import draw_depths, draw_layers, draw_width_against_depth
from gnnscale.report.figures.learning_curves import draw_learning_curves
from gnnscale.report.figures.levers import draw_levers
from gnnscale.report.figures.loss_vs_compute import draw_compute
from gnnscale.report.figures.loss_vs_size import draw_loss_curves, draw_surface
from gnnscale.report.figures.style import MATPLOTLIB_STYLE, DrawnFigure, Figure, close_figure, export_figure, matplotlib
from gnnscale.report.study_results import StudyResults
from gnnscale.scaling.grid import select_one_set


def draw_figures(study: StudyResults) -> list[DrawnFigure]:
    """Draw all figures that the study has data for; they compare runs on the same sources."""
    study = study._replace(points=select_one_set(study.points))
    wanted: list[tuple[str, bool, Callable[[StudyResults], tuple[Figure, str] | None]]] = [
        ("loss_data", True, lambda s: draw_loss_curves(s, "structures", "body_parameters")),
        ("loss_parameters", True, lambda s: draw_loss_curves(s, "body_parameters", "structures")),
        ("surface", True, draw_surface),
        ("compute", True, draw_compute),
        ("width_depth", True, draw_width_against_depth),
        ("depths", True, draw_depths),
        ("layers", True, draw_layers),
        ("equal_compute", True, draw_equal_compute),
        ("learning_rates", True, draw_learning_rates),
        ("subset_bias", True, draw_subset_bias),
        ("levers", True, draw_levers),
        ("sources", True, draw_sources),
        ("learning", True, draw_learning_curves),
    ]
    drawn = []
    with matplotlib.rc_context(MATPLOTLIB_STYLE):
        for name, wide, make in wanted:
            made = make(study)
            if made:
                figure, caption = made
                drawn.append(DrawnFigure(name, caption, wide, *export_figure(figure)))
                close_figure(figure)
    return drawn
