// The compiled CPU step: the functions that `native.py` calls through ctypes.
//
// - `dtype` is that of all tensors: 0 for float32, 1 for bfloat16. Sums are float32.
// - Where products take part, `kind` says it, or 2 for float32 over packed weights in bfloat16.
// - Widths are multiples of 32; those of heads are multiples of 64, up to 256.
// - A row's result is the same to the bit whatever other rows are computed with it and however many
//   threads compute them: a tree's node gets what its path would, one token at a time.

#include "attention.hpp"
#include "layer.hpp"
#include "leading.hpp"
#include "products.hpp"
#include "tail.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int BFLOAT16 = 1;
constexpr int BFLOAT16_WEIGHTS = 2;

// Call f with a value of the element type that `dtype` stands for.
template <typename F> void with_element(int dtype, F f) {
  if (dtype == BFLOAT16)
    f(Bfloat16{});
  else
    f(Float32{});
}

// Call f with values of the element type of rows and that of packed weights.
template <typename F> void with_weights(int kind, F f) {
  if (kind == BFLOAT16)
    f(Bfloat16{}, Bfloat16{});
  else if (kind == BFLOAT16_WEIGHTS)
    f(Float32{}, Bfloat16{});
  else
    f(Float32{}, Float32{});
}

}  // namespace

EXPORT void fspad_pack(int kind, const void* weight, void* packed, long in, long outs) {
  with_weights(kind, [=](auto element, auto stored) {
    using T = decltype(element);
    using W = decltype(stored);
    pack<T, W>((const W*)weight, (W*)packed, in, outs);
  });
}

EXPORT void fspad_product(int kind, const void* x, const void* weight, const void* bias, void* out,
                          long rows, long in, long outs, int threads) {
  with_weights(kind, [=](auto element, auto stored) {
    using T = decltype(element);
    using W = decltype(stored);
    product<T, W>({(const T*)x, (const W*)weight, (const T*)bias, (T*)out, rows, in, outs},
                  threads);
  });
}

EXPORT void fspad_add_norm(int dtype, void* x, const void* delta, const void* weight, void* out,
                           long rows, long width, float eps, float norm_offset, int threads) {
  with_element(dtype, [=](auto element) {
    using T = decltype(element);
    add_norm((T*)x, (const T*)delta, (const T*)weight, (T*)out, rows, width, {eps, norm_offset},
             threads);
  });
}

EXPORT void fspad_gated(int dtype, const void* gate_up, void* out, long rows, long width,
                        int activation, int threads) {
  with_element(dtype, [=](auto element) {
    using T = decltype(element);
    gated((const T*)gate_up, (T*)out, rows, width, activation, threads);
  });
}

EXPORT void fspad_tail(int kind, void* x, const void* attention, void* result,
                       const void* const* weights, const long* numbers, long rows, float eps,
                       float norm_offset, int threads) {
  with_weights(kind, [=](auto element, auto stored) {
    using T = decltype(element);
    using W = decltype(stored);
    const Tail<T, W> tail = read_tail<T, W>(weights, numbers, {eps, norm_offset});
    tail.run((T*)x, (const T*)attention, (T*)result, rows, threads);
  });
}

EXPORT void fspad_layer(int kind, const void* x, void* residual, void* update,
                        const void* const* weights, const long* widths, const void* cos,
                        const void* sin, void* keys, void* values, const uint8_t* visible,
                        const long* numbers, float scale, float eps, int threads) {
  with_weights(kind, [=](auto element, auto stored) {
    using T = decltype(element);
    using W = decltype(stored);
    AttentionCall<T> call{};
    call.cos = (const T*)cos;
    call.sin = (const T*)sin;
    call.keys = (T*)keys;
    call.values = (T*)values;
    call.visible = visible;
    call.scale = scale;
    read_sizes(call, numbers);
    const Layer<T, W> layer = read_layer<T, W>(weights, widths, eps);
    layer.run(call, (const T*)x, (T*)residual, (T*)update, threads);
  });
}

EXPORT void fspad_attend(int dtype, const void* q, const void* kv, const void* cos, const void* sin,
                         void* keys, void* values, const uint8_t* visible, const long* first,
                         void* out, const long* numbers, float scale, int threads) {
  with_element(dtype, [=](auto element) {
    using T = decltype(element);
    AttentionCall<T> call;
    call.q = (const T*)q;
    call.kv = (const T*)kv;
    call.cos = (const T*)cos;
    call.sin = (const T*)sin;
    call.keys = (T*)keys;
    call.values = (T*)values;
    call.visible = visible;
    call.first = first;
    call.out = (T*)out;
    call.scale = scale;
    read_sizes(call, numbers);
    attend(call, threads);
  });
}

EXPORT void fspad_leading(const float* logits, const int64_t* tokens, long rows, long width,
                          long count, float* values, int64_t* leaders, uint32_t row,
                          uint32_t offset, float temperature, int threads) {
  leading(logits, tokens, rows, width, temperature, {row, offset}, values, leaders, count, threads);
}
