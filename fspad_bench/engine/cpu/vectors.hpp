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

#if defined(__AVX512F__)
constexpr long REGISTER = 16;  // floats in a register
#elif defined(__AVX__)
constexpr long REGISTER = 8;
#else
constexpr long REGISTER = 4;
#endif
constexpr long PARTS = LANES / REGISTER;

typedef float FloatPart __attribute__((vector_size(4 * REGISTER)));
typedef int32_t IntPart __attribute__((vector_size(4 * REGISTER)));
typedef uint32_t WordPart __attribute__((vector_size(4 * REGISTER)));
typedef uint16_t HalfWordPart __attribute__((vector_size(2 * REGISTER)));

// A vector of LANES floats, as parts that each fit in a register: a compiler keeps a vector that is
// wider than a register in memory, which costs a product of several rows four fifths of its time.
struct Floats {
  FloatPart parts[PARTS];

  float operator[](long lane) const { return parts[lane / REGISTER][lane % REGISTER]; }
};

// One chunk as floats.
struct FloatPair {
  Floats first;
  Floats second;
};

// Return the vector whose p-th part is f(p).
template <typename F> INLINED Floats each_part(F f) {
  Floats result;
#pragma GCC unroll 4
  for (long p = 0; p < PARTS; p++) result.parts[p] = f(p);
  return result;
}

// x - 0 is x for every x. x + 0 is not for x = -0, so the compiler could not drop the addition.
INLINED Floats broadcast(float x) {
  return each_part([=](long) { return x - FloatPart{}; });
}

INLINED Floats operator+(Floats x, Floats y) {
  return each_part([&](long p) { return x.parts[p] + y.parts[p]; });
}
INLINED Floats operator*(Floats x, Floats y) {
  return each_part([&](long p) { return x.parts[p] * y.parts[p]; });
}
INLINED Floats operator*(Floats x, float y) {
  return each_part([&](long p) { return x.parts[p] * y; });
}
INLINED Floats operator*(float x, Floats y) { return y * x; }
INLINED Floats operator+(Floats x, float y) {
  return each_part([&](long p) { return x.parts[p] + y; });
}
INLINED Floats operator-(Floats x, float y) {
  return each_part([&](long p) { return x.parts[p] - y; });
}
INLINED Floats operator/(Floats x, float y) {
  return each_part([&](long p) { return x.parts[p] / y; });
}
INLINED Floats& operator+=(Floats& x, Floats y) { return x = x + y; }

INLINED Floats larger(Floats x, Floats y) {
  return each_part([&](long p) { return x.parts[p] > y.parts[p] ? x.parts[p] : y.parts[p]; });
}

INLINED Floats load_floats(const float* from) {
  return each_part([=](long p) {
    FloatPart part;
    std::memcpy(&part, from + REGISTER * p, sizeof part);
    return part;
  });
}

// Return LANES bfloat16 numbers, given by their bits, as floats.
INLINED Floats load_upper_halves(const uint16_t* from) {
  return each_part([=](long p) {
    HalfWordPart halves;
    std::memcpy(&halves, from + REGISTER * p, sizeof halves);
    return (FloatPart)(__builtin_convertvector(halves, WordPart) << 16);
  });
}

INLINED void store_floats(float* to, Floats x) {
  for (long p = 0; p < PARTS; p++)
    std::memcpy(to + REGISTER * p, &x.parts[p], sizeof(FloatPart));
}

// Both element types offer:
// - load, store: a chunk; store also LANES consecutive elements from one vector.
// - Operand, load_operand, multiply_add: a chunk as a dot product reads it, and the addition of two
//   operands' products to a vector of partial sums.
// - DEPTH: elements of a row that multiply_add reads per lane where a packed weight is an operand.
//   broadcast_inputs copies DEPTH inputs to all lanes, load_weights reads DEPTH weights of each of
//   LANES outputs. Input: what inputs are read as; of bfloat16 each would be widened anew for every
//   block of weights.
struct Bfloat16;

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
  using Input = Float32;
  static Floats broadcast_inputs(const Float32* from) { return broadcast(from->value); }
  static Floats load_weights(const Float32* from) { return load_floats(&from->value); }
  static Floats load_weights(const Bfloat16* from) {
    return load_upper_halves((const uint16_t*)from);
  }
  static Floats multiply_add(Floats sum, Floats x, Floats y) { return sum + x * y; }
};

struct Bfloat16 {
  uint16_t bits;

  static INLINED FloatPair load(const Bfloat16* from) {
    const auto words = [=](long p) {
      WordPart x;
      std::memcpy(&x, from + 2 * REGISTER * p, sizeof x);
      return x;
    };
    return {each_part([&](long p) { return (FloatPart)(words(p) << 16); }),
            each_part([&](long p) { return (FloatPart)(words(p) & 0xffff0000u); })};
  }
  static INLINED void store(Bfloat16* to, FloatPair x) {
    for (long p = 0; p < PARTS; p++) {
      const WordPart even = rounded_words(x.first.parts[p]) >> 16;
      const WordPart words = even | (rounded_words(x.second.parts[p]) & 0xffff0000u);
      std::memcpy(to + 2 * REGISTER * p, &words, sizeof words);
    }
  }
  static INLINED void store(Bfloat16* to, Floats x) {
    for (long p = 0; p < PARTS; p++) {
      const WordPart words = rounded_words(x.parts[p]) >> 16;
      const HalfWordPart half_words = __builtin_convertvector(words, HalfWordPart);
      std::memcpy(to + REGISTER * p, &half_words, sizeof half_words);
    }
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
    return {{(FloatPart)_mm512_dpbf16_ps((__m512)sum.parts[0], x, y)}};
  }
  using Input = Bfloat16;
  static Operand broadcast_inputs(const Input* from) {
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
  using Input = Float32;
  static Operand broadcast_inputs(const Input* from) {
    return {broadcast(from[0].value), broadcast(from[1].value)};
  }
#endif
  static constexpr long DEPTH = 2;
  static Operand load_weights(const Bfloat16* from) { return load_operand(from); }

  // Return words whose upper halves are x rounded to nearest, ties to even.
  static INLINED WordPart rounded_words(FloatPart x) {
    return (WordPart)x + 0x7fff + ((WordPart)x >> 16 & 1);
  }
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
INLINED FloatPart exponential(FloatPart x) {
  FloatPart y = x * 1.44269504f;
  y = y < -126.f ? FloatPart{} - 126.f : y;
  y = y > 126.f ? FloatPart{} + 126.f : y;
  const FloatPart n = (y + 12582912.f) - 12582912.f;  // 1.5 * 2^23: leaves y rounded
  const FloatPart f = (y - n) * 0.69314718f;
  const FloatPart series =
      1.f +
      f * (1.f + f * (0.5f + f * (1.f / 6 + f * (1.f / 24 + f * (1.f / 120 + f * (1.f / 720))))));
  const FloatPart power = (FloatPart)((__builtin_convertvector(n, IntPart) + 127) << 23);
  return y <= -126.f ? FloatPart{} : series * power;
}

INLINED Floats exponential(Floats x) {
  return each_part([&](long p) { return exponential(x.parts[p]); });
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
