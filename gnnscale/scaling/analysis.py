"""TODO: say what a reader finds here."""

from __future__ import annotations

from gnnscale.contract.scaling_results import Fit, Point
from gnnscale.contract.settings import ScalingSettings
from gnnscale.scaling.findings import sentences
from gnnscale.scaling.fitting.fit import ALONG, NESTED, choose, fit_law
from gnnscale.scaling.fitting.fitted import Fitted
from gnnscale.scaling.fitting.laws import LAWS, RIVALS
from gnnscale.scaling.grid import LENGTHS, ROWS, WHERE_ALL, WHERE_LENGTHS, WHERE_MODEL, Grid, main_grid, subset, usable


def fit(points: list[Point], settings: ScalingSettings) -> Fit:
    """All laws for all targets; the same points and settings give the same Fit, whatever the order of the points."""
    points = sorted(points, key=lambda p: (p.run, p.model_dump_json()))
    grid = main_grid(points)
    fitted: list[Fitted] = []
    for target in settings.targets:
        kept, excluded = usable(points, target, grid, settings.drop_highest)
        if not kept:
            continue

        def one(
            name: str,
            stream: int,
            where: str = WHERE_ALL,
            settings: ScalingSettings = settings,
            kept: list[Point] = kept,
            target: str = target,
            excluded: dict[str, str] = excluded,
        ) -> Fitted:
            return fit_law(LAWS[name], subset(kept, where), target, where, excluded, settings, stream)

        # a stream of random numbers per law: adding a law or a target does not move the intervals of the others
        grid_laws = [one("Hoffmann", 0)]
        if not grid_laws[0].entry.identified:
            grid_laws += [one(name, k) for k, name in enumerate(NESTED, 10)]
        fitted += choose(grid_laws)
        fitted += [one(name, k, where) for k, (name, where) in enumerate(ALONG, 1)]
        bare = settings.model_copy(update={"bootstrap": 0})
        fitted += [one(name, 0, settings=bare) for name in RIVALS if name != "Hoffmann"]
        fitted += of_models(points, target, grid, settings)
        longer, others = usable(points, target, grid, settings.drop_highest, ("seed", "epochs"))
        longer = [p for p in longer if p.epochs]  # of others' points, some do not say
        if len({p.epochs for p in longer}) >= LENGTHS:
            law = LAWS["DataConstrained"]
            fitted.append(fit_law(law, longer, target, WHERE_LENGTHS, others, settings, stream=20))
    said, unsaid = sentences(points, grid, fitted, settings)
    return Fit(
        laws=tuple(f.entry for f in fitted),
        bootstrap=settings.bootstrap,
        confidence=settings.confidence,
        seed=settings.seed,
        drop_highest=settings.drop_highest,
        findings=said,
        unsupported=unsaid,
    )


def of_models(points: list[Point], target: str, grid: Grid, settings: ScalingSettings) -> list[Fitted]:
    """Joint laws of every other model that has a grid of its own: is the exponent different, or the coefficient alone?"""
    found = []
    for number, model in enumerate(sorted({p.model for p in points if p.model != grid.model})):
        mine = [p for p in points if p.model == model]
        own = main_grid(mine)
        kept, excluded = usable(mine, target, own, settings.drop_highest)
        if len(own.widths) >= ROWS and len(own.sizes) >= ROWS and kept:
            for law, stream in (("Hoffmann", 30), ("EqualPowers", 60)):
                where = f"{WHERE_MODEL}{model}"
                found.append(fit_law(LAWS[law], kept, target, where, excluded, settings, stream + number))
    return found
