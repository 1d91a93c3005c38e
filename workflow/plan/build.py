"""A study as stages with their needs, keys, cost, and what is done of them already. Reads files, changes none."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gnnscale.contract import datasets, errors, files
from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.contract.settings import ConvertSettings, PartSettings, ReportSettings, Settings, TrainSettings
from workflow.config import capacity, study, yaml_file
from workflow.config.site import SiteConfig
from workflow.config.study import Study
from workflow.plan import cost as estimates
from workflow.plan import keys as fingerprint
from workflow.plan import shared_steps
from workflow.plan.memory_fit import Levers, choose, compare
from workflow.plan.stage import FOLDERS, Stage


def stages(name: str, asked: Study, site: SiteConfig, root: Path) -> dict[str, Stage]:
    """All stages in an order in which each comes after what it needs. Long ones come before short ones of their kind."""
    made: dict[str, Stage] = {}
    add = functools.partial(make, image=site.container.digest if site.container.use else None)
    sizes: list[estimates.Size] = []
    for source, settings in study.conversions(asked).items():
        card = dataset_card(settings)
        code = fingerprint.code_of("convert", f"datasets/{settings.dataset}.py")
        cost = card.structures * card.seconds_per_structure + site.node.start_seconds
        stage = add("convert", source, settings, (), code, made, cost, raw_files(settings))
        divide(stage, asked.parts(source), site.node.start_seconds, root, made)
        sizes.append(estimates.size(card, root / stage.folder, asked.split.validation + asked.split.test))
    converted = tuple(id for id, stage in made.items() if stage.kind == "convert")
    code = fingerprint.code_of("audit")
    audit = add("audit", "all", asked.audit, converted, code, made, estimates.audit_seconds(sizes, site))
    measured = measure_levers(asked, sizes, site, converted, add, made)
    code = fingerprint.code_of("train")
    fitted = [(*fit_levers(run.settings, sizes, site), run) for run in study.runs(asked)]
    trained = [
        add("train", run.name, run.settings, converted, code, made, seconds, levers=levers)
        for seconds, levers, run in sorted(fitted, key=lambda each: -each[0])
    ]
    share_steps(made)
    code, held_out = fingerprint.code_of("evaluate"), asked.split.over_training(asked.evaluate.split)
    evaluated = tuple(
        add(
            "evaluate",
            stage.name,
            asked.evaluate,
            (stage.id, *converted),
            code,
            made,
            estimates.evaluate_seconds(stage.settings, sizes, held_out, site),
        ).id
        for stage in trained
    )
    cost = site.node.start_seconds
    fit = add("scaling", "all", asked.scaling, evaluated, fingerprint.code_of("scaling"), made, cost)
    page = ReportSettings(title=asked.title, study=name, description=asked.description)
    needs = (fit.id, *evaluated, *(stage.id for stage in trained), *measured, audit.id, *converted)
    add("report", "all", page, needs, fingerprint.code_of("report"), made, cost)
    ordered = sorted(made.values(), key=lambda stage: (list(FOLDERS).index(stage.kind), -stage.core_seconds))
    return {stage.id: stage for stage in ordered}


def divide(whole: Stage, parts: int, start_seconds: float, root: Path, made: dict[str, Stage]) -> None:
    """A conversion as several stages and one that joins them; once it is done its parts are needed no more."""
    if parts == 1 or files.verify(root / whole.folder, whole.key).done:
        return
    code = fingerprint.code_of("convert_part", f"datasets/{whole.settings.dataset}.py")
    cost = (whole.core_seconds - start_seconds) / parts + start_seconds
    asked = whole.settings.model_dump(exclude={"kind"})
    ids = []
    for part in range(parts):
        settings = PartSettings(**asked, part=part, parts=parts)
        ids.append(
            make(
                "convert_part", f"{whole.name}.{part}", settings, (), code, made, cost, whole.raw, image=whole.image
            ).id
        )
    made[whole.id] = whole._replace(needs=tuple(ids), core_seconds=start_seconds)


def share_steps(made: dict[str, Stage]) -> None:
    """Each training begins where a shorter one began its decay, if there is one that goes the same way."""
    trained = {stage.id: (stage.settings, stage.core_seconds) for stage in made.values() if stage.kind == "train"}
    for id, before in shared_steps.shorter(trained).items():
        paid = shared_steps.saved(trained[id][1], trained[id][0], [trained[other][1] for other in before])
        made[id] = made[id]._replace(shorter=before, core_seconds=made[id].core_seconds - paid)


def make(
    kind: str,
    name: str,
    settings: Settings,
    needs: tuple[str, ...],
    code: dict[str, str],
    made: dict[str, Stage],
    core_seconds: float,
    raw: dict[str, str] | None = None,
    levers: Levers | None = None,
    image: str | None = None,
) -> Stage:
    """Adds to `made`. The key is a hash of all that determines the result, and of nothing else.

    So not of the parts of a conversion, which `divide` adds after this: however it is divided, it comes out the same.
    """
    keys, said = {need: made[need].key for need in needs}, settings.model_dump()
    if raw:  # where the files lie does not matter, what is in them does
        said["options"].pop("raw", None)
        said["quarantine"] = None
    key = files.digest([said, code, raw or {}, keys, image])[:16]
    folder = f"{FOLDERS[kind]}/{name}-{key[:8]}"
    stage = Stage(
        f"{kind}/{name}", kind, name, settings, needs, code, raw or {}, key, folder, core_seconds, levers, image=image
    )
    made[stage.id] = stage
    return stage


def measure_levers(
    asked: Study,
    sizes: list[estimates.Size],
    site: SiteConfig,
    converted: tuple[str, ...],
    add: Callable[..., Stage],
    made: dict[str, Stage],
) -> tuple[str, ...]:
    """The stage that compares levers, if the study asks for it: on the fewest nodes that a training may have."""
    if asked.levers is None:
        return ()
    ranks = next(capacity.ranks(site))
    levers = compare(asked.levers, len(sizes), *estimates.per_structure(sizes), site, ranks)
    cost = estimates.lever_seconds(asked.levers, sizes, site, ranks)
    return (
        add(
            "memory_levers",
            "all",
            asked.levers,
            converted,
            fingerprint.code_of("memory_levers"),
            made,
            cost,
            levers=levers,
        ).id,
    )


def dataset_script(settings: ConvertSettings) -> tuple[Any, Any]:
    """A dataset's script, which by contract imports nothing heavy, and the options that it is given."""
    script: Any = datasets.script(settings.dataset)
    try:
        return script, script.Options(**settings.options)
    except ValidationError as error:
        where = f"source {settings.name!r}, options of dataset {settings.dataset!r}"
        raise errors.Problem(*yaml_file.explain(error, script.Options, where)) from None


