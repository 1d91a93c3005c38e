// M sums over the edges of each atom, each weighted with a scale of its own: where they lie, and a vector of channels of them.
#pragma once

#include "../tape.h"

namespace gnnscale {

template <int M>
struct SumPlaces {
    real* first[M];
    int64_t row, row_of_others;  // of the first sum, and of the others

    SumPlaces(const Array& sums, real* Array::*part) : row(sums.row), row_of_others(sums.row) { first[0] = sums.*part; }
    // Lets further sums lie in the components of an array, one after the other.
    void set(int from, int components, const Array& array, real* Array::*part) {
        row_of_others = array.row;
        for (int k = 0; k < components; k++) first[from + k] = array.*part + k * (array.rows / components) * array.row;
    }
    real* at(int k, int64_t i, int64_t c) const { return first[k] + i * (k ? row_of_others : row) + c; }
};

template <int M>
struct WeightedSums {
    Vector of[M] = {};

    WeightedSums() = default;
    WeightedSums(const SumPlaces<M>& sums, int64_t i, int64_t c) {
#pragma GCC unroll 16
        for (int k = 0; k < M; k++) of[k] = load(sums.at(k, i, c));
    }
    void put(const SumPlaces<M>& sums, int64_t i, int64_t c) const {
#pragma GCC unroll 16
        for (int k = 0; k < M; k++) store(sums.at(k, i, c), of[k]);
    }
    void add(Vector m, const real* scale, int64_t edges) {
#pragma GCC unroll 16
        for (int k = 0; k < M; k++) of[k] += m * scale[k * edges];
    }
    Vector times(const real* scale, int64_t edges) const {  // the sum of all, each times its scale of an edge
        Vector sum = of[0] * scale[0] + of[1] * scale[edges];
#pragma GCC unroll 16
        for (int k = 2; k + 1 < M; k += 2) sum += of[k] * scale[k * edges] + of[k + 1] * scale[(k + 1) * edges];
        if constexpr (M % 2 == 1) sum += of[M - 1] * scale[(M - 1) * edges];
        return sum;
    }
};

using FourSums = SumPlaces<4>;
using Four = WeightedSums<4>;

}  // namespace gnnscale
