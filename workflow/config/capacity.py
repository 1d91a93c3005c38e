"""Numbers of ranks that a training may have at a site, and queues that it may use."""

from __future__ import annotations

from collections.abc import Iterator

from workflow.config.site import Queue, SiteConfig


def rank_counts(site: SiteConfig) -> Iterator[int]:
    """Yield the numbers of ranks that a training may have, from few to many."""
    if not site.has_scheduler:
        yield site.launch.ranks
        return
    most = max(queue.nodes[1] for queue in training_queues(site).values())
    nodes, last = site.train.nodes[0], min(site.train.nodes[1], most)
    while nodes < last:
        yield nodes * site.ranks_per_node
        nodes *= 2
    yield last * site.ranks_per_node


def training_queues(site: SiteConfig) -> dict[str, Queue]:
    """Return the queues from which the planner may choose one for a training."""
    if site.train.queue is not None:
        return {site.train.queue: site.queues[site.train.queue]}
    return {name: queue for name, queue in site.queues.items() if queue.production and queue.node is None}


def format_node_range(queue: Queue) -> str:
    low, high = queue.nodes
    return f"{low} to {high} nodes" if low < high else f"{low} node{'s' if low > 1 else ''}"