def dataset_card(settings: ConvertSettings) -> DatasetCard:
    script, options = dataset_script(settings)
    return script.card(options)


def raw_files(settings: ConvertSettings) -> dict[str, str]:
    """The files that a conversion reads, by their place below `raw`, each with its fingerprint; generated data have none.

    Of the list of quarantined structures what it says of this source counts.
    """
    digests = {}
    try:
        if settings.quarantine:
            listed = datasets.quarantined(Path(settings.quarantine), settings.name)
            digests["list of quarantined structures"] = files.digest(sorted([*who, why] for who, why in listed.items()))
        if "raw" in settings.options:
            script, options = dataset_script(settings)
            found, above = script.inputs(options), Path(options.raw)
            folder = above if above.is_dir() else above.parent
            digests |= {os.path.relpath(path, folder): fingerprint.raw_digest(path) for path in found}
    except (FileNotFoundError, files.BadFile) as error:
        raise errors.Problem(f"source {settings.name!r}: {error}") from None
    return digests


def fit_levers(settings: TrainSettings, sizes: list[estimates.Size], site: SiteConfig) -> tuple[float, Levers]:
    """Estimated seconds, and how it fits into memory: on the fewest nodes that are fast enough, where there are several."""
    atoms, edges = estimates.per_structure(sizes)
    best: tuple[float, Levers] | None = None
    for ranks in capacity.ranks(site):
        if best and ranks > settings.optim.batch:
            break
        levers = choose(settings, len(sizes), atoms, edges, site, ranks)
        if best is None or best[1].refusal or not levers.refusal:
            best = estimates.train_seconds(settings, sizes, site, ranks), levers
        if not best[1].refusal and best[0] <= site.train.hours * 3600:
            break
    return best


# -------------------------------------------------------------------------------------------------- what is done
