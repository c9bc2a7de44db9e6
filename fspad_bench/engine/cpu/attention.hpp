// Attention with rotary embedding over a KV cache, for one row or a tree of them.
//
// - One call rotates q and k, writes k and v to the cache, and attends.
// - Tasks are pairs of a key-value head and a block of keys. The partials of a query's blocks are
//   merged afterwards in one order, whichever thread computed them.

#pragma once

#include <cmath>

#include "attention_block.hpp"

namespace {

constexpr long MAX_HEAD_DIM = 256;

// out = (x1 cos - x2 sin, x2 cos + x1 sin) for the halves x1, x2 of x [D]. The table's sines carry
// the sign of their half.
template <typename T> void rotate(const T* x, const T* cos, const T* sin, T* out, long dim) {
  const long half = dim / 2;
  for (long i = 0; i < dim; i += CHUNK) {
    const FloatPair value = T::load(x + i);
    const FloatPair other = T::load(x + (i + half) % dim);
    const FloatPair c = T::load(cos + i);
    const FloatPair s = T::load(sin + i);
    T::store(out + i, {other.first * s.first + value.first * c.first,
                       other.second * s.second + value.second * c.second});
  }
}

// Write the rotated keys and the values of kv to the cache.
template <typename T> void append_entries(const AttentionCall<T>& call) {
  for (long row = 0; row < call.written; row++)
    for (long head = 0; head < call.kv_heads; head++) {
      const T* key = call.kv + row * call.kv_stride + head * call.dim;
      const T* value = key + call.kv_heads * call.dim;
      const long offset = (head * call.capacity + call.start + row) * call.dim;
      const long angle = row * call.rope_stride;
      rotate(key, call.cos + angle, call.sin + angle, call.keys + offset, call.dim);
      std::memcpy(call.values + offset, value, call.dim * sizeof(T));
    }
}

// Write the rotated queries to `to` [H, rows, D].
template <typename T> void rotate_queries(const AttentionCall<T>& call, T* to) {
  for (long head = 0; head < call.heads; head++)
    for (long row = 0; row < call.rows; row++) {
      const T* query = call.q + row * call.q_stride + head * call.dim;
      const long angle = (call.written - call.rows + row) * call.rope_stride;
      rotate(query, call.cos + angle, call.sin + angle, to + (head * call.rows + row) * call.dim,
             call.dim);
    }
}

// Write the partials [queries] of one key-value head's q [queries, D] with the block that starts at
// the from-th key.
template <typename T>
void attend_head(const AttentionCall<T>& call, const TailKeys& tail, const T* q, long head,
                 long from, float* partials) {
  const KeyBlock block = key_block(call, from);
  const long queries = call.queries();
  for (long first = 0; first < queries; first += TILE)
    with_constant<TILE>(std::min(TILE, queries - first), [&](auto count) {
      attend_block<T, count>(call, tail, block, q + first * call.dim, head, first,
                             partials + first * partial_size(call.dim));
    });
}

// Merge the partials of one query, `stride` floats apart, into its output [D].
template <typename T>
void merge_blocks(const float* partials, long blocks, long stride, long dim, T* out) {
  float maximum = MASKED_SCORE;
  for (long b = 0; b < blocks; b++) maximum = std::max(maximum, partials[b * stride]);
  float total = 0;
  Floats sums[MAX_HEAD_DIM / LANES] = {};
  for (long b = 0; b < blocks; b++) {
    const float* partial = partials + b * stride;
    const float share = std::exp(partial[0] - maximum);
    total += share * partial[1];
    for (long c = 0; c < dim / LANES; c++)
      sums[c] += share * load_floats(partial + LANES + c * LANES);
  }
  for (long c = 0; c < dim / LANES; c += 2)
    T::store(out + c * LANES, {sums[c] / total, sums[c + 1] / total});
}

// Return the number of the first block that any row attends to.
template <typename T> long first_block(const AttentionCall<T>& call) {
  return call.first ? *std::min_element(call.first, call.first + call.rows) / KEY_BLOCK : 0;
}

// Merge all partials [H_kv, blocks, queries] into call.out.
template <typename T>
void merge_all(const AttentionCall<T>& call, const float* partials, long blocks) {
  const long size = partial_size(call.dim);
  const long stride = call.queries() * size;
  for (long head = 0; head < call.heads; head++) {
    const long kv_head = head / call.groups();
    const long group = head % call.groups();
    for (long row = 0; row < call.rows; row++) {
      const long query = group * call.rows + row;
      merge_blocks(partials + kv_head * blocks * stride + query * size, blocks, stride, call.dim,
                   call.out + (row * call.heads + head) * call.dim);
    }
  }
}

template <typename T> void attend(const AttentionCall<T>& call, int threads) {
  static thread_local TailKeys tail_keys;
  static thread_local std::vector<T> query_buffer;
  static thread_local std::vector<float> partial_buffer;
  append_entries(call);
  tail_keys.read(call);
  const TailKeys& tail = tail_keys;  // of this thread; others would name their own
  const long queries = call.queries();
  const long skipped = first_block(call);
  const long blocks = (call.length + KEY_BLOCK - 1) / KEY_BLOCK - skipped;
  const long tasks = call.kv_heads * blocks;
  const long task_size = queries * partial_size(call.dim);
  T* q = grown(query_buffer, call.heads * call.rows * call.dim);  // [H_kv, queries, D]
  float* partials = grown(partial_buffer, tasks * task_size);     // [H_kv, blocks, queries]
  rotate_queries(call, q);
  const long run = std::max(1L, blocks / 4);  // neighbouring blocks of one thread: they prefetch
  const long read = std::min(call.length, blocks * KEY_BLOCK);
  const bool is_parallel = call.kv_heads * read * queries * call.dim > MIN_PARALLEL_WORK;
#pragma omp parallel for schedule(dynamic, run) num_threads(threads) if (is_parallel)
  for (long task = 0; task < tasks; task++) {
    const long head = task / blocks;
    const long from = (skipped + task % blocks) * KEY_BLOCK;
    attend_head(call, tail, q + head * queries * call.dim, head, from,
                partials + task * task_size);
  }
  merge_all(call, partials, blocks);
}

// Set a call's sizes from the caller's array, in the order of AttentionCall's.
template <typename T> void read_sizes(AttentionCall<T>& call, const long* numbers) {
  call.rows = numbers[0];
  call.written = numbers[1];
  call.q_stride = numbers[2];
  call.kv_stride = numbers[3];
  call.rope_stride = numbers[4];
  call.heads = numbers[5];
  call.kv_heads = numbers[6];
  call.dim = numbers[7];
  call.capacity = numbers[8];
  call.start = numbers[9];
  call.length = numbers[10];
  call.tail = numbers[11];
}

}  // namespace
