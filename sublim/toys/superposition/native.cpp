// Trains the models of one group (one p_active, one seed) for some steps on one core.
//
// The rows of a batch lie across vector lanes, and features and hidden units are unrolled. A step is a few hundred fused
// multiply-adds per 16 rows, with every operand in the L1 or L2 cache. HIDDEN is fixed at compile time.
// The order of sums depends on the batch size alone, so results are the same for any grouping of models.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

constexpr int K = HIDDEN;
constexpr int ROW = K + 1; // a feature's parameters: K weights, then its bias
constexpr int LANES = 16;
constexpr int PAIR = 2 * LANES;
constexpr int TILE = 128;

typedef float vec __attribute__((vector_size(4 * LANES), aligned(64)));
typedef int32_t veci __attribute__((vector_size(4 * LANES), aligned(64)));

static inline vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
static inline void store(float* to, vec value) { *reinterpret_cast<vec*>(to) = value; }

// `value` where gate > 0, else 0.
static inline vec positive(vec gate, vec value) {
    return reinterpret_cast<vec>(reinterpret_cast<veci>(value) & (gate > 0.0f));
}

static inline float total(vec value) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += value[lane];
    return sum;
}

// Aligned scratch memory of floats.
struct Floats {
    std::vector<float> memory;
    explicit Floats(size_t count) : memory(count + 16, 0.0f) {}
    float* data() {
        return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t(63));
    }
};

// SplitMix64 used as a counter: element j of a step is the low half of word j, element half + j its high half.
// `count` is even. Words are drawn in small blocks first: both loops then become vector code.
static void draw(float* x, uint64_t key, uint64_t step, int count, float p) {
    constexpr int BLOCK = 64;
    const int half = count / 2;
    const float inverse = p > 0 ? 1.0f / p : 0.0f;
    const uint64_t first = key + step * uint64_t(half) * 0x9E3779B97F4A7C15ull;
    float *low = x, *high = x + half;
    uint64_t words[BLOCK];
    for (int start = 0; start < half; start += BLOCK) {
        const int size = half - start < BLOCK ? half - start : BLOCK;
        for (int j = 0; j < BLOCK; j++) {
            uint64_t z = first + uint64_t(start + j + 1) * 0x9E3779B97F4A7C15ull;
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
            z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
            words[j] = z ^ (z >> 31);
        }
        for (int j = 0; j < size; j++) {
            const float a = float(uint32_t(words[j])) * 0x1p-32f, b = float(uint32_t(words[j] >> 32)) * 0x1p-32f;
            low[start + j] = a <= p ? a * inverse : 0.0f;
            high[start + j] = b <= p ? b * inverse : 0.0f;
        }
    }
}

// h[k][v] = sum over features of x[i][v] * W[i][k], for PAIR rows.
static inline void encode(const float* x, const float* W, int n, int batch, vec (&h)[K][2]) {
    for (int k = 0; k < K; k++) h[k][0] = h[k][1] = vec{};
    for (int i = 0; i < n; i++, W += ROW) {
        const vec a = load(x + size_t(i) * batch), b = load(x + size_t(i) * batch + LANES);
        for (int k = 0; k < K; k++) {
            h[k][0] += a * W[k];
            h[k][1] += b * W[k];
        }
    }
}

// Before the ReLU: one feature's reconstruction from h.
static inline void decode(const vec (&h)[K][2], const float* W, vec& a, vec& b) {
    a = b = vec{} + W[K];
    for (int k = 0; k < K; k++) {
        a += h[k][0] * W[k];
        b += h[k][1] * W[k];
    }
}

static void reconstruct(const float* x, const float* W, float* out, int n, int batch) {
    for (int row = 0; row < batch; row += PAIR) {
        vec h[K][2], a, b;
        encode(x + row, W, n, batch, h);
        for (int i = 0; i < n; i++) {
            decode(h, W + i * ROW, a, b);
            store(out + size_t(i) * batch + row, positive(a, a));
            store(out + size_t(i) * batch + row + LANES, positive(b, b));
        }
    }
}

// Gradient sums of FEATURES consecutive features over one tile: g h' + x gh' for W, g for b.
template <int FEATURES>
static inline void accumulate(const float* x, const float* g, const float* h, const float* gh, float* sums, int batch,
                              int rows) {
    vec acc[FEATURES][ROW];
    for (int f = 0; f < FEATURES; f++)
        for (int k = 0; k < ROW; k++) acc[f][k] = load(sums + (f * ROW + k) * LANES);
    for (int row = 0; row < rows; row += LANES) {
        vec gi[FEATURES], xi[FEATURES];
        for (int f = 0; f < FEATURES; f++) {
            gi[f] = load(g + f * TILE + row);
            xi[f] = load(x + size_t(f) * batch + row);
            acc[f][K] += gi[f];
        }
        for (int k = 0; k < K; k++) {
            const vec hk = load(h + k * TILE + row), ghk = load(gh + k * TILE + row);
            for (int f = 0; f < FEATURES; f++) {
                acc[f][k] += gi[f] * hk;
                acc[f][k] += xi[f] * ghk;
            }
        }
    }
    for (int f = 0; f < FEATURES; f++)
        for (int k = 0; k < ROW; k++) store(sums + (f * ROW + k) * LANES, acc[f][k]);
}

struct Work {
    Floats g, h, gh, sums;
    explicit Work(int n) : g(n * TILE), h(K * TILE), gh(K * TILE), sums(n * ROW * LANES) {}
};

