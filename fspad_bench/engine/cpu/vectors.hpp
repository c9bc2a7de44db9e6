// Element types, vectors of floats, and the arithmetic that all functions share.
//
// - Elements are float32 or bfloat16; every sum is float32.
// - One load reads a chunk of CHUNK elements into two vectors. Row widths are multiples of CHUNK.
// - The two vectors of a bfloat16 chunk hold its even and its odd elements. Load and store agree on
//   the order, and arithmetic is elementwise, so no other code depends on it.
// - All names are in an unnamed namespace: native.cpp is the only translation unit, and internal
//   linkage lets the compiler inline everything below its exported functions.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// A kernel is compiled by itself, with all that its loops call inlined. Left to the compiler, the
// boundaries move with unrelated changes, and register spills with them: up to 10% of the time.
#define KERNEL __attribute__((noinline))
#define INLINED inline __attribute__((always_inline))

namespace {

constexpr long LANES = 16;                   // floats in a vector
constexpr long CHUNK = 2 * LANES;            // elements that one load reads
constexpr long CACHE_LINE = 64;              // bytes
constexpr long MIN_PARALLEL_WORK = 1 << 15;  // elements below which a second thread does not pay

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfWords __attribute__((vector_size(2 * LANES)));

// One chunk as floats.
struct FloatPair {
  Floats first;
  Floats second;
};

// x - 0 is x for every x. x + 0 is not for x = -0, so the compiler could not drop the addition.
inline Floats broadcast(float x) { return x - Floats{}; }

inline Floats load_floats(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store_floats(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

// Both element types offer:
// - load, store: a chunk; store also LANES consecutive elements from one vector.
// - Operand, load_operand, multiply_add: a chunk as a dot product reads it, and the addition of two
//   operands' products to a vector of partial sums.
// - DEPTH: elements of a row that multiply_add reads per lane where a packed weight is an operand.
//   broadcast_inputs copies DEPTH inputs to all lanes, load_weights reads DEPTH weights of each of
//   LANES outputs.
struct Float32 {
  float value;

  static FloatPair load(const Float32* from) {
    return {load_floats(&from->value), load_floats(&from->value + LANES)};
  }
  static void store(Float32* to, FloatPair x) {
    store_floats(&to->value, x.first);
    store_floats(&to->value + LANES, x.second);
  }
  static void store(Float32* to, Floats x) { store_floats(&to->value, x); }
  static float to_float(Float32 x) { return x.value; }

  using Operand = FloatPair;
  static Operand load_operand(const Float32* from) { return load(from); }
  static Floats multiply_add(Floats sum, Operand x, Operand y) {
    return sum + x.first * y.first + x.second * y.second;
  }

  static constexpr long DEPTH = 1;
  static Floats broadcast_inputs(const Float32* from) { return broadcast(from->value); }
  static Floats load_weights(const Float32* from) { return load_floats(&from->value); }
  static Floats multiply_add(Floats sum, Floats x, Floats y) { return sum + x * y; }
};

struct Bfloat16 {
  uint16_t bits;

  static FloatPair load(const Bfloat16* from) {
    Words x;
    std::memcpy(&x, from, sizeof x);
    return {(Floats)(x << 16), (Floats)(x & 0xffff0000u)};
  }
  static void store(Bfloat16* to, FloatPair x) {
    const Words words = rounded_words(x.first) >> 16 | (rounded_words(x.second) & 0xffff0000u);
    std::memcpy(to, &words, sizeof words);
  }
  static void store(Bfloat16* to, Floats x) {
    const HalfWords half_words = __builtin_convertvector(rounded_words(x) >> 16, HalfWords);
    std::memcpy(to, &half_words, sizeof half_words);
  }
  static float to_float(Bfloat16 x) {
    const uint32_t word = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }

#ifdef __AVX512BF16__
  using Operand = __m512bh;
  static Operand load_operand(const Bfloat16* from) {
    return (__m512bh)_mm512_loadu_si512(from);
  }
  static Floats multiply_add(Floats sum, Operand x, Operand y) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, x, y);
  }
  static Operand broadcast_inputs(const Bfloat16* from) {
    int two_elements;
    std::memcpy(&two_elements, from, sizeof two_elements);
    return (__m512bh)_mm512_set1_epi32(two_elements);
  }
#else
  using Operand = FloatPair;
  static Operand load_operand(const Bfloat16* from) { return load(from); }
  static Floats multiply_add(Floats sum, Operand x, Operand y) {
    return sum + x.first * y.first + x.second * y.second;
  }
  static Operand broadcast_inputs(const Bfloat16* from) {
    return {broadcast(to_float(from[0])), broadcast(to_float(from[1]))};
  }
#endif
  static constexpr long DEPTH = 2;
  static Operand load_weights(const Bfloat16* from) { return load_operand(from); }

  // Return words whose upper halves are x rounded to nearest, ties to even.
  static Words rounded_words(Floats x) { return (Words)x + 0x7fff + ((Words)x >> 16 & 1); }
};

inline float sum_lanes(Floats x) {
  float total = 0;
  for (long i = 0; i < LANES; i++) total += x[i];
  return total;
}

inline float max_lane(Floats x) {
  float maximum = x[0];
  for (long i = 1; i < LANES; i++) maximum = std::max(maximum, x[i]);
  return maximum;
}

// e^x = 2^n e^f with f in [-0.35, 0.35] and e^f by its Taylor series; 0 below 2^-126.
inline Floats exponential(Floats x) {
  Floats y = x * 1.44269504f;
  y = y < -126.f ? broadcast(-126.f) : y;
  y = y > 126.f ? broadcast(126.f) : y;
  const Floats n = (y + 12582912.f) - 12582912.f;  // 1.5 * 2^23: leaves y rounded to an integer
  const Floats f = (y - n) * 0.69314718f;
  const Floats series =
      1.f +
      f * (1.f + f * (0.5f + f * (1.f / 6 + f * (1.f / 24 + f * (1.f / 120 + f * (1.f / 720))))));
  const Floats power = (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
  return y <= -126.f ? broadcast(0.f) : series * power;
}

#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (Ints){__VA_ARGS__})
#endif

// Return the sum of each of LANES vectors, as one vector. Each pass halves their number.
inline Floats sum_each(const Floats* x) {
  Floats a[8];
  Floats b[4];
  Floats c[2];
  for (int i = 0; i < 8; i++)
    a[i] = SHUFFLE(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; i++)
    b[i] = SHUFFLE(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           SHUFFLE(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    c[i] = SHUFFLE(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           SHUFFLE(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  return SHUFFLE(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         SHUFFLE(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

// Call f with `count`, from 1 to `maximum`, as a compile-time constant.
template <int maximum, typename F> void with_constant(long count, F f) {
  if (count == maximum)
    f(std::integral_constant<int, maximum>{});
  else if constexpr (maximum > 1)
    with_constant<maximum - 1>(count, f);
}

// Grow a buffer to at least `size` elements and return its start. It never shrinks, so that a
// thread allocates in its first calls only.
template <typename T> T* grown(std::vector<T>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

}  // namespace
