// A network as a list of blocks. Each block has its value, tangent and reverse side by side, and every pass is a loop.
//
// Variables are arrays of rows: of atoms (m = 1), or of three components of each (m = 3). Beside a value y there are its
// tangent t along a change of positions, and two derivatives: g of the loss by y, and h of the sum of energies by y, which
// is also that of the sum's tangent by t. t lies after y and h after g, so that one product serves both.
#pragma once

#include <memory>
#include <vector>

#include "geometry.h"
#include "products.h"

namespace gnnscale {

enum class Pass {
    slopes,        // h: of the sum of energies, by geometry
    learn,         // g: of a loss of energies and direct forces, by parameters
    learn_slopes,  // g: of a loss of energies and slopes, by parameters, through values and tangents; h is known
};

struct Variable {
    int64_t m, cols, root, from;  // a view is some columns of its root; a root is its own
    int64_t row = 0;              // the distance from row to row
    bool moves = false;           // with positions
    bool cleared = false;         // its derivative begins as 0: nobody sets all of it
};

struct Array {
    real *y = nullptr, *t = nullptr, *g = nullptr, *h = nullptr;
    int64_t rows = 0, cols = 0, row = 0;

    real* by(Pass pass) const { return pass == Pass::slopes ? h : g; }
};

// A lane of a batch on its way through the blocks: geometry, arrays, and where the gradient is gathered.
struct Run {
    const Batch* batch = nullptr;
    int64_t first_atom = 0, first_edge = 0;
    Geometry geometry;
    const real* parameters = nullptr;
    real* gradient = nullptr;  // blocks add to it
    std::vector<Array> arrays;
    std::vector<real> store, scratch;
    std::vector<real> energies, forces, virial, by_energy, by_forces, by_virial;  // of this lane

    int64_t atoms() const { return geometry.atoms; }
    int64_t bytes() const {
        int64_t sum = geometry.bytes() + held(store) + held(scratch) + held(arrays);
        for (auto* each : {&energies, &forces, &virial, &by_energy, &by_forces, &by_virial}) sum += held(*each);
        return sum;
    }
    real* room(int64_t numbers) {  // memory for the block at work, aligned
        if ((int64_t)scratch.size() < numbers + PAD) scratch.resize(numbers + PAD);
        return scratch.data() + (64 - ((uintptr_t)scratch.data() & 63)) % 64 / sizeof(real);
    }
};

// A use of a variable. The last block that uses it comes first in reverse: there its derivative is set, all others add.
struct Input {
    int64_t var = -1;
    bool sets = false;

    explicit operator bool() const { return var >= 0; }
    const Array& operator()(const Run& run) const { return run.arrays[var]; }
};

struct Output {
    int64_t var = -1;

    const Array& operator()(const Run& run) const { return run.arrays[var]; }
};

struct Block {
    bool moves = false;  // any of its inputs does, or geometry comes in here

    virtual ~Block() = default;
    virtual std::vector<Input*> inputs() = 0;
    virtual std::vector<Output> outputs() const = 0;
    virtual bool sees_geometry() const { return false; }
    virtual void prepare(const std::vector<Variable>&) {}
    virtual void value(Run& run) = 0;
    virtual void tangent(Run& run) = 0;              // only where it moves
    virtual void reverse(Run& run, Pass pass) = 0;  // a block that does not move is asked for `learn` alone
};

// Numbers of two passes that lie one after the other: values and tangents, or g and h.
inline int64_t both(Pass pass, int64_t rows) { return pass == Pass::learn_slopes ? 2 * rows : rows; }

// y = x or y += x, row by row; any number of columns.
static inline void put_rows(int64_t rows, int64_t cols, const real* x, int64_t x_row, real* y, int64_t y_row, bool set) {
    for (int64_t i = 0; i < rows; i++) {
        const real* a = x + i * x_row;
        real* b = y + i * y_row;
        if (set)
            std::memcpy(b, a, sizeof(real) * cols);
        else
            for (int64_t c = 0; c < cols; c++) b[c] += a[c];
    }
}

static inline void clear_rows(int64_t rows, int64_t cols, real* x, int64_t row) {
    for (int64_t i = 0; i < rows; i++) std::memset(x + i * row, 0, sizeof(real) * cols);
}

static inline void add_column_sums(int64_t rows, int64_t cols, const real* x, int64_t row, real* sums) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < cols; c++) sums[c] += x[i * row + c];
}

