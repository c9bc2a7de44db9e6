// A step of few rows: products with weights, residual sums with RMS norms, the gate of an MLP, and attention with
// rotary embedding over a cache, for one row and for a tree of them alike.
//
// Elements are float or bfloat16 (`kind` 0 or 1), sums are float. Widths are multiples of 32, those of heads of 64 up
// to 256. Whatever is computed of a row is the same to the bit whichever rows are asked about with it, by however many
// threads: a tree's node gets what its path, one token at a time, would. Of attention that holds because a node sees
// its ancestors in the order of their depth, and sums go by what a query sees, not by where in the cache it lies.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr long LANES = 16, PAIR = 2 * LANES;  // floats in a vector, elements that are read at once
constexpr long TILE = 4;                      // queries and keys whose products are summed together
constexpr long BLOCK = 2 * LANES;             // outputs of a product that are summed together, one in each lane
#ifdef __AVX512F__
constexpr int MOST = 14;                      // rows of a product whose sums with a block stay in registers
#else
constexpr int MOST = 3;
#endif
constexpr long SEEN = 128, WIDEST = 256;      // keys that one task reads, elements of a head
constexpr long LINE = 64;                      // bytes that memory is asked for at once
constexpr long ALIASED = 4096;                // bytes by which rows must not lie apart: they would evict one another
constexpr float HIDDEN = -1e30f;              // a score whose exponential is 0 beside any other
constexpr long WORTH_THREADS = 1 << 15;       // elements from which on a second thread pays

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

// The elements of a pair of vectors, in an order that only its type knows: load and store agree on it.
struct Two {
  Floats a, b;
};

inline Floats all(float x) { return x - Floats{}; }  // x + 0 would be computed, for the sake of -0
inline Floats load(const float* from) { Floats x; std::memcpy(&x, from, sizeof x); return x; }
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

struct Single {
  float value;
  static Two load(const Single* from) { return {::load(&from->value), ::load(&from->value + LANES)}; }
  static void store(Single* to, Two x) { ::store(&to->value, x.a), ::store(&to->value + LANES, x.b); }
  static void store(Single* to, Floats x) { ::store(&to->value, x); }
  static float one(Single x) { return x.value; }

  using Raw = Two;  // a pair as it lies in memory, and what its products with another add to a sum
  static Raw raw(const Single* from) { return load(from); }
  static Floats add(Floats sum, Raw x, Raw y) { return sum + x.a * y.a + x.b * y.b; }

  static constexpr long DEEP = 1;  // elements of a row that meet those of 16 outputs at once, and either side of it
  static Floats every(const Single* from) { return all(from->value); }
  static Floats each(const Single* from) { return ::load(&from->value); }
  static Floats add(Floats sum, Floats x, Floats y) { return sum + x * y; }
};