// Gradients of one model's loss, summed over the batch, left in work.sums (one vector of partial sums a parameter).
// `scale` is the derivative's factor per feature: 2 * weight / n.
static void gradients(const float* x, const float* target, const float* W, const float* scale, Work& work, int n,
                      int batch) {
    float *g = work.g.data(), *h = work.h.data(), *gh = work.gh.data(), *sums = work.sums.data();
    std::memset(sums, 0, sizeof(float) * n * ROW * LANES);
    for (int start = 0; start < batch; start += TILE) {
        const int rows = batch - start < TILE ? batch - start : TILE;
        for (int row = 0; row < rows; row += PAIR) {
            vec hidden[K][2], back[K][2], a, b;
            encode(x + start + row, W, n, batch, hidden);
            for (int k = 0; k < K; k++) back[k][0] = back[k][1] = vec{};
            for (int i = 0; i < n; i++) {
                const float *t = target + size_t(i) * batch + start + row, *Wi = W + i * ROW;
                decode(hidden, Wi, a, b);
                a = positive(a, (a - load(t)) * scale[i]);
                b = positive(b, (b - load(t + LANES)) * scale[i]);
                for (int k = 0; k < K; k++) {
                    back[k][0] += a * Wi[k];
                    back[k][1] += b * Wi[k];
                }
                store(g + i * TILE + row, a);
                store(g + i * TILE + row + LANES, b);
            }
            for (int k = 0; k < K; k++)
                for (int v = 0; v < 2; v++) {
                    store(h + k * TILE + row + v * LANES, hidden[k][v]);
                    store(gh + k * TILE + row + v * LANES, back[k][v]);
                }
        }
        for (int i = 0; i < n; i += 2) {
            const float *xi = x + size_t(i) * batch + start, *gi = g + i * TILE;
            float* of_i = sums + i * ROW * LANES;
            if (i + 1 < n)
                accumulate<2>(xi, gi, h, gh, of_i, batch, rows);
            else
                accumulate<1>(xi, gi, h, gh, of_i, batch, rows);
        }
    }
}

// Weighted squared errors, mean over features and summed over the batch: against the target with the training weights,
// and against the input with the weights of every feature.
static void losses(const float* x, const float* target, const float* W, const float* weight, const float* full,
                   float* output, float* trained, float* unablated, int n, int batch) {
    reconstruct(x, W, output, n, batch);
    double to_target = 0, to_input = 0;
    for (int i = 0; i < n; i++) {
        vec a{}, b{};
        for (int row = 0; row < batch; row += LANES) {
            const size_t at = size_t(i) * batch + row;
            const vec y = load(output + at), d = y - load(target + at), e = y - load(x + at);
            a += d * d;
            b += e * e;
        }
        to_target += double(weight[i]) * total(a);
        to_input += double(full[i]) * total(b);
    }
    *trained = float(to_target / n);
    *unablated = float(to_input / n);
}

// What changes from step to step in AdamW (decoupled weight decay).
struct Rates {
    float keep, size, correction; // 1 - lr * decay;  lr / (1 - beta1^t);  sqrt(1 - beta2^t)
};

static void adamw(float* value, float* mean, float* square, const float* sums, int count, Rates rates, float beta1,
                  float beta2, float eps) {
    for (int j = 0; j < count; j++) {
        const float gradient = total(load(sums + j * LANES));
        mean[j] += (1 - beta1) * (gradient - mean[j]);
        square[j] = beta2 * square[j] + (1 - beta2) * gradient * gradient;
        value[j] = value[j] * rates.keep - rates.size * mean[j] / (std::sqrt(square[j]) / rates.correction + eps);
    }
}

struct Group {
    uint64_t key;
    float p;
    int32_t features, batch, models;
    const float* teacher;            // [features, ROW]; null: the target is the input
    const float *weight, *full;      // [models, features], [features]
    float *value, *mean, *square;    // [models, features, ROW]
    float *trained, *unablated;      // [models, records]
    int64_t records, loss_every;
    float beta1, beta2, eps;
};

extern "C" void train_group(const Group* group, const Rates* rates, int64_t start, int64_t stop) {
    const int n = group->features, batch = group->batch;
    const size_t elements = size_t(n) * batch;
    Floats input(elements), taught(group->teacher ? elements : 0), output(elements), scale(n);
    Work work(n);
    float* x = input.data();
    for (int64_t step = start; step < stop; step++) {
        draw(x, group->key, uint64_t(step), int(elements), group->p);
        const float* target = x;
        if (group->teacher) {
            reconstruct(x, group->teacher, taught.data(), n, batch);
            target = taught.data();
        }
        for (int model = 0; model < group->models; model++) {
            const size_t at = size_t(model) * n * ROW;
            float* value = group->value + at;
            const float* weight = group->weight + size_t(model) * n;
            if (step % group->loss_every == 0) {
                const size_t record = size_t(model) * group->records + step / group->loss_every;
                losses(x, target, value, weight, group->full, output.data(), group->trained + record,
                       group->unablated + record, n, batch);
            }
            for (int i = 0; i < n; i++) scale.data()[i] = 2 * weight[i] / n;
            gradients(x, target, value, scale.data(), work, n, batch);
            adamw(value, group->mean + at, group->square + at, work.sums.data(), n * ROW, rates[step], group->beta1,
                  group->beta2, group->eps);
        }
    }
}

// One step's data, for tests.
extern "C" void draw_batch(float* x, uint64_t key, uint64_t step, int32_t count, float p) {
    draw(x, key, step, count, p);
}
