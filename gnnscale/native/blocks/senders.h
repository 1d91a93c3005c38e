// What an edge sees of its sender: x_k = sum_d s_d y_dk over the D components of vectors or tensors, for the first channels.
//
// reverse: by y_dk: s_d g_k, and by s_d: g.y_d.
#pragma once

#include <type_traits>

#include "../tape.h"

namespace gnnscale {

// The rows of one atom in the D components of an array.
template <int D>
struct ComponentRows {
    real* of[D];

    ComponentRows(const Array& array, real* Array::*part, int64_t atom) {
        for (int d = 0; d < D; d++) of[d] = array.*part + (d * (array.rows / D) + atom) * array.row;
    }
};

// Calls f(count), with a number that the compiler knows where it is that of all but odd networks.
template <class F>
static void with_count(int64_t count, F f) {
    constexpr int64_t USUAL = 8;
    if (count == USUAL)
        f(std::integral_constant<int64_t, USUAL>());
    else
        f(count);
}

// x = the sum, or x += the sum; the scales of an edge lie `edges` apart.
template <int D, class Channels>
static void see_components(Channels channels, const ComponentRows<D>& y, const real* scale, int64_t edges, bool add,
                           real* __restrict x) {
    for (int64_t k = 0; k < channels; k++) {
        real sum = add ? x[k] : 0;
        for (int d = 0; d < D; d++) sum += scale[d * edges] * y.of[d][k];
        x[k] = sum;
    }
}

template <int D, class Channels>
static void spread_to_components(Channels channels, const ComponentRows<D>& by, const real* scale, int64_t edges,
                                 const real* __restrict g) {
    for (int d = 0; d < D; d++)
        for (int64_t k = 0; k < channels; k++) by.of[d][k] += scale[d * edges] * g[k];
}

template <int D, class Channels>
static void add_to_scales(Channels channels, const ComponentRows<D>& y, const real* __restrict g, real* by_scale) {
    real sum[D] = {};
    for (int64_t k = 0; k < channels; k++)
        for (int d = 0; d < D; d++) sum[d] += g[k] * y.of[d][k];
    for (int d = 0; d < D; d++) by_scale[d] += sum[d];
}

}  // namespace gnnscale