struct Bfloat {
  uint16_t bits;
  static Two load(const Bfloat* from) {  // the even elements, and the odd ones
    Words x;
    std::memcpy(&x, from, sizeof x);
    return {(Floats)(x << 16), (Floats)(x & 0xffff0000u)};
  }
  static void store(Bfloat* to, Two x) {
    const Words found = rounded(x.a) >> 16 | (rounded(x.b) & 0xffff0000u);
    std::memcpy(to, &found, sizeof found);
  }
  static void store(Bfloat* to, Floats x) {
    const Halves found = __builtin_convertvector(rounded(x) >> 16, Halves);
    std::memcpy(to, &found, sizeof found);
  }
  static float one(Bfloat x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
  }

#ifdef __AVX512BF16__
  using Raw = __m512bh;
  static Raw raw(const Bfloat* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static Floats add(Floats sum, Raw x, Raw y) { return (Floats)_mm512_dpbf16_ps((__m512)sum, x, y); }
  static Raw every(const Bfloat* from) {
    int two;
    std::memcpy(&two, from, sizeof two);
    return (__m512bh)_mm512_set1_epi32(two);
  }
#else
  using Raw = Two;
  static Raw raw(const Bfloat* from) { return load(from); }
  static Floats add(Floats sum, Raw x, Raw y) { return sum + x.a * y.a + x.b * y.b; }
  static Raw every(const Bfloat* from) { return {all(one(from[0])), all(one(from[1]))}; }
#endif
  static constexpr long DEEP = 2;
  static Raw each(const Bfloat* from) { return raw(from); }


  static Words rounded(Floats x) { return (Words)x + 0x7fff + ((Words)x >> 16 & 1); }  // to nearest, ties to even
};

inline float sum(Floats x) {
  float total = 0;
  for (long i = 0; i < LANES; i++) total += x[i];
  return total;
}

inline float largest(Floats x) {
  float most = x[0];
  for (long i = 1; i < LANES; i++) most = std::max(most, x[i]);
  return most;
}

inline Floats exponential(Floats x) {  // 2^n e^f with f in [-0.35, 0.35], e^f by Taylor's series; 0 below 2^-126
  Floats y = x * 1.44269504f;
  y = y < -126.f ? all(-126.f) : y;
  y = y > 126.f ? all(126.f) : y;
  const Floats n = (y + 12582912.f) - 12582912.f, f = (y - n) * 0.69314718f;
  const Floats p = 1.f + f * (1.f + f * (0.5f + f * (1.f / 6 + f * (1.f / 24 + f * (1.f / 120 + f * (1.f / 720))))));
  const Floats power = (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
  return y <= -126.f ? all(0.f) : p * power;
}

#ifdef __clang__
#define PICK(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define PICK(x, y, ...) __builtin_shuffle(x, y, (Ints){__VA_ARGS__})
#endif

// The sum of each of 16 vectors, as one vector.
inline Floats sums(const Floats* x) {
  Floats a[8], b[4], c[2];
  for (int i = 0; i < 8; i++)
    a[i] = PICK(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           PICK(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; i++)
    b[i] = PICK(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           PICK(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    c[i] = PICK(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           PICK(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  return PICK(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         PICK(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

// Calls f with a count that is known only now, from 1 to `most`, as a constant.
template <int most, typename F> void with(long count, F f) {
  if (count == most)
    f(std::integral_constant<int, most>{});
  else if constexpr (most > 1)
    with<most - 1>(count, f);
}

// x <- x + delta, out <- rms_norm(x) weight
template <typename T>
void add_norm(T* x, const T* delta, const T* weight, T* out, long rows, long width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > WORTH_THREADS)
  for (long row = 0; row < rows; row++) {
    T *mine = x + row * width, *to = out + row * width;
    Floats squares = all(0.f);
    for (long i = 0; i < width; i += PAIR) {
      Two value = T::load(mine + i);
      if (delta) {
        const Two more = T::load(delta + row * width + i);
        T::store(mine + i, {value.a + more.a, value.b + more.b});
        value = T::load(mine + i);
      }
      squares += value.a * value.a + value.b * value.b;
    }
    const float scale = 1.f / std::sqrt(sum(squares) / width + eps);
    for (long i = 0; i < width; i += PAIR) {
      const Two value = T::load(mine + i), by = T::load(weight + i);
      T::store(to + i, {value.a * scale * by.a, value.b * scale * by.b});
    }
  }
}

// A weight [out, in] in blocks of its outputs, the last one filled with nothing; in a block `DEEP` elements of an
// output lie beside those of the next.
template <typename T> void pack(const T* weight, T* packed, long in, long outs) {
  for (long from = 0; from < outs; from += BLOCK)
    for (long i = 0; i < in; i += T::DEEP)
      for (long o = from; o < from + BLOCK; o++, packed += T::DEEP)
        if (o < outs) std::memcpy(packed, weight + o * in + i, T::DEEP * sizeof(T));
}

template <typename T> struct Product {
  const T *x, *weight, *bias;  // [rows, in]; as `pack` made it; [out] or none
  T* out;                      // [rows, out]
  long rows, in, outs, stride = 0;  // from one row of x to the next, which `product` knows
};

// `many` rows of x from `row` on with the outputs of one block. The rows of x meet a block in so many turns; each asks
// memory for its share of the next block, so that it never idles.
template <typename T, int many> void piece(const Product<T>& p, long row, long block, long turn, long turns) {
  constexpr long SLICE = BLOCK * T::DEEP;
  Floats found[many][2] = {};
  const T *x = p.x + row * p.stride, *weight = p.weight + block * BLOCK * p.in;
  const T* later = weight + p.in * BLOCK;
  for (long i = 0, due = turn; i < p.in; i += T::DEEP, weight += SLICE) {
    const auto left = T::each(weight), right = T::each(weight + SLICE / 2);
    for (long half = 0; half < 2; half++)
      if (!due--) __builtin_prefetch(later + i * BLOCK + half * SLICE / 2, 0, 2), due = turns - 1;
#pragma GCC unroll 16
    for (int r = 0; r < many; r++) {
      const auto mine = T::every(x + r * p.stride + i);
      found[r][0] = T::add(found[r][0], left, mine);
      found[r][1] = T::add(found[r][1], right, mine);
    }
  }
  const long from = block * BLOCK, count = std::min(BLOCK, p.outs - from);
  float bias[BLOCK] = {};
  for (long o = 0; p.bias && o < count; o++) bias[o] = T::one(p.bias[from + o]);
#pragma GCC unroll 16
  for (int r = 0; r < many; r++) {
    T *to = p.out + (row + r) * p.outs + from, last[BLOCK], *made = count == BLOCK ? to : last;
    T::store(made, found[r][0] + load(bias)), T::store(made + LANES, found[r][1] + load(bias + LANES));
    if (count < BLOCK) std::memcpy(to, last, count * sizeof(T));
  }
}

template <typename T> void product(Product<T> p, int threads) {
  static thread_local std::vector<T> apart;
  p.stride = p.in;
  if (p.rows > 1 && p.in * sizeof(T) % ALIASED == 0) {
    p.stride += PAIR;
    apart.resize(std::max<size_t>(apart.size(), p.rows * p.stride));
    for (long row = 0; row < p.rows; row++) std::memcpy(&apart[row * p.stride], p.x + row * p.in, p.in * sizeof(T));
    p.x = apart.data();
  }
  const long blocks = (p.outs + BLOCK - 1) / BLOCK, turns = (p.rows + MOST - 1) / MOST;
#pragma omp parallel for schedule(static) num_threads(threads) if (p.in * p.outs > WORTH_THREADS)
  for (long block = 0; block < blocks; block++)
    for (long turn = 0; turn < turns; turn++) {
      const long row = p.rows * turn / turns, next = p.rows * (turn + 1) / turns;
      with<MOST>(next - row, [&](auto many) { piece<T, many>(p, row, block, turn, turns); });
    }
}

inline Floats silu(Floats x) { return x / (1.f + exponential(-x)); }

// rows of [gate, up] -> silu(gate) up
template <typename T> void gated(const T* both, T* out, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > WORTH_THREADS)
  for (long row = 0; row < rows; row++) {
    const T *gate = both + 2 * row * width, *up = gate + width;
    for (long i = 0; i < width; i += PAIR) {
      const Two x = T::load(gate + i), by = T::load(up + i);
      T::store(out + row * width + i, {silu(x.a) * by.a, silu(x.b) * by.b});
    }
  }
}

// From what one layer's attention saw to the next one's projections, or, where `outs` is 0, to the normed features.
template <typename T> struct Between {
  const T *out, *out_bias, *norm_after, *gate_up, *gate_up_bias, *down, *down_bias, *norm, *next, *next_bias;
  long seen, width, inner, outs;  // elements of a row of each; of the gate, half of its product's
  float eps;

  void operator()(T* x, const T* rows_seen, T* to, long rows, int threads) const {
    static thread_local std::vector<T> room;
    room.resize(std::max<size_t>(room.size(), rows * (2 * width + 3 * inner)));
    T *made = room.data(), *normed = made + rows * width, *both = normed + rows * width;
    T* open = both + 2 * rows * inner;
    product<T>({rows_seen, out, out_bias, made, rows, seen, width}, threads);
    add_norm<T>(x, made, norm_after, normed, rows, width, eps, threads);
    product<T>({normed, gate_up, gate_up_bias, both, rows, width, 2 * inner}, threads);
    gated<T>(both, open, rows, inner, threads);
    product<T>({open, down, down_bias, made, rows, inner, width}, threads);
    add_norm<T>(x, made, norm, outs ? normed : to, rows, width, eps, threads);
    if (outs) product<T>({normed, next, next_bias, to, rows, width, outs}, threads);
  }
};

template <typename T> Between<T> between(const void* const* w, const long* n, float eps) {
  const auto weight = [=](int which) { return (const T*)w[which]; };
  return {weight(0), weight(1), weight(2), weight(3), weight(4), weight(5), weight(6),
          weight(7), weight(8), weight(9), n[0], n[1], n[2], n[3], eps};
}

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin); the table's sines bear the sign of their half
template <typename T> void rotate(const T* x, const T* cos, const T* sin, T* out, long dim) {
  const long half = dim / 2;
  for (long i = 0; i < dim; i += PAIR) {
    const Two mine = T::load(x + i), other = T::load(x + (i + half) % dim), c = T::load(cos + i), s = T::load(sin + i);
    T::store(out + i, {mine.a * c.a + other.a * s.a, mine.b * c.b + other.b * s.b});
  }
}

template <typename T> struct Step {
  const T *q, *kv, *cos, *sin;  // [rows, H, D], [written, 2 H_kv, D] of keys before values, [written or 1, D]
  T *keys, *values;             // [H_kv, capacity, D]
  const uint8_t* visible;       // [rows, tail] of the last keys, none where all are
  T* out;                       // [rows, H D]
  long rows, written, q_stride, kv_stride, rope_stride, heads, kv_heads, dim, capacity, start, length, tail;
  float scale;

  const long *own, *ends;  // which of the last `tail` keys each row sees, row after row, and where those of a row end

  long queries() const { return heads / kv_heads * rows; }  // of one key-value head: [groups, rows]
};

template <typename T> void append(const Step<T>& s) {
  for (long row = 0; row < s.written; row++)
    for (long head = 0; head < s.kv_heads; head++) {
      const T* key = s.kv + row * s.kv_stride + head * s.dim;
      const long to = (head * s.capacity + s.start + row) * s.dim;
      rotate(key, s.cos + row * s.rope_stride, s.sin + row * s.rope_stride, s.keys + to, s.dim);
      std::memcpy(s.values + to, key + s.kv_heads * s.dim, s.dim * sizeof(T));
    }
}

// Products of `many` queries with `TILE` keys, [query, key]; keys from `here` on are read as the one before.
template <typename T, int many> Floats products(const T* queries, const T* keys, long here, long dim) {
  Floats found[TILE * TILE] = {};
  for (long i = 0; i < dim; i += PAIR) {
    typename T::Raw key[TILE];
    for (long k = 0; k < TILE; k++) key[k] = T::raw(keys + std::min(k, here - 1) * dim + i);
    for (int q = 0; q < many; q++) {
      const typename T::Raw mine = T::raw(queries + q * dim + i);
      for (int k = 0; k < TILE; k++) found[q * TILE + k] = T::add(found[q * TILE + k], key[k], mine);
    }
  }
  return sums(found);
}

// out[query] = sum of weights[query] over the values of `count` keys, while memory is asked for what comes `next`
template <typename T, int many>
void blend(const float* weights, long width, const T* values, long count, long dim, float* out, long stride,
           const T* next) {
  for (long i = 0; i < dim; i += PAIR) {
    Two total[many] = {};
    for (long k = 0; k < count; k++) {
      const Two value = T::load(values + k * dim + i);
      for (long line = i; next && line < i + PAIR; line += LINE / sizeof(T))
        __builtin_prefetch(next + k * dim + line, 0, 2);
      for (int q = 0; q < many; q++) {
        total[q].a += weights[q * width + k] * value.a;
        total[q].b += weights[q * width + k] * value.b;
      }
    }
    for (int q = 0; q < many; q++) {
      float* to = out + q * stride + i;
      store(to, total[q].a), store(to + LANES, total[q].b);
    }
  }
}

// `many` queries of one head, from number `first` on, over the keys that are theirs from the `from`-th on, a block of
// them. For each its largest score, the sum of the exponentials and, a vector behind, the values weighted by them.
template <typename T, int many>
void part(const Step<T>& s, const T* queries, long head, long first, long from, float* found) {
  const long common = s.visible ? s.length - s.tail : s.length, dim = s.dim, stride = dim + LANES;
  const bool branched = from + SEEN > common && s.visible;  // where queries do not see the same keys
  const long begin = std::min(from, common), count = branched ? s.length - begin : std::min(SEEN, s.length - begin);
  const long width = count + SEEN;
  const T *keys = s.keys + (head * s.capacity + begin) * dim, *values = s.values + (head * s.capacity + begin) * dim;
  static thread_local std::vector<float> scores;
  scores.resize(std::max<size_t>(scores.size(), TILE * width));
  for (long k = 0; k < count; k += TILE) {
    for (long i = 0; i < TILE * dim && !first; i += LINE / sizeof(T)) __builtin_prefetch(values + k * dim + i, 0, 2);
    const Floats score = products<T, many>(queries, keys + k * dim, std::min(TILE, count - k), dim) * s.scale;
    float each[LANES];
    store(each, score);
    for (int q = 0; q < many; q++) std::memcpy(&scores[q * width + k], each + q * TILE, TILE * sizeof(float));
  }
  for (int q = 0; q < many; q++) {
    float *row = &scores[q * width], *mine = row, seen[SEEN];
    const long shared = common - begin, *places = nullptr;  // keys that all queries see, and where its others lie
    long own = count;
    if (branched) {  // its keys side by side, as if there were no others
      const long which = (first + q) % s.rows, start = which ? s.ends[which - 1] : 0, others = s.ends[which] - start;
      const long met = std::min(others, from - begin), left = std::min(others - met, SEEN - shared);
      places = s.own + start + met, own = shared + left, mine = seen;
      std::memcpy(seen, row, shared * sizeof(float));
      for (long k = 0; k < left; k++) seen[shared + k] = row[shared + places[k]];
    }
    const long wide = (own + LANES - 1) / LANES * LANES;
    std::fill(mine + own, mine + wide, HIDDEN);
    Floats top = all(HIDDEN), total = all(0.f);
    for (long k = 0; k < wide; k += LANES) {
      const Floats x = load(mine + k);
      top = x > top ? x : top;
    }
    const float most = largest(top);
    for (long k = 0; k < wide; k += LANES) {
      const Floats x = exponential(load(mine + k) - most);
      store(mine + k, x);
      total += x;
    }
    if (branched) {
      std::fill(row + shared, row + count, 0.f);
      std::memcpy(row, seen, shared * sizeof(float));
      for (long k = shared; k < own; k++) row[shared + places[k - shared]] = seen[k];
    }
    found[q * stride] = most, found[q * stride + 1] = sum(total);
  }
  const T* next = first ? nullptr : keys + SEEN * dim;
  blend<T, many>(scores.data(), width, values, count, dim, found + LANES, stride, next);
}

template <typename T> void parts(const Step<T>& s, const T* queries, long head, long from, float* found) {
  const long many = s.queries();
  for (long first = 0; first < many; first += TILE)
    with<TILE>(std::min(TILE, many - first), [&](auto count) {
      part<T, count>(s, queries + first * s.dim, head, first, from, found + first * (s.dim + LANES));
    });
}

// The parts of one query, `stride` floats apart, as what it sees of all keys.
template <typename T> void whole(const float* found, long blocks, long stride, long dim, T* out) {
  float most = HIDDEN, total = 0;
  for (long b = 0; b < blocks; b++) most = std::max(most, found[b * stride]);
  Floats seen[WIDEST / LANES] = {};
  for (long b = 0; b < blocks; b++) {
    const float *mine = found + b * stride, share = std::exp(mine[0] - most);
    total += share * mine[1];
    for (long c = 0; c < dim / LANES; c++) seen[c] += share * load(mine + LANES + c * LANES);
  }
  for (long c = 0; c < dim / LANES; c += 2) T::store(out + c * LANES, {seen[c] / total, seen[c + 1] / total});
}

template <typename T> void attend(Step<T> s, int threads) {
  append(s);
  static thread_local std::vector<long> own, ends;
  own.clear(), ends.clear();
  for (long row = 0; s.visible && row < s.rows; row++) {
    for (long k = 0; k < s.tail; k++)
      if (s.visible[row * s.tail + k]) own.push_back(k);
    ends.push_back(own.size());
  }
  s.own = own.data(), s.ends = ends.data();
  const long groups = s.heads / s.kv_heads, many = s.queries(), dim = s.dim, wide = dim + LANES;
  const long blocks = (s.length + SEEN - 1) / SEEN;
  static thread_local std::vector<T> turned;
  static thread_local std::vector<float> parted;
  turned.resize(std::max<size_t>(turned.size(), s.heads * s.rows * dim));
  parted.resize(std::max<size_t>(parted.size(), s.kv_heads * blocks * many * wide));
  T* queries = turned.data();
  float* found = parted.data();
  for (long head = 0; head < s.heads; head++)
    for (long row = 0; row < s.rows; row++) {
      const long at = (s.written - s.rows + row) * s.rope_stride;
      rotate(s.q + row * s.q_stride + head * dim, s.cos + at, s.sin + at, queries + (head * s.rows + row) * dim, dim);
    }
  const long run = std::max(1L, blocks / 4);  // of blocks that lie side by side
  const bool worth = s.kv_heads * s.length * many * dim > WORTH_THREADS;
#pragma omp parallel for schedule(dynamic, run) num_threads(threads) if (worth)
  for (long task = 0; task < s.kv_heads * blocks; task++) {
    const long head = task / blocks;
    parts(s, queries + head * many * dim, head, task % blocks * SEEN, found + task * many * wide);
  }
  for (long head = 0; head < s.heads; head++)
    for (long row = 0; row < s.rows; row++) {
      const float* mine = found + (head / groups * blocks * many + head % groups * s.rows + row) * wide;
      whole(mine, blocks, many * wide, dim, s.out + (row * s.heads + head) * dim);
    }
}

template <typename T>
Step<T> step(const void* q, const void* kv, const void* cos, const void* sin, void* keys, void* values,
             const uint8_t* visible, void* out, const long* n, float scale) {
  return {(const T*)q, (const T*)kv, (const T*)cos, (const T*)sin, (T*)keys, (T*)values, visible, (T*)out, n[0], n[1],
          n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], scale};
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void fspad_add_norm(int kind, void* x, const void* delta, const void* weight, void* out, long rows, long width,
                           float eps, int threads) {
  if (kind)
    add_norm((Bfloat*)x, (const Bfloat*)delta, (const Bfloat*)weight, (Bfloat*)out, rows, width, eps, threads);
  else
    add_norm((Single*)x, (const Single*)delta, (const Single*)weight, (Single*)out, rows, width, eps, threads);
}

// A weight [out, in] in the order in which a product reads it.
EXPORT void fspad_pack(int kind, const void* weight, void* packed, long in, long outs) {
  if (kind)
    pack((const Bfloat*)weight, (Bfloat*)packed, in, outs);
  else
    pack((const Single*)weight, (Single*)packed, in, outs);
}

EXPORT void fspad_product(int kind, const void* x, const void* weight, const void* bias, void* out, long rows, long in,
                          long outs, int threads) {
  if (kind)
    product<Bfloat>({(Bfloat*)x, (Bfloat*)weight, (Bfloat*)bias, (Bfloat*)out, rows, in, outs}, threads);
  else
    product<Single>({(Single*)x, (Single*)weight, (Single*)bias, (Single*)out, rows, in, outs}, threads);
}

EXPORT void fspad_gated(int kind, const void* both, void* out, long rows, long width, int threads) {
  if (kind)
    gated((const Bfloat*)both, (Bfloat*)out, rows, width, threads);
  else
    gated((const Single*)both, (Single*)out, rows, width, threads);
}

EXPORT void fspad_between(int kind, void* x, const void* seen, void* out, const void* const* weights, const long* n,
                          long rows, float eps, int threads) {
  if (kind)
    between<Bfloat>(weights, n, eps)((Bfloat*)x, (const Bfloat*)seen, (Bfloat*)out, rows, threads);
  else
    between<Single>(weights, n, eps)((Single*)x, (const Single*)seen, (Single*)out, rows, threads);
}

EXPORT void fspad_attend(int kind, const void* q, const void* kv, const void* cos, const void* sin, void* keys,
                         void* values, const uint8_t* visible, void* out, const long* n, float scale, int threads) {
  if (kind)
    attend(step<Bfloat>(q, kv, cos, sin, keys, values, visible, out, n, scale), threads);
  else
    attend(step<Single>(q, kv, cos, sin, keys, values, visible, out, n, scale), threads);
}
