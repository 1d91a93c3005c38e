"""A study as stages with their needs, keys, cost, and what is done of them already. Reads files, changes none."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from gnnscale import files
from gnnscale.specs import (
    ConvertSettings,
    DatasetCard,
    ReportSettings,
    Runtime,
    Settings,
    ShardCard,
    StageResult,
    StageSpec,
    TrainSettings,
)
from workflow import fingerprint, lengths, study, yamlfile
from workflow.levers import Levers, choose
from workflow.sites import SiteConfig
from workflow.study import Study

FOLDERS = {"convert": "data", "train": "train", "evaluate": "evaluate", "scaling": "scaling", "report": "report"}
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
    core_seconds: float  # estimate
    levers: Levers | None = None  # of a training: how it fits into memory
    shorter: tuple[str, ...] = ()  # trainings whose first steps are this one's; it waits for them, but needs none

    def spec(self, stages: dict[str, Stage]) -> StageSpec:
        there = {need: os.path.relpath(stages[need].folder, self.folder) for need in self.needs}
        runtime = self.levers.runtime if self.levers else Runtime()
        before = tuple(os.path.relpath(stages[id].folder, self.folder) for id in self.shorter)
        runtime = runtime.model_copy(update={"shorter": before})
        return StageSpec(
            id=self.id, key=self.key, settings=self.settings, code=self.code, raw=self.raw, needs=there, runtime=runtime
        )


class Planned(NamedTuple):
    stage: Stage
    state: State
    reason: str
    result: StageResult | None


class Size(NamedTuple):
    """Means of a source, from its converted card or else from the estimate of its script."""

    structures: float  # of the training split
    atoms: float  # per structure
    neighbours: float  # per atom


def stages(name: str, asked: Study, site: SiteConfig, root: Path) -> dict[str, Stage]:
    """All stages in an order in which each comes after what it needs. Long ones come before short ones of their kind."""
    made: dict[str, Stage] = {}
    sizes: list[Size] = []
    for source, settings in study.conversions(asked).items():
        card = dataset_card(settings)
        code = fingerprint.code_of("convert", f"datasets/{settings.dataset}.py")
        cost = card.structures * card.seconds_per_structure + site.node.start_seconds
        stage = make("convert", source, settings, (), code, made, cost, raw_files(settings))
        sizes.append(size(card, root / stage.folder, asked.split.validation + asked.split.test))
    sources, code = tuple(made), fingerprint.code_of("train")
    timed = [(train_seconds(run.settings, sizes, site), run) for run in study.runs(asked)]
    trained = [
        make(
            "train", run.name, run.settings, sources, code, made, seconds, levers=fit_levers(run.settings, sizes, site)
        )
        for seconds, run in sorted(timed, key=lambda pair: -pair[0])
    ]
    share_steps(made)
    code, cost = fingerprint.code_of("evaluate"), site.node.start_seconds
    evaluated = tuple(
        make("evaluate", stage.name, asked.evaluate, (stage.id, *sources), code, made, cost).id for stage in trained
    )
    fit = make("scaling", "all", asked.scaling, evaluated, fingerprint.code_of("scaling"), made, cost)
    page = ReportSettings(title=asked.title, study=name, description=asked.description)
    needs = (fit.id, *evaluated, *(stage.id for stage in trained), *sources)
    make("report", "all", page, needs, fingerprint.code_of("report"), made, cost)
    ordered = sorted(made.values(), key=lambda stage: (list(FOLDERS).index(stage.kind), -stage.core_seconds))
    return {stage.id: stage for stage in ordered}


def share_steps(made: dict[str, Stage]) -> None:
    """Each training begins where a shorter one began its decay, if there is one that goes the same way."""
    trained = {stage.id: (stage.settings, stage.core_seconds) for stage in made.values() if stage.kind == "train"}
    for id, before in lengths.shorter(trained).items():
        paid = lengths.saved(trained[id][1], trained[id][0], [trained[other][1] for other in before])
        made[id] = made[id]._replace(shorter=before, core_seconds=made[id].core_seconds - paid)


def make(kind: str, name: str, settings: Settings, needs: tuple[str, ...], code: dict[str, str],
         made: dict[str, Stage], core_seconds: float, raw: dict[str, str] | None = None,
         levers: Levers | None = None) -> Stage:  # fmt: skip
    """Adds to `made`. The key is a hash of all that determines the result, and of nothing else."""
    keys, said = {need: made[need].key for need in needs}, settings.model_dump()
    if raw:
        del said["options"]["raw"]  # where the files lie does not matter, what is in them does
    key = files.digest([said, code, raw or {}, keys, None])[:16]  # None: the place of the image's digest
    folder = f"{FOLDERS[kind]}/{name}-{key[:8]}"
    stage = Stage(f"{kind}/{name}", kind, name, settings, needs, code, raw or {}, key, folder, core_seconds, levers)
    made[stage.id] = stage
    return stage


def dataset_script(settings: ConvertSettings) -> tuple[Any, Any]:
    """A dataset's script, which by contract imports nothing heavy, and the options that it is given."""
    name = f"datasets_{settings.dataset}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, study.DATASETS / f"{settings.dataset}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    script: Any = sys.modules[name]
    try:
        return script, script.Options(**settings.options)
    except ValidationError as error:
        where = f"source {settings.name!r}, options of dataset {settings.dataset!r}"
        raise yamlfile.Problem(*yamlfile.explain(error, script.Options, where)) from None


