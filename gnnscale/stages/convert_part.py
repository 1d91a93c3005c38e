"""The stage `convert_part`: one of several parts of a dataset, which the stage `convert` then joins.

python -m gnnscale.stages.convert_part DIRECTORY
"""

from __future__ import annotations

from gnnscale.contract import stage_run
from gnnscale.contract.settings import PartSettings, Scalar
from gnnscale.data.conversion.dataset import prepare_conversion
from gnnscale.data.conversion.shard_notes import NOTES, count_skipped, read_notes
from gnnscale.data.conversion.work_items import split_work, take_share
from gnnscale.job import stage_process
from gnnscale.machine.rank_env import read_ranks
from gnnscale.stages.convert import convert_on_ranks, expect_structures


def main(run: stage_run.Run) -> stage_run.Outputs:
    settings = run.require_settings(PartSettings)
    conversion = prepare_conversion(settings)
    items = split_work(conversion)
    own_items = take_share(items, settings.part, settings.parts)
    convert_on_ranks(
        conversion, own_items, run.directory, expect_structures(conversion, own_items, items), run.report_progress
    )
    if read_ranks().rank:
        return stage_run.Outputs([], {})  # the first rank's are taken
    for folder in ("shards", NOTES):
        (run.directory / folder).mkdir(exist_ok=True)  # a part may be empty
    notes = [note for item in own_items for note in read_notes(run.directory, item.number)]
    values: dict[str, Scalar] = {
        "structures": sum(note.kept for note in notes if note.done),
        "atoms": sum(note.entry.shard.atoms for note in notes if note.entry),
        "skipped": sum(count_skipped(notes).values()),
    }
    return stage_run.Outputs(files=["shards", NOTES], values=values)


if __name__ == "__main__":
    stage_process.run(main)
