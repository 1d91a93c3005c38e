"""Builds the stages of a study with their needs, keys and estimated costs. Reads files, changes none."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract import files
from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.contract.settings import ConvertSettings, PartSettings, ReportSettings, Settings, TrainSettings
from workflow.config.capacity import rank_counts
from workflow.config.site import SiteConfig
from workflow.config.study import Study, conversions, external_tests
from workflow.config.sweeps import expand_runs
from workflow.plan import cost, shared_steps
from workflow.plan.cost import SourceSize
from workflow.plan.dataset_scripts import dataset_card, raw_file_digests
from workflow.plan.keys import digest_code
from workflow.plan.memory_fit import MemoryFit, choose_levers, fit_lever_comparison
from workflow.plan.missing_data import MissingData, find_missing
from workflow.plan.stage import FOLDER_OF_KIND, Stage

# Hashed though it lies in a room that is not: it decides what a conversion leaves out.
DATASETS_CODE = "gnnscale/contract/datasets.py"


def build_stages(name: str, study: Study, site: SiteConfig, root: Path) -> dict[str, Stage]:
    """Return all stages, each after those that it needs; within a kind, long ones come before short ones."""
    builder = StageBuilder(study, site, root)
    converted, tests = builder.add_conversions(), builder.add_external_tests()
    audit_seconds = cost.audit_seconds([*builder.sizes.values(), *builder.held_out.values()], site)
    audit = builder.add("audit", "all", study.audit, (*converted, *tests), audit_seconds)
    measured = builder.add_lever_comparison(converted)
    trained = builder.add_trainings()
    builder.share_steps(trained)
    evaluated = builder.add_evaluations(trained)
    start_seconds = site.node.start_seconds
    laws = builder.add("scaling", "all", study.scaling, evaluated, start_seconds)
    page = ReportSettings(title=study.title, study=name, description=study.description, published=study.published)
    training_ids = tuple(training.id for training in trained)
    needs = (laws, *evaluated, *training_ids, *measured, audit, *converted, *tests)
    builder.add("report", "all", page, needs, start_seconds)
    return builder.in_order()


class Training(NamedTuple):
    """A stage `train`, before those that need it are added."""

    id: str
    name: str
    settings: TrainSettings
    seconds: float  # estimated for the whole training, also if its first steps are another's


class StageBuilder:
    """Stages of one study while they are added, each after those that it needs."""

    def __init__(self, study: Study, site: SiteConfig, root: Path):
        self.study, self.site, self.root = study, site, root
        self.image = site.container.digest if site.container.use else None
        self.stages: dict[str, Stage] = {}
        self.sizes: dict[str, SourceSize] = {}  # of the training splits, by source
        self.held_out: dict[str, SourceSize] = {}  # of what evaluations are made on, by source and external test
        self.tests: dict[str, str] = {}  # external test -> its source
        self.digest_code = functools.cache(digest_code)

    def add(
        self,
        kind: str,
        name: str,
        settings: Settings,
        needs: tuple[str, ...],
        core_seconds: float,
        raw: dict[str, str] | None = None,
        levers: MemoryFit | None = None,
        more_code: tuple[str, ...] = (),
        lacks: MissingData | None = None,
    ) -> str:
        """Add a stage and return its id. Its key is a hash of all that determines the result, and of nothing else.

        The parts of a conversion are not in its key, as `divide_conversion` adds them afterwards: the result is the same
        however it is divided.
        """
        code, raw = self.digest_code(kind, *more_code), raw or {}
        values = settings.model_dump()
        if raw:  # the content of raw files counts, and not where they lie
            values["options"].pop("raw", None)
            values["quarantine"] = None
        key = files.digest([values, code, raw, {need: self.stages[need].key for need in needs}, self.image])[:16]
        id, folder = f"{kind}/{name}", f"{FOLDER_OF_KIND[kind]}/{name}-{key[:8]}"
        self.stages[id] = Stage(
            id, kind, name, settings, needs, code, raw, key, folder, core_seconds, levers, image=self.image, lacks=lacks
        )
        return id

    def add_conversions(self) -> tuple[str, ...]:
        """Add a conversion for each source, divided into parts if the study says so; return their ids."""
        converted, held_out = [], self.study.evaluate.split
        for settings in conversions(self.study).values():
            card, split = dataset_card(settings), settings.split
            whole = self.add_conversion(settings, card)
            converted.append(whole.id)
            if self.study.parts(whole.name) > 1 and not files.verify(self.root / whole.folder, whole.key).done:
                self.divide_conversion(whole, settings)
            folder = self.root / whole.folder
            self.sizes[whole.name] = cost.source_size(card, folder, split.share("train"))
            self.held_out[whole.name] = cost.source_size(card, folder, split.share(held_out), held_out)
        return tuple(converted)

    def add_external_tests(self) -> tuple[str, ...]:
        """Add a conversion for each external test; return their ids. While a model is chosen by validation, they are not read."""
        if self.study.evaluate.split == "validation":
            return ()
        tests = []
        for settings in external_tests(self.study).values():
            card = dataset_card(settings)
            stage = self.add_conversion(settings, card)
            tests.append(stage.id)
            self.tests[stage.name] = str(settings.test_of)
            self.held_out[stage.name] = cost.source_size(card, self.root / stage.folder, 1.0, "test")
        return tuple(tests)

    def add_conversion(self, settings: ConvertSettings, card: DatasetCard) -> Stage:
        seconds = card.structures * card.seconds_per_structure + self.site.node.start_seconds
        lacks = find_missing(settings, self.site)
        raw = raw_file_digests(settings) if lacks is None else dict.fromkeys(lacks.files, "missing")
        code = script_code(settings)
        return self.stages[self.add("convert", settings.name, settings, (), seconds, raw, more_code=code, lacks=lacks)]

    def divide_conversion(self, whole: Stage, settings: ConvertSettings) -> None:
        """Add the parts of a conversion, which then only joins them. Once it is done, its parts are needed no more."""
        code = script_code(settings)
        parts, start_seconds = self.study.parts(whole.name), self.site.node.start_seconds
        seconds = (whole.core_seconds - start_seconds) / parts + start_seconds
        values = settings.model_dump(exclude={"kind"})
        ids = tuple(
            self.add(
                *("convert_part", f"{whole.name}.{part}", PartSettings(**values, part=part, parts=parts), (), seconds),
                raw=whole.raw,
                more_code=code,
                lacks=whole.lacks,
            )
            for part in range(parts)
        )
        self.stages[whole.id] = whole._replace(needs=ids, core_seconds=start_seconds)

    def add_lever_comparison(self, converted: tuple[str, ...]) -> tuple[str, ...]:
        """Add the stage that compares memory levers, if the study has one, on the fewest nodes of a training."""
        settings, site = self.study.levers, self.site
        if settings is None:
            return ()
        ranks = next(rank_counts(site))
        sizes = list(self.sizes.values())
        levers = fit_lever_comparison(settings, len(sizes), *cost.mean_structure(sizes), site, ranks)
        seconds = cost.lever_seconds(settings, sizes, site, ranks)
        code = settings.model.source_files
        return (self.add("memory_levers", "all", settings, converted, seconds, levers=levers, more_code=code),)

    def sources_of(self, settings: TrainSettings) -> tuple[str, ...]:
        """Return the names of the sources that a training has, which are all of the study or some."""
        return settings.sources or tuple(self.sizes)

    def add_trainings(self) -> list[Training]:
        """Add all trainings, long ones first."""
        fitted = []
        for run in expand_runs(self.study):
            sizes = [self.sizes[name] for name in self.sources_of(run.settings)]
            fitted.append((*fit_into_memory(run.settings, sizes, self.site), run))
        trained = []
        for seconds, levers, (name, _, settings) in sorted(fitted, key=lambda each: -each[0]):
            code, needs = settings.model.source_files, tuple(map(convert_id, self.sources_of(settings)))
            id = self.add("train", name, settings, needs, seconds, levers=levers, more_code=code)
            trained.append(Training(id, name, settings, seconds))
        return trained

    def share_steps(self, trained: list[Training]) -> None:
        """Let each training begin where a shorter one began its decay, if one takes the same steps up to there."""
        runs = {training.id: (training.settings, training.seconds) for training in trained}
        for id, shorter in shared_steps.shorter_runs(runs).items():
            settings, seconds = runs[id]
            saved = shared_steps.shared_cost(seconds, settings, [runs[other][1] for other in shorter])
            self.stages[id] = self.stages[id]._replace(shorter=shorter, core_seconds=seconds - saved)

    def add_evaluations(self, trained: list[Training]) -> tuple[str, ...]:
        """Add an evaluation for each training, on its sources and their external tests; return their ids."""
        evaluated = []
        for training in trained:
            sources, code = self.sources_of(training.settings), training.settings.model.source_files
            tests = [name for name, source in self.tests.items() if source in sources]
            needs = (training.id, *map(convert_id, (*sources, *tests)))
            held_out = [self.held_out[name] for name in (*sources, *tests)]
            seconds = cost.evaluate_seconds(training.settings, held_out, self.site)
            evaluated.append(self.add("evaluate", training.name, self.study.evaluate, needs, seconds, more_code=code))
        return tuple(evaluated)

    def in_order(self) -> dict[str, Stage]:
        """Return the stages in the order of the work; within a kind, long ones first."""
        kinds = list(FOLDER_OF_KIND)
        ordered = sorted(self.stages.values(), key=lambda stage: (kinds.index(stage.kind), -stage.core_seconds))
        return {stage.id: stage for stage in ordered}


def convert_id(source: str) -> str:
    return f"convert/{source}"


def script_code(settings: ConvertSettings) -> tuple[str, ...]:
    return (DATASETS_CODE, f"datasets/{settings.dataset}.py")


def fit_into_memory(settings: TrainSettings, sizes: list[SourceSize], site: SiteConfig) -> tuple[float, MemoryFit]:
    """Return a training's estimated seconds and its memory levers on the fewest nodes that are fast enough."""
    atoms, edges = cost.mean_structure(sizes)
    best: tuple[float, MemoryFit] | None = None
    for ranks in rank_counts(site):
        if best and ranks > settings.optim.batch:
            break
        levers = choose_levers(settings, len(sizes), atoms, edges, site, ranks)
        if best is None or best[1].refusal or not levers.refusal:
            best = cost.train_seconds(settings, sizes, site, ranks), levers
        if not best[1].refusal and best[0] <= site.train.hours * 3600:
            break
    assert best is not None, "a site has at least one number of ranks"
    return best
