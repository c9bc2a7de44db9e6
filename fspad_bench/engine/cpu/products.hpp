// Products of a few rows with a packed weight.
//
// - A packed weight consists of blocks of BLOCK outputs, the last one padded with zeros. Within a
//   block, DEPTH elements of an output lie beside those of the next output.
// - A float32 weight whose values are all bfloat16 numbers is kept as these (T is Float32, W
//   Bfloat16): half the bytes, and the same products.
// - An output's sum runs over its inputs in one order, whatever other rows and however many threads
//   there are: a row gets the same bits in any company.

#pragma once

#include "vectors.hpp"

namespace {

constexpr long BLOCK = 2 * LANES;  // outputs that are summed together, one per lane
constexpr long ALIASING = 4096;    // bytes: addresses this far apart compete for one cache set
#ifdef __AVX512F__
constexpr int MAX_TILE_ROWS = 14;  // rows whose sums with one block fit in registers
#else
constexpr int MAX_TILE_ROWS = 3;
#endif

// Pack a weight [outs, in], which is zero-filled beforehand, as [outs padded to blocks, in].
template <typename T, typename W> void pack(const W* weight, W* packed, long in, long outs) {
  for (long block_start = 0; block_start < outs; block_start += BLOCK)
    for (long i = 0; i < in; i += T::DEPTH)
      for (long o = block_start; o < block_start + BLOCK; o++) {
        if (o < outs) std::memcpy(packed, weight + o * in + i, T::DEPTH * sizeof(W));
        packed += T::DEPTH;
      }
}

template <typename T, typename W> struct Product {
  const T* x;       // [rows, in]
  const W* weight;  // [outs, in], packed
  const T* bias;    // [outs] or null
  T* out;           // [rows, outs]
  long rows;
  long in;
  long outs;
};

// Rows of a matrix, `stride` elements from one to the next.
template <typename T> struct Rows {
  const T* start;
  long stride;
};

// Copy a row, widened where it is to be read as floats.
template <typename T> void copy_row(T* to, const T* from, long count) {
  std::memcpy(to, from, count * sizeof(T));
}
inline void copy_row(Float32* to, const Bfloat16* from, long count) {
  for (long i = 0; i < count; i += LANES)
    Float32::store(to + i, load_upper_halves((const uint16_t*)(from + i)));
}

// Return the rows of x as a product reads them, copied further apart where their addresses would
// evict one another.
template <typename T, typename W> Rows<typename T::Input> input_rows(const Product<T, W>& p) {
  using Input = typename T::Input;
  static thread_local std::vector<Input> copies;
  const bool is_crowded = p.rows > 1 && p.in * sizeof(Input) % ALIASING == 0;
  if constexpr (std::is_same_v<T, Input>)
    if (!is_crowded) return {p.x, p.in};
  const long stride = is_crowded ? p.in + CHUNK : p.in;
  Input* to = grown(copies, p.rows * stride);
  for (long row = 0; row < p.rows; row++) copy_row(to + row * stride, p.x + row * p.in, p.in);
  return {to, stride};
}

// Consecutive rows that are multiplied with a block at once: number `index` of `count` tiles.
struct RowTile {
  long first_row;
  long index;
  long count;
};

// Store the sums [BLOCK] of one row with one block, of which only `count` outputs are real.
template <typename T> INLINED void store_block(T* to, Floats left, Floats right, long count) {
  T padded[BLOCK];
  T* target = count == BLOCK ? to : padded;
  T::store(target, left);
  T::store(target + LANES, right);
  if (count < BLOCK) std::memcpy(to, padded, count * sizeof(T));
}

// Multiply the `rows` rows of a tile with one block. The tiles share the prefetching of the next
// block, one cache line each in turn, so that memory stays busy throughout.
template <typename T, typename W, int rows>
KERNEL void multiply_block(const Product<T, W>& p, Rows<typename T::Input> x_rows, long block,
                           RowTile tile) {
  constexpr long HALF = LANES * T::DEPTH;  // elements of half a block's outputs
  constexpr long LINE = CACHE_LINE / sizeof(W);
  Floats sums[rows][2] = {};
  const typename T::Input* x = x_rows.start + tile.first_row * x_rows.stride;
  const W* weight = p.weight + block * BLOCK * p.in;
  const W* next_block = weight + p.in * BLOCK;
  long lines_to_skip = tile.index;
  for (long i = 0; i < p.in; i += T::DEPTH) {
    const auto left = T::load_weights(weight);
    const auto right = T::load_weights(weight + HALF);
    weight += 2 * HALF;
    for (long line = 0; line < 2 * HALF; line += LINE) {
      if (lines_to_skip == 0) {
        __builtin_prefetch(next_block + i * BLOCK + line, 0, 2);
        lines_to_skip = tile.count;
      }
      lines_to_skip--;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
      const auto inputs = T::broadcast_inputs(x + r * x_rows.stride + i);
      sums[r][0] = T::multiply_add(sums[r][0], left, inputs);
      sums[r][1] = T::multiply_add(sums[r][1], right, inputs);
    }
  }
  const long first_out = block * BLOCK;
  const long count = std::min(BLOCK, p.outs - first_out);
  float bias[BLOCK] = {};
  for (long o = 0; p.bias && o < count; o++) bias[o] = T::to_float(p.bias[first_out + o]);
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++) {
    const Floats left = sums[r][0] + load_floats(bias);
    const Floats right = sums[r][1] + load_floats(bias + LANES);
    store_block(p.out + (tile.first_row + r) * p.outs + first_out, left, right, count);
  }
}

// out = x weight^T + bias. A thread multiplies one block with all rows before it reads the next.
template <typename T, typename W> void product(const Product<T, W>& p, int threads) {
  const Rows<typename T::Input> x_rows = input_rows(p);
  const long blocks = (p.outs + BLOCK - 1) / BLOCK;
  const long tiles = (p.rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS;
  const bool is_parallel = p.in * p.outs > MIN_PARALLEL_WORK;
#pragma omp parallel for schedule(static) num_threads(threads) if (is_parallel)
  for (long block = 0; block < blocks; block++)
    for (long tile = 0; tile < tiles; tile++) {
      const long first_row = p.rows * tile / tiles;
      const long next_tile = p.rows * (tile + 1) / tiles;
      with_constant<MAX_TILE_ROWS>(next_tile - first_row, [&](auto rows) {
        multiply_block<T, W, rows>(p, x_rows, block, {first_row, tile, tiles});
      });
    }
}

}  // namespace
