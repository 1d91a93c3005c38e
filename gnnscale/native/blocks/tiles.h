// Edges in tiles: some consecutive edges at a time, so that arrays over them stay in a core's cache.
#pragma once

#include "../geometry.h"

namespace gnnscale {

// Calls f(first edge, end) for every tile.
template <class F>
static void each_tile(const Geometry& g, int64_t size, F f) {
    for (int64_t begin = 0; begin < g.edges; begin += size) f(begin, begin + size < g.edges ? begin + size : g.edges);
}

// Calls f(atom, first edge, end) for every atom that has edges in a tile.
template <class F>
static void each_atom(const Geometry& g, int64_t begin, int64_t end, F f) {
    for (int64_t e = begin, next; e < end; e = next) {
        const int64_t i = g.receiver[e];
        next = g.row[i + 1] < end ? g.row[i + 1] : end;
        f(i, e, next);
    }
}

}  // namespace gnnscale
