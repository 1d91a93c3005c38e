"""TODO: say what a reader finds here."""

from __future__ import annotations

from collections.abc import Iterator

from workflow.config.site import Queue, SiteConfig


def ranks(site: SiteConfig) -> Iterator[int]:
    """Numbers of ranks that a training may have, from few to many."""
    if not site.batch:
        yield site.launch.ranks
        return
    most = max(queue.nodes[1] for queue in for_trainings(site).values())
    nodes, last = site.train.nodes[0], min(site.train.nodes[1], most)
    while nodes < last:
        yield nodes * site.ranks_per_node
        nodes *= 2
    yield last * site.ranks_per_node


def for_trainings(site: SiteConfig) -> dict[str, Queue]:
    """The queues among which the planner may choose."""
    if site.train.queue is not None:
        return {site.train.queue: site.queues[site.train.queue]}
    return {name: queue for name, queue in site.queues.items() if queue.production and queue.node is None}


def span(queue: Queue) -> str:
    low, high = queue.nodes
    return f"{low} to {high} nodes" if low < high else f"{low} node{'s' if low > 1 else ''}"
