// What one core can do: multiply-adds in registers, and reads of an array that fits into its second cache.
//
// Prints GFLOP/s and GB/s, each the best of some tries. Compiled for this very processor by bench_native.py.
#include <chrono>
#include <cstdio>
#include <vector>

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
typedef float Vector __attribute__((vector_size(BYTES), aligned(4)));
constexpr int LANES = BYTES / 4, CHAINS = 12, TRIES = 30;

template <class F>
static double best_seconds(F work) {
    double best = 1e9;
    for (int k = 0; k < TRIES; k++) {
        const auto start = std::chrono::steady_clock::now();
        work();
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        if (took.count() < best) best = took.count();
    }
    return best;
}

int main() {
    constexpr int STEPS = 200000;
    volatile float sink = 0, factor = 0.999f;
    const double multiply_adds = best_seconds([&] {
        Vector sums[CHAINS] = {}, x = Vector{} + factor, y = Vector{} + factor * 0.5f;
        for (int k = 0; k < STEPS; k++)
            for (auto& sum : sums) sum = sum * x + y;
        for (auto& sum : sums) sink = sink + sum[0];
    });
    std::vector<float> array(1 << 16, 1.0f);  // 256 kB
    const double reads = best_seconds([&] {
        for (int k = 0; k < 200; k++) {
            Vector sums[8] = {};
            for (size_t i = 0; i + 8 * LANES <= array.size(); i += 8 * LANES)
                for (int v = 0; v < 8; v++) sums[v] += *reinterpret_cast<const Vector*>(&array[i + v * LANES]);
            for (auto& sum : sums) sink = sink + sum[0];
        }
    });
    std::printf("%g %g\n", 2e-9 * STEPS * CHAINS * LANES / multiply_adds, 200e-9 * 4 * array.size() / reads);
}
