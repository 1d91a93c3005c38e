// The functions of interface.h, and the reader of programs.
//
// A program is a list of whole numbers that gnnscale/models/recording.py records from a network's own forward pass.

#include "blocks/contraction.h"
#include "blocks/direct_forces.h"
#include "blocks/edge_messages.h"
#include "blocks/embedding.h"
#include "blocks/length.h"
#include "blocks/linear.h"
#include "blocks/messages.h"
#include "blocks/moment_messages.h"
#include "blocks/norm.h"
#include "blocks/silu.h"
#include "blocks/sums.h"
#include "muon.h"
#include "optimizer.h"
#include "potential.h"

using namespace gnnscale;

#ifndef SOURCE_DIGEST
#define SOURCE_DIGEST ""
#endif

namespace {

constexpr int64_t FORMAT = 1, HEADER = 10, MOST_RADIAL = 1024;
constexpr int64_t MOST = 1 << 20;  // of columns, rows and sources: products of three are no overflow

// Reads a program; what it says is checked, as it may come from a file.
class Reader {
   public:
    Reader(const int64_t* code, int64_t n) : code(code), end(n) {}

    std::unique_ptr<Network> read(double cutoff, double scale) {
        if (end < HEADER || code[0] != FORMAT || code[9] != PAD) return nullptr;
        auto network = std::make_unique<Network>();
        const int64_t variables = code[1], blocks = code[2];
        parameters = network->parameters = code[5];
        network->radial = code[7];
        sources = code[8];
        network->cutoff = cutoff;
        network->scale = scale;
        if (variables < 1 || blocks < 1 || variables > end || blocks > end || parameters < 0 || code[7] < 1 ||
            code[7] > MOST_RADIAL || sources < 1 || sources > MOST)
            return nullptr;
        at = HEADER;
        tape = &network->tape;
        scales = &network->scales;
        if (end - at < 4 * variables) return nullptr;
        for (int64_t k = 0; k < variables; k++, at += 4) {
            Variable v{code[at], code[at + 1], code[at + 2] < 0 ? k : code[at + 2], code[at + 3]};
            if ((v.m != 1 && v.m != 3 && v.m != 5) || v.cols < 1 || v.cols > MOST || v.root >= variables) return nullptr;
            tape->variables.push_back(v);
        }
        for (auto& v : tape->variables) {
            const auto& root = tape->variables[v.root];
            if (root.root != v.root || v.m != root.m || v.from < 0 || v.from > root.cols - v.cols) return nullptr;
        }
        for (int64_t k = 0; k < blocks; k++)
            if (!read_block()) return nullptr;
        tape->energy = code[3];
        tape->forces = code[4];
        if (at != end || tape->energy < 0 || !is_variable(tape->energy) || tape->forces < -1 ||
            (tape->forces >= 0 && (!is_variable(tape->forces) || tape->variables[tape->forces].cols != 3)))
            return nullptr;
        tape->finish();
        return network;
    }

   private:
    const int64_t* code;
    int64_t end, at = 0, parameters = 0, sources = 0;
    Tape* tape = nullptr;
    int* scales = nullptr;  // of the edges

    bool is_variable(int64_t k) const { return k >= 0 && k < (int64_t)tape->variables.size(); }
    int64_t cols(int64_t k) const { return tape->variables[k].cols; }
    int64_t m(int64_t k) const { return tape->variables[k].m; }
    bool is_vectors(int64_t k) const { return cols(k) % PAD == 0; }  // loops over whole vectors pass it
    bool fits(int64_t offset, int64_t numbers) const { return offset >= 0 && offset <= parameters - numbers; }

    template <class B, class... X>
    bool add(X... operands) {
        tape->blocks.emplace_back(new B(operands...));
        for (Input* x : tape->blocks.back()->inputs())
            if (!is_variable(x->var)) return false;
        return true;
    }

