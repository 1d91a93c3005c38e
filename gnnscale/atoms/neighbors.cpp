// Who is within the cutoff of whom, for many structures in one call. A plain C interface, called by neighbors.py.
//
// Of each structure, atoms are wrapped into the cell, and every image of an atom that can be near another one is listed
// (a ghost), atom by atom and translation by translation. A receiver's ghosts in this order are its edges sorted by
// sender and shift, so no edge is ever sorted. With few ghosts each pair is tried, in vector registers; with many, the
// atoms of a bin are tried with the ghosts that may be near any of them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__)
#define CLONES __attribute__((target_clones("avx2", "default")))  // chosen when loaded: a login node is no compute node
#else
#define CLONES
#endif
#ifndef SOURCE_DIGEST
#define SOURCE_DIGEST "unknown"
#endif

namespace {

enum Status : int32_t { DONE = 0, DEPENDENT_VECTORS = 1, NOT_FINITE = 2, TOO_MANY_IMAGES = 3, NO_MEMORY = 4 };
constexpr int64_t EACH_PAIR = 640;       // ghosts up to which every pair is tried; measured
constexpr int64_t MOST_IMAGES = 1 << 30; // of one structure: 30 GB
constexpr double SLACK = 1e-9;           // relative: pairs so near to the cutoff are decided by the documented formula

struct Ghost {
    int32_t atom, shift[3];  // which image of it, counted from where the atom was before it was wrapped
};

struct Lattice {
    double rows[3][3];  // zero where not periodic
    double dual[3][3];  // dot(x, dual[d]) is the fractional coordinate d
    bool periodic[3];
    double reach[3];    // the cutoff in units of the distance between lattice planes
};

void cross(const double* a, const double* b, double* out) {
    out[0] = a[1] * b[2] - a[2] * b[1];
    out[1] = a[2] * b[0] - a[0] * b[2];
    out[2] = a[0] * b[1] - a[1] * b[0];
}

double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// Missing vectors are completed by normals of the others, so that planes have a spacing. False: vectors are dependent.
bool make_lattice(const double* cell, const uint8_t* pbc, double cutoff, Lattice& lattice) {
    double full[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
    int count = 0;
    for (int d = 0; d < 3; d++) {
        lattice.periodic[d] = pbc[d];
        count += lattice.periodic[d];
        for (int c = 0; c < 3; c++) lattice.rows[d][c] = pbc[d] ? cell[3 * d + c] : 0;
        if (pbc[d]) std::copy_n(cell + 3 * d, 3, full[d]);
    }
    if (count == 0) return true;
    if (count == 2) {
        int d = !pbc[0] ? 0 : !pbc[1] ? 1 : 2;
        cross(full[(d + 1) % 3], full[(d + 2) % 3], full[d]);
    } else if (count == 1) {
        int d = pbc[0] ? 0 : pbc[1] ? 1 : 2;
        const double* a = full[d];
        int least = std::fabs(a[0]) <= std::fabs(a[1]) ? 0 : 1;
        if (std::fabs(a[2]) < std::fabs(a[least])) least = 2;
        double axis[3] = {0, 0, 0};
        axis[least] = 1;
        cross(a, axis, full[(d + 1) % 3]);
        cross(a, full[(d + 1) % 3], full[(d + 2) % 3]);
    }
    double product = 1;
    for (int d = 0; d < 3; d++) product *= std::sqrt(dot(full[d], full[d]));
    for (int d = 0; d < 3; d++) cross(full[(d + 1) % 3], full[(d + 2) % 3], lattice.dual[d]);
    double volume = dot(full[0], lattice.dual[0]);
    if (!(std::fabs(volume) > 1e-10 * product)) return false;
    for (int d = 0; d < 3; d++) {
        for (int c = 0; c < 3; c++) lattice.dual[d][c] /= volume;
        lattice.reach[d] = cutoff * (1 + SLACK) * std::sqrt(dot(lattice.dual[d], lattice.dual[d])) + SLACK;
    }
    return true;
}

// One structure at a time; memory is kept from one to the next.
struct Finder {
    double cutoff, most, sure;  // squares: above `most` is outside for certain, below `sure` inside
    const double* positions = nullptr;
    int64_t n = 0;
    Lattice lattice;
    double low[3], high[3];                       // of wrapped atoms
    std::vector<double> x, y, z;                  // wrapped atoms
    std::vector<int32_t> wrap;                    // (n, 3) translations that were taken away
    std::vector<double> gx, gy, gz;               // ghosts
    std::vector<Ghost> ghosts;
    std::vector<int32_t> home;                    // the ghost that is atom i itself
    std::vector<double> squares;
    std::vector<int32_t> hits;
    std::vector<int32_t> begin, order, bin;       // bins of ghosts
    std::vector<double> bx, by, bz;
    std::vector<int32_t> members, candidates;
    std::vector<uint64_t> words, used;            // a set of ghosts, and which of its words are not zero

    explicit Finder(double radius)
        : cutoff(radius), most(radius * radius * (1 + SLACK)), sure(radius * radius * (1 - SLACK)) {}

    Status load(const double* from, int64_t count, const double* cell, const uint8_t* pbc);
    Status list_ghosts();
    int64_t near(int64_t i, const std::vector<double>& px, const std::vector<double>& py,
                 const std::vector<double>& pz, int64_t itself, const int32_t* names);
    void fill_bins();
    void look_around(int a, int b, int c);
    bool inside(int64_t i, int64_t ghost) const;
    int grid[3];
    double width[3];
};

Status Finder::load(const double* from, int64_t count, const double* cell, const uint8_t* pbc) {
    positions = from;
    n = count;
    for (int64_t k = 0; k < 3 * n; k++)
        if (!std::isfinite(from[k]) || std::fabs(from[k]) > 1e8) return NOT_FINITE;
    for (int k = 0; k < 9; k++)
        if (pbc[k / 3] && !std::isfinite(cell[k])) return NOT_FINITE;
    if (!make_lattice(cell, pbc, cutoff, lattice)) return DEPENDENT_VECTORS;
    x.resize(n), y.resize(n), z.resize(n), home.resize(n);
    wrap.assign(3 * n, 0);
    std::fill_n(low, 3, 1e300), std::fill_n(high, 3, -1e300);
    for (int64_t i = 0; i < n; i++) {
        double p[3] = {from[3 * i], from[3 * i + 1], from[3 * i + 2]};
        const double original[3] = {p[0], p[1], p[2]};
        for (int d = 0; d < 3; d++) {
            if (!lattice.periodic[d]) continue;
            double whole = std::floor(dot(original, lattice.dual[d]));
            if (std::fabs(whole) > 1e6) return NOT_FINITE;
            wrap[3 * i + d] = static_cast<int32_t>(whole);
            for (int c = 0; c < 3; c++) p[c] -= whole * lattice.rows[d][c];
        }
        x[i] = p[0], y[i] = p[1], z[i] = p[2];
        for (int c = 0; c < 3; c++) low[c] = std::min(low[c], p[c]), high[c] = std::max(high[c], p[c]);
    }
    return list_ghosts();
}

Status Finder::list_ghosts() {
    gx.clear(), gy.clear(), gz.clear(), ghosts.clear();
    if (!lattice.periodic[0] && !lattice.periodic[1] && !lattice.periodic[2]) {
        gx = x, gy = y, gz = z;
        for (int32_t i = 0; i < n; i++) ghosts.push_back({i, {0, 0, 0}}), home[i] = i;
        return DONE;
    }
    double least[3] = {1e300, 1e300, 1e300}, largest[3] = {-1e300, -1e300, -1e300};  // fractional
    for (int64_t i = 0; i < n; i++)
        for (int d = 0; d < 3; d++) {
            const double p[3] = {x[i], y[i], z[i]}, f = dot(p, lattice.dual[d]);
            least[d] = std::min(least[d], f), largest[d] = std::max(largest[d], f);
        }
    double images = static_cast<double>(n);
    for (int d = 0; d < 3; d++)
        if (lattice.periodic[d]) images *= 1 + 2 * lattice.reach[d];
    if (images > MOST_IMAGES) return TOO_MANY_IMAGES;
    const double outer = cutoff * (1 + SLACK) + SLACK;
    for (int64_t i = 0; i < n; i++) {
        const double p[3] = {x[i], y[i], z[i]};
        int first[3] = {0, 0, 0}, last[3] = {0, 0, 0};
        for (int d = 0; d < 3; d++) {
            if (!lattice.periodic[d]) continue;
            double f = dot(p, lattice.dual[d]);
            first[d] = static_cast<int>(std::ceil(least[d] - lattice.reach[d] - f));
            last[d] = static_cast<int>(std::floor(largest[d] + lattice.reach[d] - f));
        }
        for (int a = first[0]; a <= last[0]; a++)
            for (int b = first[1]; b <= last[1]; b++)
                for (int c = first[2]; c <= last[2]; c++) {
                    double q[3];
                    bool close = true;
                    for (int k = 0; k < 3; k++) {
                        q[k] = p[k] + a * lattice.rows[0][k] + b * lattice.rows[1][k] + c * lattice.rows[2][k];
                        close &= q[k] >= low[k] - outer && q[k] <= high[k] + outer;
                    }
                    if (!close) continue;
                    if (a == 0 && b == 0 && c == 0) home[i] = static_cast<int32_t>(gx.size());
                    gx.push_back(q[0]), gy.push_back(q[1]), gz.push_back(q[2]);
                    const int32_t* w = &wrap[3 * i];
                    ghosts.push_back({static_cast<int32_t>(i), {a - w[0], b - w[1], c - w[2]}});
                }
    }
    return DONE;
}

// By x[sender] - x[receiver] + shift @ cell as documented: of one mind with the opposite edge, wherever atoms lie.
bool Finder::inside(int64_t i, int64_t ghost) const {
    const int32_t *to_image = ghosts[ghost].shift, *w = &wrap[3 * i];
    const int s[3] = {to_image[0] + w[0], to_image[1] + w[1], to_image[2] + w[2]};
    const double *from = positions + 3 * i, *to = positions + 3 * int64_t(ghosts[ghost].atom);
    double square = 0;
    for (int c = 0; c < 3; c++) {
        double moved = s[0] * lattice.rows[0][c] + s[1] * lattice.rows[1][c] + s[2] * lattice.rows[2][c];
        double d = (to[c] - from[c]) + moved;
        square += d * d;
    }
    return square < cutoff * cutoff;
}

CLONES int64_t compared(const double* x, const double* y, const double* z, int64_t count, double px, double py,
                        double pz, double most, int64_t except, double* squares, int32_t* hits) {
    for (int64_t k = 0; k < count; k++) {
        double dx = x[k] - px, dy = y[k] - py, dz = z[k] - pz;
        squares[k] = dx * dx + dy * dy + dz * dz;
    }
    squares[except] = 1e300;
    int64_t found = 0;
    for (int64_t k = 0; k < count; k++) {  // without a branch, which could not be predicted
        hits[found] = static_cast<int32_t>(k);
        found += squares[k] < most;
    }
    return found;
}

// Of the ghosts at these places those near atom i, in order, into `hits`; `names` says which ghosts they are.
int64_t Finder::near(int64_t i, const std::vector<double>& px, const std::vector<double>& py,
                     const std::vector<double>& pz, int64_t itself, const int32_t* names) {
    int64_t count = compared(px.data(), py.data(), pz.data(), px.size(), x[i], y[i], z[i], most, itself,
                             squares.data(), hits.data());
    int64_t kept = 0;
    for (int64_t k = 0; k < count; k++) {
        int32_t place = hits[k], ghost = names ? names[place] : place;
        hits[kept] = ghost;
        kept += squares[place] < sure || inside(i, ghost);
    }
    return kept;
}

// Ghosts by bin, in order within each.
void Finder::fill_bins() {
    for (double least = cutoff * (1 + 4 * SLACK) + 4 * SLACK;; least *= 1.3) {  // so only bins around hold neighbours
        for (int d = 0; d < 3; d++) {  // whole bins of atoms, and one more on either side
            double size = high[d] - low[d], inner = std::min(std::max(1.0, std::floor(size / least)), 1e6);
            grid[d] = static_cast<int>(inner) + 2;
            width[d] = std::max(size / inner * (1 + SLACK), least);
        }
        if (double(grid[0]) * grid[1] * grid[2] <= 4.0 * gx.size() + 64) break;
    }
    begin.assign(int64_t(grid[0]) * grid[1] * grid[2] + 1, 0);
    bin.resize(gx.size()), order.resize(gx.size());
    bx.resize(gx.size()), by.resize(gx.size()), bz.resize(gx.size());
    for (size_t g = 0; g < gx.size(); g++) {
        int place[3] = {static_cast<int>((gx[g] - low[0]) / width[0] + 1),
                        static_cast<int>((gy[g] - low[1]) / width[1] + 1),
                        static_cast<int>((gz[g] - low[2]) / width[2] + 1)};
        for (int d = 0; d < 3; d++) place[d] = std::min(std::max(place[d], 0), grid[d] - 1);
        bin[g] = (place[0] * grid[1] + place[1]) * grid[2] + place[2];
        begin[bin[g] + 1]++;
    }
    for (size_t k = 1; k < begin.size(); k++) begin[k] += begin[k - 1];
    std::vector<int32_t> next(begin.begin(), begin.end() - 1);
    for (size_t g = 0; g < gx.size(); g++) {
        int32_t at = next[bin[g]]++;
        order[at] = static_cast<int32_t>(g), bx[at] = gx[g], by[at] = gy[g], bz[at] = gz[g];
    }
}

CLONES int64_t near_box(const double* x, const double* y, const double* z, const int32_t* name, int64_t count,
                        const double* low, const double* high, double most, double* squares, int32_t* out) {
    const double ax = low[0], ay = low[1], az = low[2], bx = high[0], by = high[1], bz = high[2];
    for (int64_t k = 0; k < count; k++) {
        double dx = std::max(std::max(ax - x[k], x[k] - bx), 0.0);
        double dy = std::max(std::max(ay - y[k], y[k] - by), 0.0);
        double dz = std::max(std::max(az - z[k], z[k] - bz), 0.0);
        squares[k] = dx * dx + dy * dy + dz * dz;
    }
    int64_t found = 0;
    for (int64_t k = 0; k < count; k++) {
        out[found] = name[k];
        found += squares[k] < most;
    }
    return found;
}

// The atoms of bin (a, b, c) into `members`, and all ghosts that may be near any of them, in order, into `candidates`.
void Finder::look_around(int a, int b, int c) {
    members.clear(), candidates.clear();
    double least[3] = {1e300, 1e300, 1e300}, largest[3] = {-1e300, -1e300, -1e300};
    int64_t here = (int64_t(a) * grid[1] + b) * grid[2] + c;
    for (int32_t k = begin[here]; k < begin[here + 1]; k++) {
        int32_t i = ghosts[order[k]].atom;
        if (home[i] != order[k]) continue;
        members.push_back(i);
        const double p[3] = {bx[k], by[k], bz[k]};
        for (int d = 0; d < 3; d++) least[d] = std::min(least[d], p[d]), largest[d] = std::max(largest[d], p[d]);
    }
    if (members.empty()) return;
    for (int i = std::max(a - 1, 0); i <= std::min(a + 1, grid[0] - 1); i++)
        for (int j = std::max(b - 1, 0); j <= std::min(b + 1, grid[1] - 1); j++) {
            int64_t row = (int64_t(i) * grid[1] + j) * grid[2];
            int32_t from = begin[row + std::max(c - 1, 0)];
            int32_t count = begin[row + std::min(c + 1, grid[2] - 1) + 1] - from;
            if (int64_t(hits.size()) < count) hits.resize(count), squares.resize(count);
            int64_t found = near_box(&bx[from], &by[from], &bz[from], &order[from], count, least, largest, most,
                                     squares.data(), hits.data());
            for (int64_t k = 0; k < found; k++) {  // sorted through a set of bits, and a set of its words in use
                words[hits[k] >> 6] |= uint64_t(1) << (hits[k] & 63);
                used[hits[k] >> 12] |= uint64_t(1) << (hits[k] >> 6 & 63);
            }
        }
    for (size_t group = 0; group < used.size(); group++)
        for (; used[group]; used[group] &= used[group] - 1) {
            int64_t word = 64 * group + __builtin_ctzll(used[group]);
            for (; words[word]; words[word] &= words[word] - 1)
                candidates.push_back(static_cast<int32_t>(64 * word + __builtin_ctzll(words[word])));
        }
}

struct Edges {
    int64_t room, count;
    int64_t *receivers, *senders;
    float* shifts;
};

void emit(const Finder& finder, int64_t first_atom, int64_t i, const int32_t* found, int64_t count, Edges& edges) {
    int64_t at = edges.count;
    edges.count += count;
    if (edges.count > edges.room) return;
    const int32_t w[3] = {finder.wrap[3 * i], finder.wrap[3 * i + 1], finder.wrap[3 * i + 2]};
    for (int64_t k = 0; k < count; k++, at++) {
        const Ghost& ghost = finder.ghosts[found[k]];
        edges.receivers[at] = first_atom + i;
        edges.senders[at] = first_atom + ghost.atom;
        for (int d = 0; d < 3; d++) edges.shifts[3 * at + d] = static_cast<float>(ghost.shift[d] + w[d]);
    }
}

void by_pairs(Finder& finder, int64_t first_atom, Edges& edges) {
    const size_t many = finder.gx.size();
    if (finder.hits.size() < many) finder.hits.resize(many), finder.squares.resize(many);
    for (int64_t i = 0; i < finder.n; i++) {
        int64_t count = finder.near(i, finder.gx, finder.gy, finder.gz, finder.home[i], nullptr);
        emit(finder, first_atom, i, finder.hits.data(), count, edges);
    }
}

void by_bins(Finder& finder, int64_t first_atom, Edges& edges) {
    finder.fill_bins();
    finder.words.assign((finder.gx.size() >> 6) + 1, 0), finder.used.assign((finder.gx.size() >> 12) + 1, 0);
    std::vector<int64_t> start(finder.n), length(finder.n);  // of each atom's ghosts in `found`, which is in no order
    const int64_t room = std::max<int64_t>(edges.room - edges.count, 0);
    std::unique_ptr<int32_t[]> found(new int32_t[room]);
    std::vector<double> x, y, z;
    int64_t total = 0;
    for (int a = 0; a < finder.grid[0]; a++)
        for (int b = 0; b < finder.grid[1]; b++)
            for (int c = 0; c < finder.grid[2]; c++) {
                finder.look_around(a, b, c);
                const std::vector<int32_t>& candidates = finder.candidates;
                const int64_t many = candidates.size();
                x.resize(many), y.resize(many), z.resize(many);
                if (int64_t(finder.hits.size()) < many) finder.hits.resize(many), finder.squares.resize(many);
                for (int64_t k = 0; k < many; k++) {
                    int32_t g = candidates[k];
                    x[k] = finder.gx[g], y[k] = finder.gy[g], z[k] = finder.gz[g];
                }
                for (int32_t i : finder.members) {
                    int64_t itself = std::lower_bound(candidates.begin(), candidates.end(), finder.home[i]) -
                                     candidates.begin();
                    int64_t count = finder.near(i, x, y, z, itself, candidates.data());
                    if (total + count <= room) std::copy_n(finder.hits.data(), count, found.get() + total);
                    start[i] = total, length[i] = count;
                    total += count;
                }
            }
    if (total > room) {
        edges.count += total;
        return;
    }
    for (int64_t i = 0; i < finder.n; i++) emit(finder, first_atom, i, found.get() + start[i], length[i], edges);
}

}  // namespace

extern "C" {

const char* gnnscale_neighbors_source() { return SOURCE_DIGEST; }

// Edges of structures k with atoms ptr[k] to ptr[k + 1]; edge_ptr (structures + 1) is always whole, the edges only if
// `room` was enough. Returns a Status; if it is not DONE, edge_ptr[0] says at which structure.
int32_t gnnscale_neighbors(int64_t structures, const int64_t* ptr, const double* positions, const double* cells,
                           const uint8_t* pbc, double cutoff, int64_t room, int64_t* receivers, int64_t* senders,
                           float* shifts, int64_t* edge_ptr) {
    int64_t k = 0;
    try {
        Finder finder(cutoff);
        Edges edges{room, 0, receivers, senders, shifts};
        edge_ptr[0] = 0;
        for (; k < structures; k++) {
            Status status = finder.load(positions + 3 * ptr[k], ptr[k + 1] - ptr[k], cells + 9 * k, pbc + 3 * k);
            if (status != DONE) {
                edge_ptr[0] = k;
                return status;
            }
            (int64_t(finder.gx.size()) <= EACH_PAIR ? by_pairs : by_bins)(finder, ptr[k], edges);
            edge_ptr[k + 1] = edges.count;
        }
    } catch (const std::bad_alloc&) {
        edge_ptr[0] = k;
        return NO_MEMORY;
    }
    return DONE;
}
}
