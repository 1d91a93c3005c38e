"""The stage `convert`: one dataset, through its script in datasets/, into ADIOS2 shards and a card.

python -m gnnscale.stages.convert DIRECTORY

Under several ranks each takes some of the work items, and the first waits for the others. A source that is converted in
parts has stages `convert_part` before this one, which then only joins their shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gnnscale.contract import stage_run
from gnnscale.contract.settings import ConvertSettings, Scalar
from gnnscale.data.conversion.dataset import collect_parts, join_shards, prepare_conversion
from gnnscale.data.conversion.known_references import describe_references
from gnnscale.data.conversion.parallel import Heartbeat, ReportProgress, wait_for_ranks
from gnnscale.data.conversion.reading import check_structure, read_structures
from gnnscale.data.conversion.shard_notes import Position
from gnnscale.data.conversion.shard_writer import ShardWriter
from gnnscale.data.conversion.work_items import Conversion, WorkItem, share_of_rank, split_work
from gnnscale.job import stage_process
from gnnscale.machine.rank_env import read_ranks


def main(run: stage_run.Run) -> stage_run.Outputs:
    conversion = prepare_conversion(run.require_settings(ConvertSettings))
    if run.needs:
        collect_parts(run.directory, run.needs.values())
    else:
        items = split_work(conversion)
        convert_on_ranks(
            conversion, items, run.directory, expect_structures(conversion, items, items), run.report_progress
        )
        if read_ranks().rank:
            return stage_run.Outputs([], {})  # the first rank's are taken
    card = join_shards(run.directory, conversion)
    run.write("card.json", card.model_dump_json(indent=1) + "\n")
    print(f"references {describe_references(card)}", flush=True)
    for remark in card.remarks:
        print(f"note: {remark}.", flush=True)
    values: dict[str, Scalar] = {
        "structures": sum(count.structures for count in card.counts.values()),
        "atoms": sum(card.elements.values()),
        "skipped": sum(card.skipped.values()),
    }
    return stage_run.Outputs(files=["shards", "card.json"], values=values)


def convert_items(
    conversion: Conversion, items: Sequence[WorkItem], folder: Path, count_read: Callable[[], None]
) -> None:
    """Convert work items, one after another; shards that an earlier attempt has written whole are kept."""
    for item in items:
        shard = ShardWriter(conversion, item, folder)
        if shard.is_done:
            continue
        for structure, origin, position in read_structures(conversion, item, shard.position, shard.skipped):
            check_structure(structure, origin)
            if (reason := conversion.quarantined.get(origin)) is None:
                shard.add(structure, origin)
            else:
                shard.skipped[f"quarantined: {reason}"] += 1
            count_read()
            if shard.is_full:
                shard.write(position)
        shard.write(Position(len(item.pieces)), done=True)


def convert_on_ranks(
    conversion: Conversion, items: Sequence[WorkItem], folder: Path, expected: float, report_progress: ReportProgress
) -> None:
    """Convert this rank's share of the work items; the first rank returns when all of them are finished."""
    ranks = read_ranks()
    own_items = share_of_rank(items, ranks)
    with Heartbeat(folder, ranks, own_items, expected, report_progress) as heartbeat:
        convert_items(conversion, own_items, folder, heartbeat.count_read)
    if ranks.rank == 0:
        wait_for_ranks(items, folder, ranks, heartbeat)


def expect_structures(conversion: Conversion, chosen: Sequence[WorkItem], items: Sequence[WorkItem]) -> float:
    """Return how many structures the chosen ones of all `items` are expected to hold, and print it on the first rank."""
    expected = sum(item.structures for item in chosen)
    if len(chosen) == len(items) and "raw" not in conversion.settings.options:
        expected = conversion.card.structures
    if not read_ranks().rank:
        name = conversion.settings.name
        print(f"{name}: about {expected:,.0f} structures in {len(chosen)} of {len(items)} work items", flush=True)
    return expected


if __name__ == "__main__":
    stage_process.run(main)
