"""The stage `shards`: one of several parts of a dataset, which the stage `convert` then joins.

python -m gnnscale.stages.convert_part DIRECTORY
"""

from __future__ import annotations

from gnnscale.contract import stage_run
from gnnscale.contract.settings import PartSettings
from gnnscale.data.conversion import dataset, work_items
from gnnscale.job import stage_process
from gnnscale.machine.rank_env import ranks


def main(run: stage_run.Run) -> stage_run.Outputs:
    settings: PartSettings = run.spec.settings
    job = dataset.prepared(settings)
    cut = work_items.lots(job.script.units(job.options), job.card)
    mine = [cut[k] for k in work_items.divided([lot.structures for lot in cut], settings.parts)[settings.part]]
    dataset.work(run, job, mine, cut)
    if ranks().rank:
        return stage_run.Outputs([], {})
    for folder in ("shards", "lots"):
        (run.directory / folder).mkdir(exist_ok=True)  # a part may be empty
    noted = [note for lot in mine for note in work_items.notes(run.directory, lot.number)]
    values = {
        "structures": sum(note.kept for note in noted if note.done),
        "atoms": sum(note.entry.shard.atoms for note in noted if note.entry),
        "skipped": sum(dataset.skipped(noted).values()),
    }
    return stage_run.Outputs(files=["shards", "lots"], values=values)


if __name__ == "__main__":
    stage_process.run(main)
