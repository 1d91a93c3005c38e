"""A study as stages with their needs, keys, cost, and what is done of them already. Reads files, changes none."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from gnnscale import files, sources
from gnnscale.specs import (
    ConvertSettings,
    DatasetCard,
    PartSettings,
    ReportSettings,
    Runtime,
    Settings,
    StageResult,
    StageSpec,
    TrainSettings,
)
from workflow import estimates, fingerprint, lengths, queueing, study, yamlfile
from workflow.levers import Levers, choose, compare
from workflow.sites import SiteConfig
from workflow.study import Study

FOLDERS = {  # in the order of the work
    "shards": "data", "convert": "data", "audit": "audit", "levers": "levers", "train": "train",
    "evaluate": "evaluate", "scaling": "scaling", "report": "report",
}  # fmt: skip
State = Literal["done", "run", "resume", "check", "refused"]


class Stage(NamedTuple):
    """One command to run, once all that it needs is done."""

    id: str
    kind: str
    name: str
    settings: Settings
    needs: tuple[str, ...]
    code: dict[str, str]
    raw: dict[str, str]
    key: str
    folder: str  # relative to the run root
    core_seconds: float  # estimate; of a training on a cluster: of its job
    levers: Levers | None = None  # of a stage with ranks: on how many, and how it fits into their memory
    shorter: tuple[str, ...] = ()  # trainings whose first steps are this one's; it waits for them, but needs none
    image: str | None = None  # id of the container image

    def spec(self, stages: dict[str, Stage]) -> StageSpec:
        there = {need: os.path.relpath(stages[need].folder, self.folder) for need in self.needs}
        runtime = self.levers.runtime if self.levers else Runtime()
        before = tuple(os.path.relpath(stages[id].folder, self.folder) for id in self.shorter)
        runtime = runtime.model_copy(update={"shorter": before})
        return StageSpec(
            id=self.id, key=self.key, settings=self.settings, code=self.code, raw=self.raw, image=self.image, needs=there,
            runtime=runtime,
        )  # fmt: skip


class Planned(NamedTuple):
    stage: Stage
    state: State
    reason: str
    result: StageResult | None


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
        add("evaluate", stage.name, asked.evaluate, (stage.id, *converted), code, made,
            estimates.evaluate_seconds(stage.settings, sizes, held_out, site)).id
        for stage in trained
    )  # fmt: skip
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
    code = fingerprint.code_of("shards", f"datasets/{whole.settings.dataset}.py")
    cost = (whole.core_seconds - start_seconds) / parts + start_seconds
    asked = whole.settings.model_dump(exclude={"kind"})
    ids = []
    for part in range(parts):
        settings = PartSettings(**asked, part=part, parts=parts)
        ids.append(make("shards", f"{whole.name}.{part}", settings, (), code, made, cost, whole.raw, image=whole.image).id)
    made[whole.id] = whole._replace(needs=tuple(ids), core_seconds=start_seconds)


def share_steps(made: dict[str, Stage]) -> None:
    """Each training begins where a shorter one began its decay, if there is one that goes the same way."""
    trained = {stage.id: (stage.settings, stage.core_seconds) for stage in made.values() if stage.kind == "train"}
    for id, before in lengths.shorter(trained).items():
        paid = lengths.saved(trained[id][1], trained[id][0], [trained[other][1] for other in before])
        made[id] = made[id]._replace(shorter=before, core_seconds=made[id].core_seconds - paid)


def make(kind: str, name: str, settings: Settings, needs: tuple[str, ...], code: dict[str, str],
         made: dict[str, Stage], core_seconds: float, raw: dict[str, str] | None = None,
         levers: Levers | None = None, image: str | None = None) -> Stage:  # fmt: skip
    """Adds to `made`. The key is a hash of all that determines the result, and of nothing else.

    So not of the parts of a conversion, which `divide` adds after this: however it is divided, it comes out the same.
    """
    keys, said = {need: made[need].key for need in needs}, settings.model_dump()
    if raw:  # where the files lie does not matter, what is in them does
        said["options"].pop("raw", None)
        said["quarantine"] = None
    key = files.digest([said, code, raw or {}, keys, image])[:16]
    folder = f"{FOLDERS[kind]}/{name}-{key[:8]}"
    stage = Stage(f"{kind}/{name}", kind, name, settings, needs, code, raw or {}, key, folder, core_seconds, levers,
                  image=image)  # fmt: skip
    made[stage.id] = stage
    return stage


def measure_levers(asked: Study, sizes: list[estimates.Size], site: SiteConfig, converted: tuple[str, ...],
                   add: Callable[..., Stage], made: dict[str, Stage]) -> tuple[str, ...]:  # fmt: skip
    """The stage that compares levers, if the study asks for it: on the fewest nodes that a training may have."""
    if asked.levers is None:
        return ()
    ranks = next(queueing.ranks(site))
    levers = compare(asked.levers, len(sizes), *estimates.per_structure(sizes), site, ranks)
    cost = estimates.lever_seconds(asked.levers, sizes, site, ranks)
    return (add("levers", "all", asked.levers, converted, fingerprint.code_of("levers"), made, cost, levers=levers).id,)


def dataset_script(settings: ConvertSettings) -> tuple[Any, Any]:
    """A dataset's script, which by contract imports nothing heavy, and the options that it is given."""
    script: Any = sources.script(settings.dataset)
    try:
        return script, script.Options(**settings.options)
    except ValidationError as error:
        where = f"source {settings.name!r}, options of dataset {settings.dataset!r}"
        raise yamlfile.Problem(*yamlfile.explain(error, script.Options, where)) from None


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
            listed = sources.quarantined(Path(settings.quarantine), settings.name)
            digests["list of quarantined structures"] = files.digest(sorted([*who, why] for who, why in listed.items()))
        if "raw" in settings.options:
            script, options = dataset_script(settings)
            found, above = script.inputs(options), Path(options.raw)
            folder = above if above.is_dir() else above.parent
            digests |= {os.path.relpath(path, folder): fingerprint.raw_digest(path) for path in found}
    except (FileNotFoundError, files.BadFile) as error:
        raise yamlfile.Problem(f"source {settings.name!r}: {error}") from None
    return digests


