"""Points in, laws and sentences out: the analysis that the stage `scaling` and `gnnscale fit` share."""

from __future__ import annotations

from gnnscale.contract.scaling_results import Fit, LawFit, Point
from gnnscale.contract.settings import ScalingSettings
from gnnscale.scaling.findings import write_findings
from gnnscale.scaling.fitting.fit import NESTED_LAWS, SINGLE_AXIS_LAWS, choose_law, fit_law
from gnnscale.scaling.fitting.fitted import FittedLaw
from gnnscale.scaling.fitting.laws import JOINT_FORMS, LAWS
from gnnscale.scaling.grid import (
    MIN_EPOCH_COUNTS,
    MIN_SIZES_OF_MODEL,
    MIN_SIZES_OF_SET,
    WHERE_ALL,
    WHERE_LENGTHS,
    WHERE_MODEL,
    Grid,
    find_main_grid,
    select_one_set,
    select_usable,
    select_where,
)


def fit_study(points: list[Point], settings: ScalingSettings) -> Fit:
    """Fit all laws to all targets; the same points and settings give the same Fit, whatever the order of the points."""
    given = sorted(points, key=lambda p: (p.run, p.model_dump_json()))
    points = select_one_set(given)
    if given and not points:
        return make_fit(settings, (), (describe_sets(given),), ())
    grid = find_main_grid(points)
    fitted: list[FittedLaw] = []
    for target in settings.targets:
        kept, excluded = select_usable(points, target, grid, settings.drop_highest)
        if not kept:
            continue

        def fit_one(
            name: str,
            stream: int,
            where: str = WHERE_ALL,
            settings: ScalingSettings = settings,
            kept: list[Point] = kept,
            target: str = target,
            excluded: dict[str, str] = excluded,
        ) -> FittedLaw:
            return fit_law(LAWS[name], select_where(kept, where), target, where, excluded, settings, stream)

        # a stream of random numbers per law: adding a law or a target does not move the intervals of the others
        grid_laws = [fit_one("Hoffmann", 0)]
        if not grid_laws[0].entry.identified:
            grid_laws += [fit_one(name, k) for k, name in enumerate(NESTED_LAWS, 10)]
        fitted += choose_law(grid_laws)
        fitted += [fit_one(name, k, where) for k, (name, where) in enumerate(SINGLE_AXIS_LAWS, 1)]
        without_intervals = settings.model_copy(update={"bootstrap": 0})
        fitted += [fit_one(name, 0, settings=without_intervals) for name in JOINT_FORMS if name != "Hoffmann"]
        fitted += fit_other_models(points, target, grid, settings)
        longer, others = select_usable(points, target, grid, settings.drop_highest, ("seed", "epochs"))
        longer = [p for p in longer if p.epochs]  # points of other people may not give it
        if len({p.epochs for p in longer}) >= MIN_EPOCH_COUNTS:
            law = LAWS["DataConstrained"]
            fitted.append(fit_law(law, longer, target, WHERE_LENGTHS, others, settings, stream=20))
    findings, limits = write_findings(points, grid, fitted, settings)
    left_out = (describe_left_out(given, points),) if len(points) < len(given) else ()
    return make_fit(settings, tuple(f.entry for f in fitted), findings, (*limits, *left_out))


def make_fit(
    settings: ScalingSettings, laws: tuple[LawFit, ...], findings: tuple[str, ...], unsupported: tuple[str, ...]
) -> Fit:
    return Fit(
        laws=laws,
        bootstrap=settings.bootstrap,
        confidence=settings.confidence,
        seed=settings.seed,
        drop_highest=settings.drop_highest,
        findings=findings,
        unsupported=unsupported,
    )


def describe_sets(points: list[Point]) -> str:
    """Say that runs on different sources are compared with each other by no law."""
    sets = len({p.source_names for p in points})
    return (
        f"No law is fitted: the {len(points)} runs have {sets} different sets of sources, and none of these has runs of "
        f"{MIN_SIZES_OF_SET} sizes or more; their errors are compared source by source."
    )


def describe_left_out(given: list[Point], points: list[Point]) -> str:
    names = points[0].source_names.replace("+", ", ")
    return f"Runs on other sources: the laws are of the {len(points)} of {len(given)} runs on {names}."


def fit_other_models(points: list[Point], target: str, grid: Grid, settings: ScalingSettings) -> list[FittedLaw]:
    """Fit joint laws to every other model that has a grid of its own.

    These laws show whether such a model has another exponent, or another coefficient alone.
    """
    fitted = []
    for number, model in enumerate(sorted({p.model for p in points if p.model != grid.model})):
        of_model = [p for p in points if p.model == model]
        own = find_main_grid(of_model)
        kept, excluded = select_usable(of_model, target, own, settings.drop_highest)
        if len(own.widths) >= MIN_SIZES_OF_MODEL and len(own.sizes) >= MIN_SIZES_OF_MODEL and kept:
            for law, stream in (("Hoffmann", 30), ("EqualPowers", 60)):
                where = f"{WHERE_MODEL}{model}"
                fitted.append(fit_law(LAWS[law], kept, target, where, excluded, settings, stream + number))
    return fitted
