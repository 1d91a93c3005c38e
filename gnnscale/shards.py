"""The stage `shards`: one of several parts of a dataset, which the stage `convert` then joins.

python -m gnnscale.shards DIRECTORY
"""

from __future__ import annotations

from gnnscale import convert, stage
from gnnscale.data import lots
from gnnscale.ranks import ranks
from gnnscale.specs import PartSettings


def main(run: stage.Run) -> stage.Outputs:
    settings: PartSettings = run.spec.settings
    job = convert.prepared(settings)
    cut = lots.lots(job.script.units(job.options), job.card)
    mine = [cut[k] for k in lots.divided([lot.structures for lot in cut], settings.parts)[settings.part]]
    convert.work(run, job, mine, cut)
    if ranks().rank:
        return stage.Outputs([], {})
    for folder in ("shards", "lots"):
        (run.directory / folder).mkdir(exist_ok=True)  # a part may be empty
    noted = [note for lot in mine for note in lots.notes(run.directory, lot.number)]
    values = {
        "structures": sum(note.kept for note in noted if note.done),
        "atoms": sum(note.entry.shard.atoms for note in noted if note.entry),
        "skipped": sum(convert.skipped(noted).values()),
    }
    return stage.Outputs(files=["shards", "lots"], values=values)


if __name__ == "__main__":
    stage.run(main)
