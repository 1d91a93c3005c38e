// Muon: the momentum of a matrix with all its singular values made about 1, by the Newton-Schulz steps of train/muon.py.
//
// Rows and columns that only pad are zero and stay so.
#pragma once

#include <vector>

#include "products.h"

namespace gnnscale {

struct Muon {
    static constexpr int STEPS = 5;
    static constexpr real A = (real)3.4445, B = (real)-4.7750, C = (real)2.0315;

    real factor, momentum;  // of the gradient, and of Nesterov's momentum
    real decay, rate;       // what the matrix is multiplied by, and what its orthogonal update is

    // x: (rows, columns) with rows <= columns, as small products as there are.
    static void make_orthogonal(int64_t rows, int64_t columns, std::vector<real>& x) {
        std::vector<real> gram(rows * rows), polynomial(rows * rows), last(rows * columns);
        for (int step = 0; step < STEPS; step++) {
            product_nt(rows, rows, columns, x.data(), columns, x.data(), columns, false, gram.data(), rows);
            for (int64_t i = 0; i < rows * rows; i++) polynomial[i] = B / C * gram[i];
            product_nn(rows, rows, rows, gram.data(), rows, gram.data(), rows, true, polynomial.data(), rows);
            last.swap(x);
            for (int64_t i = 0; i < rows * columns; i++) x[i] = A / C * last[i];
            product_nn(rows, columns, rows, polynomial.data(), rows, last.data(), columns, true, x.data(), columns);
            for (real& each : x) each *= C;
        }
    }

    void update(int64_t rows, int64_t columns, real* matrix, const real* gradient, real* mean) const {
        const int64_t n = rows * columns;
        const bool turned = rows > columns;
        std::vector<real> x(n);
        double squares = 0;
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < columns; j++) {
                const int64_t k = i * columns + j;
                const real g = gradient[k] * factor;
                mean[k] += (g - mean[k]) * (1 - momentum);
                const real ahead = g + (mean[k] - g) * momentum;
                squares += (double)ahead * ahead;
                x[turned ? j * rows + i : k] = ahead;
            }
        const real norm = std::sqrt(squares), inverse = 1 / (norm > (real)1e-7 ? norm : (real)1e-7);
        for (real& each : x) each *= inverse;
        make_orthogonal(turned ? columns : rows, turned ? rows : columns, x);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < columns; j++) {
                const int64_t k = i * columns + j;
                matrix[k] = matrix[k] * decay - rate * x[turned ? j * rows + i : k];
            }
    }
};

}  // namespace gnnscale