    bool read_block() {
        if (end - at < 2) return false;
        const int64_t kind = code[at], count = code[at + 1], *o = code + at + 2;
        if (count < 0 || end - at - 2 < count) return false;
        at += 2 + count;
        static constexpr int64_t COUNTS[] = {5, 5, 2, 4, 2, 4, 4, 6, 5, 4, 3, 2, 3, 9};
        static constexpr int64_t VARIABLES[] = {1, 2, 2, 3, 2, 2, 3, 3, 4, 2, 3, 2, 3, 4};  // operands that come first
        if (kind < 0 || kind > 13 || count != COUNTS[kind]) return false;
        for (int64_t k = 0; k < VARIABLES[kind]; k++)
            if (!is_variable(o[k])) return false;
        const auto base_is_good = [&](int64_t base, int64_t y) {
            return base == -1 || (is_variable(base) && cols(base) == cols(y) && m(base) == m(y));
        };
        switch (kind) {
            case 0:
                return (o[1] == 0 || o[1] == 1) && m(o[0]) == 1 && base_is_good(o[4], o[0]) &&
                       o[2] >= (o[1] ? sources : ELEMENTS) && o[2] <= MOST && fits(o[3], o[2] * cols(o[0])) &&
                       add<Embedding>(o[0], o[1] == 1, o[3], o[4]);
            case 1:
                return m(o[0]) == m(o[1]) && base_is_good(o[4], o[1]) && fits(o[2], cols(o[0]) * cols(o[1])) &&
                       (o[3] == -1 || fits(o[3], cols(o[1]))) && add<Linear>(o[0], o[1], o[2], o[3], o[4]);
            case 2:
                return is_vectors(o[0]) && alike(o[0], o[1]) && add<Silu>(o[0], o[1]);
            case 3:
                return is_vectors(o[0]) && alike(o[0], o[1]) && cols(o[2]) == 1 && m(o[2]) == m(o[0]) &&
                       tape->variables[o[2]].root == o[2] && o[3] >= 1 && o[3] <= cols(o[0]) &&
                       add<Norm>(o[0], o[1], o[2], o[3]);
            case 4:
                return m(o[0]) > 1 && m(o[1]) == 1 && cols(o[0]) == cols(o[1]) && add<Length>(o[0], o[1]);
            case 5:
                return is_vectors(o[0]) && alike(o[0], o[1]) && base_is_good(o[3], o[1]) && fits(o[2], cols(o[0])) &&
                       add<Scale>(o[0], o[1], o[2], o[3]);
            case 6:
                return are_messages(o[0], o[1], o[2], o[3]) && add<Messages>(o[0], o[1], o[2], o[3]);
            case 7:
                return are_messages(o[0], o[1], o[2], o[3]) && fits(o[4], cols(o[1]) * cols(o[1])) && fits(o[5], cols(o[1])) &&
                       add<EdgeMessages>(o[0], o[1], o[2], o[3], o[4], o[5]);
            case 8:
                return m(o[0]) == 3 && cols(o[0]) >= o[4] && o[4] >= 1 && cols(o[1]) >= 1 + o[4] && is_whole(o[2], 1) &&
                       is_whole(o[3], 3) && m(o[1]) == 1 && add<DirectForces>(o[0], o[1], o[2], o[3], o[4]);
            case 9:
                return m(o[0]) == 1 && m(o[1]) == 1 && o[3] >= sources && o[3] <= MOST &&
                       fits(o[2], o[3] * cols(o[0]) * cols(o[1])) && add<SourceLinear>(o[0], o[1], o[2]);
            case 10:
                return alike(o[0], o[2]) && alike(o[1], o[2]) && add<Sum>(o[0], o[1], o[2]);
            case 11:
                return alike(o[0], o[1]) && add<Copy>(o[0], o[1]);
            case 12:
                return m(o[0]) == 3 && m(o[1]) == 5 && m(o[2]) == 1 && cols(o[0]) == cols(o[2]) &&
                       cols(o[1]) == cols(o[2]) && add<Contraction>(o[0], o[1], o[2]);
            default:
                *scales = MomentMessages::SUMS;
                return are_messages(o[0], o[1], o[2], o[4]) && m(o[3]) == 5 && cols(o[3]) == cols(o[1]) &&
                       (o[8] == 0 || sees_senders(o)) &&
                       add<MomentMessages>(o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7], o[8]);
        }
    }

