// A draft's decoder layer in one call: projections, attention over its cache, the output
// projection, the residual sum and the MLP.
//
// - It consists of the functions of the other headers, in their order, so it has their bits.
// - What differs between networks, the fusion before it and the outputs after it, is the caller's.

#pragma once

#include "attention.hpp"
#include "tail.hpp"

namespace {

// A product's packed weight [outs, in] and its bias [outs] or null.
template <typename T, typename W> struct Linear {
  const W* weight;
  const T* bias;

  void run(const T* x, T* out, long rows, long in, long outs, int threads) const {
    product<T, W>({x, weight, bias, out, rows, in, outs}, threads);
  }
};

template <typename T, typename W> struct Layer {
  Linear<T, W> q;        // [H D, input_width]
  Linear<T, W> kv;       // [2 H_kv D, input_width], keys before values
  Linear<T, W> out;      // [width, H D]
  Linear<T, W> gate_up;  // [2 mlp_width, width], gate before up
  Linear<T, W> down;     // [update_width, mlp_width]
  const T* norm;         // [width]
  long input_width;
  long width;
  long mlp_width;
  long update_width;
  float eps;

  // Read x [written, input_width], whose last `rows` ask. Adds attention's output to `residual`
  // [rows, width], and writes the MLP's to `update` [rows, update_width]. `call` holds the sizes
  // and the cache.
  void run(AttentionCall<T> call, const T* x, T* residual, T* update, int threads) const {
    static thread_local std::vector<T> workspace;
    const long rows = call.rows;
    const long q_width = call.heads * call.dim;
    const long kv_width = 2 * call.kv_heads * call.dim;
    const long row_size = 2 * q_width + 2 * width + 3 * mlp_width;
    T* queries = grown(workspace, rows * row_size + call.written * kv_width);
    T* seen = queries + rows * q_width;
    T* delta = seen + rows * q_width;
    T* normed = delta + rows * width;
    T* both = normed + rows * width;
    T* activation = both + 2 * rows * mlp_width;
    T* entries = activation + rows * mlp_width;
    q.run(x + (call.written - rows) * input_width, queries, rows, input_width, q_width, threads);
    kv.run(x, entries, call.written, input_width, kv_width, threads);
    call.q = queries;
    call.kv = entries;
    call.q_stride = q_width;
    call.kv_stride = kv_width;
    call.out = seen;
    attend(call, threads);
    out.run(seen, delta, rows, q_width, width, threads);
    add_norm<T>(residual, delta, norm, normed, rows, width, {eps, 0.f}, threads);
    gate_up.run(normed, both, rows, width, 2 * mlp_width, threads);
    gated<T>(both, activation, rows, mlp_width, SILU, threads);
    down.run(activation, update, rows, mlp_width, update_width, threads);
  }
};

// Read a layer from the caller's arrays: `weights` and `widths` in the order of Layer's.
template <typename T, typename W>
Layer<T, W> read_layer(const void* const* weights, const long* widths, float eps) {
  const auto linear = [=](long number) {
    return Linear<T, W>{(const W*)weights[2 * number], (const T*)weights[2 * number + 1]};
  };
  return {linear(0), linear(1), linear(2), linear(3), linear(4), (const T*)weights[10],
          widths[0], widths[1], widths[2], widths[3], eps};
}

}  // namespace
