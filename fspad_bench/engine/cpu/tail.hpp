// All that lies between two attentions: residual sums, RMS norms, MLPs and the next projections.
//
// - Rows are computed independently of one another.
// - A residual sum is rounded to the element type before its norm is taken, as torch's is.

#pragma once

#include <cmath>

#include "products.hpp"

namespace {

struct NormConstants {
  float eps;
  float offset;  // added to a norm's weights
};

// x <- x + delta, out <- rms_norm(x) * (weight + offset), for x, delta, out [rows, width]. delta may
// be null, and out may be x then.
template <typename T>
void add_norm(T* x, const T* delta, const T* weight, T* out, long rows, long width,
              NormConstants constants, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > MIN_PARALLEL_WORK)
  for (long row = 0; row < rows; row++) {
    T* x_row = x + row * width;
    T* out_row = out + row * width;
    Floats squares = broadcast(0.f);
    for (long i = 0; i < width; i += CHUNK) {
      FloatPair value = T::load(x_row + i);
      if (delta) {
        const FloatPair change = T::load(delta + row * width + i);
        T::store(x_row + i, {value.first + change.first, value.second + change.second});
        value = T::load(x_row + i);
      }
      squares += value.second * value.second + value.first * value.first;
    }
    const float scale = 1.f / std::sqrt(sum_lanes(squares) / width + constants.eps);
    for (long i = 0; i < width; i += CHUNK) {
      const FloatPair value = T::load(x_row + i);
      const FloatPair factor = T::load(weight + i);
      T::store(out_row + i, {value.first * scale * (factor.first + constants.offset),
                             value.second * scale * (factor.second + constants.offset)});
    }
  }
}

constexpr int SILU = 0;  // the numbers of activations
constexpr int TANH_GELU = 1;

INLINED Floats silu(Floats x) {
  return each_part([&](long p) { return x.parts[p] / (1.f + exponential(-x.parts[p])); });
}

// x (1 + tanh u) / 2 = x / (1 + e^(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
INLINED Floats tanh_gelu(Floats x) {
  return each_part([&](long p) {
    const auto v = x.parts[p];
    return v / (1.f + exponential(-1.5957691f * (v + 0.044715f * v * v * v)));
  });
}

// out [rows, width] <- activation(gate) * up, for rows [gate, up] of gate_up [rows, 2 width].
template <typename T>
void gated(const T* gate_up, T* out, long rows, long width, int activation, int threads) {
  const bool is_silu = activation != TANH_GELU;
#pragma omp parallel for num_threads(threads) if (rows * width > MIN_PARALLEL_WORK)
  for (long row = 0; row < rows; row++) {
    const T* gate_row = gate_up + 2 * row * width;
    const T* up_row = gate_row + width;
    for (long i = 0; i < width; i += CHUNK) {
      const FloatPair gate = T::load(gate_row + i);
      const FloatPair up = T::load(up_row + i);
      if (is_silu)
        T::store(out + row * width + i,
                 {silu(gate.first) * up.first, silu(gate.second) * up.second});
      else
        T::store(out + row * width + i,
                 {tanh_gelu(gate.first) * up.first, tanh_gelu(gate.second) * up.second});
    }
  }
}

// Weights of an MLP sublayer; those of products are packed, biases may be null.
template <typename T, typename W> struct Mlp {
  const T* norm;          // [width]
  const W* gate_up;       // [2 mlp_width, width], gate before up
  const T* gate_up_bias;  // [2 mlp_width]
  const W* down;          // [width, mlp_width]
  const T* down_bias;     // [width]
  const T* down_norm;     // [width], of what the sublayer adds; may be null
};

// The output projection of an attention, any number of MLPs (one, unless sublayers are skipped), a
// norm, and the following projections.
template <typename T, typename W> struct Tail {
  const W* projection;  // [width, attention_width], null in a forward's first call: x is embeddings
  const T* projection_bias;
  const T* projection_norm;  // [width], of what the attention adds; may be null
  const T* norm;       // [width]
  const W* following;  // [following_width, width], null if following_width is 0
  const T* following_bias;
  const Mlp<T, W>* mlps;  // [mlp_count]
  long attention_width;
  long width;
  long mlp_width;
  long following_width;  // 0: the result is the normed x
  long mlp_count;
  int activation;
  NormConstants constants;

  // Norm the update [rows, width] of a sublayer in place, where it has such a norm.
  void norm_update(T* update, const T* weight, long rows, int threads) const {
    if (weight)
      add_norm<T>(update, (const T*)nullptr, weight, update, rows, width, constants, threads);
  }

  // Add all sublayers to x [rows, width]; write the following projections to `result`.
  void run(T* x, const T* attention, T* result, long rows, int threads) const {
    static thread_local std::vector<T> workspace;
    T* update = grown(workspace, rows * (2 * width + 3 * mlp_width));  // [rows, width]
    T* normed = update + rows * width;                                 // [rows, width]
    T* gate_up = normed + rows * width;                                // [rows, 2 mlp_width]
    T* hidden = gate_up + 2 * rows * mlp_width;                        // [rows, mlp_width]
    const T* delta = nullptr;
    if (projection) {
      product<T, W>({attention, projection, projection_bias, update, rows, attention_width, width},
                 threads);
      norm_update(update, projection_norm, rows, threads);
      delta = update;
    }
    for (long i = 0; i < mlp_count; i++) {
      const Mlp<T, W>& mlp = mlps[i];
      add_norm<T>(x, delta, mlp.norm, normed, rows, width, constants, threads);
      product<T, W>({normed, mlp.gate_up, mlp.gate_up_bias, gate_up, rows, width, 2 * mlp_width},
                 threads);
      gated<T>(gate_up, hidden, rows, mlp_width, activation, threads);
      product<T, W>({hidden, mlp.down, mlp.down_bias, update, rows, mlp_width, width}, threads);
      norm_update(update, mlp.down_norm, rows, threads);
      delta = update;
    }
    add_norm<T>(x, delta, norm, following_width ? normed : result, rows, width, constants, threads);
    if (following_width)
      product<T, W>({normed, following, following_bias, result, rows, width, following_width},
                 threads);
  }
};

// Read a tail from the caller's arrays: `weights` in the order of Tail's and then each Mlp's
// pointers, `numbers` in the order of Tail's widths and its number of MLPs.
template <typename T, typename W>
Tail<T, W> read_tail(const void* const* weights, const long* numbers, NormConstants constants) {
  static_assert(sizeof(Mlp<T, W>) == 6 * sizeof(void*), "an MLP is six pointers");
  Tail<T, W> tail;
  tail.projection = (const W*)weights[0];
  tail.projection_bias = (const T*)weights[1];
  tail.projection_norm = (const T*)weights[2];
  tail.norm = (const T*)weights[3];
  tail.following = (const W*)weights[4];
  tail.following_bias = (const T*)weights[5];
  tail.mlps = (const Mlp<T, W>*)(weights + 6);
  tail.attention_width = numbers[0];
  tail.width = numbers[1];
  tail.mlp_width = numbers[2];
  tail.following_width = numbers[3];
  tail.mlp_count = numbers[4];
  tail.activation = (int)numbers[5];
  tail.constants = constants;
  return tail;
}

}  // namespace