    bool alike(int64_t a, int64_t b) const { return cols(a) == cols(b) && m(a) == m(b); }
    bool is_whole(int64_t k, int64_t columns) const {
        return tape->variables[k].root == k && cols(k) == columns && m(k) == 1;
    }
    bool are_messages(int64_t table, int64_t sums, int64_t moments, int64_t radial) const {
        return m(table) == 1 && m(sums) == 1 && m(moments) == 3 && is_vectors(sums) && cols(table) == 2 * cols(sums) &&
               cols(moments) == cols(sums) && fits(radial, code[7] * cols(sums));
    }
    bool sees_senders(const int64_t* o) const {
        return o[8] > 0 && is_variable(o[5]) && is_variable(o[6]) && m(o[5]) == 3 && m(o[6]) == 5 &&
               cols(o[5]) >= o[8] && cols(o[6]) >= o[8] && fits(o[7], 2 * o[8] * cols(o[1]));
    }
};

}  // namespace

#pragma GCC visibility push(default)  // of all that is compiled, these functions alone
extern "C" {

const char* native_digest() { return SOURCE_DIGEST; }
int64_t native_real_bytes() { return sizeof(real); }

void* native_program_new(const int64_t* code, int64_t n, double cutoff, double scale) {
    return Reader(code, n).read(cutoff, scale).release();
}
void native_program_free(void* program) { delete static_cast<Network*>(program); }
int64_t native_program_bytes(const void* program) { return static_cast<const Network*>(program)->bytes(); }

void native_evaluate(void* program, const real* parameters, const Batch* batch, double force_factor, int64_t threads,
                     real* energy, real* forces, real* virial) {
    evaluate(*static_cast<Network*>(program), parameters, *batch, force_factor, threads, energy, forces, virial);
}

void native_gradient(void* program, const real* parameters, real* gradient, const Batch* batch, double force_factor,
                     int64_t threads, const real* by_energy, const real* by_forces, const real* by_virial) {
    differentiate(*static_cast<Network*>(program), parameters, gradient, *batch, force_factor, threads, by_energy,
                  by_forces, by_virial);
}

void native_learn(void* program, const real* parameters, real* gradient, int64_t add, const Batch* batch,
                  const Labels* labels, int64_t loss, const double* factors, int64_t threads, double* penalties) {
    learn(*static_cast<Network*>(program), parameters, gradient, add, *batch, *labels,
          {loss, {factors[0], factors[1], factors[2]}}, threads, penalties);
}

double native_norm(const real* x, int64_t n) { return norm(x, n); }

void native_adamw(int64_t n_hidden, int64_t n, real* parameters, const real* gradient, real* mean, real* square,
                  double rate_hidden, double rate_other, double decay_hidden, double b1, double b2, double factor,
                  int64_t step) {
    Adam adam{};
    adam.b1 = b1;
    adam.b2 = b2;
    adam.factor = factor;
    adam.first = 1 / (1 - std::pow(b1, (double)step));
    adam.second = 1 / std::sqrt(1 - std::pow(b2, (double)step));
    adam.rate = rate_hidden;
    adam.decay = 1 - rate_hidden * decay_hidden;
    adam.update(0, n_hidden, parameters, gradient, mean, square);
    adam.rate = rate_other;
    adam.decay = 1;
    adam.update(n_hidden, n, parameters, gradient, mean, square);
}

void native_muon(int64_t rows, int64_t columns, real* matrix, const real* gradient, real* mean, double rate, double decay,
                 double momentum, double factor) {
    const Muon muon{(real)factor, (real)momentum, (real)decay, (real)rate};
    muon.update(rows, columns, matrix, gradient, mean);
}

void native_lerp(real* mean, const real* x, int64_t n, double share) {
    const real s = share;
    for (int64_t i = 0; i < n; i++) mean[i] += (x[i] - mean[i]) * s;
}

}  // extern "C"
#pragma GCC visibility pop

#include "operators.h"