struct Tape {
    std::vector<Variable> variables;
    std::vector<std::unique_ptr<Block>> blocks;
    int64_t energy = -1, forces = -1;  // variables; forces are -1 where they are slopes of the energy

    void finish();
    void prepare(Run& run) const;
    void values(Run& run) const {
        for (auto& block : blocks) block->value(run);
    }
    void tangents(Run& run) const;
    void reverse(Run& run, Pass pass) const;
};

// Decides what moves with positions, and who sets and who adds a derivative.
inline void Tape::finish() {
    for (auto& v : variables) v.row = variables[v.root].cols;
    std::vector<int64_t> users(variables.size(), 0), last(variables.size(), -1), last_var(variables.size(), -1);
    for (size_t b = 0; b < blocks.size(); b++) {
        Block& block = *blocks[b];
        block.moves = block.sees_geometry();
        for (Input* x : block.inputs()) {
            const int64_t root = variables[x->var].root;
            block.moves |= variables[x->var].moves;
            users[root] = last[root] == (int64_t)b ? users[root] + 1 : 1;  // in the last block that uses it
            last[root] = b;
            last_var[root] = x->var;
        }
        for (Output y : block.outputs()) {
            variables[y.var].moves = block.moves;
            if (block.moves) variables[variables[y.var].root].moves = true;
        }
        block.prepare(variables);
    }
    for (size_t root = 0; root < variables.size(); root++)
        variables[root].cleared = users[root] != 1 || last_var[root] != (int64_t)root;
    if (energy >= 0) variables[energy].cleared = users[energy] > 0;
    if (forces >= 0) variables[forces].cleared = users[forces] > 0;
    for (size_t b = 0; b < blocks.size(); b++)
        for (Input* x : blocks[b]->inputs()) {
            const int64_t root = variables[x->var].root;
            x->sets = last[root] == (int64_t)b && !variables[root].cleared;
        }
}

// Lays the arrays of a lane out in its store, which grows and is kept.
inline void Tape::prepare(Run& run) const {
    const bool tangents = forces < 0;
    const int64_t copies = tangents ? 2 : 1, atoms = run.atoms();
    const auto padded = [](int64_t n) { return (n + PAD - 1) / PAD * PAD; };
    int64_t numbers = PAD;
    for (size_t k = 0; k < variables.size(); k++)
        if (variables[k].root == (int64_t)k) numbers += 2 * padded(copies * variables[k].m * atoms * variables[k].cols);
    if ((int64_t)run.store.size() < numbers) run.store.assign(numbers + numbers / 8, 0);
    real* next = run.store.data() + (64 - ((uintptr_t)run.store.data() & 63)) % 64 / sizeof(real);
    run.arrays.resize(variables.size());
    for (int views = 0; views < 2; views++)
        for (size_t k = 0; k < variables.size(); k++) {
            const Variable& v = variables[k];
            if ((v.root != (int64_t)k) != (views == 1)) continue;
            Array& a = run.arrays[k];
            a = {nullptr, nullptr, nullptr, nullptr, v.m * atoms, v.cols, v.row};
            if (views) {
                const Array& root = run.arrays[v.root];
                a.y = root.y + v.from;
                a.g = root.g + v.from;
                if (tangents) a.t = root.t + v.from, a.h = root.h + v.from;
                continue;
            }
            const int64_t half = a.rows * a.row;
            a.y = next;
            next += padded(copies * half);
            a.g = next;
            next += padded(copies * half);
            if (tangents) a.t = a.y + half, a.h = a.g + half;
        }
}

inline void Tape::tangents(Run& run) const {
    for (auto& block : blocks) {
        if (block->moves) {
            block->tangent(run);
        } else {
            for (Output y : block->outputs()) clear_rows(y(run).rows, y(run).cols, y(run).t, y(run).row);
        }
    }
}

inline void Tape::reverse(Run& run, Pass pass) const {
    for (size_t k = 0; k < variables.size(); k++)
        if (variables[k].root == (int64_t)k && variables[k].cleared)
            clear_rows(run.arrays[k].rows, run.arrays[k].cols, run.arrays[k].by(pass), run.arrays[k].row);
    for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
        if ((*block)->moves)
            (*block)->reverse(run, pass);
        else if (pass != Pass::slopes)
            (*block)->reverse(run, Pass::learn);
    }
}

}  // namespace gnnscale
