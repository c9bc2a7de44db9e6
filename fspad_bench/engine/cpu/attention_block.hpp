// Attention of one head's queries over one block of keys: a partial softmax.
//
// - A block holds KEY_BLOCK keys in the order in which a query attends to them, not in that of the
//   cache: first the common keys, which all queries attend to, then a query's own tail keys, its
//   ancestors in the order of their depth. So a node of a tree sums what its path would, one token
//   at a time, in the same order, and gets the same bits.
// - Where queries attend to different tail keys, all tail keys are scored; each query's are then
//   gathered side by side for its softmax, and the weights are scattered back.
// - A query may leave out the first so many of its keys (a sliding window). They keep their places in
//   the blocks and weigh nothing, so the others are summed in the same order in any company.
// - The result of a query is one partial of `partial_size(dim)` floats: the largest score, the sum
//   of exponentials, and from LANES on the values [D] weighted by the exponentials.

#pragma once

#include "sums.hpp"

namespace {

constexpr long TILE = 4;                // queries, and keys, whose products are summed together
constexpr long KEY_BLOCK = 128;         // keys that a partial covers
constexpr float MASKED_SCORE = -1e30f;  // its exponential is 0 beside any other score's

static_assert(TILE * TILE == LANES, "the products of a tile fill one vector");

template <typename T> struct AttentionCall {
  const T* q;              // [rows, H, D], rows q_stride apart
  const T* kv;             // [written, 2 H_kv, D], keys before values, rows kv_stride apart
  const T* cos;            // [written or 1, D], rows rope_stride apart (0 if there is one)
  const T* sin;            // [written or 1, D], negative in the first half of D
  T* keys;                 // [H_kv, capacity, D]
  T* values;               // [H_kv, capacity, D]
  const uint8_t* visible;  // [rows, tail]: whether a row attends to a tail key; null: to all keys
  const long* first;       // [rows]: a row leaves out its keys before this one; null: none
  T* out;                  // [rows, H D]
  long rows;
  long written;  // entries that the call adds to the cache; the rows of q are the last of them
  long q_stride;
  long kv_stride;
  long rope_stride;
  long heads;
  long kv_heads;
  long dim;
  long capacity;
  long start;   // slot of the first entry that is written
  long length;  // entries in the cache after that
  long tail;    // the last entries, to which `visible` refers
  float scale;

  long groups() const { return heads / kv_heads; }
  long queries() const { return groups() * rows; }  // of one key-value head: [groups, rows]
  long common() const { return visible ? length - tail : length; }  // keys that all rows attend to
  // Keys of a block that starts with a row's from-th key which the row leaves out.
  long hidden(long row, long from) const { return first ? std::max(0L, first[row] - from) : 0; }
};

// The tail keys that each row attends to, counted from the first tail key, in ascending order. A
// row's are keys[offsets[row]] to keys[offsets[row + 1] - 1].
struct TailKeys {
  std::vector<long> keys;
  std::vector<long> offsets;

