// Small convolution networks in integers: int8 weights, int16 activations, int32 accumulators.
//
//   acc = bias + sum(weight * x)                            zero padding outside the image
//   out = clamp((acc + 2^(shift - 1)) >> shift, lo, hi)     arithmetic shift
//
// The order of the additions does not matter, because no partial sum can overflow (see
// CheckAccumulator), so that every vector unit gives the same integers everywhere.
//
// Activations are channel-innermost: x[(row * width + column) * stride + channel], with stride a
// multiple of eight.
#ifndef FASDIFF_CSRC_INTEGER_NET_H_
#define FASDIFF_CSRC_INTEGER_NET_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "conv_kernel.h"
#include "status.h"

namespace fasdiff {

constexpr int kMaxLayers = 8;
constexpr int kMaxChannels = 512;
constexpr int kMaxLayerShift = 24;
constexpr int32_t kBiasLimit = 1 << 24;

// Channels rounded up to a whole number of int16 vectors.
constexpr int PadChannels(int channels) { return (channels + 7) & ~7; }

// (v + 2^(shift - 1)) >> shift in int64, v itself for shift 0.
// REQUIRES: 0 <= shift <= 24 and |v| < 2^62.
constexpr int64_t RoundShift(int64_t v, int shift) {
  return shift == 0 ? v : (v + (int64_t{1} << (shift - 1))) >> shift;
}

static_assert((-3 >> 1) == -2, "negative numbers must shift arithmetically");

template <typename T>
constexpr T Clamp(T v, T lo, T hi) {
  return v < lo ? lo : (v > hi ? hi : v);
}

// Which positions (row i, column j): what a layer computes, what a pass codes.
enum class Lattice {
  kAll,
  kEven,      // i + j even.
  kOdd,       // i + j odd.
  kEvenEven,  // i and j even.
  kOddOdd,    // i and j odd.
};

// The positions of a lattice, row by row.
ConvArea AreaOf(int height, int width, Lattice lattice);

struct alignas(64) CacheLine {
  uint8_t bytes[64];
};
using CacheLines = std::vector<CacheLine>;

// Weights are packed for the vector unit that is chosen (cpu_dispatch.h) when the layer is made.
class ConvLayer {
 public:
  // Takes weight[cout][cin][k][k] and bias[cout].
  // kModelBadLayer for sizes, shift or limits out of range; kModelBadBias; kBadCpuPath.
  Status Init(int cin, int cout, int k, int shift, int lo, int hi, const int8_t* weight,
              const int32_t* bias);

  // kModelAccumulatorTooWide unless cin * k * k * 128 * max_input + |bias| < 2^31.
  Status CheckAccumulator(int max_input) const;

  int cin() const { return shape_.cin; }
  int cout() const { return shape_.cout; }
  int k() const { return shape_.k; }
  // The largest magnitude that comes out.
  int max_output() const {
    return -shape_.lo > shape_.hi ? -shape_.lo : (shape_.hi > 0 ? shape_.hi : -shape_.lo);
  }

  // x [height, width, x_stride] -> out [height, width, out_stride], the lattice's positions only.
  // `scratch` grows to what it needs.
  // REQUIRES: x_stride >= PadChannels(cin) and a multiple of eight, out_stride >= cout.
  void Run(const int16_t* x, int x_stride, int height, int width, Lattice lattice, int16_t* out,
           int out_stride, CacheLines* scratch) const;

 private:
  // One way to compute the layer: what does it, and the weights as that takes them.
  struct Packing {
    const ConvKernel* kernel;
    CacheLines weight;
  };

  ConvShape shape_ = {0, 0, 1, 1, 0, 0};
  std::vector<Packing> packings_;  // The fastest first; the last takes any activations.
  std::vector<int32_t> bias_;      // [cout rounded up to 16].
};

// A chain of layers.
class IntegerNet {
 public:
  struct Scratch {
    std::vector<int16_t> hidden[2];
    CacheLines conv;
  };

  // Appends a layer. kModelBadLayerChain if it does not take what the last one gives.
  Status Append(ConvLayer layer);

  // kModelAccumulatorTooWide if any layer can overflow when |input| <= max_input.
  Status CheckAccumulators(int max_input) const;

  int cin() const { return layers_.front().cin(); }
  int cout() const { return layers_.back().cout(); }
  int max_output() const { return layers_.back().max_output(); }

  // As ConvLayer::Run. Hidden layers compute what the lattice's positions need, and no more.
  // REQUIRES: at least one layer.
  void Run(const int16_t* x, int x_stride, int height, int width, Lattice lattice, int16_t* out,
           int out_stride, Scratch* scratch) const;

 private:
  std::vector<ConvLayer> layers_;
};

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_INTEGER_NET_H_
