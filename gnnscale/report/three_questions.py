"""The three questions of arXiv 2504.08112: data or parameters, width or depth, and what memory techniques bring."""

from __future__ import annotations

from gnnscale.report.questions.answer import Answer
from gnnscale.report.questions.data_or_parameters import answer_data_or_parameters
from gnnscale.report.questions.memory_techniques import answer_memory
from gnnscale.report.questions.width_or_depth import answer_width_or_depth
from gnnscale.report.study_results import StudyResults, is_drawable
from gnnscale.scaling.grid import select_one_set


def answer_questions(study: StudyResults) -> list[Answer]:
    """Answer all questions, or none if the study has no usable point."""
    study = study._replace(points=select_one_set(study.points))
    if not any(map(is_drawable, study.points)):
        return []
    return [answer_data_or_parameters(study), answer_width_or_depth(study), answer_memory(study)]
