// The leading tokens of rows of logits, and their log-probabilities: the choice of a draft's level.
//
// - Under sampling the scores are logits + temperature * G, with the Gumbel noise G of a token at a
//   position (`core/sampling.py`). Its hash is the same to the bit; its logarithms are this file's,
//   within a few units in the last place, which is enough to rank drafts by.
// - Of equal scores the lower place leads. Scores that are no numbers, or forbid a token, come last,
//   in the order of their places; the former leave their row no log-probabilities that are numbers.

#pragma once

#include <cmath>
#include <limits>

#include "vectors.hpp"

namespace {

constexpr float LOWEST = -std::numeric_limits<float>::infinity();

// ln x of a normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), ln m by its series in
// (m - 1) / (m + 1).
INLINED FloatPart logarithm(FloatPart x) {
  const IntPart exponent = ((IntPart)x - 0x3f3504f3) >> 23;
  const FloatPart m = (FloatPart)((IntPart)x - (exponent << 23));
  const FloatPart s = (m - 1.f) / (m + 1.f);
  const FloatPart t = s * s;
  const FloatPart series = 2.f + t * (2.f / 3 + t * (2.f / 5 + t * (2.f / 7 + t * (2.f / 9))));
  return __builtin_convertvector(exponent, FloatPart) * 0.69314718f + s * series;
}

// The words of a position's noise: those of a token are mix(mix(token ^ row) + offset).
struct NoiseWords {
  uint32_t row;
  uint32_t offset;
};

INLINED WordPart mix(WordPart x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The Gumbel variates of tokens, as `sampling.gumbel` defines them.
INLINED FloatPart gumbel(WordPart token, NoiseWords words) {
  const WordPart h = mix(mix(token ^ words.row) + words.offset);
  const FloatPart high = __builtin_convertvector((IntPart)(h >> 16), FloatPart);
  const FloatPart low = __builtin_convertvector((IntPart)(h & 0xffffu), FloatPart);
  FloatPart w = high * 0x1p-16f + (low + 0.5f) * 0x1p-32f;
  w = w > 1.f - 0x1p-24f ? FloatPart{} + (1.f - 0x1p-24f) : w;
  const FloatPart rest = 1.f - w;
  // -log1p(-w): the rounding of 1 - w is divided out again, and where it is all of w, w remains
  const FloatPart exact = -logarithm(rest) * w / (1.f - rest);
  return -logarithm(rest == 1.f ? w : exact);
}

// Write temperature * G of tokens [width] to noise [width padded to LANES].
inline void write_noise(const int64_t* tokens, long width, float temperature, NoiseWords words,
                        float* noise) {
  for (long i = 0; i < width; i += REGISTER) {
    WordPart part{};
    for (long lane = 0; lane < REGISTER && i + lane < width; lane++)
      part[lane] = (uint32_t)tokens[i + lane];
    const FloatPart values = temperature * gumbel(part, words);
    std::memcpy(noise + i, &values, sizeof values);
  }
}

// The best `count` scores so far, best first, and their places; -1 where there are fewer.
struct Leaders {
  float* scores;
  int64_t* places;
  long count;

  void clear() const {
    for (long i = 0; i < count; i++) {
      scores[i] = LOWEST;
      places[i] = -1;
    }
  }

  // Put the lowest places that do not lead where there are too few that do.
  void fill() const {
    long place = 0;
    for (long i = 0; i < count; i++) {
      if (places[i] >= 0) continue;
      while (std::find(places, places + i, place) != places + i) place++;
      places[i] = place;
    }
  }

  float last() const { return scores[count - 1]; }

  void add(float score, long place) const {
    long i = count - 1;
    for (; i > 0 && scores[i - 1] < score; i--) {
      scores[i] = scores[i - 1];
      places[i] = places[i - 1];
    }
    scores[i] = score;
    places[i] = place;
  }
};

// Fill `leaders` with those of scores [width padded to LANES], at most as many, and turn their
// scores into log-probabilities. What pads is LOWEST.
inline void lead(const float* scores, long width, Leaders leaders) {
  leaders.clear();
  for (long i = 0; i < width; i += LANES) {
    const Floats chunk = load_floats(scores + i);
    IntPart is_better{};
    for (long p = 0; p < PARTS; p++) is_better |= chunk.parts[p] > leaders.last();
    bool any = false;
    for (long lane = 0; lane < REGISTER; lane++) any |= is_better[lane] != 0;
    if (!any) continue;
    for (long place = i; place < std::min(width, i + LANES); place++)
      if (scores[place] > leaders.last()) leaders.add(scores[place], place);
  }
  leaders.fill();
  const float best = leaders.scores[0];
  Floats sums = broadcast(0.f);
  for (long i = 0; i < width; i += LANES)
    sums += exponential(load_floats(scores + i) - best);
  const float log_sum = best + std::log(sum_lanes(sums));
  for (long i = 0; i < leaders.count; i++) leaders.scores[i] -= log_sum;
}

// Write the tokens that lead each row of logits [rows, width], and their log-probabilities, [rows,
// count] each. `tokens` [width] are the columns'. Without a temperature scores are the logits.
inline void leading(const float* logits, const int64_t* tokens, long rows, long width,
                    float temperature, NoiseWords words, float* values, int64_t* leaders,
                    long count, int threads) {
  static thread_local std::vector<float> workspace;
  const long padded = (width + LANES - 1) / LANES * LANES;
  float* noise = grown(workspace, (rows + 1) * padded);
  float* scores = noise + padded;  // [rows, padded]
  if (temperature > 0) write_noise(tokens, width, temperature, words, noise);
#pragma omp parallel for num_threads(threads) if (rows > 1 && rows * width > MIN_PARALLEL_WORK)
  for (long row = 0; row < rows; row++) {
    const float* from = logits + row * width;
    float* to = scores + row * padded;
    for (long i = 0; i < width; i++) to[i] = temperature > 0 ? from[i] + noise[i] : from[i];
    for (long i = width; i < padded; i++) to[i] = LOWEST;
    lead(to, width, {values + row * count, leaders + row * count, count});
    for (long i = row * count; i < (row + 1) * count; i++) leaders[i] = tokens[leaders[i]];
  }
}

}  // namespace
