"""The three questions of arXiv 2504.08112, each answered in words with the evidence beside it, and what the evidence does
not support; and the laws that were weighed against each other."""

from __future__ import annotations

from gnnscale.report.questions.answer import Answer
from gnnscale.report.questions.data_or_parameters import answer_data_or_parameters
from gnnscale.report.questions.memory_techniques import answer_memory
from gnnscale.report.questions.width_or_depth import answer_width_or_depth
from gnnscale.report.study_results import StudyResults, is_drawable


def answer_questions(study: StudyResults) -> list[Answer]:
    if not any(map(is_drawable, study.points)):
        return []
    return [answer_data_or_parameters(study), answer_width_or_depth(study), answer_memory(study)]
