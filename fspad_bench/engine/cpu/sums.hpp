// The sum of each of LANES vectors, as one vector: what a tile of products ends with.
//
// - On every processor a sum is that of the same tree: lane j with lane j + 8, the sums with those 4
//   further, 2 further, 1 further. So results do not depend on how wide a register is.
// - Each pass halves the vectors' number: lanes of two stand side by side in one.

#pragma once

#include "vectors.hpp"

#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (IntPart){__VA_ARGS__})
#endif

namespace {

#if defined(__AVX512F__)
INLINED Floats sum_each(const Floats* vectors) {
  FloatPart a[8];
  FloatPart b[4];
  FloatPart c[2];
  for (int i = 0; i < 8; i++) {
    const FloatPart x = vectors[i].parts[0];
    const FloatPart y = vectors[i + 8].parts[0];
    a[i] = SHUFFLE(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; i++)
    b[i] = SHUFFLE(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           SHUFFLE(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    c[i] = SHUFFLE(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           SHUFFLE(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  return {{SHUFFLE(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           SHUFFLE(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)}};
}
#elif defined(__AVX__)
INLINED Floats sum_each(const Floats* vectors) {
  FloatPart a[8];
  FloatPart b[4];
  FloatPart c[2];
  for (int i = 0; i < 8; i++) {
    const FloatPart x = vectors[i].parts[0] + vectors[i].parts[1];
    const FloatPart y = vectors[i + 8].parts[0] + vectors[i + 8].parts[1];
    a[i] = SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 4; i++)
    b[i] = SHUFFLE(a[i], a[i + 4], 0, 1, 8, 9, 4, 5, 12, 13) +
           SHUFFLE(a[i], a[i + 4], 2, 3, 10, 11, 6, 7, 14, 15);
  for (int i = 0; i < 2; i++)
    c[i] = SHUFFLE(b[i], b[i + 2], 0, 8, 2, 10, 4, 12, 6, 14) +
           SHUFFLE(b[i], b[i + 2], 1, 9, 3, 11, 5, 13, 7, 15);
  return {{SHUFFLE(c[0], c[1], 0, 8, 1, 9, 2, 10, 3, 11),
           SHUFFLE(c[0], c[1], 4, 12, 5, 13, 6, 14, 7, 15)}};
}
#else
INLINED Floats sum_each(const Floats* vectors) {
  FloatPart a[8];
  Floats result;
  const auto halved = [&](int i) {
    const FloatPart* x = vectors[i].parts;
    return (x[0] + x[2]) + (x[1] + x[3]);
  };
  for (int i = 0; i < 8; i++) {
    const FloatPart x = halved(i);
    const FloatPart y = halved(i + 8);
    a[i] = SHUFFLE(x, y, 0, 1, 4, 5) + SHUFFLE(x, y, 2, 3, 6, 7);
  }
  for (int i = 0; i < 4; i++) {
    const FloatPart sums =
        SHUFFLE(a[i], a[i + 4], 0, 4, 2, 6) + SHUFFLE(a[i], a[i + 4], 1, 5, 3, 7);
    for (int j = 0; j < 4; j++) result.parts[j][i] = sums[j];
  }
  return result;
}
#endif

}  // namespace
