// Products of row-major matrices. No BLAS is called: at these sizes this kernel is up to twice as fast as the one that
// torch carries along (tests/benchmarks/bench_native.py), its sums have the same order everywhere, and nobody links one.
#pragma once

#include "simd.h"

namespace gnnscale {

struct Matrix {
    const real* at;
    int64_t row, column;  // the distance from an element to the next below it, and to the next beside it
};

constexpr int TILE_ROWS = 6, TILE_VECTORS = VECTOR_BYTES == 64 ? 4 : 2;  // as many sums as there are registers for

// C[ROWS, VECTORS] = A[ROWS, k] B[k, VECTORS] (+ C if `add`); B's rows lie `b_row` apart, the last vector may be cut.
template <int ROWS, int VECTORS>
static inline void product_tile(int64_t k, Matrix A, const real* B, int64_t b_row, bool add, real* C, int64_t c_row,
                                int64_t columns) {
    Vector sum[ROWS][VECTORS];  // in registers, as all loops over them are unrolled
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) sum[i][v] = Vector{};
    for (int64_t l = 0; l < k; l++) {
        Vector b[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) b[v] = load(B + l * b_row + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) sum[i][v] += b[v] * A.at[i * A.row + l * A.column];
    }
    const int64_t rest = columns - (VECTORS - 1) * LANES;  // columns of the last vector
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            real* c = C + i * c_row + v * LANES;
            if (v < VECTORS - 1 || rest >= LANES) {
                store(c, add ? sum[i][v] + load(c) : sum[i][v]);
            } else {
                const Vector last = sum[i][v];
                for (int64_t q = 0; q < rest; q++) c[q] = last[q] + (add ? c[q] : 0);
            }
        }
}

template <int VECTORS>
static void product_columns(int64_t m, int64_t k, Matrix A, const real* B, int64_t b_row, bool add, real* C,
                            int64_t c_row, int64_t columns) {
    int64_t i = 0;
    const auto rows = [&](auto tile, int64_t count) {
        for (; i + count <= m; i += count) tile(Matrix{A.at + i * A.row, A.row, A.column}, C + i * c_row);
    };
    rows([&](Matrix a, real* c) { product_tile<TILE_ROWS, VECTORS>(k, a, B, b_row, add, c, c_row, columns); }, TILE_ROWS);
    rows([&](Matrix a, real* c) { product_tile<4, VECTORS>(k, a, B, b_row, add, c, c_row, columns); }, 4);
    rows([&](Matrix a, real* c) { product_tile<2, VECTORS>(k, a, B, b_row, add, c, c_row, columns); }, 2);
    rows([&](Matrix a, real* c) { product_tile<1, VECTORS>(k, a, B, b_row, add, c, c_row, columns); }, 1);
}

// Copies columns of B side by side; rows of the copy are whole vectors.
static inline void copy_strip(int64_t k, int64_t columns, Matrix B, real* copy, int64_t row) {
    const int64_t rest = row - columns;
    if (B.column == 1) {
        for (int64_t l = 0; l < k; l++) std::memcpy(copy + l * row, B.at + l * B.row, sizeof(real) * columns);
    } else {
        for (int64_t l = 0; l < k; l++)
            for (int64_t q = 0; q < columns; q++) copy[l * row + q] = B.at[l * B.row + q * B.column];
    }
    for (int64_t l = 0; rest && l < k; l++) std::memset(copy + l * row + columns, 0, sizeof(real) * rest);
}

// C (m, n) = A B (+ C), for as many terms of each sum at a time as keep a strip of B in the first cache. A strip of columns
// is copied where its elements do not lie side by side, or where its last vector would reach beyond it.
static void product(int64_t m, int64_t n, int64_t k, Matrix A, Matrix B, bool add, real* C, int64_t c_row) {
    constexpr int64_t STRIP = TILE_VECTORS * LANES, TERMS = 256;
    alignas(64) real copy[TERMS * STRIP];
    for (int64_t l = 0; l < k || l == 0; l += TERMS) {
        const int64_t terms = k - l < TERMS ? k - l : TERMS;
        const Matrix a{A.at + l * A.column, A.row, A.column};
        for (int64_t j = 0; j < n; j += STRIP) {
            const int64_t columns = n - j < STRIP ? n - j : STRIP, vectors = (columns + LANES - 1) / LANES;
            const real* strip = B.at + l * B.row + j * B.column;
            int64_t b_row = B.row;
            if (B.column != 1 || columns % LANES) {
                b_row = vectors * LANES;
                copy_strip(terms, columns, {strip, B.row, B.column}, copy, b_row);
                strip = copy;
            }
            const bool sum = add || l > 0;
            if (vectors == 1)
                product_columns<1>(m, terms, a, strip, b_row, sum, C + j, c_row, columns);
            else if (vectors == 2)
                product_columns<2>(m, terms, a, strip, b_row, sum, C + j, c_row, columns);
            else if (vectors == 3)
                product_columns<3>(m, terms, a, strip, b_row, sum, C + j, c_row, columns);
            else
                product_columns<4>(m, terms, a, strip, b_row, sum, C + j, c_row, columns);
        }
    }
}

// C (m, n) = A (m, k) B (n, k)^T (+ C); a, b, c are the distances from row to row.
static inline void product_nt(int64_t m, int64_t n, int64_t k, const real* A, int64_t a, const real* B, int64_t b,
                              bool add, real* C, int64_t c) {
    product(m, n, k, {A, a, 1}, {B, 1, b}, add, C, c);
}

// C (m, n) = A (m, k) B (k, n) (+ C)
static inline void product_nn(int64_t m, int64_t n, int64_t k, const real* A, int64_t a, const real* B, int64_t b,
                              bool add, real* C, int64_t c) {
    product(m, n, k, {A, a, 1}, {B, b, 1}, add, C, c);
}

// C (m, n) = A (k, m)^T B (k, n) (+ C)
static inline void product_tn(int64_t m, int64_t n, int64_t k, const real* A, int64_t a, const real* B, int64_t b,
                              bool add, real* C, int64_t c) {
    product(m, n, k, {A, 1, a}, {B, b, 1}, add, C, c);
}

}  // namespace gnnscale