def dataset_card(settings: ConvertSettings) -> DatasetCard:
    script, options = dataset_script(settings)
    return script.card(options)


def raw_files(settings: ConvertSettings) -> dict[str, str]:
    """The files that a conversion reads, by their place below `raw`, each with its fingerprint; generated data have none."""
    if "raw" not in settings.options:
        return {}
    script, options = dataset_script(settings)
    try:
        found, above = script.inputs(options), Path(options.raw)
        folder = above if above.is_dir() else above.parent
        return {os.path.relpath(path, folder): fingerprint.raw_digest(path) for path in found}
    except FileNotFoundError as error:
        raise yamlfile.Problem(f"source {settings.name!r}: {error}") from None


def size(card: DatasetCard, folder: Path, held_out: float) -> Size:
    try:
        train = files.read_model(folder / "card.json", ShardCard).counts["train"]
        return Size(train.structures, train.atoms / train.structures, train.edges / train.atoms)
    except files.BadFile:
        return Size(card.structures * (1 - held_out), card.atoms_per_structure, card.neighbours_per_atom)


def train_seconds(settings: TrainSettings, sizes: list[Size], site: SiteConfig) -> float:
    """Core-seconds of one training, from exact FLOPs and the site's measured rate."""
    available = sum(s.structures for s in sizes)
    used = min(settings.structures or available, available)
    optim, share, node = settings.optim, used / available, site.node
    atoms = share * sum(s.structures * s.atoms for s in sizes)
    edges = share * sum(s.structures * s.atoms * s.neighbours for s in sizes)
    flops = settings.model.flops(atoms, edges)  # of one epoch
    epochs = optim.passes(flops)
    steps = math.ceil(epochs * used / min(optim.batch, used))
    return node.start_seconds + steps * node.step_seconds + epochs * flops / (node.core_gflops * 1e9)


def fit_levers(settings: TrainSettings, sizes: list[Size], site: SiteConfig) -> Levers:
    structures = sum(s.structures for s in sizes)
    atoms = sum(s.structures * s.atoms for s in sizes) / structures
    edges = sum(s.structures * s.atoms * s.neighbours for s in sizes) / structures
    return choose(settings, len(sizes), atoms, edges, site)


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


def pace(planned: dict[str, Planned]) -> dict[str, float]:
    """Measured over estimated seconds, per kind, from what is done: this machine is as fast as it is."""
    took, estimated = Counter(), Counter()
    for each in planned.values():
        if each.result is not None:
            took[each.stage.kind] += each.result.seconds
            estimated[each.stage.kind] += each.stage.core_seconds
    return {kind: took[kind] / estimated[kind] for kind in took if estimated[kind]}