def fit_levers(settings: TrainSettings, sizes: list[estimates.Size], site: SiteConfig) -> tuple[float, Levers]:
    """Estimated seconds, and how it fits into memory: on the fewest nodes that are fast enough, where there are several."""
    atoms, edges = estimates.per_structure(sizes)
    best: tuple[float, Levers] | None = None
    for ranks in queueing.ranks(site):
        if best and ranks > settings.optim.batch:
            break
        levers = choose(settings, len(sizes), atoms, edges, site, ranks)
        if best is None or best[1].refusal or not levers.refusal:
            best = estimates.train_seconds(settings, sizes, site, ranks), levers
        if not best[1].refusal and best[0] <= site.train.hours * 3600:
            break
    return best


# -------------------------------------------------------------------------------------------------- what is done
def plan(all_stages: dict[str, Stage], root: Path, deep: bool = False) -> dict[str, Planned]:
    """For every stage whether it is done, and if not, why."""
    planned: dict[str, Planned] = {}
    for stage in all_stages.values():
        planned[stage.id] = judge(stage, root, planned, deep)
    return planned


def judge(stage: Stage, root: Path, upstream: dict[str, Planned], deep: bool = False) -> Planned:
    folder = root / stage.folder
    verdict = files.verify(folder, stage.key, deep)
    if not verdict.done:
        if stage.levers is not None and stage.levers.refusal:
            return Planned(stage, "refused", stage.levers.refusal, None)
        resumes = stage.kind == "train" and any((folder / "checkpoints").glob("step-*"))
        reason = verdict.reason
        if reason == "not run yet":
            reason = cause(stage, root) or reason
        return Planned(stage, "resume" if resumes else "run", reason, None)
    for need in stage.needs:
        before, now = verdict.result.inputs.get(need), upstream[need].result
        if now is None:
            return Planned(stage, "check", f"{need} is made again; this runs if that comes out different", None)
        if now.digest != before:
            return Planned(stage, "run", f"{need} has been made again and is different now", None)
    return Planned(stage, "done", "", verdict.result)


def cause(stage: Stage, root: Path) -> str | None:
    """Why a stage that has been run before is another one now, told against its newest earlier form."""
    earlier = [
        path for path in (root / FOLDERS[stage.kind]).glob(f"{stage.name}-????????/spec.json")
        if path.parent.name != Path(stage.folder).name
    ]  # fmt: skip
    for path in sorted(earlier, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            return difference(files.read_model(path, StageSpec), stage)
        except files.BadFile:
            continue
    return None


def difference(old: StageSpec, stage: Stage) -> str:
    """In words: settings first, then code, then what it needs."""
    parts = []
    before, after = flat(old.settings.model_dump(mode="json")), flat(stage.settings.model_dump(mode="json"))
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            parts.append(f"{path}: {before.get(path)} -> {after.get(path)}")
    changed = sorted(f for f in old.code.keys() | stage.code.keys() if old.code.get(f) != stage.code.get(f))
    if changed:
        parts.append("code changed: " + ", ".join(changed))
    changed = sorted(f for f in old.raw.keys() | stage.raw.keys() if old.raw.get(f) != stage.raw.get(f))
    if changed:
        parts.append("input changed: " + count(changed))
    if old.image != stage.image:
        parts.append(f"image: {(old.image or 'none')[:12]} -> {(stage.image or 'none')[:12]}")
    added, gone = sorted(set(stage.needs) - set(old.needs)), sorted(set(old.needs) - set(stage.needs))
    parts += [f"needs {count(added)} more"] if added else []
    parts += [f"needs {count(gone)} no more"] if gone else []
    return "; ".join(parts) or "what it needs has changed"


def count(ids: list[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{len(ids)} ({ids[0]}, ...)"


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix.rstrip("."): data}
    return {name: value for key, inner in data.items() for name, value in flat(inner, f"{prefix}{key}.").items()}


def wall_seconds(planned: dict[str, Planned], site: SiteConfig) -> float:
    """Estimate for what is left: kinds follow each other, and within a kind `parallel_stages` run side by side."""
    left: dict[str, list[float]] = {}
    for each in planned.values():
        if each.state != "done":
            left.setdefault(each.stage.kind, []).append(each.stage.core_seconds)
    ratio = pace(planned)
    return sum(ratio.get(kind, 1.0) * max(sum(all) / site.parallel_stages, *all) for kind, all in left.items())


def outputs(planned: dict[str, Planned], root: Path) -> list[Path]:
    """Of all that is done. Not result.json, which every plan reads: nobody touches these."""
    done = [each for each in planned.values() if each.result is not None]
    return [root / each.stage.folder / name for each in done for name in each.result.outputs]


def pace(planned: dict[str, Planned]) -> dict[str, float]:
    """Measured over estimated seconds, per kind, from what is done: this machine is as fast as it is."""
    took, estimated = Counter(), Counter()
    for each in planned.values():
        if each.result is not None:
            took[each.stage.kind] += each.result.seconds
            estimated[each.stage.kind] += each.stage.core_seconds
    return {kind: took[kind] / estimated[kind] for kind in took if estimated[kind]}