  template <typename T> void read(const AttentionCall<T>& call) {
    keys.clear();
    offsets.assign(1, 0);
    if (!call.visible) return;
    for (long row = 0; row < call.rows; row++) {
      for (long key = 0; key < call.tail; key++)
        if (call.visible[row * call.tail + key]) keys.push_back(key);
      offsets.push_back(keys.size());
    }
  }
};

// Keys that one task scores for all queries of a head.
struct KeyBlock {
  long from;         // the block starts with the from-th key that a query attends to
  long first_slot;   // slot of the first key to score
  long count;        // keys to score, in consecutive slots
  long common;       // the first of them, which all queries attend to
  bool is_branched;  // whether queries attend to different ones among the others
};

template <typename T> KeyBlock key_block(const AttentionCall<T>& call, long from) {
  const long common = call.common();
  const long first_slot = std::min(from, common);
  const long left = call.length - first_slot;
  if (call.visible && from + KEY_BLOCK > common)
    return {from, first_slot, left, common - first_slot, true};
  const long count = std::min(KEY_BLOCK, left);
  return {from, first_slot, count, count, false};
}

inline long partial_size(long dim) { return dim + LANES; }

// Return the products of `queries` queries with TILE keys, as [query, key]. Only the first `count`
// keys are read; the last of them stands in for the others.
template <typename T, int queries>
INLINED Floats tile_products(const T* q, const T* keys, long count, long dim) {
  Floats sums[TILE * TILE] = {};
  for (long i = 0; i < dim; i += CHUNK) {
    typename T::Operand key[TILE];
    for (long k = 0; k < TILE; k++)
      key[k] = T::load_operand(keys + std::min(k, count - 1) * dim + i);
    for (int row = 0; row < queries; row++) {
      const typename T::Operand query = T::load_operand(q + row * dim + i);
      for (int k = 0; k < TILE; k++)
        sums[row * TILE + k] = T::multiply_add(sums[row * TILE + k], key[k], query);
    }
  }
  return sum_each(sums);
}

// scores[query, key] = scale * q key for the keys of a block, in rows of `width` floats. Prefetches
// `next_values` [count, D], if given.
template <typename T, int queries>
INLINED void score_keys(const T* q, const T* keys, long count, long dim, float scale, float* scores,
                long width, const T* next_values) {
  for (long k = 0; k < count; k += TILE) {
    if (next_values)
      for (long i = 0; i < TILE * dim; i += CACHE_LINE / sizeof(T))
        __builtin_prefetch(next_values + k * dim + i, 0, 2);
    const long left = std::min(TILE, count - k);
    float tile[LANES];
    store_floats(tile, tile_products<T, queries>(q, keys + k * dim, left, dim) * scale);
    for (int row = 0; row < queries; row++)
      std::memcpy(scores + row * width + k, tile + row * TILE, TILE * sizeof(float));
  }
}

struct SoftmaxSums {
  float maximum;
  float total;
};

// Replace scores by exp(score - maximum), leaving out the first `hidden`: their weight is 0, unless
// all are hidden, and then that of the maximum is 0 beside any other block's. Overwrites up to
// LANES - 1 floats after the last score.
inline SoftmaxSums exponentiate(float* scores, long count, long hidden) {
  const long padded = (count + LANES - 1) / LANES * LANES;
  std::fill(scores, scores + std::min(hidden, count), MASKED_SCORE);
  std::fill(scores + count, scores + padded, MASKED_SCORE);
  Floats maxima = broadcast(MASKED_SCORE);
  for (long k = 0; k < padded; k += LANES) {
    maxima = larger(load_floats(scores + k), maxima);
  }
  const float maximum = max_lane(maxima);
  Floats totals = broadcast(0.f);
  for (long k = 0; k < padded; k += LANES) {
    const Floats weight = exponential(load_floats(scores + k) - maximum);
    store_floats(scores + k, weight);
    totals += weight;
  }
  return {maximum, sum_lanes(totals)};
}

// `exponentiate` over the keys of a branched block that one row attends to. Other weights are 0.
inline SoftmaxSums exponentiate_visible(float* scores, const KeyBlock& block, const TailKeys& tail,
                                        long row, long hidden) {
  const long row_keys = tail.offsets[row + 1] - tail.offsets[row];
  const long earlier = std::min(row_keys, block.from - block.first_slot);  // in earlier blocks
  const long count = std::min(row_keys - earlier, KEY_BLOCK - block.common);
  const long* keys = tail.keys.data() + tail.offsets[row] + earlier;
  float* tail_scores = scores + block.common;
  float gathered[KEY_BLOCK];
  std::memcpy(gathered, scores, block.common * sizeof(float));
  for (long k = 0; k < count; k++) gathered[block.common + k] = tail_scores[keys[k]];
  const SoftmaxSums sums = exponentiate(gathered, block.common + count, hidden);
  std::memcpy(scores, gathered, block.common * sizeof(float));
  std::fill(tail_scores, scores + block.count, 0.f);
  for (long k = 0; k < count; k++) tail_scores[keys[k]] = gathered[block.common + k];
  return sums;
}

// out[query] = sum over `count` keys of weights[query, key] * values[key]. Rows of weights are
// `width` floats apart, rows of out `stride`. Prefetches `next_keys` [count, D], if given.
template <typename T, int queries>
INLINED void blend_values(const float* weights, long width, const T* values, long count, long dim,
                  float* out, long stride, const T* next_keys) {
  for (long i = 0; i < dim; i += CHUNK) {
    FloatPair totals[queries] = {};
    for (long k = 0; k < count; k++) {
      const FloatPair value = T::load(values + k * dim + i);
      if (next_keys)
        for (long line = i; line < i + CHUNK; line += CACHE_LINE / sizeof(T))
          __builtin_prefetch(next_keys + k * dim + line, 0, 2);
      for (int row = 0; row < queries; row++) {
        const Floats weight = broadcast(weights[row * width + k]);
        totals[row].first += weight * value.first;
        totals[row].second += weight * value.second;
      }
    }
    for (int row = 0; row < queries; row++) {
      store_floats(out + row * stride + i, totals[row].first);
      store_floats(out + row * stride + i + LANES, totals[row].second);
    }
  }
}

// Write the partials of `queries` consecutive queries of one head, from number `first` on. The
// first queries prefetch the values that they read next, and the keys of the next block.
template <typename T, int queries>
KERNEL void attend_block(const AttentionCall<T>& call, const TailKeys& tail, const KeyBlock& block,
                  const T* q, long head, long first, float* partials) {
  static thread_local std::vector<float> buffer;
  const long dim = call.dim;
  const long stride = partial_size(dim);
  const T* keys = call.keys + (head * call.capacity + block.first_slot) * dim;
  const T* values = call.values + (head * call.capacity + block.first_slot) * dim;
  const bool prefetches = first == 0;
  const long width = block.count + KEY_BLOCK;  // with space for padding
  float* scores = grown(buffer, TILE * width);
  score_keys<T, queries>(q, keys, block.count, dim, call.scale, scores, width,
                         prefetches ? values : nullptr);
  for (int query = 0; query < queries; query++) {
    float* row_scores = scores + query * width;
    const long row = (first + query) % call.rows;
    const long hidden = call.hidden(row, block.from);
    const SoftmaxSums sums = block.is_branched
                                 ? exponentiate_visible(row_scores, block, tail, row, hidden)
                                 : exponentiate(row_scores, block.count, hidden);
    partials[query * stride] = sums.maximum;
    partials[query * stride + 1] = sums.total;
  }
  blend_values<T, queries>(scores, width, values, block.count, dim, partials + LANES, stride,
                           prefetches ? keys + KEY_BLOCK * dim : nullptr);
}

}  // namespace
