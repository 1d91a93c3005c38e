"""The stage `convert`: one dataset, through its script in datasets/, into ADIOS2 shards and a card.

python -m gnnscale.stages.convert DIRECTORY

Under several ranks each takes some of the lots (gnnscale/data/conversion/work_items.py) and the first waits for all. A source that is
converted in parts has stages `shards` before this one, which then only joins what they made.
"""

from __future__ import annotations

from gnnscale.contract import stage_run
from gnnscale.data.conversion import work_items
from gnnscale.data.conversion.dataset import gather, joined, prepared, work
from gnnscale.job import stage_process
from gnnscale.machine.rank_env import ranks


def main(run: stage_run.Run) -> stage_run.Outputs:
    job = prepared(run.spec.settings)
    if run.needs:
        gather(run)
    else:
        cut = work_items.lots(job.script.units(job.options), job.card)
        work(run, job, cut, cut)
        if ranks().rank:
            return stage_run.Outputs([], {})  # the first rank's are taken
    made = joined(run.directory, job)
    run.write("card.json", made.model_dump_json(indent=1) + "\n")
    values = {
        "structures": sum(count.structures for count in made.counts.values()),
        "atoms": sum(made.elements.values()),
        "skipped": sum(made.skipped.values()),
    }
    return stage_run.Outputs(files=["shards", "card.json"], values=values)


if __name__ == "__main__":
    stage_process.run(main)
